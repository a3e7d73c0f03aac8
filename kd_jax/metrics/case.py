"""All scores of one case, and what each of them means: the columns of every table of scores."""

from collections.abc import Sequence

import numpy as np

from kd_jax.metrics import volumetric
from kd_jax.metrics.lesions import lesion_scores
from kd_jax.metrics.surface import crop, hd95_mm, nsd, surface_pair
from kd_jax.tasks.labels import REGIONS

# Name -> (unit, which is better or "", description).
METRICS = {
  "dice": ("", "higher", "volumetric overlap, 2 |P n T| / (|P| + |T|)"),
  "sensitivity": ("", "higher", "share of the true region that was found"),
  "specificity": ("", "higher", "share of the true background, the air included, left alone"),
  "precision": ("", "higher", "share of the prediction that is true"),
  "hd95_mm": ("mm", "lower", "95th percentile of the distance between the surfaces"),
  "nsd_1mm": ("", "higher", "share of both surfaces within 1 mm of the other (surface Dice)"),
  "lesionwise_dice": ("", "higher", "Dice per lesion, false and missed lesions 0 (BraTS 2023)"),
  "lesionwise_hd95_mm": ("mm", "lower", "HD95 per lesion, false and missed 374 mm (BraTS 2023)"),
  "lesions_found": ("", "", "true lesions over 50 mm3 that the prediction touches"),
  "lesions_missed": ("", "lower", "true lesions over 50 mm3 that it does not touch"),
  "lesions_false": ("", "lower", "predicted components of any size that touch no true lesion"),
  "truth_mm3": ("mm3", "", "volume of the true region"),
  "predicted_mm3": ("mm3", "", "volume of the predicted region"),
  "slice_dice_reference": ("", "higher", "the published code's Dice over sagittal slices"),
}

HD95_RULE = (
  "HD95 is the larger of the two directed 95th percentiles of the surface distances, weighted by "
  "surface area (the surface-distance package, BraTS 2023); the distances are not pooled"
)
LESIONWISE_RULE = (
  "lesion-wise scores are those of BraTS 2023 for glioma: true lesions closer than two 3-voxel "
  "dilations are one, those of at most 50 mm3 are ignored, a missed lesion and a false component "
  "of any size count with Dice 0 and HD95 374 mm"
)
# HD95 in mm where one mask is empty, by label convention: the rule of 2017-2022 is the diagonal of
# the scan, 373.13; BraTS 2023 writes 374.
HD95_OF_EMPTY = {"brats2018": 373.13, "brats2023": 374.0, "brats2024": 374.0}


def columns() -> list[str]:
  """The names of all scores of a case, in order: metric by metric, WT, TC, ET."""
  return [f"{metric}_{region}" for metric in METRICS for region in REGIONS]


def score_case(
  predicted: np.ndarray,
  truth: np.ndarray,
  voxel_mm: Sequence[float],
  hd95_of_empty: float = 374.0,
) -> dict[str, float]:
  """All scores of one case.

  Args:
    predicted, truth: (D, H, W) classes 0..3 in the scan's own space.
    voxel_mm: edges of a voxel along D, H, W.
    hd95_of_empty: hd95_mm where one mask is empty, see HD95_OF_EMPTY. (The lesion-wise HD95 always
      has the 374 mm of its definition.)

  Returns:
    columns() -> value; all are finite.

  Raises:
    ValueError: two shapes, no volume, or voxel edges that are no positive numbers.
  """
  if predicted.shape != truth.shape or truth.ndim != 3:
    raise ValueError(f"two volumes of one shape, please: {predicted.shape} and {truth.shape}")
  # Headers hold float32: 0.99999994 means 1, and a distance of 1.0000001 mm is within 1 mm.
  voxel_mm = tuple(round(float(mm), 5) for mm in voxel_mm)
  if len(voxel_mm) != 3 or not all(0 < mm < np.inf for mm in voxel_mm):
    raise ValueError(f"voxel edges must be three positive numbers of mm, not {voxel_mm}")

  box = crop(predicted, truth)
  box = (slice(None), *box[1:])  # the slice Dice counts empty slices of the first axis too
  outside = truth.size
  predicted, truth = np.ascontiguousarray(predicted[box]), np.ascontiguousarray(truth[box])
  outside -= truth.size
  scores = {}
  for region in REGIONS:
    masks = (volumetric.region_mask(predicted, region), volumetric.region_mask(truth, region))
    for metric, value in _score_region(*masks, voxel_mm, outside, hd95_of_empty).items():
      scores[f"{metric}_{region}"] = value
  return {column: scores[column] for column in columns()}


def _score_region(
  p: np.ndarray,
  t: np.ndarray,
  voxel_mm: tuple[float, float, float],
  outside: int,
  hd95_of_empty: float,
) -> dict[str, float]:
  """Metric -> value for one region's masks; outside: the background voxels cropped from both."""
  box = crop(p, t)
  close = (np.ascontiguousarray(p[box]), np.ascontiguousarray(t[box]))
  pair = surface_pair(*close, voxel_mm)
  lesions = lesion_scores(*close, voxel_mm, pair)
  return {
    "dice": volumetric.dice(p, t),
    "sensitivity": volumetric.sensitivity(p, t),
    "specificity": volumetric.specificity(p, t, outside),
    "precision": volumetric.precision(p, t),
    "hd95_mm": hd95_mm(pair, hd95_of_empty),
    "nsd_1mm": nsd(pair, tolerance_mm=1.0),
    "lesionwise_dice": lesions.dice,
    "lesionwise_hd95_mm": lesions.hd95_mm,
    "lesions_found": float(lesions.found),
    "lesions_missed": float(lesions.missed),
    "lesions_false": float(lesions.false),
    "truth_mm3": volumetric.volume_mm3(t, voxel_mm),
    "predicted_mm3": volumetric.volume_mm3(p, voxel_mm),
    "slice_dice_reference": volumetric.slice_dice_reference(p, t),
  }
