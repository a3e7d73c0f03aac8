"""The forms of a 3-D convolution: the same numbers up to rounding, at different speed.

Each is linear in the image and in the kernel, so XLA can transpose it. Names that end in _2 or _4
compute as many slices of output at once: the depth taps of all of them side by side meet a kernel
with as many times the outputs, some of whose numbers are zeros, for 4/3 (3/2) of the arithmetic.
On a GPU 32 outputs fill half of a 64-wide tile; two slices of 32 fill it.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Form = Callable[[jax.Array, jax.Array, int], jax.Array]


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


# --- Several slices of output at once ----------------------------------------------------------


def _taps(k_depth: int, stride: int, slices: int) -> int:
  """How many slices of the image `slices` neighbouring slices of output are made of."""
  return (slices - 1) * stride + k_depth


def _groups(depth: int, stride: int, slices: int) -> int:
  """How many groups of `slices` slices of output there are; the last one may be partly used."""
  return -(-depth // (stride * slices))


def _padding(depth: int, k_depth: int, stride: int, slices: int) -> tuple[int, int]:
  """Slices of zeros before and after the image (negative: left out)."""
  step = stride * slices
  read = (_groups(depth, stride, slices) - 1) * step + _taps(k_depth, stride, slices)
  return k_depth // 2, read - depth - k_depth // 2


def _widened(kernel: jax.Array, stride: int, slices: int) -> jax.Array:
  """(kD, kH, kW, C, F) -> (taps, kH, kW, C, slices * F): output i uses its own kD taps."""
  k_depth = len(kernel)
  taps = _taps(k_depth, stride, slices)
  rest = ((0, 0),) * 4
  places = ((i * stride, taps - k_depth - i * stride) for i in range(slices))
  wide = jnp.stack([jnp.pad(kernel, (place, *rest)) for place in places], axis=-2)
  # (taps, kH, kW, C, slices, F)
  return wide.reshape(*wide.shape[:4], -1)


def _unfolded(y: jax.Array, slices: int, depth: int) -> jax.Array:
  """(B, groups, H, W, slices * F) -> (B, depth, H, W, F)."""
  batch, groups, height, width, features = y.shape
  y = y.reshape(batch, groups, height, width, slices, features // slices)
  y = jnp.moveaxis(y, 4, 2)  # (B, groups, slices, H, W, F)
  return y.reshape(batch, groups * slices, height, width, -1)[:, :depth]


def slices_by_tap(x: jax.Array, k_depth: int, stride: int, slices: int) -> list[jax.Array]:
  """What each tap along depth meets: arrays (B, groups, H, W, C)."""
  taps, step = _taps(k_depth, stride, slices), stride * slices
  last = (_groups(x.shape[1], stride, slices) - 1) * step
  before, after = _padding(x.shape[1], k_depth, stride, slices)
  x = _pad_depth(x, before, max(after, 0))
  return [lax.slice_in_dim(x, tap, tap + last + 1, step, axis=1) for tap in range(taps)]


def _native(x: jax.Array, kernel: jax.Array, stride: int, slices: int = 1) -> jax.Array:
  """One 3-D convolution."""
  padding = _same_padding(kernel.shape[:3])
  if slices > 1:
    padding[0] = _padding(x.shape[1], len(kernel), stride, slices)
    kernel = _widened(kernel, stride, slices)
  y = lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride * slices, stride, stride),
    padding=padding,  # alike on both sides where it can be: XLA for GPU would pad by itself else
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  return _unfolded(y, slices, -(-x.shape[1] // stride)) if slices > 1 else y


def _depth_stack(x: jax.Array, kernel: jax.Array, stride: int, slices: int = 1) -> jax.Array:
  """One 2-D convolution of all slices, the depth taps side by side as channels."""
  stacked = jnp.concatenate(slices_by_tap(x, len(kernel), stride, slices), axis=-1)
  wide = _widened(kernel, stride, slices)  # (taps, kH, kW, C, slices * F)
  wide = jnp.moveaxis(wide, 0, 2).reshape(*kernel.shape[1:3], stacked.shape[-1], -1)
  y = _each_slice(stacked, wide, stride)  # (B, groups, H', W', slices * F)
  return _unfolded(y, slices, -(-x.shape[1] // stride)) if slices > 1 else y


def _depth_taps(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """2-D convolutions, one a depth tap, and their sum."""
  taps = zip(slices_by_tap(x, len(kernel), stride, 1), kernel, strict=True)
  return functools.reduce(operator.add, (_each_slice(x, plane, stride) for x, plane in taps))


# --- Other algorithms --------------------------------------------------------------------------


def _winograd(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Two slices from four that overlap, with four products for six: F(2, 3) along depth.

  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.1. The
  gradients are this function's transpose, and save as many products.
  """
  batch, depth, height, width, _ = x.shape
  pairs = (depth + 1) // 2
  d0, d1, d2, d3 = slices_by_tap(x, 3, 1, 2)  # (B, pairs, H, W, C)
  g0, g1, g2 = kernel
  m0 = _each_slice(d0 - d2, g0, 1)
  m1 = _each_slice(d1 + d2, (g0 + g1 + g2) / 2, 1)
  m2 = _each_slice(d2 - d1, (g0 - g1 + g2) / 2, 1)
  m3 = _each_slice(d1 - d3, g2, 1)
  y = jnp.stack([m0 + m1 + m2, m1 - m2 - m3], axis=2)  # (B, pairs, 2, H, W, F)
  return y.reshape(batch, 2 * pairs, height, width, -1)[:, :depth]


