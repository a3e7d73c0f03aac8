"""What a channel gate takes from its input, and a gate with the norm after it, in few passes.

Mean and maximum for the gate and the moments for the norm are taken in one pass: moments of the
gated array follow from those of the array. Backward, the gradient of the gated array is never
written: what goes back through the gate follows from sums. The input comes in parts, which are side
by side as channels, so that neither they nor their gradient are written in one piece; so does what
is given. Their shift, a bias that is still to be added, costs no pass (see norm.normalise).
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.models import lanes, norm
from kd_jax.models.norm import SPACE, How, total, voxels, widen
from kd_jax.models.remat import pooled

Parts = tuple[jax.Array, ...]  # (B, D, H, W, C_i) each, C channels together


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
  return jnp.concatenate(parts, axis=-1)


def _packed(arrays: Parts, pack: int) -> Parts:
  return tuple(lanes.pack(x, pack) for x in arrays)


def _unpacked(arrays: Iterable[jax.Array], pack: int) -> Parts:
  return tuple(lanes.unpack(x, pack) for x in arrays)


def _each(rows: Parts, pack: int, *numbers: jax.Array) -> Iterator[tuple[jax.Array, ...]]:
  """Each packed part, and its channels of `numbers`, (..., C) each, for all voxels of a row."""
  ends = np.cumsum([x.shape[-1] // pack for x in rows])
  for x, end in zip(rows, ends, strict=True):
    own = (number[..., end - x.shape[-1] // pack : end] for number in numbers)
    yield x, *(lanes.spread(number, pack) for number in own)


def _shifted(rows: Parts, pack: int, shift: jax.Array) -> Parts:
  """Wide."""
  each = ((widen(x), own) for x, own in _each(rows, pack, shift))
  return tuple(x + own.astype(x.dtype) for x, own in each)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pool(parts: Parts, shift: jax.Array, pack: int = 1) -> tuple[jax.Array, jax.Array]:
  """Mean and maximum over space of parts + shift, (B, 1, 1, 1, C) each, in the parts' type.

  Voxels that share the maximum share its gradient equally. shift: (C,); pack: see lanes.
  """
  return _pool_forward(parts, shift, pack)[0]


def _pool_forward(parts, shift, pack):
  shifted, count = _shifted(_packed(parts, pack), pack, shift), voxels(parts[0])
  mean = _joined([total(x, pack) / count for x in shifted])
  peaks = (jnp.max(x, SPACE, keepdims=True) for x in shifted)
  peak = pooled(_joined([lanes.gather(most, pack, jnp.max) for most in peaks]))
  own = parts[0].dtype
  return (pooled(mean.astype(own)), pooled(peak.astype(own))), (parts, shift, peak)


def _pool_backward(pack, kept, pull):
  parts, shift, peak = kept
  to_mean, to_peak = map(widen, pull)
  shifted, count = _shifted(_packed(parts, pack), pack, shift), voxels(parts[0])
  highest = [x >= own for x, own in _each(shifted, pack, peak)]
  shares = [total(own.astype(to_peak.dtype), pack) for own in highest]
  share = to_peak / jnp.maximum(_joined(shares), 1)
  to_parts = (
    (mean + jnp.where(own, most, 0)).astype(parts[0].dtype)
    for own, mean, most in _each(tuple(highest), pack, to_mean / count, share)
  )
  return _unpacked(to_parts, pack), norm.like(shift, to_mean + to_peak)


pool.defvjp(_pool_forward, _pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def gate_and_normalise(
  parts: Parts,
  shift: jax.Array,
  gate: jax.Array,
  scale: jax.Array | None,
  bias: jax.Array | None,
  how: How,
) -> tuple[Parts, Parts]:
  """(parts + shift) * gate, and norm.normalise of that, both in parts.

  Args:
    parts: of the input.
    shift: (C,).
    gate: (B, 1, 1, 1, C).
    scale, bias: (C,) of the norm, or None.
    how: groups and activation of the second result, its type, and how both are packed.

  Returns:
    (B, D, H, W, C_i) each, in the parts' type, and in how's.
  """
  return _forward(parts, shift, gate, scale, bias, how)[0]


def _forward(parts, shift, gate, scale, bias, how: How):
  p = how.pack
  shifted = _shifted(_packed(parts, p), p, shift)
  moments = zip(*(norm.moments(x, p) for x in shifted), strict=True)
  mean, variance = (_joined(numbers) for numbers in moments)
  factor = widen(gate)
  statistics = norm.of_groups(mean * factor, variance * factor**2, how.groups)
  center, inverse = statistics
  numbers = factor, center, *norm.linear(scale, bias, inverse)
  gated, normalised = [], []
  for x, times, middle, gain, level in _each(shifted, p, *numbers):
    gated.append(x * times)
    normalised.append(norm.activated((gated[-1] - middle) * gain + level, how))
  kept = (parts, shift, pooled(gate), scale, bias, mean, variance, statistics)
  narrow = (x.astype(parts[0].dtype) for x in gated)
  return (_unpacked(narrow, p), _unpacked(normalised, p)), kept


def _backward(how: How, kept, pull):
  """Gradients of parts, shift, gate, scale and bias.

  All sums are of differences from the channel's mean, which lose no digits to a large one.
  """
  parts, shift, gate, scale, bias, mean, variance, (center, inverse) = kept
  p, factor, count = how.pack, widen(gate), voxels(parts[0])
  offset = mean * factor - center  # of the gated channel's mean from its group's
  gain, level = norm.linear(scale, bias, inverse)

  each = _each(_shifted(_packed(parts, p), p, shift), p, mean, factor, offset, gain, level)
  pulls = (_packed(arrays, p) for arrays in pull)
  voxelwise, sums = [], []
  for (x, own_mean, own_factor, own_offset, own_gain, own_level), direct, g in zip(
    each, *pulls, strict=True
  ):
    from_mean = x - own_mean
    centered = from_mean * own_factor + own_offset
    direct, g = widen(direct), norm.before_activation(g, centered * own_gain + own_level, how)
    voxelwise.append((direct, g, centered))
    sums.append([total(a, p) for a in (g, g * from_mean, direct, direct * from_mean)])
  sum_g, sum_gx, sum_direct, sum_dx = (_joined(found) for found in zip(*sums, strict=True))

  to_scale = inverse * (factor * sum_gx + offset * sum_g)
  slope, constant = norm.to_input(sum_g, to_scale, gain, inverse, how.groups, count)
  numbers = gain, slope, constant, factor
  to_parts = (
    ((direct + g * own_gain + centered * own_slope + own_constant) * times).astype(x.dtype)
    for (direct, g, centered), (x, own_gain, own_slope, own_constant, times) in zip(
      voxelwise, _each(_packed(parts, p), p, *numbers), strict=True
    )
  )
  # Sums of the gated array's gradient, and of it * (parts + shift): the same terms, summed first.
  sum_gated = sum_direct + gain * sum_g + count * (offset * slope + constant)
  to_gate = sum_dx + gain * sum_gx + count * slope * factor * variance + mean * sum_gated
  return (
    _unpacked(to_parts, p),
    norm.like(shift, factor * sum_gated),
    to_gate.astype(gate.dtype),
    norm.like(scale, to_scale),
    norm.like(bias, sum_g),
  )


gate_and_normalise.defvjp(_forward, _backward)
