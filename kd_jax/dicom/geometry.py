"""Where the images of a series lie: whether they are one volume, and its affine."""

from typing import NamedTuple

import numpy as np

from kd_jax.dicom.series import Header, Series, number, numbers
from kd_jax.runtime.errors import UserError

_SAME_DIRECTION = 1e-3  # of direction cosines, which are written with 4 decimals or more
_SAME_PLACE_MM = 0.01
_UNEVEN = 0.1  # of the slices' distance
_SIDEWAYS_MM = 0.1  # from slice to slice
_FEWEST = 3
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's LPS to NIfTI's RAS, and back


class Stack(NamedTuple):
  """A series as a volume.

  Attributes:
    order: indices of the series' images, sorted along the normal of their plane.
    affine: (4, 4), (column, row, slice) to mm in RAS+.
    shape: (columns, rows, slices).
  """

  order: tuple[int, ...]
  affine: np.ndarray
  shape: tuple[int, int, int]


def orientations(series: Series) -> int:
  """How many directions the planes of a series have; images without one count as one more."""
  found: list[tuple[float, ...] | None] = []
  for header in series.headers:
    cosines = numbers(header, "ImageOrientationPatient", 6)
    if not any(_same(cosines, other) for other in found):
      found.append(cosines)
  return len(found)


def _same(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
  if one is None or other is None:
    return one is other
  return bool(np.allclose(one, other, atol=_SAME_DIRECTION))


def coarsest_mm(series: Series) -> float:
  """The longest edge of a voxel, as far as the headers say it."""
  spacing = numbers(series.first, "PixelSpacing", 2) or (0.0, 0.0)
  return max(*spacing, number(series.first, "SliceThickness") or 0.0)


def stack(series: Series) -> Stack:
  """The volume that a series is. UserError, in plain words, if it is none."""
  headers = series.headers
  if len(headers) < _FEWEST:
    raise UserError(f"{series.name} has {len(headers)} images, too few for a volume")
  if (count := orientations(series)) > 1:
    raise UserError(f"{series.name} has images in {count} orientations and is no volume")
  planes = [_plane(header) for header in headers]
  if any(plane is None for plane in planes):
    raise UserError(f"{series.name}: the headers do not say where its images lie")
  if len(set(planes)) > 1:
    raise UserError(f"{series.name}: its images differ in size or pixel spacing")
  assert planes[0] is not None
  rows, columns, row_mm, column_mm = planes[0]
  cosines = np.array(numbers(series.first, "ImageOrientationPatient", 6)).reshape(2, 3)
  normal = np.cross(*cosines)
  places = np.array([numbers(header, "ImagePositionPatient", 3) for header in headers])  # (N, 3)
  order = np.argsort(places @ normal, kind="stable")
  step = _step(series, places[order], normal)
  affine = np.eye(4)
  affine[:3, 0], affine[:3, 1] = cosines[0] * column_mm, cosines[1] * row_mm
  affine[:3, 2], affine[:3, 3] = step, places[order[0]]
  shape = (columns, rows, len(headers))
  return Stack(tuple(int(i) for i in order), _FLIP @ affine, shape)


def _plane(header: Header) -> tuple[int, int, float, float] | None:
  """(rows, columns, edge along a column, edge along a row) of an image that has a place."""
  rows, columns = number(header, "Rows"), number(header, "Columns")
  spacing = numbers(header, "PixelSpacing", 2)
  placed = all(
    numbers(header, name, n)
    for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6))
  )
  if not (rows and columns and spacing and placed and min(spacing) > 0):
    return None
  return int(rows), int(columns), round(spacing[0], 4), round(spacing[1], 4)


def _step(series: Series, places: np.ndarray, normal: np.ndarray) -> np.ndarray:
  """(3,) mm from each slice to the next. UserError if it is not the same everywhere.

  Args:
    places: (N, 3), sorted along the normal.
  """
  steps = np.diff(places, axis=0)
  along = steps @ normal
  if along.min() < _SAME_PLACE_MM:
    again = int(np.count_nonzero(along < _SAME_PLACE_MM))
    raise UserError(
      f"{series.name} has several images at one place ({again} of {len(places)}), such as several "
      "echoes or times; export one of them alone"
    )
  usual = float(np.median(along))
  if (wide := np.flatnonzero(along > usual * (1 + _UNEVEN))).size:
    missing = int(np.sum(np.rint(along[wide] / usual) - 1))
    after = int(wide[0]) + 1
    if missing:
      raise UserError(
        f"{series.name} lacks {missing} slice{'s' * (missing > 1)}: after slice "
        f"{after} of {len(places)} there is a gap of {along[wide[0]]:.3g} mm, and the others are "
        f"{usual:.3g} mm apart; export the whole series again"
      )
  if np.abs(along - usual).max() > usual * _UNEVEN:
    raise UserError(
      f"{series.name}: its slices lie {along.min():.3g} to {along.max():.3g} mm apart; a volume "
      "has them at one distance"
    )
  sideways = np.linalg.norm(steps - along[:, None] * normal, axis=1)
  if sideways.max() > _SIDEWAYS_MM:
    raise UserError(f"{series.name}: its slices are shifted sideways, by {sideways.max():.3g} mm")
  mean: np.ndarray = (places[-1] - places[0]) / (len(places) - 1)
  return mean
