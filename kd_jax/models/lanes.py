"""Neighbouring voxels side by side as channels, for a device that keeps numbers in rows of 128.

A TPU fills up an array's last axis to rows of 128 numbers, in its memory and in its matrix unit: 32
channels take four times their bytes, and three quarters of the multiplications are of zeros. So
there a network's operations see (B, D, H, W/p, p*C), p neighbours along W in one row ("pack" = p;
space-to-depth along one axis). Each operation packs what it gets and unpacks what it gives; where
the next one packs it alike, XLA takes both away. With p = 1 nothing is done at all.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.models import conv_forms

LANES = 128  # of a row


def packs(filters: Sequence[int], platform: str) -> tuple[int, ...]:
  """How many neighbours make a row at each of a U-Net's resolutions, finest first.

  Powers of two, and no more than what its sides are sure to be multiples of.
  """
  if platform != "tpu":
    return (1,) * len(filters)
  last = len(filters) - 1
  fit = (min(max(1, LANES // channels), 2 ** (last - n)) for n, channels in enumerate(filters))
  return tuple(1 << (voxels.bit_length() - 1) for voxels in fit)


def pack(x: jax.Array, p: int) -> jax.Array:
  """(B, D, H, W, C) -> (B, D, H, W/p, p*C)."""
  *sides, width, channels = x.shape
  return x if p == 1 else x.reshape(*sides, width // p, p * channels)


def unpack(rows: jax.Array, p: int) -> jax.Array:
  """(B, D, H, W/p, p*C) -> (B, D, H, W, C)."""
  *sides, width, channels = rows.shape
  return rows if p == 1 else rows.reshape(*sides, width * p, channels // p)


def spread(numbers: jax.Array, p: int) -> jax.Array:
  """A number by channel, (..., C), for each voxel of a row: (..., p*C)."""
  return numbers if p == 1 else jnp.tile(numbers, p)


def gather(numbers: jax.Array, p: int, reduce: Callable[..., jax.Array] = jnp.sum) -> jax.Array:
  """(..., p*C), of whole rows -> (..., C): reduced over the voxels of a row."""
  *others, channels = numbers.shape
  return numbers if p == 1 else reduce(numbers.reshape(*others, p, channels // p), axis=-2)


def add(x: jax.Array, y: jax.Array, p: int) -> jax.Array:
  """x + y, both (B, D, H, W, C)."""
  return unpack(pack(x, p) + pack(y, p), p)


def conv3d(x: jax.Array, kernel: jax.Array, stride: int, p: int) -> jax.Array:
  """As conv.conv3d of a packed image: one whose kernel spans whole rows along W.

  Its zeros multiply the arithmetic by p, and full rows make it quicker by more.

  Args:
    x: (B, D, H, W, C), W a multiple of stride * p.
    kernel: (kD, kH, kW, C, F), each k odd.
    p: voxels of the result in a row; of the image it is stride * p.

  Returns:
    (B, D', H', W'/p, p*F), packed.
  """
  k_depth, k_height, k_width, channels, features = kernel.shape
  own, reach = stride * p, k_width // 2
  first = -(-reach // own)  # rows of the image before the one that a row of the result lies in
  after = (stride * (p - 1) + reach) // own
  voxels = (first + 1 + after) * own
  # Voxel o of a row meets kW voxels of these, from number starts[o] on.
  starts = [first * own + stride * o - reach for o in range(p)]
  rest = ((0, 0),) * 2
  wide = jnp.stack(
    [jnp.pad(kernel, (*rest, (start, voxels - start - k_width), *rest)) for start in starts],
    axis=-2,
  )  # (kD, kH, voxels, C, p, F)
  wide = wide.reshape(k_depth, k_height, -1, own * channels, p * features)
  # The taps along depth lie side by side, too, and slices are samples: a 3-D convolution of few
  # samples XLA cuts into eight pieces along W, and copies them into that order and back.
  taps = conv_forms.slices_by_tap(pack(x, own), k_depth, stride, 1)
  stacked = jnp.concatenate(taps, axis=-1)  # (B, D', H, W/own, kD*own*C)
  y = lax.conv_general_dilated(
    stacked.reshape(-1, *stacked.shape[2:]),
    jnp.moveaxis(wide, 0, 2).reshape(*wide.shape[1:3], -1, p * features),
    window_strides=(stride, 1),
    padding=[(k_height // 2,) * 2, (first, after)],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(*stacked.shape[:2], *y.shape[1:])


def upsample2(x: jax.Array, kernel: jax.Array, p: int) -> jax.Array:
  """As conv.upsample2 of a packed image: one product and a rearrangement of whole rows.

  Args:
    x: (B, D, H, W, C), W a multiple of p / 2.
    kernel: (2, 2, 2, C, F), not flipped.
    p: even, voxels of the result in a row; of the image it is p / 2.

  Returns:
    (B, 2D, 2H, 2W/p, p*F), packed.
  """
  channels, features = kernel.shape[3:]
  pair = jnp.moveaxis(kernel, -2, 0).reshape(channels, 2, 2, 2 * features)
  rest = ((0, 0),) * 3
  places = (2 * features * voxel for voxel in range(p // 2))
  wide = jnp.concatenate(
    [jnp.pad(pair, (*rest, (at, (p - 2) * features - at))) for at in places]
  )  # (p/2 * C, 2, 2, p*F)
  cubes = jnp.einsum("bdhwc,cyzf->bdyhzwf", pack(x, p // 2), wide)
  batch, depth, _, height, _, width, row = cubes.shape
  return cubes.reshape(batch, 2 * depth, 2 * height, width, row)
