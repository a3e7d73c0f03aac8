"""The pieces that the networks are made of: convolutions, norms, gates, residual blocks.

Arrays are channels-last, (B, D, H, W, C). Parameters are float32; `dtype` is what is computed in.
Norms take their statistics in float32 (or better) whatever `dtype` is.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.models import conv
from kd_jax.models.conv_choice import ON_CPU, Convolution, Convolutions
from kd_jax.models.gated import Parts, gate_and_normalise, pool
from kd_jax.models.norm import SLOPE, How, Norm
from kd_jax.models.remat import convolved

# "torch": PyTorch's default; "xavier": Xavier normal with zero biases
# (docs/method.md, "Initialisation").
Init = str


class Keys:
  """Random keys, another at each call; nnx.Rngs gives the same ones.

  nnx.Rngs counts in a Variable. Under eval_shape each count asks a tracer for what it has not, and
  JAX words an error that nobody reads: four networks took 5 s to be drawn up.
  """

  def __init__(self, key: jax.Array):
    self._key, self._given = key, 0

  def params(self) -> jax.Array:
    key = jax.random.fold_in(self._key, self._given)
    self._given += 1
    return key


class Build(NamedTuple):
  """How a network's modules are built.

  Attributes:
    init: of the kernels, "torch" or "xavier".
    dtype: what is computed in.
    rngs: keys for the parameters.
    convolutions: how convolutions are computed.
  """

  init: Init
  dtype: Any
  rngs: Keys
  convolutions: Convolutions = ON_CPU


def leaky_relu(x: jax.Array) -> jax.Array:
  return jax.nn.leaky_relu(x, SLOPE)


def _draw(key: jax.Array, shape: Sequence[int], distribution: str, scale: float) -> jax.Array:
  """Random numbers, float32, drawn by NumPy on the host: U(-scale, scale) or N(0, scale^2).

  Hundreds of small jax.random programs take XLA a minute to compile on CPU; this takes none, and
  every backend starts from the same numbers.
  """

  def draw(key_data) -> np.ndarray:
    rng = np.random.default_rng(np.asarray(key_data))
    if distribution == "normal":
      return (scale * rng.standard_normal(shape)).astype(np.float32)
    return rng.uniform(-scale, scale, shape).astype(np.float32)

  key_data = jax.random.key_data(key)
  if isinstance(key_data, jax.core.Tracer):  # under eval_shape or jit
    return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, jnp.float32), key_data)
  return jnp.asarray(draw(key_data))


def _kernel(init: Init, shape: Sequence[int], fan_in: int, fan_out: int, rngs: Keys) -> nnx.Param:
  if init == "xavier":
    return nnx.Param(_draw(rngs.params(), shape, "normal", math.sqrt(2 / (fan_in + fan_out))))
  # PyTorch: kaiming-uniform with a = sqrt(5), which is U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
  return nnx.Param(_draw(rngs.params(), shape, "uniform", 1 / math.sqrt(fan_in)))


def _bias(init: Init, features: int, fan_in: int, rngs: Keys) -> nnx.Param:
  if init == "xavier":
    return nnx.Param(jnp.zeros((features,)))
  return nnx.Param(_draw(rngs.params(), (features,), "uniform", 1 / math.sqrt(fan_in)))


class Conv(nnx.Module):
  """A 3-D convolution, with bias unless told otherwise, padded by k // 2 voxels on both sides."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    bias: bool = True,
    build: Build,
  ):
    shape, taps = (size, size, size, inputs, outputs), size**3
    self.kernel = _kernel(build.init, shape, taps * inputs, taps * outputs, build.rngs)
    self.bias = _bias(build.init, outputs, taps * inputs, build.rngs) if bias else None
    self.stride, self.dtype, self.convolutions = stride, build.dtype, build.convolutions

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, ceil(D/stride), ceil(H/stride), ceil(W/stride), outputs)."""
    y, offset = self.unbiased(x), self.offset()
    return y if offset is None else convolved(y + offset.astype(self.dtype))

  def offset(self) -> jax.Array | None:
    """The bias, (outputs,)."""
    return None if self.bias is None else self.bias[...]

  def unbiased(self, x: jax.Array) -> jax.Array:
    """The same without its bias, for who adds that where it costs nothing."""
    kernel = self.kernel[...].astype(self.dtype)
    x = x.astype(self.dtype)
    forms = self.convolutions.choose(Convolution.of(x, kernel, self.stride))
    return convolved(conv.conv3d(x, kernel, self.stride, forms))


class Upsample(nnx.Module):
  """A transposed convolution, 2x2x2 and stride 2; PyTorch's default initialisation always."""

  def __init__(self, channels: int, outputs: int | None = None, *, dtype: Any, rngs: Keys):
    outputs = outputs or channels
    # PyTorch counts the fan of a transposed convolution over its *outputs*.
    fan = outputs * 8
    self.kernel = _kernel("torch", (2, 2, 2, channels, outputs), fan, fan, rngs)
    self.bias = _bias("torch", outputs, fan, rngs)
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, channels) -> (B, 2D, 2H, 2W, outputs)."""
    return convolved(self.unbiased(x) + self.bias[...].astype(self.dtype))

  def unbiased(self, x: jax.Array) -> jax.Array:
    """The same without its bias."""
    kernel = self.kernel[...].astype(self.dtype)
    return convolved(conv.upsample2(x.astype(self.dtype), kernel))


def instance_norm(channels: int, *, affine: bool = False, dtype: Any, rngs: Keys) -> Norm:
  """Instance normalisation; affine: with scale and bias."""
  return Norm(channels, channels, affine=affine, dtype=dtype, rngs=rngs)


def group_norm(channels: int, *, groups: int = 0, dtype: Any, rngs: Keys) -> Norm:
  """Group normalisation with 6 groups if the channels divide by 6, else 4.

  Source: docs/method.md, "Group norm groups".
  """
  return Norm(channels, groups or (6 if channels % 6 == 0 else 4), dtype=dtype, rngs=rngs)


def conv_norm(
  conv: Conv,
  norm: Norm,
  x: jax.Array,
  *,
  plus: jax.Array | None = None,
  activate: bool = False,
) -> jax.Array:
  """norm(conv(x)) + plus (outputs,), and LeakyReLU of it if asked for.

  Neither the convolution's bias nor `plus` costs a pass over memory, forward or backward.
  """
  return norm(conv.unbiased(x), shift=conv.offset(), plus=plus, activate=activate)


class ResidualBlock(nnx.Module):
  """GN, LReLU, conv3, GN, LReLU, conv3; plus a skip of conv3 and GN; the stride on the first.

  Source: docs/method.md, "Stem and residual block", eq. 3.
  """

  def __init__(self, inputs: int, outputs: int, stride: int, build: Build):
    self.norm_in = group_norm(inputs, dtype=build.dtype, rngs=build.rngs)
    self.conv_in = Conv(inputs, outputs, 3, stride, build=build)
    self.norm_out = group_norm(outputs, dtype=build.dtype, rngs=build.rngs)
    self.conv_out = Conv(outputs, outputs, 3, build=build)
    self.skip_conv = Conv(inputs, outputs, 3, stride, build=build)
    self.skip_norm = group_norm(outputs, dtype=build.dtype, rngs=build.rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, D/stride, H/stride, W/stride, outputs)."""
    return self._convolutions(x, self.norm_in(x, activate=True))

  def gated(self, parts: Parts, shift: jax.Array, gate: jax.Array) -> jax.Array:
    """The same of (parts + shift) * gate: see gated.gate_and_normalise."""
    norm = self.norm_in
    how = How(norm.num_groups, True, norm.dtype)
    return self._convolutions(*gate_and_normalise(parts, shift, gate, *norm.parameters(), how))

  def _convolutions(self, x: jax.Array, main: jax.Array) -> jax.Array:
    main = conv_norm(self.conv_in, self.norm_out, main, activate=True)
    skip = conv_norm(self.skip_conv, self.skip_norm, x, plus=self.conv_out.offset())
    return self.conv_out.unbiased(main) + skip


