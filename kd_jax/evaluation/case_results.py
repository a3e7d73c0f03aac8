"""What came of each case of an evaluation."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.case_checks import check_labels
from kd_jax.data.cases import Case
from kd_jax.data.conventions import Reading
from kd_jax.evaluation.certainty import Certainty
from kd_jax.metrics.case import empty_hd95, score_case
from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.tasks import labels


@dataclass
class CaseResults:
  """What came of each case: scores and the mask (compressed), or why there are none.

  certainty: of students; that of masks from elsewhere stays empty.
  """

  scores: dict[str, dict[str, float]] = field(default_factory=dict)
  masks: dict[str, tuple[tuple[int, ...], bytes]] = field(default_factory=dict)
  failed: dict[str, str] = field(default_factory=dict)
  certainty: Certainty = field(default_factory=Certainty)

  def together(self) -> "CaseResults":
    """With the scores and failures of all processes, by name; masks stay where they are."""
    scores, failed = processes.union(self.scores), processes.union(self.failed)
    scores = {name: scores[name] for name in sorted(scores)}
    return CaseResults(scores, self.masks, failed, self.certainty.together())

  def mask(self, case: Case) -> np.ndarray:
    """(D, H, W) uint8 classes."""
    shape, content = self.masks[case.name]
    return np.frombuffer(zlib.decompress(content), np.uint8).reshape(shape)


def score_against(
  case: Case, predicted: np.ndarray, scan: nifti.Volume, mask: Path | None = None
) -> dict[str, float]:
  """Scores one case; see `truth_of` for what may be wrong, and for `scan` and `mask`.

  Args:
    predicted: (D, H, W) classes.
  """
  return truth_of(case, scan, mask).score(predicted)


class Truth(NamedTuple):
  """A case's label map.

  Attributes:
    classes: (D, H, W).
    voxel_mm: the edges of its voxels.
    convention: of the file.
  """

  classes: np.ndarray
  voxel_mm: tuple[float, float, float]
  convention: str

  def score(self, predicted: np.ndarray) -> dict[str, float]:
    """All scores of (D, H, W) classes."""
    return score_case(predicted, self.classes, self.voxel_mm, empty_hd95(self.convention))


def truth_of(case: Case, scan: nifti.Volume, mask: Path | None = None) -> Truth:
  """The label map of a case.

  Args:
    case: with a label map.
    scan: what the prediction belongs to: the image, which is 0 where there is no brain and no
      tumour either; or the mask itself.
    mask: the file of the mask, which is then to blame where it lies in another space than the label
      map; None for a student's, where the label map is.

  Raises:
    CaseError: the label map cannot be used, or they do not lie in one space.
  """
  path, convention = case.label_map
  truth, classes = read_classes(case.name, path, convention, "--labels")
  if difference := _other_space(*((scan, truth) if mask else (truth, scan))):
    if mask:
      finding = f"{difference} of the truth {path}"
      remedy = "Write the mask on the truth's voxel grid (nearest neighbour, if you resample it)."
      raise CaseError(case.name, mask, finding, remedy)
    remedy = "The label map must lie on the voxel grid of the case's images."
    raise CaseError(case.name, path, f"{difference} of the image", remedy)
  if not mask and (odd := check_labels(classes, [scan.data])) and odd.severity == "error":
    raise CaseError(case.name, path, odd.text, odd.remedy)
  return Truth(classes, truth.voxel_mm, convention)


def read_classes(
  case: str, path: Path, convention: str, flag: str
) -> tuple[nifti.Volume, np.ndarray]:
  """A label map and its classes. CaseError if it is none; flag: what says how to read it."""
  try:
    volume = nifti.read(path)
  except ValueError as e:  # whatever its numbers mean
    raise CaseError(case, path, str(e), "Correct the file, or take it away.") from e
  try:
    return volume, labels.to_classes(volume.data, convention, volume.step)
  except ValueError as e:
    remedy = f"Correct the file, or say with {flag} what its numbers mean."
    raise CaseError(case, path, str(e), remedy) from e


def _other_space(volume: nifti.Volume, other: nifti.Volume) -> str:
  """How a volume's grid differs from another one's; "" if it does not."""
  if volume.data.shape != other.data.shape:
    return f"its shape {volume.data.shape} is not the {other.data.shape}"
  apart = nifti.apart_mm(volume.data.shape, volume.affine, other.affine)
  if apart <= nifti.SAME_SPACE_MM:
    return ""
  return f"it does not lie in one space with its counterpart: up to {apart:.3g} mm off that"


def packed(classes: np.ndarray) -> tuple[tuple[int, ...], bytes]:
  return classes.shape, zlib.compress(np.ascontiguousarray(classes).data, 1)


def data_facts(cases: Sequence[Case], scored: CaseResults, reading: Reading) -> dict[str, Any]:
  """Facts on the cases that were scored, and on how their label maps were read."""
  done = [case for case in cases if case.name in scored.scores]
  return {
    "patients": len({case.patient for case in done}),
    "conventions": sorted({case.convention for case in done if case.convention}),
    "dropped_labels": reading.dropped_in(scored.scores),
  }


def check_any(scores: Mapping[str, Any], failed: Mapping[str, str]) -> None:
  """UserError if no case at all could be scored: a report of nothing is none."""
  if not scores:
    raise UserError(f"no case could be scored, so no report is written:\n{_listed(failed)}")


def check_complete(summary: Mapping[str, Any]) -> None:
  """UserError if a case could not be scored: it must not get lost among the means."""
  if failed := summary["failed"]:
    listed = _listed(failed)
    raise UserError(f"{len(failed)} cases could not be scored and are in no mean:\n{listed}")


def _listed(failed: Mapping[str, str]) -> str:
  return "\n".join(f"  {name}: {why}" for name, why in failed.items())
