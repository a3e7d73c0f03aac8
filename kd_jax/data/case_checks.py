"""What can be wrong with a case's files. Each finding names the case, the file and the remedy."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.runtime.errors import CaseError
from kd_jax.tasks.names import MODALITIES

AFFINE_TOLERANCE = 1e-3


def source_files(case: Case) -> dict[str, Path]:
  """A case's files by modality, and "seg"."""
  return dict(case.images) | ({"seg": case.seg} if case.seg else {})


def missing_files(case: Case, require_seg: bool = True) -> list[CaseError]:
  errors = [
    CaseError(case.name, case.folder, f"no {modality} image", "Add the file, or remove the case.")
    for modality in MODALITIES
    if modality not in case.images
  ]
  if require_seg and case.seg is None:
    errors.append(
      CaseError(case.name, case.folder, "no label map", "Add the seg file, or remove the case.")
    )
  return errors


def read_volumes(case: Case) -> tuple[dict[str, nifti.Volume], list[CaseError]]:
  """Reads a case's files. Returns the volumes by modality (and "seg"), and every finding."""
  volumes, errors = {}, []
  for kind, path in source_files(case).items():
    try:
      volumes[kind] = nifti.read(path)
    except ValueError as e:
      errors.append(CaseError(case.name, path, str(e), "Download or copy the file again."))
  return volumes, errors + check_volumes(case, volumes)


def check_volumes(case: Case, volumes: Mapping[str, nifti.Volume]) -> list[CaseError]:
  """What makes a case's volumes unusable: shapes and affines that differ, bad intensities."""
  errors = []

  def add(kind: str, finding: str, remedy: str) -> None:
    errors.append(CaseError(case.name, source_files(case)[kind], finding, remedy))

  # The file that most others agree with is taken as right, so the odd one is the one named.
  agreeing = {k: sum(_differs(v, o) is None for o in volumes.values()) for k, v in volumes.items()}
  reference = max(agreeing, key=agreeing.__getitem__, default="")
  for kind, volume in volumes.items():
    if difference := _differs(volume, volumes[reference]):
      add(kind, f"{difference} of {reference}", "All files of a case must share one voxel grid.")

  images = {kind: volume.data for kind, volume in volumes.items() if kind != "seg"}
  finite = {k: x.dtype.kind != "f" or np.isfinite(x).all() for k, x in images.items()}
  empty = [kind for kind, x in images.items() if not x.any()]
  for kind, x in images.items():
    if not finite[kind]:
      add(kind, f"{int((~np.isfinite(x)).sum())} voxels are NaN or infinite", "Replace the file.")
  if images and len(empty) == len(images):
    finding = "the brain is empty: every image is zero everywhere"
    errors.append(CaseError(case.name, case.folder, finding, "Replace the files."))
  else:
    for kind in empty:
      add(kind, "the image is zero everywhere", "Replace the file.")
  return errors


def _differs(volume: nifti.Volume, reference: nifti.Volume) -> str | None:
  if volume.data.shape != reference.data.shape:
    return f"shape {volume.data.shape} differs from {reference.data.shape}"
  off = float(np.abs(volume.affine - reference.affine).max())
  return f"the affine differs by {off:.3g} from that" if off > AFFINE_TOLERANCE else None
