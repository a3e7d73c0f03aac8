"""The one 3-D convolution that every network uses, and its gradients.

Which form (conv_forms.py) a device computes fastest depends on the device, the shape and the
direction: conv_choice.py has the choice. All forms give the same numbers up to rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.models import conv_forms


class Forms(NamedTuple):
  """How one convolution and its gradients are computed.

  Attributes:
    forward, to_input, to_kernel: names of forms, see conv_forms.py. Gradients of "" are what JAX
      derives from the forward form; then it may keep more than image and kernel for them.
    apart: whether what follows a convolution, such as a bias, is kept out of its call. XLA for GPU
      would fuse it into cuDNN's, which leaves cuDNN fewer kernels to choose from.
  """

  forward: str
  to_input: str = ""
  to_kernel: str = ""
  apart: bool = False


def conv3d(x: jax.Array, kernel: jax.Array, stride: int, forms: Forms) -> jax.Array:
  """A 3-D convolution that pads k // 2 voxels on both sides, also at stride 2 (as PyTorch does).

  A kernel of one voxel and stride 1 is a matrix product, whatever the forms.

  Args:
    x: (B, D, H, W, C).
    kernel: (kD, kH, kW, C, F), each k odd.
    stride: the same along D, H and W.
    forms: how.

  Returns:
    (B, ceil(D / stride), ceil(H / stride), ceil(W / stride), F), in x's dtype.

  Raises:
    ValueError: a form that does not exist, or not for this kernel and stride.
  """
  if kernel.shape[:3] == (1, 1, 1) and stride == 1:
    return jnp.einsum("bdhwc,cf->bdhwf", x, kernel[0, 0, 0])
  if not forms.to_input:
    return _forward(x, kernel, stride, forms)
  return _with_own_gradients(x, kernel, stride, forms)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, forms: Forms) -> jax.Array:
  y = conv_forms.forward(forms.forward, x, kernel, stride)
  return lax.optimization_barrier(y) if forms.apart else y


# Its residuals are the image and the kernel alone: what a form stacks, it stacks again.
_with_own_gradients = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _forward_and_residuals(x, kernel, stride, forms):
  return _forward(x, kernel, stride, forms), (x, kernel)


def _gradients(stride, forms, residuals, pull):
  # Without the barrier XLA would see the same stack twice, and keep the first one for the second.
  x, kernel, pull = lax.optimization_barrier((*residuals, pull))
  return (
    conv_forms.to_input(forms.to_input, pull, kernel, stride, x.shape),
    conv_forms.to_kernel(forms.to_kernel, x, pull, stride, kernel.shape),
  )


_with_own_gradients.defvjp(_forward_and_residuals, _gradients)


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
  features = kernel.shape[-1]
  # Written so that the product and both of its gradients find its voxels' cubes in rows.
  flat = jnp.moveaxis(kernel, -2, 0).reshape(-1, 8 * features)  # (C, 8F)
  cubes = lax.dot_general(x, flat, (((4,), (0,)), ((), ())))  # (B, D, H, W, 8F)
  cubes = cubes.reshape(batch, depth, height, width, 2, 2, 2, features)
  cubes = cubes.transpose(0, 1, 4, 2, 5, 3, 6, 7)  # (B, D, 2, H, 2, W, 2, F)
  return cubes.reshape(batch, 2 * depth, 2 * height, 2 * width, features)
