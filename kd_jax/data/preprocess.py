"""From a case's volumes to the arrays that the networks see, in training and in prediction."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from kd_jax.data import grid as grids
from kd_jax.data import nifti
from kd_jax.data.brain import without_specks

MOST_VOXELS = nifti.MAX_VOXELS  # of a grid
FOREGROUND_VOXELS = 4096  # a class, at most; a sampler needs no more


class Image(Protocol):
  """What preparation needs of an image; nifti.Volume is one, and `PlainImage`."""

  @property
  def data(self) -> np.ndarray: ...

  @property
  def voxel_mm(self) -> tuple[float, float, float]: ...


class PlainImage(NamedTuple):
  """An image without a file: data (D, H, W) in LPS axes, and the edges of its voxels in mm."""

  data: np.ndarray
  voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def normalise(x: np.ndarray, how: str = "zscore") -> np.ndarray:
  """One modality, (D, H, W) of any type -> float32.

  "zscore": zero mean and unit deviation over this modality's own non-zero voxels, 0 elsewhere: a
  student that is given its one scan sees what it saw in training. "paper": x - min/max - min, as
  the published code has it; its authors meant (x - min) / (max - min), but the missing brackets
  leave raw intensities (min is 0 in BraTS), and those it was trained with.

  Raises:
    ValueError: "zscore" of intensities that differ by less than float32 can hold (1e-38).
  """
  brain = x != 0
  x = x.astype(np.float32)
  if how == "paper":
    return x - x.min() / x.max() - x.min()
  inside = x[brain]
  mean, std = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
  if 0 < std < np.finfo(np.float32).tiny:
    raise ValueError("its intensities are too small to be normalised")
  return np.where(brain, (x - np.float32(mean)) / np.float32(std or 1), np.float32(0))


def to_arrays(
  images: Mapping[str, Image],
  grid: str = "brain",
  normalisation: str = "zscore",
  spacing: float = 1.0,
) -> tuple[np.ndarray, grids.Grid]:
  """Images on the networks' grid, as the cache holds them.

  Specks outside a brain (`find_brain`) are no part of it: they move neither the brain grid's box
  nor the statistics of zscore. The paper's grid and its intensities are as published, specks and
  all.

  Args:
    images: modality -> image, all of one shape; any subset of modalities, channels in this order.
    grid: "brain" or "paper". normalisation: "zscore" or "paper". spacing: in mm, brain grid only.

  Returns:
    (C, *grid.shape) float16 (zscore) or float32 (paper), and the grid.

  Raises:
    ValueError: no brain, a grid of more than MOST_VOXELS (by a wrong voxel size), intensities
      that cannot be normalised.
  """
  volumes = list(images.values())
  clean = [volume.data for volume in volumes]
  if (grid, normalisation) != ("paper", "paper"):
    clean = [without_specks(volume.data, volume.voxel_mm) for volume in volumes]
  if grid == "paper":
    box = grids.paper_grid(clean[0].shape)
  else:
    brain = clean[0] != 0
    for x in clean[1:]:
      brain |= x != 0
    box = grids.brain_grid(brain, volumes[0].voxel_mm, spacing)
  if math.prod(box.shape) > MOST_VOXELS:
    edges = " x ".join(f"{mm:.3g}" for mm in volumes[0].voxel_mm)
    raise ValueError(
      f"with voxels of {edges} mm the brain would take {' x '.join(map(str, box.shape))} voxels at "
      f"{spacing:g} mm"
    )
  dtype = np.float32 if normalisation == "paper" else np.float16
  arrays = np.empty((len(volumes), *box.shape), dtype)
  sources = [volume.data for volume in volumes] if normalisation == "paper" else clean
  for array, source in zip(arrays, sources, strict=True):
    # Crop before any float arithmetic: a brain's box is a third of its scan.
    with np.errstate(all="ignore"):  # judged below
      x = normalise(source[box.box], normalisation)
      array[:] = grids.to_grid_image(x, box.cropped)
    if not np.isfinite(array).all():
      raise ValueError("its intensities are too extreme to be normalised")
  return arrays, box


def foreground_voxels(classes: np.ndarray) -> np.ndarray:
  """Coordinates of up to 4096 random voxels of classes 1..3; the same for the same classes.

  Args:
    classes: (D, H, W) uint8.

  Returns:
    (3, 4096, 3) int16; rows beyond a class's voxel count are -1.
  """
  coordinates = np.full((3, FOREGROUND_VOXELS, 3), -1, np.int16)
  rng = np.random.default_rng(0)
  for cls in (1, 2, 3):
    flat = np.flatnonzero(classes == cls)
    if len(flat) > FOREGROUND_VOXELS:
      flat = rng.choice(flat, FOREGROUND_VOXELS, replace=False)
    coordinates[cls - 1, : len(flat)] = np.stack(np.unravel_index(flat, classes.shape), axis=-1)
  return coordinates
