"""What a channel gate takes from its input, and a gate with the norm after it, in few passes.

Mean and maximum for the gate and the moments for the norm are taken in one pass: moments of the
gated array follow from those of the array. Backward, the gradient of the gated array is never
written: what goes back through the gate follows from sums. The input comes in parts, which are side
by side as channels, so that neither they nor their gradient are written in one piece; their shift,
a bias that is still to be added, costs no pass (see norm.normalise).
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import norm
from kd_jax.models.norm import SPACE, How, total, voxels, widen
from kd_jax.models.remat import pooled

Parts = tuple[jax.Array, ...]  # (B, D, H, W, C_i) each, C channels together


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
  return jnp.concatenate(parts, axis=-1)


def _each(parts: Parts, *arrays: jax.Array) -> Iterator[tuple[jax.Array, ...]]:
  """Each part, and its channels of `arrays`, (..., C) each."""
  ends = np.cumsum([x.shape[-1] for x in parts])
  for x, end in zip(parts, ends, strict=True):
    yield x, *(a[..., end - x.shape[-1] : end] for a in arrays)


def _shifted(parts: Parts, shift: jax.Array) -> Iterator[jax.Array]:
  """Wide."""
  for x, own in _each(parts, shift):
    wide = widen(x)
    yield wide + own.astype(wide.dtype)


@jax.custom_vjp
def pool(parts: Parts, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and maximum over space of parts + shift, (B, 1, 1, 1, C) each, in the parts' type.

  Voxels that share the maximum share its gradient equally. shift: (C,).
  """
  return _pool_forward(parts, shift)[0]


def _pool_forward(parts, shift):
  shifted = list(_shifted(parts, shift))
  mean = _joined([total(x) / voxels(x) for x in shifted])
  peak = pooled(_joined([jnp.max(x, SPACE, keepdims=True) for x in shifted]))
  own = parts[0].dtype
  return (pooled(mean.astype(own)), pooled(peak.astype(own))), (parts, shift, peak)


def _pool_backward(kept, pull):
  parts, shift, peak = kept
  to_mean, to_peak = map(widen, pull)
  to_parts = []
  for x, own, mean, most in _each(tuple(_shifted(parts, shift)), peak, to_mean, to_peak):
    highest = x >= own
    share = most / jnp.maximum(total(highest.astype(most.dtype)), 1)
    to_x = mean / voxels(x) + jnp.where(highest, share, 0)
    to_parts.append(to_x.astype(parts[0].dtype))
  return tuple(to_parts), norm.like(shift, to_mean + to_peak)


pool.defvjp(_pool_forward, _pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def gate_and_normalise(
  parts: Parts,
  shift: jax.Array,
  gate: jax.Array,
  scale: jax.Array | None,
  bias: jax.Array | None,
  how: How,
) -> tuple[jax.Array, jax.Array]:
  """(parts + shift) * gate, and norm.normalise of that.

  Args:
    parts: of the input.
    shift: (C,).
    gate: (B, 1, 1, 1, C).
    scale, bias: (C,) of the norm, or None.
    how: groups, activation and type of the second result.

  Returns:
    (B, D, H, W, C) in the parts' type, and in how's.
  """
  return _forward(parts, shift, gate, scale, bias, how)[0]


def _forward(parts, shift, gate, scale, bias, how: How):
  shifted = tuple(_shifted(parts, shift))
  mean, variance = (_joined(numbers) for numbers in zip(*map(norm.moments, shifted), strict=True))
  factor = widen(gate)
  statistics = norm.of_groups(mean * factor, variance * factor**2, how.groups)
  center, inverse = statistics
  gain, level = norm.linear(scale, bias, inverse)
  gated = _joined([x * times for x, times in _each(shifted, factor)])
  y = norm.activated((gated - center) * gain + level, how)
  kept = (parts, shift, pooled(gate), scale, bias, mean, variance, statistics)
  return (gated.astype(parts[0].dtype), y), kept


def _backward(how: How, kept, pull):
  """Gradients of parts, shift, gate, scale and bias.

  All sums are of differences from the channel's mean, which lose no digits to a large one.
  """
  parts, shift, gate, scale, bias, mean, variance, (center, inverse) = kept
  factor, count = widen(gate), voxels(parts[0])
  offset = mean * factor - center  # of the gated channel's mean from its group's
  gain, level = norm.linear(scale, bias, inverse)

  shifted = tuple(_shifted(parts, shift))
  voxelwise, sums = [], []
  for x, direct, g, *numbers in _each(shifted, *pull, mean, factor, offset, gain, level):
    own_mean, own_factor, own_offset, own_gain, own_level = numbers
    from_mean = x - own_mean
    centered = from_mean * own_factor + own_offset
    direct, g = widen(direct), norm.before_activation(g, centered * own_gain + own_level, how)
    voxelwise.append((direct, g, centered))
    sums.append([total(a) for a in (g, g * from_mean, direct, direct * from_mean)])
  sum_g, sum_gx, sum_direct, sum_dx = (_joined(found) for found in zip(*sums, strict=True))

  to_scale = inverse * (factor * sum_gx + offset * sum_g)
  slope, constant = norm.to_input(sum_g, to_scale, gain, inverse, how.groups, count)
  to_parts = tuple(
    ((direct + g * own_gain + centered * own_slope + own_constant) * times).astype(x.dtype)
    for (direct, g, centered), (x, own_gain, own_slope, own_constant, times) in zip(
      voxelwise, _each(parts, gain, slope, constant, factor), strict=True
    )
  )
  # Sums of the gated array's gradient, and of it * (parts + shift): the same terms, summed first.
  sum_gated = sum_direct + gain * sum_g + count * (offset * slope + constant)
  to_gate = sum_dx + gain * sum_gx + count * slope * factor * variance + mean * sum_gated
  return (
    to_parts,
    norm.like(shift, factor * sum_gated),
    to_gate.astype(gate.dtype),
    norm.like(scale, to_scale),
    norm.like(bias, sum_g),
  )


gate_and_normalise.defvjp(_forward, _backward)
