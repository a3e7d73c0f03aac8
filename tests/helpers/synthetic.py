"""Small cases on disk, in the naming of any year, and where the real ones are."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from kd_jax.tasks.names import MODALITIES

OLD = {"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", "seg": "seg"}
NEW = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
SHAPE = (14, 16, 12)

# As BraTS has it: LPS, 1 mm, second axis starting at 239.
AFFINE = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)
# The same at 3 mm: a volume of SHAPE is then as large as a (very small) head, which the checks of
# scans let pass.
LARGE = np.array([[-3, 0, 0, 0], [0, -3, 0, 239], [0, 0, 3, 0], [0, 0, 0, 1]], float)


def brats_root() -> Path:
  """The folder of real cases; skips the test where there is none."""
  default = Path(__file__).parents[2] / ".." / "shared" / "brats"
  root = Path(os.environ.get("KD_JAX_BRATS", default))
  if not root.is_dir():
    pytest.skip(f"no real BraTS cases in {root} (set KD_JAX_BRATS)")
  return root


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(nib.Nifti1Image(data, affine), path)
  return path


def images(seed: int = 0, shape=SHAPE) -> dict[str, np.ndarray]:
  """Modality -> (D, H, W) int16: positive inside a box that leaves 2, 3 and 1 voxels around it."""
  rng = np.random.default_rng(seed)
  result = {}
  for modality in MODALITIES:
    x = np.zeros(shape, np.int16)
    inside = x[2:-2, 3:-3, 1:-1]
    inside[:] = rng.integers(100, 900, inside.shape)
    result[modality] = x
  return result


def seg(shape=SHAPE, et: int = 4) -> np.ndarray:
  """(D, H, W) uint8 labels: a block of oedema with a necrotic core and one enhancing plane."""
  y = np.zeros(shape, np.uint8)
  y[4:10, 5:11, 3:9] = 2
  y[6:9, 6:9, 4:7] = 1
  y[8, 6:9, 4:7] = et
  return y


def make_case(
  folder: Path,
  suffixes: dict[str, str] = OLD,
  separator: str = "_",
  ext: str = ".nii.gz",
  seed: int = 0,
  et: int = 4,
  name: str | None = None,
  affine: np.ndarray = LARGE,
) -> Path:
  """Writes <folder>/<name><separator><suffix><ext> for each suffix. Returns the folder."""
  volumes = images(seed) | {"seg": seg(et=et)}
  for kind, suffix in suffixes.items():
    write(folder / f"{name or folder.name}{separator}{suffix}{ext}", volumes[kind], affine)
  return folder
