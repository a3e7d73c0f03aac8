"""Scores of whole cases in the scan's own space, on the host: what may be published.

Empty masks follow the rule of BraTS 2017-2022: both empty scores Dice 1, one empty scores 0.
"""

import numpy as np

from kd_jax.data.labels import REGIONS

EMPTY_MASK_RULE = "both masks empty: Dice 1; one empty: Dice 0 (BraTS 2017-2022)"
SLICE_DICE_NOTE = (
  "slice_dice_reference is the Dice of the published MTCM-KD code: averaged over 2-D slices of the "
  "first axis, an empty slice scoring 1. An all-background prediction scores 0.6 to 0.9 with it. "
  "It is not comparable with any volumetric Dice."
)
_EPSILON = 1e-6  # the published code's


def region_mask(classes: np.ndarray, region: str) -> np.ndarray:
  """Classes 0..3 -> a boolean mask of WT, TC or ET."""
  return np.isin(classes, REGIONS[region])


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
  """2 |P n T| / (|P| + |T|) of boolean masks of one shape; see the module for empty ones."""
  total = int(predicted.sum()) + int(truth.sum())
  return 2 * int((predicted & truth).sum()) / total if total else 1.0


def slice_dice_reference(predicted: np.ndarray, truth: np.ndarray) -> float:
  """The published code's score of (D, H, W) boolean masks: see SLICE_DICE_NOTE."""
  both = (predicted & truth).sum(axis=(1, 2))  # (D,)
  total = predicted.sum(axis=(1, 2)) + truth.sum(axis=(1, 2))
  return float(np.mean((2 * both + _EPSILON) / (total + _EPSILON)))


def score_case(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """All scores of one case.

  Args:
    predicted, truth: (D, H, W) classes in the scan's own space.

  Returns:
    dice_REGION and slice_dice_reference_REGION, for WT, TC and ET.
  """
  scores = {}
  for region in REGIONS:
    p, t = region_mask(predicted, region), region_mask(truth, region)
    scores[f"dice_{region}"] = dice(p, t)
    scores[f"slice_dice_reference_{region}"] = slice_dice_reference(p, t)
  return scores