def _patches(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """A matrix product with all taps side by side as channels, for images of very few channels.

  Their number is filled up with zeros to a multiple of 8, which tensor cores want.
  """
  window, (channels, features) = kernel.shape[:3], kernel.shape[3:]
  x = jnp.pad(x, ((0, 0), *_same_padding(window), (0, 0)))
  outs = [(side - k) // stride + 1 for side, k in zip(x.shape[1:4], window, strict=True)]
  taps = []
  for at in itertools.product(*map(range, window)):
    stops = _ends(at, [(out - 1) * stride + 1 for out in outs])
    strides = (1, stride, stride, stride, 1)
    taps.append(lax.slice(x, (0, *at, 0), (len(x), *stops, channels), strides))
  rows = len(taps) * channels
  if spare := -rows % 8:
    taps.append(jnp.zeros((*taps[0].shape[:-1], spare), x.dtype))
  matrix = jnp.pad(kernel.reshape(rows, features), ((0, spare), (0, 0)))
  return jnp.einsum("bdhwr,rf->bdhwf", jnp.concatenate(taps, axis=-1), matrix)


def _cubes(pull: jax.Array, kernel: jax.Array, shape: Sequence[int]) -> jax.Array:
  """The gradient to the image of a 3x3x3 convolution of stride 2, as one matrix product.

  Along each axis an even voxel of the image meets the middle tap of one output; an odd one meets
  the last tap of the same output and the first tap of the next. So 2x2x2 voxels of the image
  depend on 2x2x2 outputs.

  Args:
    pull: (B, D', H', W', F), the gradient to the output; D' = ceil(D / 2) and so on.
    kernel: (3, 3, 3, C, F).
    shape: of the image, (B, D, H, W, C).

  Returns:
    (B, D, H, W, C).
  """
  meets = np.zeros((2, 2, 3))  # [even or odd voxel, same or next output, tap]
  meets[0, 0, 1] = meets[1, 0, 2] = meets[1, 1, 0] = 1
  meet = jnp.asarray(meets, kernel.dtype)
  cube = jnp.einsum("pix,qjy,rkz,xyzcf->ijkfpqrc", meet, meet, meet, kernel)
  padded = jnp.pad(pull, ((0, 0), (0, 1), (0, 1), (0, 1), (0, 0)))
  stacked = jnp.concatenate(
    [
      lax.slice(padded, (0, *at, 0), (len(pull), *_ends(at, pull.shape[1:4]), pull.shape[4]))
      for at in itertools.product(range(2), repeat=3)
    ],
    axis=-1,
  )  # (B, D', H', W', 8 F)
  cube = cube.reshape(-1, *cube.shape[4:])
  x = jnp.einsum("bdhwt,tpqrc->bdphqwrc", stacked, cube)  # (B, D', 2, H', 2, W', 2, C)
  batch, depth, _, height, _, width, _, channels = x.shape
  x = x.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)
  return x[:, : shape[1], : shape[2], : shape[3]]


def _ends(starts: Sequence[int], sides: Sequence[int]) -> list[int]:
  return [start + side for start, side in zip(starts, sides, strict=True)]


# --- By name and direction ---------------------------------------------------------------------

FORMS: dict[str, Form] = {
  "native": _native,
  "native_2": functools.partial(_native, slices=2),
  "native_4": functools.partial(_native, slices=4),
  "depth_stack": _depth_stack,
  "depth_stack_2": functools.partial(_depth_stack, slices=2),
  "depth_stack_4": functools.partial(_depth_stack, slices=4),
  "depth_taps": _depth_taps,
  "winograd": _winograd,
  "patches": _patches,
}
_TRANSPOSED = "transposed_"  # before a form's name: the gradient to the image as XLA derives it
DIRECTIONS = ("forward", "to_input", "to_kernel")


def possible(form: str, direction: str, window: Sequence[int], stride: int) -> bool:
  """Whether a form serves a direction for a kernel of this window (kD, kH, kW) and stride."""
  small = tuple(window) == (3, 3, 3)
  if direction == "to_input":
    if form == "cubes":
      return small and stride == 2
    if form.startswith(_TRANSPOSED):
      return possible(form.removeprefix(_TRANSPOSED), "forward", window, stride)
    return stride == 1 and possible(form, "forward", window, stride)
  if form == "winograd":
    return window[0] == 3 and stride == 1
  return form in FORMS


def names(direction: str) -> tuple[str, ...]:
  """All forms of one of DIRECTIONS, "native" or the like first."""
  if direction != "to_input":
    return tuple(FORMS)
  return (*(_TRANSPOSED + name for name in FORMS), *FORMS, "cubes")


def forward(form: str, x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """(B, D, H, W, C), (kD, kH, kW, C, F) -> (B, D', H', W', F)."""
  _check(form, "forward", kernel.shape[:3], stride)
  return FORMS[form](x, kernel, stride)


def to_input(
  form: str, pull: jax.Array, kernel: jax.Array, stride: int, shape: Sequence[int]
) -> jax.Array:
  """The gradient to the image, of `shape`, from that to the output.

  At stride 1 it is a convolution itself: with the kernel flipped and its channels exchanged.
  """
  _check(form, "to_input", kernel.shape[:3], stride)
  if form == "cubes":
    return _cubes(pull, kernel, shape)
  if form.startswith(_TRANSPOSED):
    run = FORMS[form.removeprefix(_TRANSPOSED)]
    image = jax.ShapeDtypeStruct(tuple(shape), pull.dtype)
    return jax.linear_transpose(lambda x: run(x, kernel, stride), image)(pull)[0]
  return FORMS[form](pull, jnp.swapaxes(jnp.flip(kernel, (0, 1, 2)), 3, 4), 1)


def to_kernel(
  form: str, x: jax.Array, pull: jax.Array, stride: int, shape: Sequence[int]
) -> jax.Array:
  """The gradient to the kernel, of `shape`: a product over the image that the form stacks."""
  _check(form, "to_kernel", shape[:3], stride)
  kernel = jax.ShapeDtypeStruct(tuple(shape), pull.dtype)
  return jax.linear_transpose(lambda kernel: FORMS[form](x, kernel, stride), kernel)(pull)[0]


def _check(form: str, direction: str, window: Sequence[int], stride: int) -> None:
  if not possible(form, direction, window, stride):
    kernel = "x".join(map(str, window))
    raise ValueError(
      f"form = {form!r} is none for {direction} with a kernel of {kernel} and stride {stride}"
    )
