"""How devices are shared among batch and volume, and what is refused."""

import jax
import pytest

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import presets
from kd_jax.training.mesh import mesh_for


def mesh(monkeypatch, devices, space, side, batch=8, accumulate=1):
  """Of the first of the tests' eight devices, for patches of this first side; multiples of 8."""
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  changes = {
    "train.spatial_shards": space,
    "train.accumulate": accumulate,
    "data.batch": batch,
    "data.patch": (side, 64, 64),
  }
  settings = presets.settings("brats21", changes)
  assert settings.model.multiple == 8
  return dict(mesh_for(settings).shape)


@pytest.mark.parametrize(
  ("devices", "space", "side"),
  [
    (8, 1, 16),
    (8, 2, 32),  # where both are shared, four slices on the coarsest level
    (8, 2, 48),
    (2, 2, 16),  # the volume alone is shared
    (1, 1, 8),
  ],
)
def test_devices_share_batch_and_volume(monkeypatch, devices, space, side):
  assert mesh(monkeypatch, devices, space, side) == {"data": devices // space, "space": space}


@pytest.mark.parametrize(("devices", "space"), [(4, 2), (8, 2)])
def test_two_slices_are_refused_where_gradients_would_be_wrong(monkeypatch, devices, space):
  """XLA's partitioner gives wrong ones: see mesh_for."""
  with pytest.raises(ConfigError, match=r"data.patch = \(16, 64, 64\).* at least 32"):
    mesh(monkeypatch, devices, space, 16)


@pytest.mark.parametrize(
  ("devices", "space", "side", "batch", "accumulate", "message"),
  [
    (8, 3, 48, 8, 1, "train.spatial_shards = 3 does not divide the 8 devices"),
    (8, 2, 24, 8, 1, "must be a multiple of 16"),
    (8, 1, 16, 12, 1, "data.batch = 12 cannot be shared by 8 devices; .* multiple of 8,"),
    (4, 2, 32, 4, 4, "data.batch = 4 cannot be shared by 2 devices in 4 parts"),
  ],
)
def test_what_cannot_be_shared_is_named(
  monkeypatch, devices, space, side, batch, accumulate, message
):
  with pytest.raises(ConfigError, match=message):
    mesh(monkeypatch, devices, space, side, batch, accumulate)
