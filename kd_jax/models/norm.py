"""Group and instance normalisation, with the activation after it and the bias before it.

Norms are bound by memory, so this one goes over it as rarely as it can. Forward: one pass for the
sum and the sum of squares of each channel, one that reads x and writes the result. Backward: one
for two sums of each channel, one that writes the gradient. Between them are sums over groups of a
few numbers each. What is kept for the backward pass is x and numbers by channel; the activation is
computed again. Statistics are float32 (or better) whatever is computed in.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kd_jax.models import lanes
from kd_jax.models.remat import pooled

SLOPE = 0.01  # of every LeakyReLU
SPACE = (1, 2, 3)  # the axes D, H, W
_EPSILON = 1e-5


class How(NamedTuple):
  """What does not depend on numbers.

  Attributes:
    groups: of channels that share mean and variance.
    activate: LeakyReLU at the end.
    dtype: of the result.
    pack: voxels in a row, see lanes.
  """

  groups: int
  activate: bool
  dtype: Any
  pack: int = 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalise(
  x: jax.Array,
  scale: jax.Array | None,
  bias: jax.Array | None,
  shift: jax.Array | None,
  how: How,
) -> jax.Array:
  """scale * (x + shift - mean) / deviation + bias, and LeakyReLU of it if asked for.

  Args:
    x: (B, D, H, W, C).
    scale, bias: (C,) of the norm, or None.
    shift: (C,), the bias of the convolution that x comes from, or None. Sums of x + shift follow
      from sums of x, so it costs no pass.
    how: groups, activation and type.

  Returns:
    (B, D, H, W, C).
  """
  return _forward(x, scale, bias, shift, how)[0]


def _forward(x, scale, bias, shift, how: How):
  rows = lanes.pack(x, how.pack)
  mean, variance = moments(rows, how.pack)
  own = 0 if shift is None else shift.astype(mean.dtype)
  center, inverse = of_groups(mean + own, variance, how.groups)
  center -= own  # what is subtracted from x
  numbers = (center, *linear(scale, bias, inverse))
  middle, gain, level = (lanes.spread(number, how.pack) for number in numbers)
  y = activated((widen(rows) - middle) * gain + level, how)
  return lanes.unpack(y, how.pack), (x, scale, bias, shift, mean, center, inverse)


def _backward(how: How, kept, pull: jax.Array):
  """Gradients of all four from that of the result."""
  x, scale, bias, shift, mean, center, inverse = kept
  gain, level = linear(scale, bias, inverse)
  p, rows = how.pack, lanes.pack(x, how.pack)
  middle, own_gain, own_level = (lanes.spread(number, p) for number in (center, gain, level))
  centered = widen(rows) - middle
  g = before_activation(lanes.pack(pull, p), centered * own_gain + own_level, how)
  # x itself and not `centered` in the product: XLA for CPU would write that for it.
  sum_g = total(g, p)
  sum_gx = (total(g * widen(rows), p) - center * sum_g) * inverse
  slope, constant = to_input(sum_g, sum_gx, gain, inverse, how.groups, voxels(x))
  own_slope, own_constant = lanes.spread(slope, p), lanes.spread(constant, p)
  to_x = (g * own_gain + centered * own_slope + own_constant).astype(x.dtype)
  sum_to_x = gain * sum_g + voxels(x) * ((mean - center) * slope + constant)
  return lanes.unpack(to_x, p), like(scale, sum_gx), like(bias, sum_g), like(shift, sum_to_x)


normalise.defvjp(_forward, _backward)


# --- Parts. Numbers by sample and channel are (B, 1, 1, 1, C) -----------------------------------


def widen(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def voxels(x: jax.Array) -> int:
  """Of one sample."""
  return x.size // (x.shape[0] * x.shape[-1])


def total(rows: jax.Array, pack: int = 1) -> jax.Array:
  """(B, D, H, W/pack, pack*C) -> (B, 1, 1, 1, C)."""
  return lanes.gather(jnp.sum(rows, SPACE, keepdims=True), pack)


def moments(rows: jax.Array, pack: int = 1) -> tuple[jax.Array, jax.Array]:
  """(B, D, H, W/pack, pack*C) -> mean and variance of each channel, in one pass."""
  wide = widen(rows)
  mean, square = (total(a, pack) / (pack * voxels(rows)) for a in (wide, wide * wide))
  return pooled(mean), pooled(jnp.maximum(square - mean**2, 0))  # rounding may leave less than 0


def of_groups(mean: jax.Array, variance: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
  """Moments of channels -> the mean and 1 / the deviation of each one's group."""
  center = _group_mean(mean, groups)
  return center, lax.rsqrt(_group_mean(variance + (mean - center) ** 2, groups) + _EPSILON)


