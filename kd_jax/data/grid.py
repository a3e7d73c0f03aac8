"""Where the networks see a volume: a box of the scan, resampled to a grid, and the way back.

Array axes are the scan's, (D, H, W) in LPS. Voxels are boxes, and both grids cover the same box:
the centre of output voxel i lies at (i + 1/2) * in / out - 1/2 on the input (half-voxel centres).
Nearest neighbour takes source index floor(i * in / out) instead, the published protocol's rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kd_jax.runtime.arrays import Box, bounding_box

Triple = tuple[int, int, int]
PAPER_SHAPE = (128, 128, 128)


@dataclass(frozen=True)
class Grid:
  """The crop [start, start + size) of a volume of native_shape, resampled to shape.

  nearest: nearest neighbour in both directions; else linear, with labels by vote.
  """

  native_shape: Triple
  start: Triple
  size: Triple
  shape: Triple
  nearest: bool = False

  def to_json(self) -> dict:
    return asdict(self)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> "Grid":
    values: dict[str, Any] = {k: v if k == "nearest" else tuple(v) for k, v in fields.items()}
    return cls(**values)

  @property
  def box(self) -> Box:
    """The crop, as slices of the native volume."""
    return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

  @property
  def cropped(self) -> "Grid":
    """The same grid, for a volume that is cropped to the box already."""
    return replace(self, native_shape=self.size, start=(0, 0, 0))


def brain_grid(brain: np.ndarray, voxel_mm: Sequence[float], spacing_mm: float) -> Grid:
  """The brain's bounding box at (nearly) spacing_mm; the identity where the scan has it already.

  Args:
    brain: (D, H, W) boolean.
    voxel_mm: the scan's voxel edges.
    spacing_mm: the voxel edge wanted; the grid's is off by what makes a whole number of voxels.

  Raises:
    ValueError: brain is empty.
  """
  box = bounding_box(brain)
  if box is None:
    raise ValueError("the brain mask is empty")
  start, size, shape = [], [], []
  for axis, part in enumerate(box):
    start.append(part.start)
    size.append(part.stop - part.start)
    shape.append(max(1, round(size[-1] * voxel_mm[axis] / spacing_mm)))
  return Grid(brain.shape, tuple(start), tuple(size), tuple(shape))


def paper_grid(native_shape: Triple) -> Grid:
  """The published protocol: slices 3..146 of 155, then nearest to 128^3, whatever the brain's size.

  A volume that is not 155 slices deep gives its first 147 slices (or all, if it has fewer).
  """
  width, length, slices = native_shape
  first, last = (3, 147) if slices == 155 else (0, min(147, slices))
  size = (width, length, last - first)
  return Grid((width, length, slices), (0, 0, first), size, PAPER_SHAPE, nearest=True)


def to_grid_image(x: np.ndarray, grid: Grid) -> np.ndarray:
  """Images on the grid.

  Args:
    x: (..., *native_shape).

  Returns:
    (..., *grid.shape), float32 where linear interpolation took place; else x's type, and a view
    where the shape stays.
  """
  return _resample(_crop(x, grid), grid.shape, grid.nearest)


def to_grid_labels(y: np.ndarray, grid: Grid) -> np.ndarray:
  """Classes on the grid: (*native_shape) -> (*grid.shape), y's type.

  Unless the grid is nearest, each class is interpolated as a mask and the largest share wins, so
  that no class is lost between sample points; a tie goes to the higher class, the thinner one.
  """
  y = _crop(y, grid)
  if grid.nearest or y.shape == grid.shape:
    return _resample(y, grid.shape, nearest=True)
  winner = np.zeros(grid.shape, y.dtype)
  largest = _resample(y == 0, grid.shape, nearest=False)
  for cls in np.unique(y[y != 0]):
    share = _resample(y == cls, grid.shape, nearest=False)
    wins = share > largest - 1e-6  # rounding must not decide a tie
    winner[wins], largest[wins] = cls, share[wins]
  return winner


def from_grid(x: np.ndarray, grid: Grid, fill: float | Sequence[float] = 0.0) -> np.ndarray:
  """Maps of the grid, such as probabilities, back in the scan.

  Args:
    x: (C, *grid.shape).
    fill: the value outside the grid's box, one for all channels or one a channel.

  Returns:
    (C, *native_shape) float32.
  """
  outside = np.broadcast_to(np.asarray(fill, np.float32), len(x))
  native = np.empty((len(x), *grid.native_shape), np.float32)
  native[:] = outside[:, None, None, None]  # (C,) -> (C, 1, 1, 1)
  native[(slice(None), *grid.box)] = _resample(x, grid.size, grid.nearest)
  return native


def _crop(x: np.ndarray, grid: Grid) -> np.ndarray:
  if x.shape[-3:] != grid.native_shape:
    raise ValueError(f"expected a volume of shape {grid.native_shape}, got {x.shape}")
  inside: tuple[Any, ...] = (..., *grid.box)
  return x[inside]


def _resample(x: np.ndarray, shape: Triple, nearest: bool) -> np.ndarray:
  """(..., D, H, W) -> (..., *shape), axis by axis; axes that keep their length are not touched."""
  for axis, n in zip((-3, -2, -1), shape, strict=True):
    if x.shape[axis] == n:
      continue
    if nearest:
      x = np.take(x, np.arange(n) * x.shape[axis] // n, axis=axis)
    else:
      weights = _linear_weights(x.shape[axis], n)  # (n, in)
      x = np.tensordot(x.astype(np.float32, copy=False), weights, axes=(axis, 1))  # (..., n)
      x = np.moveaxis(x, -1, axis)
  return x


def _linear_weights(n_in: int, n_out: int) -> np.ndarray:
  """(n_out, n_in) float32 whose rows sum to 1: linear interpolation.

  When shrinking, the triangle is as wide as the output's spacing, which averages what lies
  between (no aliasing). Beyond the ends the last voxel counts on.
  """
  scale = n_in / n_out
  centres = (np.arange(n_out) + 0.5) * scale - 0.5  # on the input's index axis
  distance = np.abs(centres[:, None] - np.arange(n_in))  # (n_out, n_in)
  weights = np.maximum(0, 1 - distance / max(scale, 1))
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
