"""When is a predicted enhancing tumour too small to be believed, and what becomes of it?

Where a patient has no ET, a single voxel of it costs the region's whole Dice, and true ET is seldom
that small. So an ET below a threshold becomes core, as in nnU-Net's entry to BraTS 2020 (Isensee et
al.): TC and WT stay as they are. The threshold is chosen on validation cases.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.data.labels import CLASSES
from kd_jax.metrics.volumetric import dice, region_mask, volume_mm3

CANDIDATES = (50.0, 100.0, 200.0, 300.0, 500.0, 1000.0)  # mm3, ascending
_CORE = CLASSES.index("NCR")
_ONE_CASE = 1.0  # the most that a case can gain


class PredictedET(NamedTuple):
  """One case's ET, as predicted and without.

  Attributes:
    volume: mm3 predicted.
    kept: its Dice.
    removed: the Dice of no ET at all: 1 where there is none, else 0.
  """

  volume: float
  kept: float
  removed: float


def without_small_et(classes: np.ndarray, smallest: float, voxel_mm: Sequence[float]) -> np.ndarray:
  """classes (D, H, W), with ET as NCR if all of it together is less than `smallest` mm3."""
  et = region_mask(classes, "ET")
  if not 0 < _volume(et, voxel_mm) < smallest:
    return classes
  return np.where(et, classes.dtype.type(_CORE), classes)


def compare_et(predicted: np.ndarray, truth: np.ndarray, voxel_mm: Sequence[float]) -> PredictedET:
  """What `choose` has to know of a case's (D, H, W) classes."""
  masks = [region_mask(classes, "ET") for classes in (predicted, truth)]
  return PredictedET(_volume(masks[0], voxel_mm), dice(*masks), float(not masks[1].any()))


def choose(cases: Sequence[PredictedET]) -> float:
  """The threshold in mm3 for the best mean ET Dice, out of 0 (none) and CANDIDATES.

  Each rise must gain more Dice, summed over the cases, than one case alone can: what a single case
  asks for says nothing about the next patient. So few cases leave the prediction as it is.
  """
  best = 0.0
  for candidate in CANDIDATES:
    gain = math.fsum(_dice(case, candidate) - _dice(case, best) for case in cases)
    if gain > _ONE_CASE + 1e-6:
      best = candidate
  return best


def mean_dice(cases: Sequence[PredictedET], smallest: float) -> float:
  """Mean ET Dice of the cases with a threshold."""
  return float(np.mean([_dice(case, smallest) for case in cases]))


def _dice(case: PredictedET, smallest: float) -> float:
  return case.removed if case.volume < smallest else case.kept


def _volume(mask: np.ndarray, voxel_mm: Sequence[float]) -> float:
  # Headers hold float32: 200 voxels of 0.99999994 mm are 200 mm3.
  return round(volume_mm3(mask, voxel_mm), 3)
