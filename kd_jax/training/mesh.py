"""Which devices share the batch, and which share each volume."""

import jax
from jax.sharding import AxisType, Mesh

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.run import Settings


def make_mesh(data: int, space: int) -> Mesh:
  """The first data x space devices; `space` of them share each volume, the rest the batch."""
  return jax.make_mesh(
    (data, space),
    ("data", "space"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: data * space],
  )


def mesh_for(settings: Settings) -> Mesh:
  """All devices, train.spatial_shards of them to a volume.

  Raises:
    ConfigError: batch or patch cannot be shared so.
  """
  space, devices = settings.train.spatial_shards, jax.device_count()
  if devices % space:
    raise ConfigError(f"train.spatial_shards = {space} does not divide the {devices} devices")
  data = devices // space
  share = data * settings.train.accumulate
  if settings.data.batch % share:
    parts = f" in {settings.train.accumulate} parts (train.accumulate)" * (share > data)
    raise ConfigError(
      f"data.batch = {settings.data.batch} cannot be shared by {data} devices{parts}; set it to a "
      f"multiple of {share}, or let devices share volumes (train.spatial_shards)"
    )
  multiple = settings.model.multiple
  if settings.data.patch[0] % (multiple * space):
    raise ConfigError(
      f"data.patch = {settings.data.patch}: with train.spatial_shards = {space} its first side "
      f"must be a multiple of {multiple * space}"
    )
  # XLA's partitioner gives kernel gradients that are wrong by a factor where the coarsest level,
  # split both ways, is two slices deep (seen with jax 0.10.2; three and more are right).
  if data > 1 and space > 1 and settings.data.patch[0] < 4 * multiple:
    raise ConfigError(
      f"data.patch = {settings.data.patch}: where devices share both batch and volume, its first "
      f"side must be at least {4 * multiple}"
    )
  return make_mesh(data, space)
