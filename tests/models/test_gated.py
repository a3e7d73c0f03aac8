"""A channel gate and the norm after it: the numbers of the plain operations, in fewer passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models.blocks import Build, Keys
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.gated import gate_and_normalise, pool
from kd_jax.models.norm import How, normalise
from kd_jax.models.resunet import DecoderStage
from kd_jax.training.mesh import make_mesh

SHAPE = (2, 4, 5, 6)  # B, D, H, W
CHANNELS = (8, 4)  # of the parts
NAMES = ("first", "second", "shift", "weights", "scale", "bias")


def arrays(dtype, seed=0):
  """Two parts whose maxima stand at several voxels, and what else there is; and what is pulled."""
  rng = np.random.default_rng(seed)
  parts = [rng.integers(-3, 4, (*SHAPE, c)) + np.linspace(0, 1, c) for c in CHANNELS]
  shift, scale, bias = rng.standard_normal((3, sum(CHANNELS)))
  pulls = rng.standard_normal((2, *SHAPE, sum(CHANNELS)))
  args = (*parts, shift, rng.standard_normal((2, sum(CHANNELS))), scale, bias)
  return [a.astype(dtype) for a in args], [a.astype(dtype) for a in pulls]


def gate_of(mean, peak, weights):
  return jax.nn.sigmoid(mean * weights[0] + peak * weights[1])


def in_few_passes(how, first, second, shift, weights, scale, bias):
  parts = (first, second)
  gate = gate_of(*pool(parts, shift, how.pack), weights).astype(first.dtype)
  both = gate_and_normalise(parts, shift, gate, scale, bias, how)
  return tuple(jnp.concatenate(parts, axis=-1) for parts in both)


def plain(how, first, second, shift, weights, scale, bias):
  x = jnp.concatenate([first, second], axis=-1) + shift
  mean, peak = (reduce(x, axis=(1, 2, 3), keepdims=True) for reduce in (jnp.mean, jnp.max))
  gated = x * gate_of(mean, peak, weights)
  return gated, normalise(gated, scale, bias, None, how)


def results(function, how, args, pulls):
  (gated, y), back = jax.vjp(lambda *args: function(how, *args), *args)
  gradients = dict(zip(NAMES, back(tuple(pulls)), strict=True))
  return {"gated": gated, "y": y} | gradients


def relative_errors(got, expected):
  """By name, of the largest value."""
  wide = {k: np.asarray(v, np.float64) for k, v in got.items()}
  return {k: np.abs(wide[k] - v).max() / np.abs(v).max() for k, v in expected.items()}


@pytest.mark.parametrize(
  ("groups", "activate", "pack"),
  [(4, False, 1), (4, True, 1), (12, False, 1), (12, True, 1), (4, True, 3)],
)
def test_values_and_gradients_are_those_of_the_plain_operations(groups, activate, pack):
  with jax.enable_x64(True):
    args, pulls = arrays("float64")
    how = How(groups, activate, jnp.float64, pack)
    got, expected = (results(f, how, args, pulls) for f in (in_few_passes, plain))
    assert all(a.dtype == jnp.float64 for a in got.values())
    errors = relative_errors(got, expected)
  assert max(errors.values()) < 1e-11, errors


@pytest.mark.parametrize("pack", [1, 2])
def test_voxels_that_share_the_maximum_share_its_gradient(pack):
  x = jnp.zeros((1, 2, 2, 2, 2)).at[0, 0, 0, :, 0].set(3.0)  # twice 3, and eight times 0
  back = jax.vjp(lambda x: pool((x,), jnp.ones(2), pack)[1], x)[1]
  (to_x,) = back(jnp.full((1, 1, 1, 1, 2), 8.0))
  np.testing.assert_array_equal(to_x[0, 0, 0, :, 0], 4)
  np.testing.assert_array_equal(to_x[..., 1], 1)
  assert to_x[..., 0].sum() == 8


def test_bfloat16_rounds_the_gate_and_what_goes_in_and_out():
  """Gradients are rounded once (2^-9); the gate, which comes rounded, is off by as much."""
  args, pulls = arrays("float32")
  first, second, *pulls = (jnp.asarray(a, jnp.bfloat16) for a in (*args[:2], *pulls))
  args = [first, second, *args[2:]]
  how = How(4, False, jnp.bfloat16)
  got = results(in_few_passes, how, args, pulls)
  widened = jax.tree.map(lambda a: a.astype(jnp.float32), (args, pulls))
  expected = results(plain, How(4, False, jnp.float32), *widened)
  assert {k for k, a in got.items() if a.dtype == jnp.bfloat16} == {"gated", "y", *NAMES[:2]}
  errors = relative_errors(got, expected)
  assert max(errors.values()) < 2**-6, errors


def test_the_parts_are_all_that_is_kept_of_their_size():
  args, _ = arrays("float32")
  how = How(4, True, jnp.float32)

  def backward(*args):
    return jax.vjp(lambda *args: in_few_passes(how, *args), *args)[1]

  sizes = sorted(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, *args)))
  parts = sum(a.size for a in args[:2])
  # Each function keeps the parts; they are the same arrays.
  assert sum(size for size in sizes if size >= args[1].size) <= 2 * parts
  assert sum(size for size in sizes if size < args[1].size) < parts / 2


@pytest.mark.parametrize("mesh", [(2, 2), (1, 4)])
def test_on_a_mesh_everything_is_as_on_one_device(mesh):
  args, pulls = arrays("float32")
  how = How(4, True, jnp.float32)

  def every(args, pulls):
    return results(in_few_passes, how, args, pulls)

  devices = make_mesh(*mesh)
  whole, split = NamedSharding(devices, P()), NamedSharding(devices, P("data", "space"))
  voxelwise = {"gated", "y", "first", "second"}
  program = jax.jit(
    every,
    in_shardings=([split, split, whole, whole, whole, whole], [split, split]),
    out_shardings={k: split if k in voxelwise else whole for k in ("gated", "y", *NAMES)},
    compiler_options=QUICK,
  )
  errors = relative_errors(program(args, pulls), every(args, pulls))
  assert max(errors.values()) < 1e-5, errors


def test_a_decoder_stage_has_the_same_numbers_on_each_platform():
  """The platform chooses how it is computed: here all ways run on CPU."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, skip = (rng.standard_normal(s) for s in ((1, 2, 3, 2, 8), (1, 4, 6, 4, 4)))

    def gradients(platform, pack):
      keys = Keys(jax.random.key(0))
      build = Build("torch", jnp.float64, keys, Convolutions(platform, forms=Forms("native")))
      stage = DecoderStage(8, 4, attention="channel", build=build.packed(pack))
      graph, params = nnx.split(stage)

      def loss(params, x, skip):
        return jnp.mean(jnp.sin(nnx.merge(graph, params)(x, skip)))

      program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(params, x, skip)
      return len(program.jaxpr.eqns), program.lower().compile()(params, x, skip)

    (plain, expected), *others = map(gradients, ("cpu", "gpu", "tpu"), (1, 1, 4))
    for equations, got in others:
      assert equations != plain
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)  # float32 parameters
