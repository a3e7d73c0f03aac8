"""The one 3-D convolution that every network uses.

XLA compiles 3-D convolutions well for GPU and TPU and badly for CPU. There a 3x3x3 convolution is
the sum of three 2-D convolutions, one for each tap along depth (measured on 2 cores: about three
times the speed, and half the compile time). Both forms give the same numbers up to rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def conv3d(x: jax.Array, kernel: jax.Array, stride: int = 1, *, impl: str = "auto") -> jax.Array:
  """A 3-D convolution that pads k // 2 voxels on both sides, also at stride 2 (as PyTorch does).

  Args:
    x: (B, D, H, W, C).
    kernel: (kD, kH, kW, C, F), each k odd.
    stride: the same along D, H and W.
    impl: "native" (one 3-D convolution), "depth_taps" (2-D convolutions summed over depth taps),
      or "auto", which picks by backend.

  Returns:
    (B, ceil(D / stride), ceil(H / stride), ceil(W / stride), F), in x's dtype.
  """
  if kernel.shape[:3] == (1, 1, 1) and stride == 1:
    return jnp.einsum("bdhwc,cf->bdhwf", x, kernel[0, 0, 0])
  if impl == "auto":
    impl = "depth_taps" if jax.default_backend() == "cpu" else "native"
  if impl == "depth_taps":
    return _depth_taps(x, kernel, stride)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride,) * 3,
    padding=_same_padding(kernel.shape[:3]),
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def _same_padding(window: Sequence[int]) -> list[tuple[int, int]]:
  return [(k // 2, k // 2) for k in window]


def _depth_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  batch, depth, height, width, channels = x.shape
  taps = kernel.shape[0]
  out_depth = (depth - 1) // stride + 1
  x = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0), (0, 0), (0, 0)))
  total = None
  for tap in range(taps):
    slices = lax.slice_in_dim(x, tap, tap + (out_depth - 1) * stride + 1, stride, axis=1)
    part = lax.conv_general_dilated(
      slices.reshape(batch * out_depth, height, width, channels),  # (B D', H, W, C)
      kernel[tap],
      window_strides=(stride,) * 2,
      padding=_same_padding(kernel.shape[1:3]),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    total = part if total is None else total + part
  return total.reshape(batch, out_depth, *total.shape[1:])  # (B, D', H', W', F)


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
