"""Which voxels of a skull-stripped scan are its brain: all that are not 0, without specks outside.

Brain extraction and resampling can leave a few voxels far from the brain. Taken for brain, one of
them would move the box that the networks see. Without specks nothing changes: the brain is every
voxel that is not 0.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kd_jax.runtime.arrays import bounding_box, label_sizes

# Of 39 real scans in four sequences, one has islands (6 voxels, 1 mm from the brain). A scalp is
# farther away.
GAP_MM = 2.0
# A part of this share of all that is not 0 stays: a hemisphere or a cerebellum (11 % of a brain)
# that a resection or the brain extraction has cut off. An eye is 0.5 %.
# One that nowhere holds a cube of THICK_MM is skin, or the table below the head.
PART_SHARE = 0.05
THICK_MM = 10.0
_TOUCHING = np.ones((3, 3, 3), bool)


class Brain(NamedTuple):
  """The brain of one image.

  Attributes:
    mask: (D, H, W) boolean.
    parts: voxels of each large and thick part, largest first; more than GAP_MM lies between.
    specks: voxels of each speck outside, which the mask leaves out, largest first.
    around: one large part reaches around another one, as a thick scalp does.
  """

  mask: np.ndarray
  parts: tuple[int, ...]
  specks: tuple[int, ...]
  around: bool


def find_brain(x: np.ndarray, voxel_mm: tuple[float, float, float]) -> Brain:
  """The brain of one image.

  What lies GAP_MM apart or nearer (along each axis) is one component. The largest is brain, and so
  are others of PART_SHARE or more that hold a cube of THICK_MM, and what lies in its holes
  (ventricles may be cut out).

  Args:
    x: (D, H, W), 0 outside the brain.
    voxel_mm: the edges of its voxels.
  """
  mask = x != 0
  box = bounding_box(mask)
  if box is None:
    return Brain(mask, (), (), False)
  inside = mask[box]
  # Two blocks that touch hold voxels that growing by `reach` would join: one component of blocks
  # is one component of voxels, and nearly every scan ends here.
  reach = [int(GAP_MM / 2 / mm) for mm in voxel_mm]
  if ndimage.label(_blocks(inside, [r + 1 for r in reach]), _TOUCHING)[1] <= 1:
    return Brain(mask, (int(np.count_nonzero(inside)),), (), False)
  grown = inside.view(np.uint8)
  for axis, r in enumerate(reach):
    grown = ndimage.maximum_filter1d(grown, 2 * r + 1, axis, mode="constant") if r else grown
  labels, count = ndimage.label(grown, _TOUCHING)
  sizes = np.concatenate([[0], label_sizes(labels * inside, count)])
  main = int(sizes.argmax())
  boxes = ndimage.find_objects(labels)
  large = sizes >= PART_SHARE * sizes.sum()
  for i in np.flatnonzero(large):
    part = boxes[i - 1]
    large[i] = i == main or _holds_cube((labels[part] == i) & inside[part], voxel_mm)
  enclosed = _enclosed(labels, main, count)
  kept = large | enclosed
  kept[0] = False
  brain = np.zeros_like(mask)
  brain[box] = kept[labels] & inside
  others = [i for i in np.flatnonzero(large) if i != main]
  return Brain(
    brain,
    _sorted(sizes[large]),
    _sorted(sizes[(sizes > 0) & ~kept]),
    any(enclosed[i] or _overlap(boxes[main - 1], boxes[i - 1]) > 0.5 for i in others),
  )


def without_specks(x: np.ndarray, voxel_mm: tuple[float, float, float]) -> np.ndarray:
  """(D, H, W), 0 outside the brain; x itself where it has no specks."""
  brain = find_brain(x, voxel_mm)
  return np.where(brain.mask, x, x.dtype.type(0)) if brain.specks else x


def _blocks(mask: np.ndarray, edges: list[int]) -> np.ndarray:
  """Whether there is anything in each block of edges[0] x edges[1] x edges[2] voxels."""
  for axis in np.argsort([-stride for stride in mask.strides]):  # whole planes first
    edge = edges[axis]
    if missing := -mask.shape[axis] % edge:
      mask = np.pad(mask, [(0, missing if i == axis else 0) for i in range(3)])
    planes = np.moveaxis(mask, axis, 0)
    joined = functools.reduce(np.logical_or, (planes[i::edge] for i in range(edge)))
    mask = np.moveaxis(joined, 0, axis)
  return mask


def _enclosed(labels: np.ndarray, main: int, count: int) -> np.ndarray:
  """(count + 1,) whether each component lies in a hole of the main one."""
  around, _ = ndimage.label(np.pad(labels != main, 1, constant_values=True))
  air = (around == around[0, 0, 0])[1:-1, 1:-1, 1:-1]
  enclosed = np.ones(count + 1, bool)
  enclosed[np.unique(labels[air])] = False
  return enclosed


def _holds_cube(part: np.ndarray, voxel_mm: tuple[float, float, float]) -> bool:
  """Whether a cube of THICK_MM lies in a part."""
  x = part.view(np.uint8)
  for axis, mm in enumerate(voxel_mm):
    x = ndimage.minimum_filter1d(x, max(1, round(THICK_MM / mm)), axis, mode="constant")
  return bool(x.any())


def _overlap(box: tuple[slice, ...], other: tuple[slice, ...]) -> float:
  """The share of a box that another one covers."""
  share = 1.0
  for a, b in zip(box, other, strict=True):
    share *= max(0, min(a.stop, b.stop) - max(a.start, b.start)) / (a.stop - a.start)
  return share


def _sorted(sizes: np.ndarray) -> tuple[int, ...]:
  return tuple(sorted(map(int, sizes), reverse=True))
