"""A mask's surface as triangles, for showing it in 3-D."""

import numpy as np

from kd_jax.runtime.arrays import bounding_box

_CORNERS = np.array([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
_ROUNDS = 12
_SLACK = 0.3  # of a voxel: enough for smooth slopes, too little for a lone voxel to vanish


def surface(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The closed surface of a mask: constrained elastic surface nets (Gibson, MICCAI 1998).

  Each cell of 2x2x2 voxel centres that is partly inside gets one vertex, which moves towards the
  mean of its neighbours, but never more than 0.3 voxels along an axis from the cell's middle. So
  no voxel is lost, however small the lesion.

  Args:
    mask: (D, H, W) booleans.

  Returns:
    vertices, (N, 3) float32 on mask's index axes; triangles, (M, 3) int32 into vertices,
    counter-clockwise seen from outside. N = M = 0 for an empty mask.
  """
  box = bounding_box(mask)
  if box is None:
    return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
  start = np.array([part.start for part in box])
  inside = np.pad(mask[box].astype(bool), 1)  # so that the surface closes at the volume's edge

  corners = _corners(inside)  # (8, cells)
  cells = np.argwhere(~(corners.all(axis=0) | ~corners.any(axis=0)))  # (N, 3)
  number = np.full(inside.shape, -1, np.int32)
  number[tuple(cells.T)] = np.arange(len(cells))

  quads = _quads(inside, number)
  vertices = _relaxed(cells + 0.5, quads)
  triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
  return (vertices + start - 1).astype(np.float32), triangles


def _corners(inside: np.ndarray) -> np.ndarray:
  """(8, D - 1, H - 1, W - 1): whether each corner of each cell is inside."""
  ends = [(slice(None, -1), slice(1, None))[c] for c in (0, 1)]
  return np.stack([inside[ends[a], ends[b], ends[c]] for a, b, c in _CORNERS])


def _quads(inside: np.ndarray, number: np.ndarray) -> np.ndarray:
  """(Q, 4) int32: the four cells around each edge that the surface cuts, in turning order."""
  quads = []
  for a in range(3):
    step = np.eye(3, dtype=int)
    b, c = step[(a + 1) % 3], step[(a + 2) % 3]
    first, second = np.delete(inside, -1, a), np.delete(inside, 0, a)
    for outward, cut in ((True, first & ~second), (False, second & ~first)):
      p = np.argwhere(cut)
      around = [number[tuple((p - d).T)] for d in (b + c, c, 0 * c, b)]
      quads.append(np.stack(around if outward else around[::-1], axis=1))
  return np.concatenate(quads)


def _relaxed(centres: np.ndarray, quads: np.ndarray) -> np.ndarray:
  """(N, 3) centres of the cells -> (N, 3) vertices after the rounds of smoothing."""
  before, after = quads, np.roll(quads, 1, axis=1)  # the ends of each quad's four sides
  one, other = np.stack([before, after]).ravel(), np.stack([after, before]).ravel()
  n = len(centres)
  neighbours = np.bincount(one, minlength=n)[:, None]
  vertices = centres
  for _ in range(_ROUNDS):
    total = [np.bincount(one, vertices[other, axis], n) for axis in range(3)]
    mean = np.stack(total, axis=1) / neighbours
    vertices = np.clip((vertices + mean) / 2, centres - _SLACK, centres + _SLACK)
  return vertices
