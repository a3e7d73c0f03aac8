"""What can be wrong with a case's files. Each finding names the case, the file and the remedy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.data.scan_checks import check_scan
from kd_jax.data.voxel_checks import Finding
from kd_jax.runtime.arrays import bounding_box
from kd_jax.runtime.errors import CaseError, some

# Of a tumour, how much may lie outside the brain; brain extraction cuts some at the meninges. Real
# cases have 0.00001 at most.
LABELS_OUTSIDE = 0.1
LABELS_OUTSIDE_TOLD = 0.01
LABELS_OF_BRAIN = 0.6  # real tumours take 0.16 of a brain at most


def source_files(case: Case) -> dict[str, Path]:
  """A case's files by modality, and "seg"."""
  return dict(case.images) | ({"seg": case.seg} if case.seg else {})


def missing_files(case: Case, sequences: Sequence[str], require_seg: bool) -> list[CaseError]:
  """What to say of each file that a case lacks."""
  there, wanted = source_files(case), (*sequences, *(["seg"] if require_seg else []))
  return [lacking(case, kind) for kind in wanted if kind not in there]


def lacking(case: Case, kind: str) -> CaseError:
  """What to say of a case without a modality, or without "seg"."""
  image = kind != "seg"
  finding = f"no {kind} image" if image else "no label map"
  remedy = f"Add the {'file' if image else 'seg file'}, "
  if case.beside:
    remedy += f'say which it is (names=\'{{"{kind}": "*WORD*"}}\', docs/names.md), '
  remedy += "or remove the case."
  return CaseError(case.name, case.folder, finding + told_beside(case.beside), remedy)


def told_beside(beside: Sequence[Path]) -> str:
  """What a finding adds on files that lie beside a case and are not read; "" if none does."""
  return f" (not understood: {some([path.name for path in beside])})" if beside else ""


def read_volumes(case: Case) -> tuple[dict[str, nifti.Volume], list[CaseError], list[CaseError]]:
  """Reads a case's files. Returns the volumes by modality (and "seg"), and check_volumes'."""
  volumes, unreadable = {}, []
  for kind, path in source_files(case).items():
    try:
      volumes[kind] = nifti.read(path)
    except ValueError as e:
      unreadable.append(CaseError(case.name, path, str(e), "Download or copy the file again."))
  errors, warnings = check_volumes(case, volumes)
  return volumes, unreadable + errors, warnings


def check_volumes(
  case: Case, volumes: Mapping[str, nifti.Volume]
) -> tuple[list[CaseError], list[CaseError]]:
  """What speaks against a case's volumes (by modality, and "seg"), the same before each use.

  Returns:
    What makes them unusable: grids that differ, images that are no brain scans; and what does not,
    but should be known.
  """
  errors: list[CaseError] = []
  warnings: list[CaseError] = []
  files = source_files(case)
  # The file that most others agree with is taken as right, so the odd one is the one named.
  agreeing = {k: sum(_differs(v, o) is None for o in volumes.values()) for k, v in volumes.items()}
  reference = max(agreeing, key=agreeing.__getitem__, default="")
  for kind, volume in volumes.items():
    if difference := _differs(volume, volumes[reference]):
      finding = f"{difference} of {reference}"
      remedy = "All files of a case must share one voxel grid."
      errors.append(CaseError(case.name, files[kind], finding, remedy))
  for kind, volume in volumes.items():
    for found in check_scan(volume, kind) if kind != "seg" else ():
      fatal = found.severity == "error"
      told = CaseError(case.name, files[kind], found.text, found.remedy)
      (errors if fatal else warnings).append(told)
  return errors, warnings


def _differs(volume: nifti.Volume, reference: nifti.Volume) -> str | None:
  if volume.data.shape != reference.data.shape:
    return f"shape {volume.data.shape} differs from {reference.data.shape}"
  apart = nifti.apart_mm(volume.data.shape, volume.affine, reference.affine)
  return f"the affine differs by {apart:.3g} mm from that" if apart > nifti.SAME_SPACE_MM else None


def check_labels(classes: np.ndarray, images: Sequence[np.ndarray]) -> Finding | None:
  """Whether a tumour lies where the brain is.

  Args:
    classes: (D, H, W).
    images: each (D, H, W); the brain is where one of them is not 0.
  """
  box = bounding_box(classes)
  if box is None:
    return Finding("warning", "it has no tumour", "Make sure that the label map is complete.")
  tumour = np.nonzero(classes[box])
  inside = np.zeros(tumour[0].size, bool)
  for x in images:
    inside |= x[box][tumour] != 0
  outside = 1 - float(inside.mean())
  if outside > LABELS_OUTSIDE_TOLD:
    text = f"{outside:.1%} of its tumour lies outside the brain, where the images are 0"
    if outside > LABELS_OUTSIDE:
      return Finding("error", text, "Give the label map of this scan, in its space.")
    return Finding("warning", text, "Make sure that brain extraction has not cut off the tumour.")
  share = inside.sum() / max(np.count_nonzero(x) for x in images)
  if share > LABELS_OF_BRAIN:
    text = f"its tumour takes {share:.0%} of the brain, like a brain mask"
    return Finding("error", text, "Give the label map of the tumour.")
  return None
