"""What came of each case of an evaluation."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.metrics.case import HD95_OF_EMPTY, score_case
from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.tasks import labels


@dataclass
class CaseResults:
  """What came of each case: scores and the mask (compressed), or why there are none."""

  scores: dict[str, dict[str, float]] = field(default_factory=dict)
  masks: dict[str, tuple[tuple[int, ...], bytes]] = field(default_factory=dict)
  failed: dict[str, str] = field(default_factory=dict)

  def together(self) -> "CaseResults":
    """With the scores and failures of all processes, by name; masks stay where they are."""
    scores, failed = processes.union(self.scores), processes.union(self.failed)
    return CaseResults({name: scores[name] for name in sorted(scores)}, self.masks, failed)

  def mask(self, case: Case) -> np.ndarray:
    """(D, H, W) uint8 classes."""
    shape, content = self.masks[case.name]
    return np.frombuffer(zlib.decompress(content), np.uint8).reshape(shape)


def score_against(case: Case, predicted: np.ndarray, scan: nifti.Volume) -> dict[str, float]:
  """Scores (D, H, W) classes in a scan's space against its label map. CaseError if it is unfit."""
  path, convention = case.label_map
  try:
    truth = nifti.read(path)
    if truth.data.shape != predicted.shape:
      raise ValueError(f"its shape {truth.data.shape} is not the image's {predicted.shape}")
    apart = nifti.apart_mm(predicted.shape, truth.affine, scan.affine)
    if apart > nifti.SAME_SPACE_MM:
      raise ValueError(f"its affine is not the image's: they lie up to {apart:.3g} mm apart")
    classes = labels.to_classes(truth.data, convention)
  except ValueError as e:
    remedy = "Correct the file, or set --labels to the year's convention."
    raise CaseError(case.name, path, str(e), remedy) from e
  return score_case(predicted, classes, truth.voxel_mm, HD95_OF_EMPTY[convention])


def packed(classes: np.ndarray) -> tuple[tuple[int, ...], bytes]:
  return classes.shape, zlib.compress(np.ascontiguousarray(classes).data, 1)


def data_facts(cases: Sequence[Case], scored: CaseResults) -> dict[str, Any]:
  done = [case for case in cases if case.name in scored.scores]
  return {
    "patients": len({case.patient for case in done}),
    "conventions": sorted({case.convention for case in done}),
  }


def check_complete(summary: Mapping[str, Any]) -> None:
  """UserError if a case could not be scored: it must not get lost among the means."""
  if failed := summary["failed"]:
    lines = "\n".join(f"  {name}: {why}" for name, why in failed.items())
    raise UserError(f"{len(failed)} cases could not be scored and are in no mean:\n{lines}")
