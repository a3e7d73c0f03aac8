"""Which devices share the batch, and which share each volume."""

import jax
from jax.sharding import AxisType, Mesh

from kd_jax.models.resunet import DOWNSAMPLING
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.config import Config

_LEAST_DEPTH = 4 * DOWNSAMPLING


def make_mesh(data: int, space: int) -> Mesh:
  """The first data x space devices; `space` of them share each volume, the rest the batch."""
  return jax.make_mesh(
    (data, space),
    ("data", "space"),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: data * space],
  )


def mesh_for(config: Config) -> Mesh:
  """All devices, train.space of them to a volume.

  Raises:
    ConfigError: batch or patch cannot be shared so.
  """
  space, devices = config.train.space, jax.device_count()
  if devices % space:
    raise ConfigError(f"train.space = {space} does not divide the {devices} devices")
  data = devices // space
  share = data * config.train.accumulate
  if config.data.batch % share:
    parts = f" in {config.train.accumulate} parts (train.accumulate)" * (share > data)
    raise ConfigError(
      f"data.batch = {config.data.batch} cannot be shared by {data} devices{parts}; set it to a "
      f"multiple of {share}, or let devices share volumes (train.space)"
    )
  if config.data.patch[0] % (DOWNSAMPLING * space):
    raise ConfigError(
      f"data.patch = {config.data.patch}: with train.space = {space} its first side must be a "
      f"multiple of {DOWNSAMPLING * space}"
    )
  # XLA's partitioner gives kernel gradients that are wrong by a factor where the coarsest level,
  # split both ways, is two slices deep (seen with jax 0.10.2; three and more are right).
  if data > 1 and space > 1 and config.data.patch[0] < _LEAST_DEPTH:
    raise ConfigError(
      f"data.patch = {config.data.patch}: where devices share both batch and volume, its first "
      f"side must be at least {_LEAST_DEPTH}"
    )
  return make_mesh(data, space)
