"""A prediction from the atlas back to the series: by the transform that the registration left."""

from pathlib import Path

import numpy as np
import scipy.io
from scipy import ndimage

from kd_jax.data.grid import Grid, Triple
from kd_jax.data.nifti import Volume
from kd_jax.prediction.prediction import Prediction
from kd_jax.prediction.uncertainty import Opinions
from kd_jax.runtime.errors import UserError

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's LPS to NIfTI's RAS, and back
_KINDS = tuple(
  f"{of}_{number}_3_3"
  for of in ("AffineTransform", "MatrixOffsetTransformBase")
  for number in ("double", "float")
)
_ROUNDING = 1e-6  # of a voxel: what is computed of an integer may come out less than it
_STRETCH = 0.01  # a rigid transform has none; ANTs writes single precision


def read(path: Path) -> np.ndarray:
  """A rigid transform of ITK (.mat) as (4, 4): from points of the atlas to those of the scan, RAS+.

  Raises:
    UserError: it cannot be read, is of another kind, or stretches.
  """
  try:
    content = scipy.io.loadmat(path)
    kind = next(kind for kind in _KINDS if kind in content)
    values = np.asarray(content[kind], np.float64).reshape(12)
    centre = np.asarray(content["fixed"], np.float64).reshape(3)
  except Exception as e:  # scipy has no common base for what a broken file can raise
    raise UserError(
      f"{path} is no transform as antspyx writes it for 'Rigid' ({type(e).__name__}); remove it "
      "and start again"
    ) from e
  matrix = np.eye(4)
  matrix[:3, :3] = values[:9].reshape(3, 3)
  matrix[:3, 3] = values[9:] + centre - matrix[:3, :3] @ centre
  if np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max() > _STRETCH:
    raise UserError(f"{path} stretches: the registration must be rigid (type_of_transform='Rigid')")
  return _FLIP @ matrix @ _FLIP


def onto(prediction: Prediction, scan: Volume, atlas_to_scan: np.ndarray) -> Prediction:
  """The prediction in the space of another scan: probabilities are interpolated, not labels.

  Args:
    prediction: of an image in the atlas' space.
    scan: the series as it was converted.
    atlas_to_scan: (4, 4), as `read`.
  """
  grid, image = prediction.prepared.grid, prediction.scan
  whole = _to_grid(grid) @ np.linalg.inv(image.affine) @ np.linalg.inv(atlas_to_scan) @ scan.affine
  start, size = _box(whole, grid.shape, scan.data.shape)
  offset = whole[:3, :3] @ start + whole[:3, 3]
  beyond = ~_inside(whole[:3, :3], offset, size, grid.shape)  # (*size)

  def moved(x: np.ndarray, order: int = 0 if grid.nearest else 1, fill: float = 0) -> np.ndarray:
    # The outer half of an outer voxel is the grid's too: there, the voxel counts on.
    there = ndimage.affine_transform(x, whole[:3, :3], offset, size, order=order, mode="nearest")
    there[beyond] = fill
    return there

  probabilities = np.stack(
    [moved(p.astype(np.float32), fill=c == 0) for c, p in enumerate(prediction.probabilities)]
  )  # (K, *size)
  opinions = prediction.opinions
  if opinions is not None:
    classes = np.stack([moved(own, order=0) for own in opinions.classes])
    opinions = Opinions(classes, moved(opinions.entropy))
  native = Grid(scan.data.shape, start, size, size)
  prepared = prediction.prepared._replace(grid=native, reference=scan)
  return prediction._replace(probabilities=probabilities, prepared=prepared, opinions=opinions)


def _to_grid(grid: Grid) -> np.ndarray:
  """(4, 4), from an image's indices to a grid's by the rules of data/grid.py.

  Voxels are boxes, and both cover the same box: half-voxel centres. A nearest grid has source index
  floor(i * in / out) instead, which is the nearest to half a voxel less.
  """
  scale = np.array(grid.shape) / grid.size
  centre = _ROUNDING if grid.nearest else 0.5
  matrix = np.eye(4)
  matrix[:3, :3] = np.diag(scale)
  matrix[:3, 3] = (centre - np.array(grid.start)) * scale - 0.5
  return matrix


def _inside(matrix: np.ndarray, offset: np.ndarray, size: Triple, shape: Triple) -> np.ndarray:
  """(*size) boolean: which indices lie, at matrix @ index + offset, in the voxels of a shape."""
  i, j, k = np.ogrid[tuple(slice(n) for n in size)]
  inside = np.ones(size, bool)
  for row, shift, n in zip(matrix, offset, shape, strict=True):
    x = row[0] * i + row[1] * j + row[2] * k + shift
    inside &= (x >= -0.5) & (x < n - 0.5)
  return inside


def _box(to_grid: np.ndarray, grid_shape: Triple, shape: tuple[int, ...]) -> tuple[Triple, Triple]:
  """(start, size) of what a scan of a shape has in common with a grid; at least one voxel."""
  corners = np.array(list(np.ndindex(2, 2, 2))) * np.array(grid_shape) - 0.5  # (8, 3)
  back = np.linalg.inv(to_grid)
  there = corners @ back[:3, :3].T + back[:3, 3]
  low = np.clip(np.floor(there.min(axis=0)).astype(int), 0, np.array(shape) - 1)
  high = np.clip(np.ceil(there.max(axis=0)).astype(int) + 1, low + 1, shape)
  start, size = (tuple(int(v) for v in values) for values in (low, high - low))
  return start, size  # type: ignore[return-value]
