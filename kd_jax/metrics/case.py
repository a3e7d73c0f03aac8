"""All scores of one case, and what each of them means: the columns of every table of scores."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.metrics import volumetric
from kd_jax.metrics.lesions import LesionScores, lesion_scores
from kd_jax.metrics.surface import SurfacePair, crop, hd95_mm, nsd, surface_pair
from kd_jax.tasks.labels import REGIONS


class Masks(NamedTuple):
  """One region of one case, as scores need it.

  Attributes:
    predicted, truth: (D, H, W) boolean.
    voxel_mm: edges of a voxel.
    outside: background voxels of both that were cropped from the scan.
    surfaces, lesions: of the two masks.
    hd95_of_empty: see empty_hd95.
  """

  predicted: np.ndarray
  truth: np.ndarray
  voxel_mm: tuple[float, ...]
  outside: int
  surfaces: SurfacePair
  lesions: LesionScores
  hd95_of_empty: float


class Score(NamedTuple):
  """A column of every table of scores, for each region.

  Attributes:
    unit: of the value.
    better: "higher", "lower", or "" where neither is.
    words: what it is.
    value: computes it.
  """

  unit: str
  better: str
  words: str
  value: Callable[[Masks], float]


METRICS: dict[str, Score] = {
  "dice": Score(
    "",
    "higher",
    "volumetric overlap, 2 |P n T| / (|P| + |T|)",
    lambda m: volumetric.dice(m.predicted, m.truth),
  ),
  "sensitivity": Score(
    "",
    "higher",
    "share of the true region that was found",
    lambda m: volumetric.sensitivity(m.predicted, m.truth),
  ),
  "specificity": Score(
    "",
    "higher",
    "share of the true background, the air included, left alone",
    lambda m: volumetric.specificity(m.predicted, m.truth, m.outside),
  ),
  "precision": Score(
    "",
    "higher",
    "share of the prediction that is true",
    lambda m: volumetric.precision(m.predicted, m.truth),
  ),
  "hd95_mm": Score(
    "mm",
    "lower",
    "95th percentile of the distance between the surfaces",
    lambda m: hd95_mm(m.surfaces, m.hd95_of_empty),
  ),
  "nsd_1mm": Score(
    "",
    "higher",
    "share of both surfaces within 1 mm of the other (surface Dice)",
    lambda m: nsd(m.surfaces, tolerance_mm=1.0),
  ),
  "lesionwise_dice": Score(
    "",
    "higher",
    "Dice per lesion, false and missed lesions 0 (BraTS 2023)",
    lambda m: m.lesions.dice,
  ),
  "lesionwise_hd95_mm": Score(
    "mm",
    "lower",
    "HD95 per lesion, false and missed 374 mm (BraTS 2023)",
    lambda m: m.lesions.hd95_mm,
  ),
  "lesions_found": Score(
    "",
    "",
    "true lesions over 50 mm3 that the prediction touches",
    lambda m: m.lesions.found,
  ),
  "lesions_missed": Score(
    "",
    "lower",
    "true lesions over 50 mm3 that it does not touch",
    lambda m: m.lesions.missed,
  ),
  "lesions_false": Score(
    "",
    "lower",
    "predicted components of any size that touch no true lesion",
    lambda m: m.lesions.false,
  ),
  "truth_mm3": Score(
    "mm3",
    "",
    "volume of the true region",
    lambda m: volumetric.volume_mm3(m.truth, m.voxel_mm),
  ),
  "predicted_mm3": Score(
    "mm3",
    "",
    "volume of the predicted region",
    lambda m: volumetric.volume_mm3(m.predicted, m.voxel_mm),
  ),
  "slice_dice_reference": Score(
    "",
    "higher",
    "the published code's Dice over sagittal slices",
    lambda m: volumetric.slice_dice_reference(m.predicted, m.truth),
  ),
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


def empty_hd95(convention: str) -> float:
  """HD95 in mm where one mask is empty, for truths of a label convention.

  The rule of 2017-2022 is the diagonal of the scan; BraTS 2023 writes 374, as all others do here.
  """
  return 373.13 if convention == "brats2018" else 374.0


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
    hd95_of_empty: hd95_mm where one mask is empty, see empty_hd95. (The lesion-wise HD95 always
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
    p, t = (volumetric.region_mask(x, region) for x in (predicted, truth))
    masks = _masks(p, t, voxel_mm, outside, hd95_of_empty)
    for metric, score in METRICS.items():
      scores[f"{metric}_{region}"] = float(score.value(masks))
  return {column: scores[column] for column in columns()}


def _masks(
  p: np.ndarray,
  t: np.ndarray,
  voxel_mm: tuple[float, ...],
  outside: int,
  hd95_of_empty: float,
) -> Masks:
  """What all scores of one region share; surfaces and lesions come from a crop, which is enough."""
  box = crop(p, t)
  close = (np.ascontiguousarray(p[box]), np.ascontiguousarray(t[box]))
  surfaces = surface_pair(*close, voxel_mm)
  lesions = lesion_scores(*close, voxel_mm, surfaces)
  return Masks(p, t, voxel_mm, outside, surfaces, lesions, hd95_of_empty)
