"""What came of each case of an evaluation."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.data.conventions import Reading
from kd_jax.data.truths import read_truth
from kd_jax.evaluation.certainty import Certainty
from kd_jax.metrics.case import empty_hd95, score_case
from kd_jax.runtime import processes
from kd_jax.runtime.errors import UserError


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
  """The label map of a case; see `truths.read_truth` for the arguments and what may be wrong."""
  volume, classes = read_truth(case, scan, mask)
  return Truth(classes, volume.voxel_mm, case.label_map[1])


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
