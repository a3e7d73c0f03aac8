"""The residual encoder U-Net: its size, and each block against PyTorch's definition in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models.blocks import Build, Keys, Upsample, instance_norm
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.remat import REMATS
from kd_jax.models.resenc import BLOCKS, DecoderStage, ResEncUNet, ResidualBlockD, mean_pool2
from kd_jax.training.mesh import make_mesh

KEY = jax.random.key(0)
RESENC_L = (32, 64, 128, 256, 320, 320)


def parameters(filters, modalities, classes, side_heads):
  module = nnx.eval_shape(
    lambda: ResEncUNet(modalities, classes, filters, side_heads=side_heads, rngs=Keys(KEY))
  )
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def expected_size(filters, modalities, classes, side_heads):
  """By hand, layer by layer, from the definition of nnU-Net's ResidualEncoderUNet."""

  def conv(inputs, outputs, size, bias=True):
    return inputs * outputs * size**3 + bias * outputs

  def norm(channels):
    return 2 * channels  # scale and bias

  total = conv(modalities, filters[0], 3) + norm(filters[0])  # stem
  inputs = filters[0]
  for outputs, blocks in zip(filters, (1, 3, 4, 6, 6, 6, 6), strict=False):
    total += conv(inputs, outputs, 3) + (2 * blocks - 1) * conv(outputs, outputs, 3)
    total += 2 * blocks * norm(outputs)
    if inputs != outputs:  # the skip's conv1, without bias, and norm
      total += conv(inputs, outputs, 1, bias=False) + norm(outputs)
    inputs = outputs
  for coarse, fine in zip(filters[1:], filters, strict=False):
    total += conv(coarse, fine, 2) + conv(2 * fine, fine, 3) + norm(fine)
  return total + sum(conv(channels, classes, 1) for channels in filters[: side_heads + 1])


@pytest.mark.parametrize(
  ("filters", "modalities", "side_heads"),
  [
    ((8, 16, 32), 1, 1),
    ((8, 16, 16, 24), 2, 2),
    (RESENC_L, 1, 2),
    ((32, 64, 128, 256, 320, 320, 320), 4, 5),
  ],
)
def test_parameter_counts_are_those_of_the_definition(filters, modalities, side_heads):
  found = size(parameters(filters, modalities, 4, side_heads))
  assert found == expected_size(filters, modalities, 4, side_heads)


def test_the_large_preset_has_the_published_size():
  """ResEnc L in nnU-Net: 102 million parameters, with a head at every stage of the decoder."""
  assert round(size(parameters(RESENC_L, 4, 4, 4)) / 1e6) == 102


def test_blocks_by_stage_are_the_preset_s():
  assert BLOCKS == (1, 3, 4, 6, 6, 6, 6)
  encoder = parameters((4, 4, 4, 8), 1, 4, 0)["encoder"]
  assert {stage: len(own["blocks"]) for stage, own in encoder.items()} == {
    "stage0": 1,
    "stage1": 3,
    "stage2": 4,
    "stage3": 6,
  }


# --- What the blocks compute, in NumPy --------------------------------------------------------