def _group_mean(x: jax.Array, groups: int) -> jax.Array:
  batch, *_, channels = x.shape
  if groups == channels:
    return x
  mean = jnp.mean(x.reshape(batch, groups, -1), -1, keepdims=True)
  return jnp.broadcast_to(mean, (batch, groups, channels // groups)).reshape(x.shape)


def linear(
  scale: jax.Array | None, bias: jax.Array | None, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """gain and level of a norm: gain * (x - center) + level goes into the activation."""
  gain = inverse if scale is None else inverse * scale.astype(inverse.dtype)
  level = 0 if bias is None else bias.astype(inverse.dtype)
  return gain, jnp.broadcast_to(level, inverse.shape)


def activated(z: jax.Array, how: How) -> jax.Array:
  return (jax.nn.leaky_relu(z, SLOPE) if how.activate else z).astype(how.dtype)


def before_activation(pull: jax.Array, z: jax.Array, how: How) -> jax.Array:
  """The gradient to z, wide, from that to activated(z)."""
  g = widen(pull)
  return jnp.where(z >= 0, g, SLOPE * g) if how.activate else g


def to_input(
  sum_g: jax.Array,
  sum_gx: jax.Array,
  gain: jax.Array,
  inverse: jax.Array,
  groups: int,
  voxels: int,
) -> tuple[jax.Array, jax.Array]:
  """slope and constant of the input's gradient: g * gain + (x - center) * slope + constant.

  Args:
    sum_g, sum_gx: sums of g, the gradient before the activation, and of
      g * (x - center) * inverse.
  """
  slope = -inverse * _group_mean(gain * sum_gx, groups) / voxels
  return slope, -_group_mean(gain * sum_g, groups) / voxels


def like(parameter: jax.Array | None, by_sample: jax.Array) -> jax.Array | None:
  """The gradient of a parameter (C,)."""
  if parameter is None:
    return None
  return jnp.sum(by_sample, (0, *SPACE)).astype(parameter.dtype)


class Norm(nnx.Module):
  """Group normalisation; with as many groups as channels it is instance normalisation.

  Args:
    channels: of the input, a multiple of `groups`.
    groups: of channels that share mean and variance.
    affine: with scale and bias.
    dtype: of the result.
    pack: voxels in a row, see lanes.
    rngs: as many keys are taken from it as Flax's norm would, so that a seed gives what it gave.
  """

  def __init__(
    self,
    channels: int,
    groups: int,
    *,
    affine: bool = True,
    dtype: Any,
    rngs: Any,
    pack: int = 1,
  ):
    if affine:
      rngs.params(), rngs.params()
    self.scale = nnx.Param(jnp.ones((channels,))) if affine else None
    self.bias = nnx.Param(jnp.zeros((channels,))) if affine else None
    self.num_groups, self.dtype, self.pack = groups, dtype, pack

  def parameters(self) -> tuple[jax.Array | None, jax.Array | None]:
    """scale and bias, (channels,) each, or None."""
    scale = None if self.scale is None else self.scale[...]
    return scale, None if self.bias is None else self.bias[...]

  def __call__(
    self,
    x: jax.Array,
    *,
    shift: jax.Array | None = None,
    plus: jax.Array | None = None,
    activate: bool = False,
  ) -> jax.Array:
    """(B, D, H, W, channels) -> the same, in `dtype`.

    Args:
      shift: (channels,), added before the norm; see `normalise`.
      plus: (channels,), added after it, before the activation.
      activate: LeakyReLU at the end.
    """
    scale, bias = self.parameters()
    if plus is not None:
      bias = plus if bias is None else bias + plus
    return normalise(x, scale, bias, shift, self.how(activate))

  def how(self, activate: bool) -> How:
    """What of it does not depend on numbers."""
    return How(self.num_groups, activate, self.dtype, self.pack)
