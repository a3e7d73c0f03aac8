"""The pieces that the networks are made of: convolutions, norms, residual blocks.

Arrays are channels-last, (B, D, H, W, C). Parameters are float32; `dtype` is what is computed in.
Norms take their statistics in float32 (or better) whatever `dtype` is.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.models import conv, lanes
from kd_jax.models.conv_choice import ON_CPU, Convolution, Convolutions
from kd_jax.models.gated import Parts, gate_and_normalise
from kd_jax.models.norm import SLOPE, Norm
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
    packs: voxels that share a row in what a module gets, and in what it gives; see lanes.
  """

  init: Init
  dtype: Any
  rngs: Keys
  convolutions: Convolutions = ON_CPU
  packs: tuple[int, int] = (1, 1)

  def packed(self, *packs: int) -> "Build":
    """The same with other packs, or with one for both."""
    return self._replace(packs=(packs[0], packs[-1]))

  @property
  def of_norm(self) -> dict[str, Any]:
    """Of a module that gives what it gets."""
    return {"dtype": self.dtype, "rngs": self.rngs, "pack": self.packs[1]}


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
    self.packs = build.packs

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, ceil(D/stride), ceil(H/stride), ceil(W/stride), outputs)."""
    y, offset = self.unbiased(x), self.offset()
    return y if offset is None else convolved(_plus_bias(y, offset, self.packs[1]))

  def offset(self) -> jax.Array | None:
    """The bias, (outputs,)."""
    return None if self.bias is None else self.bias[...]

  def unbiased(self, x: jax.Array | Parts) -> jax.Array:
    """The same without its bias, for who adds that where it costs nothing.

    x: an array, or parts of one that are side by side as channels.
    """
    kernel = self.kernel[...].astype(self.dtype)
    if not isinstance(x, tuple):
      return self._convolved(x, kernel)
    if self.packs == (1, 1):
      return self._convolved(jnp.concatenate(x, axis=-1), kernel)
    # Rows of parts are no part of a row of all channels: their convolutions are summed instead.
    ends = itertools.accumulate(part.shape[-1] for part in x)
    each = (
      self._convolved(part, kernel[..., end - part.shape[-1] : end, :])
      for part, end in zip(x, ends, strict=True)
    )
    return functools.reduce(functools.partial(lanes.add, p=self.packs[1]), each)

  def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    if self.packs != (1, 1):
      pack = self.packs[1]
      return lanes.unpack(convolved(lanes.conv3d(x, kernel, self.stride, pack)), pack)
    forms = self.convolutions.choose(Convolution.of(x, kernel, self.stride))
    return convolved(conv.conv3d(x, kernel, self.stride, forms))


class Upsample(nnx.Module):
  """A transposed convolution, 2x2x2 and stride 2; PyTorch's default initialisation always."""

  def __init__(
    self, channels: int, outputs: int | None = None, *, dtype: Any, rngs: Keys, pack: int = 1
  ):
    outputs = outputs or channels
    # PyTorch counts the fan of a transposed convolution over its *outputs*.
    fan = outputs * 8
    self.kernel = _kernel("torch", (2, 2, 2, channels, outputs), fan, fan, rngs)
    self.bias = _bias("torch", outputs, fan, rngs)
    self.dtype, self.pack = dtype, pack

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, channels) -> (B, 2D, 2H, 2W, outputs)."""
    return convolved(_plus_bias(self.unbiased(x), self.bias[...], self.pack))

  def unbiased(self, x: jax.Array) -> jax.Array:
    """The same without its bias."""
    kernel = self.kernel[...].astype(self.dtype)
    x = x.astype(self.dtype)
    if self.pack > 1:
      return lanes.unpack(convolved(lanes.upsample2(x, kernel, self.pack)), self.pack)
    return convolved(conv.upsample2(x, kernel))


def _plus_bias(y: jax.Array, bias: jax.Array, pack: int) -> jax.Array:
  """y: (B, D, H, W, C); bias: (C,)."""
  return lanes.unpack(lanes.pack(y, pack) + lanes.spread(bias.astype(y.dtype), pack), pack)


def instance_norm(
  channels: int, *, affine: bool = False, dtype: Any, rngs: Keys, pack: int = 1
) -> Norm:
  """Instance normalisation; affine: with scale and bias."""
  return Norm(channels, channels, affine=affine, dtype=dtype, rngs=rngs, pack=pack)


def group_norm(channels: int, *, groups: int = 0, dtype: Any, rngs: Keys, pack: int = 1) -> Norm:
  """Group normalisation with 6 groups if the channels divide by 6, else 4.

  Source: docs/method.md, "Group norm groups".
  """
  groups = groups or (6 if channels % 6 == 0 else 4)
  return Norm(channels, groups, dtype=dtype, rngs=rngs, pack=pack)


def conv_norm(
  conv: Conv,
  norm: Norm,
  x: jax.Array | Parts,
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
    before, after = map(build.packed, build.packs)
    self.norm_in = group_norm(inputs, **before.of_norm)
    self.conv_in = Conv(inputs, outputs, 3, stride, build=build)
    self.norm_out = group_norm(outputs, **after.of_norm)
    self.conv_out = Conv(outputs, outputs, 3, build=after)
    self.skip_conv = Conv(inputs, outputs, 3, stride, build=build)
    self.skip_norm = group_norm(outputs, **after.of_norm)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, D/stride, H/stride, W/stride, outputs)."""
    return self._convolutions(x, self.norm_in(x, activate=True))

  def gated(self, parts: Parts, shift: jax.Array, gate: jax.Array) -> jax.Array:
    """The same of (parts + shift) * gate: see gated.gate_and_normalise."""
    norm = self.norm_in
    how = norm.how(activate=True)
    return self._convolutions(*gate_and_normalise(parts, shift, gate, *norm.parameters(), how))

  def _convolutions(self, x: jax.Array | Parts, main: jax.Array | Parts) -> jax.Array:
    main = conv_norm(self.conv_in, self.norm_out, main, activate=True)
    skip = conv_norm(self.skip_conv, self.skip_norm, x, plus=self.conv_out.offset())
    return lanes.add(self.conv_out.unbiased(main), skip, self.skip_norm.pack)


class Stem(nnx.Module):
  """conv3, instance norm, LReLU, conv3; plus a conv3 of the input.

  Source: docs/method.md, "Stem and residual block", eq. 2.
  """

  def __init__(self, inputs: int, outputs: int, build: Build):
    self.conv_in = Conv(inputs, outputs, 3, build=build)
    self.norm = instance_norm(outputs, **build.of_norm)
    self.conv_out = Conv(outputs, outputs, 3, build=build)
    self.skip_conv = Conv(inputs, outputs, 3, build=build)

  def __call__(self, x: jax.Array) -> jax.Array:
    main = conv_norm(self.conv_in, self.norm, x, activate=True)
    return lanes.add(self.conv_out(main), self.skip_conv(x), self.norm.pack)
