"""The label map of a case as classes, for whoever holds a prediction against it."""

from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.case_checks import check_labels
from kd_jax.data.cases import Case
from kd_jax.runtime.errors import CaseError
from kd_jax.tasks import labels


def read_truth(
  case: Case, scan: nifti.Volume, mask: Path | None = None, flag: str = "--labels"
) -> tuple[nifti.Volume, np.ndarray]:
  """A case's label map, and its classes (D, H, W).

  Args:
    case: with a label map.
    scan: what the prediction belongs to: the image, which is 0 where there is no brain and no
      tumour either; or the mask itself.
    mask: the file of the mask, which is then to blame where it lies in another space than the label
      map; None for a student's, where the label map is.
    flag: as for `read_classes`.

  Raises:
    CaseError: the label map cannot be used, or they do not lie in one space.
  """
  path, convention = case.label_map
  truth, classes = read_classes(case.name, path, convention, flag)
  if difference := _other_space(*((scan, truth) if mask else (truth, scan))):
    if mask:
      finding = f"{difference} of the truth {path}"
      remedy = "Write the mask on the truth's voxel grid (nearest neighbour, if you resample it)."
      raise CaseError(case.name, mask, finding, remedy)
    remedy = "The label map must lie on the voxel grid of the case's images."
    raise CaseError(case.name, path, f"{difference} of the image", remedy)
  if not mask and (odd := check_labels(classes, [scan.data])) and odd.severity == "error":
    raise CaseError(case.name, path, odd.text, odd.remedy)
  return truth, classes


def read_classes(
  case: str, path: Path, convention: str, flag: str
) -> tuple[nifti.Volume, np.ndarray]:
  """A label map and its classes. CaseError if it is none.

  Args:
    flag: what says how to read it; "" for nothing.
  """
  try:
    volume = nifti.read(path)
  except ValueError as e:  # whatever its numbers mean
    raise CaseError(case, path, str(e), "Correct the file, or take it away.") from e
  try:
    return volume, labels.to_classes(volume.data, convention, volume.step)
  except ValueError as e:
    other = f"say with {flag} what its numbers mean" if flag else "take it away"
    raise CaseError(case, path, str(e), f"Correct the file, or {other}.") from e


def _other_space(volume: nifti.Volume, other: nifti.Volume) -> str:
  """How a volume's grid differs from another one's; "" if it does not."""
  if volume.data.shape != other.data.shape:
    return f"its shape {volume.data.shape} is not the {other.data.shape}"
  apart = nifti.apart_mm(volume.data.shape, volume.affine, other.affine)
  if apart <= nifti.SAME_SPACE_MM:
    return ""
  return f"it does not lie in one space with its counterpart: up to {apart:.3g} mm off that"
