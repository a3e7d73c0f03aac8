"""How far apart the surfaces of two masks are: HD95 in mm, and the surface Dice (NSD).

Definitions: S. Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head
and neck anatomy for radiotherapy", 2018, as in the package `surface-distance`, which BraTS 2023
scores with. A surface point is a corner shared by 2x2x2 voxels of which some, not all, are in the
mask (what lies outside the volume is not). It stands for the area that marching cubes (W. Lorensen,
H. Cline, 1987) puts there, and its distance is the one to the nearest point of the other surface.

Where the package computes distance maps of the volume, a k-d tree finds the nearest points: the
same distances, several times as fast, unless so many points are asked for that the map is faster.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from kd_jax.runtime.arrays import Box, bounding_box

# Area of a 2x2x2 pattern, as eighths of a voxel's face, by the direction of its triangles' normals
# (without signs: (1, 1, 0) is a diagonal between axes 0 and 1). A pattern's bit 7 - 4i - 2j - k
# says whether voxel (i, j, k) is inside. All other patterns are mirrored, turned or inverted ones.
_PATTERNS = {
  0b00000001: {(1, 1, 1): 1},  # a corner cut off
  0b00000011: {(1, 1, 0): 4},  # an edge
  0b00000110: {(1, 1, 1): 2},
  0b00000111: {(1, 1, 1): 3, (1, 0, 0): 4},
  0b00001111: {(1, 0, 0): 8},  # a plane: one whole face
  0b00010110: {(1, 1, 1): 3},
  0b00010111: {(1, 1, 1): 6},  # a hexagon
  0b00011000: {(1, 1, 1): 2},
  0b00011001: {(1, 1, 1): 1, (0, 1, 1): 4},
  0b00011011: {(1, 1, 1): 4, (0, 1, 1): 2, (1, 0, 1): 2},
  0b00011110: {(1, 1, 1): 4, (1, 0, 0): 4},
  0b00111100: {(1, 1, 0): 8},
  0b01101001: {(1, 1, 1): 4},
}
_DIRECTIONS = tuple(d for d in itertools.product((0, 1), repeat=3) if any(d))
# Rounding of sums and of voxel sizes must decide neither a percentile nor a tolerance.
_ROUNDING = 1e-9
_ROUNDING_MM = 1e-6


@dataclass(frozen=True)
class Surface:
  """Points of one mask's surface.

  Attributes:
    corners: (N, 3) int; point (i, j, k) is the corner between voxels i - 1 and i, j - 1 and j, ...
    area_mm2: (N,) the area that each stands for.
  """

  corners: np.ndarray
  area_mm2: np.ndarray

  def __getitem__(self, keep: np.ndarray) -> "Surface":
    return Surface(self.corners[keep], self.area_mm2[keep])


@dataclass(frozen=True)
class SurfacePair:
  """The surfaces of two masks of one volume, and how far each point is from the other one.

  Attributes:
    predicted, truth: of N and M points.
    predicted_mm, truth_mm: (N,) and (M,) distances to the other surface; infinite if it is empty.
    voxel_mm: edges of a voxel.
  """

  predicted: Surface
  truth: Surface
  predicted_mm: np.ndarray
  truth_mm: np.ndarray
  voxel_mm: tuple[float, float, float]

  def subset(self, of_predicted: np.ndarray, of_truth: np.ndarray) -> "SurfacePair":
    """The pair of two parts, given as boolean masks (N,) and (M,) of the points to keep."""
    predicted, truth = self.predicted[of_predicted], self.truth[of_truth]
    # Distances to a surface that stays whole stay as they are.
    return replace(
      self,
      predicted=predicted,
      truth=truth,
      predicted_mm=self.predicted_mm[of_predicted]
      if of_truth.all()
      else nearest_mm(predicted, truth, self.voxel_mm),
      truth_mm=self.truth_mm[of_truth]
      if of_predicted.all()
      else nearest_mm(truth, predicted, self.voxel_mm),
    )


def surface_pair(
  predicted: np.ndarray, truth: np.ndarray, voxel_mm: Sequence[float]
) -> SurfacePair:
  """The surfaces of two (D, H, W) boolean masks, once for all scores.

  The crop of both gives the same distances and areas, faster.
  """
  d, h, w = map(float, voxel_mm)
  edges = (d, h, w)
  p, t = surface(predicted, edges), surface(truth, edges)
  return SurfacePair(p, t, nearest_mm(p, t, edges), nearest_mm(t, p, edges), edges)


def hd95_mm(pair: SurfacePair, of_empty: float) -> float:
  """The larger of the two directed, area-weighted 95th percentiles of the distances, in mm.

  Args:
    of_empty: what it is where exactly one mask is empty; it is 0 where both are.
  """
  empty = _empty(pair)
  if any(empty):
    return 0.0 if all(empty) else float(of_empty)
  return max(
    _percentile_95(pair.predicted_mm, pair.predicted.area_mm2),
    _percentile_95(pair.truth_mm, pair.truth.area_mm2),
  )


def nsd(pair: SurfacePair, tolerance_mm: float = 1.0) -> float:
  """Normalised surface Dice: the share of both surfaces' area within tolerance_mm of the other.

  Both masks empty: 1; one empty: 0.
  """
  if all(_empty(pair)):
    return 1.0
  limit = tolerance_mm + _ROUNDING_MM
  sides = ((pair.predicted_mm, pair.predicted.area_mm2), (pair.truth_mm, pair.truth.area_mm2))
  near = sum(area[mm <= limit].sum() for mm, area in sides)
  return float(near / sum(area.sum() for _, area in sides))


def crop(predicted: np.ndarray, truth: np.ndarray) -> Box:
  """The box of both masks' foreground: surface and lesion scores of the crop are the volume's.

  (Surfaces need no margin, since outside counts as background. Nor do dilations: what they reach
  outside the box, moved to the box's nearest voxel, they reach too, and neighbours stay so.)

  Args:
    predicted, truth: (D, H, W) boolean masks or classes.

  Returns:
    Slices along D, H and W, empty ones if both masks are.
  """
  box = bounding_box((predicted != 0) | (truth != 0))
  return (slice(0, 0),) * 3 if box is None else box


def surface(mask: np.ndarray, voxel_mm: Sequence[float]) -> Surface:
  """All surface points of a (D, H, W) boolean mask, in the order of the array."""
  code = np.pad(mask, 1).view(np.uint8)  # (D + 2, H + 2, W + 2)
  code = 2 * code[..., :-1] + code[..., 1:]  # two bits, by k
  code = 4 * code[:, :-1] + code[:, 1:]  # four, by j
  code = 16 * code[:-1] + code[1:]  # (D + 1, H + 1, W + 1), eight bits: the 2x2x2 pattern
  at = np.flatnonzero((code != 0) & (code != 255))
  corners = np.stack(np.unravel_index(at, code.shape), axis=-1)  # (N, 3)
  return Surface(corners, _area_mm2(tuple(voxel_mm))[code.ravel()[at]])


def nearest_mm(of: Surface, to: Surface, voxel_mm: Sequence[float]) -> np.ndarray:
  """(N,) distance of each of N points to the nearest point of another surface, infinite if none."""
  if not len(to.corners) or not len(of.corners):
    return np.full(len(of.corners), np.inf)
  first = np.minimum(of.corners.min(axis=0), to.corners.min(axis=0))
  shape = np.maximum(of.corners.max(axis=0), to.corners.max(axis=0)) - first + 1
  if 8 * len(of.corners) > np.prod(shape):  # noise, or a box that is all surface
    away = np.ones(shape, bool)
    away[tuple((to.corners - first).T)] = False
    distance = ndimage.distance_transform_edt(away, sampling=voxel_mm)
    return distance[tuple((of.corners - first).T)]
  # Settings for grid points; they change the speed only.
  tree = cKDTree(to.corners * voxel_mm, leafsize=32, balanced_tree=False, compact_nodes=False)
  _, at = tree.query(of.corners * voxel_mm)
  # From whole steps, not from the tree's coordinates: nothing is lost where it is large.
  return np.sqrt((((of.corners - to.corners[at]) * voxel_mm) ** 2).sum(axis=1))


def _percentile_95(mm: np.ndarray, area_mm2: np.ndarray) -> float:
  """The smallest distance within which lie at least 95 % of the area."""
  order = np.argsort(mm)
  within = np.cumsum(area_mm2[order])
  at = np.searchsorted(within, 0.95 * within[-1] * (1 - _ROUNDING))
  return float(mm[order[at]])


def _empty(pair: SurfacePair) -> tuple[bool, bool]:
  return not len(pair.predicted.corners), not len(pair.truth.corners)


@functools.cache
def _area_mm2(voxel_mm: tuple[float, float, float]) -> np.ndarray:
  """(256,) area of each 2x2x2 pattern."""
  a, b, c = voxel_mm
  faces = np.array([b * c, a * c, a * b])  # by the axis that they stand on
  return _eighths() @ np.linalg.norm(np.array(_DIRECTIONS) * faces, axis=1) / 8


@functools.cache
def _eighths() -> np.ndarray:
  """(256, 7) area of each pattern by direction: _PATTERNS and all that are symmetric to them."""
  table = np.zeros((256, len(_DIRECTIONS)))
  for pattern, areas in _PATTERNS.items():
    inside = np.array([pattern >> bit & 1 for bit in range(7, -1, -1)]).reshape(2, 2, 2)
    for axes in itertools.permutations(range(3)):
      for steps in itertools.product((1, -1), repeat=3):
        turned = inside.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
        code = int(np.packbits(turned)[0])
        for direction, eighths in areas.items():
          column = _DIRECTIONS.index(tuple(direction[axis] for axis in axes))
          table[[code, 255 - code], column] = eighths
  return table
