"""What the benchmark of inference predicts, and with what: generated scans, random students."""

import math
import shutil
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from scipy import ndimage

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.data.scans import find_scans
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.runtime.errors import UserError
from kd_jax.settings.inference import InferenceSettings

MODALITY, OVERLAP = "t1ce", 0.5
GRID_MM = (240, 240, 155)
BRAIN_MM = (140.0, 175.0, 140.0)  # left to right, front to back, feet to head
FIRST, OTHERS = "first", "others"  # folders of scans


def students(count: int, architecture: Architecture, preparation: Preparation) -> list[Student]:
  """Students with random parameters that call everything background."""
  abstract = jax.eval_shape(architecture.framework().init, jax.random.key(0))["student"]
  del abstract["side_heads"]
  settings = InferenceSettings(overlap=OVERLAP, min_component_mm3=0.0, min_et_mm3=0.0)

  def student(seed: int) -> Student:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: _draw(rng, x.shape), abstract)
    params["head"]["kernel"][:] = 0
    params["head"]["bias"][:] = [10, 0, 0, 0]
    own = (f"random{seed}", "none", architecture, preparation, settings, params)
    return Student(*own, training={}, scores=None, train=[], val=[], settings={})

  return [student(seed) for seed in range(count)]


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """As large as keeps activations near 1."""
  return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))


def write_scans(folder: Path, cases: int, source: Path | None, voxel_mm: int = 1) -> Case:
  """One scan, which is returned, in folder/first, and so many in folder/others.

  Generated with brains of slightly different sizes and voxels of voxel_mm, or copies of one file.
  UserError if that cannot be used.
  """
  try:
    _ = source and nifti.read(source)
  except ValueError as e:
    raise UserError(f"{source}: {e}") from e
  for number, scale in enumerate((1.0, *np.linspace(0.95, 1.0, cases))):
    path = folder / (OTHERS if number else FIRST) / f"case{number}_{MODALITY}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if source:
      shutil.copyfile(source, path)
    else:
      affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1]).astype(float)  # LPS, as BraTS has it
      nib.save(nib.Nifti1Image(brain(scale, voxel_mm, seed=number), affine), path)
  return scans_in(folder / FIRST)[0]


def scans_in(folder: Path) -> list[Case]:
  return find_scans(folder, (MODALITY,))[0]


def brain(scale: float, voxel_mm: int, seed: int) -> np.ndarray:
  """(D, H, W) int16: an ellipsoid with a bias field and noise; 0 around it.

  Args:
    scale: of the brain's extent, BRAIN_MM.
    voxel_mm: edge of a voxel; the grid is that of BraTS in mm.
    seed: of the noise, whose size makes the file about as large as a real one.
  """
  shape = tuple(mm // voxel_mm for mm in GRID_MM)
  sides = zip(shape, BRAIN_MM, strict=True)
  axes = np.ix_(*((np.arange(n) - (n - 1) / 2) * 2 * voxel_mm / (scale * mm) for n, mm in sides))
  noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
  bias = 0.1 * np.cos(2 * axes[0]) * np.sin(3 * axes[1]) * np.cos(axes[2])
  signal = 500 * (1 + bias + 0.04 * ndimage.gaussian_filter(noise, 0.5))
  return np.where(sum(x**2 for x in axes) < 1, np.rint(signal), 0).astype(np.int16)
