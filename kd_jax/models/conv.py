"""The one 3-D convolution that every network uses.

XLA compiles 3-D convolutions well for GPU and TPU and badly for CPU. There a 3x3x3 convolution is
made of 2-D ones: three a slice, one for each tap along depth, or, with Winograd's algorithm along
depth, four for every two slices. benchmarks/convolution.py compares the forms; they give the same
numbers up to rounding.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

IMPLS = ("native", "depth_taps", "depth_stack", "winograd")
_FEW_CHANNELS = 4  # of the input, below which Winograd's sums cost more than its products save


def conv3d(x: jax.Array, kernel: jax.Array, stride: int = 1, *, impl: str = "auto") -> jax.Array:
  """A 3-D convolution that pads k // 2 voxels on both sides, also at stride 2 (as PyTorch does).

  Args:
    x: (B, D, H, W, C).
    kernel: (kD, kH, kW, C, F), each k odd.
    stride: the same along D, H and W.
    impl: "native" (one 3-D convolution), "depth_taps" (2-D convolutions summed over depth taps),
      "depth_stack" (one 2-D convolution, the depth taps side by side as channels), "winograd" (2-D
      convolutions combined by Winograd's F(2, 3) along depth; only for kD = 3 and stride 1), or
      "auto", which picks by backend, shape and type.

  Returns:
    (B, ceil(D / stride), ceil(H / stride), ceil(W / stride), F), in x's dtype.

  Raises:
    ValueError: an impl that does not exist, or not for this kernel and stride.
  """
  if kernel.shape[:3] == (1, 1, 1) and stride == 1:
    return jnp.einsum("bdhwc,cf->bdhwf", x, kernel[0, 0, 0])
  if impl == "auto":
    impl = _fastest(x, kernel, stride)
  if impl == "depth_taps":
    return _depth_taps(x, kernel, stride)
  if impl == "depth_stack":
    return _depth_stack(x, kernel, stride)
  if impl == "winograd":
    return _winograd(x, kernel, stride)
  if impl != "native":
    raise ValueError(f"impl = {impl!r} is none of {IMPLS}")
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride,) * 3,
    padding=_same_padding(kernel.shape[:3]),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def _fastest(x: jax.Array, kernel: jax.Array, stride: int) -> str:
  """The choice of impl, as measured by benchmarks/convolution.py."""
  if jax.default_backend() != "cpu":
    return "native"
  # Winograd's sums would cost 16-bit types digits that they do not have.
  if kernel.shape[0] != 3 or stride != 1 or jnp.finfo(x.dtype).bits < 32:
    return "depth_taps"
  if x.shape[1] == 1:
    return "depth_taps"
  return "depth_stack" if x.shape[-1] <= _FEW_CHANNELS else "winograd"


def _same_padding(window: Sequence[int]) -> list[tuple[int, int]]:
  return [(k // 2, k // 2) for k in window]


def _pad_depth(x: jax.Array, before: int, after: int) -> jax.Array:
  return jnp.pad(x, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))


def _each_slice(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """A 2-D convolution of every slice: (B, D, H, W, C), (kH, kW, C, F) -> (B, D, H', W', F)."""
  batch, depth, *slice_shape = x.shape
  y = lax.conv_general_dilated(
    x.reshape(batch * depth, *slice_shape),
    kernel,
    window_strides=(stride,) * 2,
    padding=_same_padding(kernel.shape[:2]),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(batch, depth, *y.shape[1:])


def _slices_by_tap(x: jax.Array, taps: int, stride: int) -> list[jax.Array]:
  """What each tap along depth meets: `taps` arrays (B, ceil(D / stride), H, W, C)."""
  last = (x.shape[1] - 1) // stride * stride
  x = _pad_depth(x, taps // 2, taps // 2)
  return [lax.slice_in_dim(x, tap, tap + last + 1, stride, axis=1) for tap in range(taps)]


def _depth_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  taps = zip(_slices_by_tap(x, len(kernel), stride), kernel, strict=True)
  return functools.reduce(operator.add, (_each_slice(x, plane, stride) for x, plane in taps))


def _depth_stack(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  taps, k_height, k_width, channels, features = kernel.shape
  stacked = jnp.concatenate(_slices_by_tap(x, taps, stride), axis=-1)  # (B, D', H, W, taps * C)
  kernel = jnp.moveaxis(kernel, 0, 2).reshape(k_height, k_width, taps * channels, features)
  return _each_slice(stacked, kernel, stride)


def _winograd(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Two slices from four that overlap, with four products for six: F(2, 3) along depth.

  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1. The
  gradients are this function's transpose, and save as many products.
  """
  if len(kernel) != 3 or stride != 1:
    raise ValueError("impl = 'winograd' needs a kernel of depth 3 and stride 1")
  batch, depth, height, width, _ = x.shape
  pairs = (depth + 1) // 2
  x = _pad_depth(x, 1, 1 + depth % 2)
  d0, d1, d2, d3 = (
    lax.slice_in_dim(x, start, start + 2 * pairs - 1, 2, axis=1) for start in range(4)
  )  # (B, pairs, H, W, C)
  g0, g1, g2 = kernel
  m0 = _each_slice(d0 - d2, g0, 1)
  m1 = _each_slice(d1 + d2, (g0 + g1 + g2) / 2, 1)
  m2 = _each_slice(d2 - d1, (g0 - g1 + g2) / 2, 1)
  m3 = _each_slice(d1 - d3, g2, 1)
  y = jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=2)  # (B, pairs, 2, H, W, F)
  return y.reshape(batch, 2 * pairs, height, width, -1)[:, :depth]


def upsample2(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A transposed convolution with a 2x2x2 kernel and stride 2: no two outputs overlap.

  Each input voxel becomes a 2x2x2 cube, so it is one matrix product and a rearrangement.

  Args:
    x: (B, D, H, W, C).
    kernel: (2, 2, 2, C, F), not flipped (PyTorch's convention).

  Returns:
    (B, 2D, 2H, 2W, F).
  """
  batch, depth, height, width, _ = x.shape
  cubes = jnp.einsum("bdhwc,ijkcf->bdihjwkf", x, kernel)  # (B, D, 2, H, 2, W, 2, F)
  return cubes.reshape(batch, 2 * depth, 2 * height, 2 * width, kernel.shape[-1])