def conv(x, params, stride=1):
  """Tap by tap, padded by k // 2 on both sides."""
  kernel = np.asarray(params["kernel"], np.float64)
  size = len(kernel)
  padded = np.pad(x, [(0, 0), *[(size // 2, size // 2)] * 3, (0, 0)])
  shape = [-(-n // stride) for n in x.shape[1:4]]
  out = np.zeros((len(x), *shape, kernel.shape[-1]))
  for tap in np.ndindex(kernel.shape[:3]):
    box = [slice(t, t + (n - 1) * stride + 1, stride) for t, n in zip(tap, shape, strict=True)]
    out += padded[(slice(None), *box)] @ kernel[tap]
  return out + np.asarray(params.get("bias", 0.0), np.float64)


def norm(x, params):
  mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])


def leaky(x):
  return np.where(x < 0, 0.01 * x, x)


def conv_norm(x, params, stride=1):
  return norm(conv(x, params["conv"], stride), params["norm"])


def pool(x):
  return sum(x[:, i::2, j::2, k::2] for i, j, k in np.ndindex(2, 2, 2)) / 8


def residual(x, params, stride):
  main = leaky(conv_norm(x, params["conv_in"], stride))
  main = conv_norm(main, params["conv_out"])
  skip = x if stride == 1 else pool(x)
  return leaky(main + (conv_norm(skip, params["skip"]) if "skip" in params else skip))


def randomised(module):
  """The module with random scales and biases of its norms too, and its parameters."""
  graph, state = nnx.split(module, nnx.Param)
  rng = np.random.default_rng(1)
  state = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), state)
  return nnx.merge(graph, state), nnx.to_pure_dict(state)


def run(module, *inputs):
  return jax.jit(lambda *inputs: module(*inputs), compiler_options=QUICK)(*inputs)


def volume(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


OWN = Build("torch", jnp.float32, Keys(KEY))


@pytest.mark.parametrize(
  ("inputs", "outputs", "stride"), [(4, 4, 1), (3, 5, 1), (3, 5, 2), (4, 4, 2)]
)
def test_a_residual_block_is_that_of_the_definition(inputs, outputs, stride):
  """Its skip: identity; conv1 and norm; mean pool, conv1 and norm; mean pool alone."""
  block, params = randomised(ResidualBlockD(inputs, outputs, stride, OWN))
  assert ("skip" in params) == (inputs != outputs)
  x = volume(2, 4, 6, 8, inputs)
  np.testing.assert_allclose(run(block, x), residual(x, params, stride), rtol=1e-3, atol=1e-4)


def test_a_decoder_stage_is_that_of_the_definition():
  stage, params = randomised(DecoderStage(6, 3, OWN))
  x, skip = volume(2, 2, 3, 4, 6), volume(2, 4, 6, 8, 3)
  up = np.zeros((2, 4, 6, 8, 3)) + np.asarray(params["upsample"]["bias"])
  for i, j, k in np.ndindex(2, 2, 2):
    up[:, i::2, j::2, k::2] += x @ np.asarray(params["upsample"]["kernel"])[i, j, k]
  expected = leaky(conv_norm(np.concatenate([up, skip], -1), params["conv"]))
  np.testing.assert_allclose(run(stage, x, skip), expected, rtol=1e-3, atol=1e-4)


def test_the_network_is_its_parts_in_order():
  """Three stages end to end, with a side head."""
  network, params = randomised(ResEncUNet(2, 4, (4, 6, 8), side_heads=1, rngs=Keys(KEY)))
  x = volume(1, 8, 8, 12, 2)
  out = run(network, x)

  skips, y = [], leaky(conv_norm(x, params["stem"]))
  for n, blocks in enumerate((1, 3, 4)):
    for b in range(blocks):
      own = params["encoder"][f"stage{n}"]["blocks"][f"block{b}"]
      y = residual(y, own, 2 if n and b == 0 else 1)
    skips.append(y)
  np.testing.assert_allclose(out.features["bottleneck"], y, rtol=1e-3, atol=1e-3)
  for n in (1, 0):
    own = params["decoder"][f"stage{n}"]
    up = np.zeros(skips[n].shape) + np.asarray(own["upsample"]["bias"])
    for i, j, k in np.ndindex(2, 2, 2):
      up[:, i::2, j::2, k::2] += y @ np.asarray(own["upsample"]["kernel"])[i, j, k]
    y = leaky(conv_norm(np.concatenate([up, skips[n]], -1), own["conv"]))
    if n == 1:
      np.testing.assert_allclose(out.features["level1"], y, rtol=1e-3, atol=1e-3)
      side = conv(y, params["side_heads"]["level1"])
      np.testing.assert_allclose(out.side_logits["level1"], side, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(out.logits, conv(y, params["head"]), rtol=1e-3, atol=1e-3)


def test_the_mean_of_each_cube():
  x = volume(2, 4, 2, 6, 3)
  np.testing.assert_allclose(mean_pool2(jnp.asarray(x)), pool(x), atol=1e-6)


def test_norms_have_scale_and_bias_and_start_as_the_identity():
  affine = instance_norm(3, affine=True, dtype=jnp.float32, rngs=Keys(KEY))
  state = nnx.to_pure_dict(nnx.state(affine, nnx.Param))
  assert {name: x.tolist() for name, x in state.items()} == {"scale": [1, 1, 1], "bias": [0, 0, 0]}


# --- Options ----------------------------------------------------------------------------------


def test_less_memory_for_the_backward_pass():
  """Bytes that the forward pass hands to the backward pass."""
  graph, params = nnx.split(ResEncUNet(1, 4, (4, 4, 8), rngs=Keys(KEY)))
  x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)

  def kept(remat):
    def backward(params, x):
      return jax.vjp(lambda params: nnx.merge(graph, params)(x, remat).logits, params)[1]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, params, x)))

  nothing, norms, stages = map(kept, REMATS)
  assert norms < 0.6 * nothing
  assert stages < 0.7 * norms


def test_cbam_is_refused():
  with pytest.raises(ValueError, match="resenc has no gates"):
    ResEncUNet(1, 4, (4, 4, 8), attention="cbam", rngs=Keys(KEY))


def test_bfloat16_computes_with_float32_parameters():
  def run(x):
    module = ResEncUNet(1, 4, (4, 6, 8), dtype=jnp.bfloat16, rngs=Keys(KEY))
    return module(x), nnx.to_pure_dict(nnx.state(module, nnx.Param))

  out, params = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32))
  assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("bfloat16")}
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


# --- On a mesh --------------------------------------------------------------------------------


def test_blocks_on_a_mesh_have_the_gradients_of_one_device():
  """Batch and depth both split, with the convolutions of accelerators."""
  build = OWN._replace(convolutions=Convolutions("tpu"))
  down, up = ResidualBlockD(4, 8, 2, build), Upsample(8, 4, dtype=jnp.float32, rngs=Keys(KEY))
  graph, params = nnx.split(nnx.Sequential(down, up, ResidualBlockD(4, 4, 2, OWN)), nnx.Param)
  x = volume(4, 16, 8, 8, 4)

  def loss(params, x):
    return jnp.sum(jnp.sin(3 * nnx.merge(graph, params)(x)))

  def gradients(shape):
    mesh = make_mesh(*shape)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data", "space"))
    program = jax.jit(
      jax.grad(loss), in_shardings=(whole, split), out_shardings=whole, compiler_options=QUICK
    )
    return jax.device_get(nnx.to_pure_dict(program(params, x)))

  def close(got, expected):
    largest = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=1e-4 * largest + 1e-3)

  jax.tree.map(close, gradients((2, 2)), gradients((1, 1)))