class Stem(nnx.Module):
  """conv3, instance norm, LReLU, conv3; plus a conv3 of the input.

  Source: docs/method.md, "Stem and residual block", eq. 2.
  """

  def __init__(self, inputs: int, outputs: int, build: Build):
    self.conv_in = Conv(inputs, outputs, 3, build=build)
    self.norm = instance_norm(outputs, dtype=build.dtype, rngs=build.rngs)
    self.conv_out = Conv(outputs, outputs, 3, build=build)
    self.skip_conv = Conv(inputs, outputs, 3, build=build)

  def __call__(self, x: jax.Array) -> jax.Array:
    main = conv_norm(self.conv_in, self.norm, x, activate=True)
    return self.conv_out(main) + self.skip_conv(x)


class ChannelGate(nnx.Module):
  """Scales the channels by sigmoid(MLP(average pool) + MLP(max pool)), one MLP for both.

  Woo et al., CBAM, ECCV 2018, eq. 2, with LeakyReLU in the MLP (docs/method.md, "Channel gate").
  """

  def __init__(self, channels: int, build: Build):
    hidden = max(1, channels // 16)
    self.squeeze = Conv(channels, hidden, 1, build=build)
    self.excite = Conv(hidden, channels, 1, build=build)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, C) -> the same."""
    return x * self.factors((x,), jnp.zeros(x.shape[-1]))

  def factors(self, parts: Parts, shift: jax.Array) -> jax.Array:
    """The gate alone, (B, 1, 1, 1, C), of what is side by side in `parts`, + shift (C,)."""
    mean, peak = pool(parts, shift)
    return jax.nn.sigmoid(self._mlp(mean) + self._mlp(peak))

  def _mlp(self, pooled: jax.Array) -> jax.Array:
    return self.excite(leaky_relu(self.squeeze(pooled)))


class SpatialGate(nnx.Module):
  """Scales the voxels by sigmoid(LReLU(GN(conv7([max, mean] over channels)))).

  Woo et al., CBAM, ECCV 2018, eq. 3, with the normalisation of the published code
  (docs/method.md, "Spatial gate").
  """

  def __init__(self, build: Build):
    self.conv = Conv(2, 1, 7, build=build)
    self.norm = group_norm(1, groups=1, dtype=build.dtype, rngs=build.rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    pooled = jnp.concatenate(
      [jnp.max(x, axis=-1, keepdims=True), jnp.mean(x, axis=-1, keepdims=True)], axis=-1
    )  # (B, D, H, W, 2)
    return x * jax.nn.sigmoid(conv_norm(self.conv, self.norm, pooled, activate=True))


class Gate(nnx.Module):
  """The attention of decoders and fusion: a channel gate, with CBAM a spatial one too."""

  def __init__(self, attention: str, channels: int, build: Build):
    self.channel = ChannelGate(channels, build=build)
    self.spatial = SpatialGate(build=build) if attention == "cbam" else None

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.channel(x)
    return x if self.spatial is None else self.spatial(x)
