"""A whole scan trains unsplit where devices share it: the same step, a quarter of the memory."""

from dataclasses import replace

import jax
import numpy as np
import optax
import published
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.models.framework import Framework
from kd_jax.settings.model import ModelSettings
from kd_jax.settings.training import GROUPS
from kd_jax.training.mesh import make_mesh
from kd_jax.training.state import init_state
from kd_jax.training.step import batch_sharding, compile_step, make_train_step

WHOLE = (256, 240, 160)  # 240x240x155, so that four devices share the first side
EIGHTH = (128, 120, 80)
SPEC = ModelSettings(student=("t1ce",), teachers={}, filters=(4, 4, 8, 8))


# In float32 one device's sums over ten million voxels are off by 1e-3 (four devices' less so, as
# float64 tells): that the numbers are the same is seen in float64.
@pytest.mark.slow
@pytest.mark.parametrize(
  ("sides", "dtype", "close"), [(WHOLE, "float32", 1e-2), (EIGHTH, "float64", 1e-10)]
)
def test_four_devices_share_a_scan(sides, dtype, close):
  with jax.enable_x64(dtype == "float64"):
    check(sides, dtype, close)


def check(sides, dtype, close):
  framework, confidence = Framework(replace(SPEC, dtype=dtype)), published.confidence()
  optimizers = {group: optax.sgd(0.1) for group in GROUPS}
  step = make_train_step(framework, optimizers, published.loss(), confidence, steps_per_epoch=1)
  state = init_state(framework, optimizers, confidence, jax.random.key(0))
  state = jax.tree.map(
    lambda x: np.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else x.dtype), state
  )
  rng = np.random.default_rng(0)
  centre = [np.arange(n) - n / 2 for n in sides]
  radius = np.sqrt(sum(x**2 for x in np.meshgrid(*centre, indexing="ij")))
  label = np.select([radius < 15, radius < 25, radius < 40], [1, 3, 2], 0).astype(np.uint8)[None]
  image = rng.standard_normal((1, 4, *sides), np.float32) + label[:, None]
  batch = {"image": image.astype(np.float16), "label": label}

  found = []
  for space in (1, 4):
    mesh = make_mesh(1, space)
    placed, key = jax.device_put((state, jax.random.key(0)), NamedSharding(mesh, P()))
    shared = jax.device_put(batch, batch_sharding(mesh))
    program = compile_step(step, mesh).lower(placed, shared, key).compile()
    after, first = program(placed, shared, key)
    _, second = program(after, shared, key)
    temporary = program.memory_analysis().temp_size_in_bytes
    found.append((jax.device_get(first), jax.device_get(second), temporary))
    print(f"{space} devices: {temporary / 1e9:.2f} GB each, losses {second['loss/student']:.6f}")
  (*alone, whole), (*together, part) = found
  for expected, actual in zip(alone, together, strict=True):
    for name, value in expected.items():
      np.testing.assert_allclose(actual[name], value, rtol=close, err_msg=name)
  assert part < 0.3 * whole
