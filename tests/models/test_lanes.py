"""Rows of several voxels, as a TPU is given them: the numbers of plain arrays, here on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models import lanes
from kd_jax.models.blocks import Keys
from kd_jax.models.conv import Forms, conv3d, upsample2
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework
from kd_jax.models.fusion import Fusion
from kd_jax.settings.model import ModelSettings
from kd_jax.training.mesh import make_mesh


@pytest.mark.parametrize(
  ("filters", "expected"),
  [
    ((32, 64, 128, 256), (4, 2, 1, 1)),  # full rows of 128
    ((8, 16, 32, 64), (8, 4, 2, 1)),  # sides are multiples of 8 and no more
    ((24, 48, 96, 192), (4, 2, 1, 1)),  # powers of two, so that they divide the sides
    ((32, 64, 128, 256, 320, 320), (4, 2, 1, 1, 1, 1)),
  ],
)
def test_rows_are_as_full_as_the_sides_allow(filters, expected):
  assert lanes.packs(filters, "tpu") == expected
  assert lanes.packs(filters, "cpu") == lanes.packs(filters, "gpu") == (1,) * len(filters)


def test_a_row_has_its_voxels_side_by_side():
  x = jnp.arange(2 * 3 * 4 * 8 * 5).reshape(2, 3, 4, 8, 5)
  rows = lanes.pack(x, 4)
  assert rows.shape == (2, 3, 4, 2, 20)
  np.testing.assert_array_equal(rows[0, 0, 0, 1, 5:10], x[0, 0, 0, 5])
  np.testing.assert_array_equal(lanes.unpack(rows, 4), x)
  numbers = jnp.arange(5)
  np.testing.assert_array_equal(rows * lanes.spread(numbers, 4), lanes.pack(x * numbers, 4))
  np.testing.assert_array_equal(lanes.gather(rows, 4, jnp.max)[0, 0, 0, 1], x[0, 0, 0, 4:8].max(0))


@pytest.mark.parametrize(
  ("window", "stride", "pack"),
  [
    ((3, 3, 3), 1, 2),
    ((3, 3, 3), 1, 4),
    ((3, 3, 3), 2, 1),
    ((3, 3, 3), 2, 4),
    ((1, 1, 1), 1, 4),
    ((7, 7, 7), 1, 2),
  ],
)
def test_a_packed_convolution_and_its_gradients_are_the_plain_ones(window, stride, pack):
  """A window of 7 voxels reaches over several rows of 2."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 5, 4, 16, 3))
  kernel = rng.standard_normal((*window, 3, 2))

  def packed(x, kernel):
    return lanes.unpack(lanes.conv3d(x, kernel, stride, pack), pack)

  def plain(x, kernel):
    return conv3d(x, kernel, stride, Forms("native"))

  compare(packed, plain, x, kernel)


@pytest.mark.parametrize("mesh", [(2, 2), (1, 4)])
def test_on_a_mesh_a_packed_convolution_is_that_of_one_device(mesh):
  """Samples and slices are split; a packed convolution has both of them as samples."""
  rng = np.random.default_rng(0)
  shapes = (4, 16, 6, 8, 6), (3, 3, 3, 6, 8), (3, 3, 3, 8, 8), (4, 8, 3, 4, 8)
  x, first, second, pull = (rng.standard_normal(s).astype(np.float32) for s in shapes)

  def gradients(convolve, x, first, second, pull):
    def chain(x, first, second):
      return convolve(jnp.sin(convolve(x, first, 1)), second, 2)

    y, back = jax.vjp(chain, x, first, second)
    return y, *back(pull)

  devices = make_mesh(*mesh)
  whole, split = NamedSharding(devices, P()), NamedSharding(devices, P("data", "space"))
  program = jax.jit(
    lambda *a: gradients(lambda x, k, s: lanes.unpack(lanes.conv3d(x, k, s, 2), 2), *a),
    in_shardings=(split, whole, whole, split),
    out_shardings=(split, split, whole, whole),
    compiler_options=QUICK,
  )
  expected = gradients(lambda x, k, s: conv3d(x, k, s, Forms("native")), x, first, second, pull)
  for got, want in zip(program(x, first, second, pull), expected, strict=True):
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("pack", [2, 4])
def test_a_packed_upsampling_and_its_gradients_are_the_plain_ones(pack):
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((2, 3, 2, 4, 5)), rng.standard_normal((2, 2, 2, 5, 3))
  compare(lambda x, k: lanes.unpack(lanes.upsample2(x, k, pack), pack), upsample2, x, kernel)


def compare(packed, plain, x, kernel):
  with jax.enable_x64(True):
    pull = np.random.default_rng(1).standard_normal(jax.eval_shape(plain, x, kernel).shape)

    @jax.jit
    def both(x, kernel, pull):
      results = []
      for function in (packed, plain):
        y, back = jax.vjp(function, x, kernel)
        results.append((y, *back(pull)))
      return results

    for got, expected in zip(*both(x, kernel, pull), strict=True):
      np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("network", ["resunet", "resenc"])
def test_a_network_and_its_gradients_are_those_of_a_cpu(network):
  filters = (4, 8, 16, 16) if network == "resunet" else (4, 8, 8)
  spec = ModelSettings(network=network, filters=filters, dtype="float64")
  images = np.random.default_rng(0).standard_normal((2, 4, 8, 8, 16))

  def of(platform):
    framework = Framework(spec, convolutions=Convolutions(platform, forms=Forms("native")))
    params = jax.tree.map(jnp.float64, framework.init(jax.random.key(0))["student"])
    return results(framework.student, params, images)

  with jax.enable_x64(True):
    agree(of("tpu"), of("cpu"))


@pytest.mark.parametrize("attention", ["channel", "cbam"])
def test_fused_logits_and_their_gradients_are_those_of_plain_arrays(attention):
  rng = np.random.default_rng(0)
  features = {name: rng.standard_normal((2, 4, 6, 8, 16)) for name in ("flair", "t2")}

  def of(pack):
    keys = Keys(jax.random.key(0))
    how = {"attention": attention, "dtype": jnp.float64, "pack": pack}
    fusion = Fusion(tuple(features), 16, 4, rngs=keys, **how)
    graph, params = nnx.split(fusion)
    return results(lambda params, x: nnx.merge(graph, params)(x), params, features)

  with jax.enable_x64(True):
    agree(of(4), of(1))


def results(function, params, inputs):
  """What it gives, and the gradients of a sum of that to both arguments."""

  def loss(params, inputs):
    given = function(params, inputs)
    waves = (jnp.mean(jnp.sin(a + n)) for n, a in enumerate(jax.tree.leaves(given)))
    return sum(waves), given

  program = jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)
  return program(params, inputs)


def agree(got, expected):
  """To float64's rounding, of the largest number of each array."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 + 1e-10 * np.abs(b).max())
