"""The norm with its own gradient: Flax's numbers, in fewer passes over memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models.norm import SLOPE, How, normalise
from kd_jax.training.mesh import make_mesh

SHAPE = (2, 4, 5, 6)  # B, D, H, W
NAMES = ("x", "scale", "bias", "shift")


def arrays(channels, dtype="float64", center=0.0, seed=0):
  """x, scale, bias, shift; and what is pulled back."""
  rng = np.random.default_rng(seed)
  x = center + rng.standard_normal((*SHAPE, channels)) * np.linspace(0.5, 2, channels)
  scale, bias, shift = rng.standard_normal((3, channels))
  pull = rng.standard_normal(x.shape)
  return [a.astype(dtype) for a in (x, scale, bias, shift)], pull.astype(dtype)


def flax_norm(x, scale, bias, shift, how):
  """The same with Flax's GroupNorm; the bias of the convolution is added before it."""
  norm = nnx.GroupNorm(
    x.shape[-1],
    how.groups,
    epsilon=1e-5,
    use_scale=scale is not None,
    use_bias=bias is not None,
    dtype=how.dtype,
    rngs=nnx.Rngs(0),
  )
  graph, state = nnx.split(norm)
  given = {k: v for k, v in {"scale": scale, "bias": bias}.items() if v is not None}
  nnx.replace_by_pure_dict(state, given)
  y = nnx.merge(graph, state)(x if shift is None else x + shift)
  return jnp.where(y >= 0, y, SLOPE * y) if how.activate else y


def value_and_gradients(function, how, args, pull):
  """{"y": ..., "x": ..., ...} without those of arguments that are None."""
  y, back = jax.vjp(lambda *args: function(*args, how), *args)
  named = zip(NAMES, back(pull), strict=True)
  return {"y": y} | {name: gradient for name, gradient in named if gradient is not None}


def relative_errors(got, expected):
  """By name, of the largest value."""
  assert got.keys() == expected.keys()
  return {k: np.abs(got[k] - v).max() / np.abs(v).max() for k, v in expected.items()}


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("given", ["scale bias shift", "scale bias", "shift", ""])
@pytest.mark.parametrize(
  ("channels", "groups", "pack"), [(12, 4, 1), (6, 6, 1), (1, 1, 1), (6, 3, 2)]
)
def test_values_and_gradients_are_those_of_flax(channels, groups, pack, given, activate):
  with jax.enable_x64(True):
    args, pull = arrays(channels)
    args = [a if n == "x" or n in given.split() else None for n, a in zip(NAMES, args, strict=True)]
    how = How(groups, activate, jnp.float64, pack)
    got = value_and_gradients(normalise, how, args, pull)
    expected = value_and_gradients(flax_norm, how, args, pull)
    if groups == channels and "shift" in expected:  # nothing but rounding: the mean is subtracted
      voxels = pull.size / channels
      assert np.abs(got.pop("shift")).max() < 1e-12 * voxels
      assert np.abs(expected.pop("shift")).max() < 1e-12 * voxels
    errors = relative_errors(got, expected)
  assert max(errors.values()) < 1e-11, errors


def test_a_mean_that_is_large_against_the_spread():
  """A mean of 100 deviations: float32 loses as many digits as Flax's float32, or fewer.

  Without the activation: its gradient jumps where rounding changes a sign.
  """
  args, pull = arrays(12, "float64", center=100.0)
  how = How(4, False, jnp.float32)
  narrow = [a.astype(np.float32) for a in args]
  with jax.enable_x64(True):
    args = [a.astype(np.float64) for a in narrow]
    exact = value_and_gradients(flax_norm, How(4, False, jnp.float64), args, pull)
    exact = jax.tree.map(np.asarray, exact)
  pull = pull.astype(np.float32)
  ours = relative_errors(value_and_gradients(normalise, how, narrow, pull), exact)
  flax = relative_errors(value_and_gradients(flax_norm, how, narrow, pull), exact)
  assert max(ours.values()) < 1e-2, ours
  for name, error in ours.items():
    assert error < 2 * flax[name] + 1e-5, (name, error, flax[name])


def test_the_same_value_everywhere():
  """No deviation, and rounding that would make the variance less than nothing."""
  x = jnp.full((1, 8, 8, 8, 4), 1234.567, jnp.float32)
  how = How(2, False, jnp.float32)
  y, back = jax.vjp(lambda x: normalise(x, None, jnp.ones(4), None, how), x)
  np.testing.assert_allclose(y, 1, atol=0.1)  # 1e-4 (of 1234) / sqrt(epsilon)
  assert np.isfinite(back(jnp.ones_like(y))[0]).all()


def test_bfloat16_rounds_what_goes_in_and_out_alone():
  """Of values near 1, the result is off by half a unit in the last place: 2^-8 at most of 2."""
  args, pull = arrays(12, "float32")
  x, pull = (jnp.asarray(a, jnp.bfloat16) for a in (args[0], pull))
  args = [x, *args[1:]]
  got = value_and_gradients(normalise, How(4, True, jnp.bfloat16), args, pull)
  assert got["x"].dtype == got["y"].dtype == jnp.bfloat16
  assert got["scale"].dtype == got["bias"].dtype == got["shift"].dtype == jnp.float32
  wide = [a.astype(jnp.float32) for a in (*args, pull)]
  expected = value_and_gradients(flax_norm, How(4, True, jnp.float32), wide[:-1], wide[-1])
  for name in ("y", "x"):
    error = np.abs(np.asarray(got[name], np.float32) - expected[name])
    assert (error <= 2**-8 * np.abs(expected[name]) + 1e-5).all(), name
  for name in ("scale", "bias", "shift"):
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_x_is_all_that_is_kept_of_its_size():
  args, _ = arrays(12, "float32")
  how = How(4, True, jnp.float32)
  kept = jax.eval_shape(lambda *args: jax.vjp(lambda *a: normalise(*a, how), *args)[1], *args)
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(kept))
  assert sizes[-1] == args[0].size
  assert sum(sizes[:-1]) <= 12 * (3 + 3 * SHAPE[0])


@pytest.mark.parametrize("mesh", [(2, 2), (1, 4)])
def test_on_a_mesh_everything_is_as_on_one_device(mesh):
  args, pull = arrays(12, "float32")
  how = How(4, True, jnp.float32)

  def every(args, pull):
    return value_and_gradients(normalise, how, args, pull)

  devices = make_mesh(*mesh)
  whole, split = NamedSharding(devices, P()), NamedSharding(devices, P("data", "space"))
  program = jax.jit(
    every,
    in_shardings=([split, whole, whole, whole], split),
    out_shardings={"y": split, "x": split, "scale": whole, "bias": whole, "shift": whole},
    compiler_options=QUICK,
  )
  errors = relative_errors(program(args, pull), every(args, pull))
  assert max(errors.values()) < 1e-5, errors
