"""How is a patch turned, scaled and bent? In one resampling, for all modalities and the label.

Everything has a static shape and is written without a loop over samples, so that it compiles into
the training step on any backend and any mesh.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KNOT = 32  # voxels between the control points of an elastic deformation


def smooth(coefficients: jax.Array, shape: tuple[int, ...], knot: int) -> jax.Array:
  """The uniform cubic B-spline of some control points, at every voxel: smooth, and cheap.

  Args:
    coefficients: (..., *control_points(shape, knot)).
    shape: of the patch, (D, H, W).
    knot: voxels between two control points.

  Returns:
    (..., D, H, W); nowhere beyond the smallest and largest coefficient.
  """
  # Three small products of matrices, which every backend is good at.
  d, h, w = (jnp.asarray(_basis(n, knot), coefficients.dtype) for n in shape)
  return jnp.einsum("...ijk,di,hj,wk->...dhw", coefficients, d, h, w, precision="highest")


def control_points(shape: tuple[int, ...], knot: int) -> tuple[int, ...]:
  """How many along each axis: one beyond the patch on either side."""
  return tuple(-(-(n - 1) // knot) + 3 for n in shape)


def _basis(n, knot):
  """(n, control points): each voxel's weights, which sum to 1."""
  (points,) = control_points((n,), knot)
  distance = np.abs(np.arange(n)[:, None] / knot - (np.arange(points) - 1))
  near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
  return np.where(distance < 1, near, far)


def matrices(angles: jax.Array, scale: jax.Array) -> jax.Array:
  """Rotations about the three axes, one after the other, times a scale.

  Args:
    angles: (..., 3) in radians.
    scale: (...).

  Returns:
    (..., 3, 3).
  """
  (c0, c1, c2), (s0, s1, s2) = (jnp.moveaxis(f(angles), -1, 0) for f in (jnp.cos, jnp.sin))
  # Written out: products of 3 x 3 matrices are a program each, and some backends round them.
  rows = [
    [c1 * c2, -c1 * s2, s1],
    [s0 * s1 * c2 + c0 * s2, c0 * c2 - s0 * s1 * s2, -s0 * c1],
    [s0 * s2 - c0 * s1 * c2, c0 * s1 * s2 + s0 * c2, c0 * c1],
  ]
  return scale[..., None, None] * jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def sources(matrix: jax.Array, shift: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
  """Where each voxel of a warped patch comes from, in voxels of the patch.

  Args:
    matrix: (B, 3, 3), about the middle of the patch.
    shift: (B, 3, D, H, W) in voxels, what the deformation adds; or 0.
    shape: (D, H, W).

  Returns:
    (B, 3, D, H, W).
  """
  middle = (np.array(shape) - 1) / 2
  offsets = [
    np.arange(n).reshape([-1 if a == axis else 1 for a in range(3)]) - middle[axis]
    for axis, n in enumerate(shape)
  ]
  matrix = matrix[..., None, None, None]
  places = [
    sum((matrix[:, row, axis] * offsets[axis] for axis in range(3)), start=middle[row])
    for row in range(3)
  ]
  return jnp.stack(places, 1) + shift


def resample(
  images: jax.Array, labels: jax.Array, source: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Images by trilinear interpolation among the voxels inside the brain, labels by the nearest one.

  A voxel whose surroundings lie mostly outside the brain, or outside the patch, becomes 0. The
  others do not mix with the zeros around them: these are no intensities.

  Args:
    images: (B, M, D, H, W), 0 outside the brain.
    labels: (B, D, H, W).
    source: (B, 3, D, H, W) in voxels.

  Returns:
    Images and labels in the same shapes and types.
  """
  return jax.vmap(_resample)(images, labels, source)


def _resample(images, labels, source):
  shape = labels.shape
  # Modalities last: one index finds them all, side by side (measured on CPU: 1.7 times as fast
  # as an index into each modality, in half the temporary memory).
  rows = jnp.moveaxis(images, 0, -1).reshape(-1, len(images))
  floor = jnp.floor(source)
  low, fraction = floor.astype(jnp.int32), source - floor
  value: Any = 0  # until the first corner
  mass: Any = 0
  for up in itertools.product((0, 1), repeat=3):
    corner = [low[axis] + up[axis] for axis in range(3)]
    near = [fraction[axis] if up[axis] else 1 - fraction[axis] for axis in range(3)]
    weight = jnp.where(_within(corner, shape), near[0] * near[1] * near[2], 0)[..., None]
    found = jnp.take(rows, _flat(corner, shape), axis=0, mode="clip")
    value += weight * found
    mass += weight * (found != 0)  # of the voxels inside the brain
  value = jnp.where(mass >= 0.5, value / jnp.maximum(mass, 0.5), 0)

  nearest = list(jnp.floor(source + 0.5).astype(jnp.int32))
  label = jnp.take(labels.reshape(-1), _flat(nearest, shape), mode="clip")
  label = jnp.where(_within(nearest, shape), label, 0)
  return jnp.moveaxis(value, -1, 0).astype(images.dtype), label.astype(labels.dtype)


def _within(place, shape):
  d, h, w = ((index >= 0) & (index < n) for index, n in zip(place, shape, strict=True))
  return d & h & w


def _flat(place, shape):
  d, h, w = (jnp.clip(index, 0, n - 1) for index, n in zip(place, shape, strict=True))
  return (d * shape[1] + h) * shape[2] + w
