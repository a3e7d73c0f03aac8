"""Postprocessing: small components of WT are removed, and too little ET becomes core.

Two rules, each with a threshold in mm3, chosen on validation cases and kept with the student:

- Components. From one sequence a network marks healthy tissue as tumour in several places. Each of
  them costs little Dice, but HD95 and the lesion-wise scores suffer. A connected component of WT
  (26-connected) below the threshold becomes background. The component with the largest core always
  stays; where there is no core, the largest component: a network of T1ce knows core, but its false
  oedema may be larger than the tumour.
- ET. Where a patient has none, a single voxel of ET costs the region's whole Dice, and true ET is
  seldom that small. So if all ET of a case is less than the threshold, it becomes core, as in
  nnU-Net's entry to BraTS 2020 (Isensee et al.): TC and WT stay as they are.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kd_jax.metrics.volumetric import region_mask, volume_mm3
from kd_jax.runtime.arrays import bounding_box, label_sizes
from kd_jax.settings.inference import BY_VALIDATION, MinimumSizes
from kd_jax.tasks.labels import CLASSES, REGIONS

COMPONENT_MM3 = (
  *(50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0, 32000.0, 64000.0),
)
ET_MM3 = (50.0, 100.0, 200.0, 300.0, 500.0, 1000.0)
NO_POSTPROCESSING = MinimumSizes()
_CORE = CLASSES.index("NCR")
_WT, _TC = (list(REGIONS).index(region) for region in ("WT", "TC"))
_TOUCHING = np.ones((3, 3, 3), bool)  # 26-connectivity
_ONE_CASE = 1.0  # the most ET Dice that a case can gain
_ROUNDING = 1e-6


class Evidence(NamedTuple):
  """What `choose` has to know of a case, at each of some minimum component sizes.

  Attributes:
    dice: the regions' Dice, in the order of REGIONS.
    et_mm3: how much ET is predicted.
    no_et: whether the truth has none.
  """

  dice: Sequence[Sequence[float]]
  et_mm3: Sequence[float]
  no_et: bool


# --- The rules --------------------------------------------------------------------------------


def postprocess(
  classes: np.ndarray, minimum: MinimumSizes, voxel_mm: Sequence[float]
) -> np.ndarray:
  """(D, H, W) classes after both rules, components first."""
  classes = remove_small_components(classes, minimum.component_mm3, voxel_mm)
  return remove_small_et(classes, minimum.et_mm3, voxel_mm)


def remove_small_components(
  classes: np.ndarray, minimum_mm3: float, voxel_mm: Sequence[float]
) -> np.ndarray:
  """classes (D, H, W) without the components of WT that are smaller than minimum_mm3."""
  wt = region_mask(classes, "WT")
  box = bounding_box(wt) if minimum_mm3 else None
  if box is None:
    return classes
  component, count = ndimage.label(wt[box], _TOUCHING)
  sizes = label_sizes(component, count)
  core = label_sizes(component[region_mask(classes[box], "TC")], count)
  kept = _kept(sizes, core, minimum_mm3, voxel_mm)
  if kept.all():
    return classes
  cleaned = classes.copy()
  cleaned[box][~np.append(True, kept)[component]] = 0
  return cleaned


def remove_small_et(
  classes: np.ndarray, minimum_mm3: float, voxel_mm: Sequence[float]
) -> np.ndarray:
  """classes (D, H, W), with ET as NCR if all of it together is less than minimum_mm3."""
  et = region_mask(classes, "ET")
  if not 0 < _mm3(volume_mm3(et, voxel_mm)) < minimum_mm3:
    return classes
  return np.where(et, classes.dtype.type(_CORE), classes)


# --- The choice -------------------------------------------------------------------------------


def component_sizes_to_try(asked: float) -> tuple[float, ...]:
  """The minimum component sizes to gather evidence at: all, or the one that was asked for."""
  return (0.0, *COMPONENT_MM3) if asked == BY_VALIDATION else (asked,)


def evidence_of(
  predicted: np.ndarray, truth: np.ndarray, voxel_mm: Sequence[float], sizes: Sequence[float]
) -> Evidence:
  """What (D, H, W) classes as predicted would score, with each of some minimum component sizes."""
  component, count = ndimage.label(region_mask(predicted, "WT"), _TOUCHING)
  found, true, totals = [], [], []  # by region; the first two by component
  for region in REGIONS:
    p, t = region_mask(predicted, region), region_mask(truth, region)
    found.append(label_sizes(component[p], count))
    true.append(label_sizes(component[p & t], count))
    totals.append(int(np.count_nonzero(t)))
  dice, et_mm3 = [], []
  for minimum_mm3 in sizes:
    kept = _kept(found[_WT], found[_TC], minimum_mm3, voxel_mm)
    voxels = [int(f[kept].sum()) for f in found]
    both = [int(b[kept].sum()) for b in true]
    sums = [v + t for v, t in zip(voxels, totals, strict=True)]
    dice.append([2 * b / s if s else 1.0 for b, s in zip(both, sums, strict=True)])
    et_mm3.append(_mm3(voxels[-1] * float(np.prod(voxel_mm))))
  return Evidence(dice, et_mm3, not totals[-1])


def choose(cases: Sequence[Evidence], asked: MinimumSizes) -> tuple[MinimumSizes, list[float]]:
  """The thresholds for the best mean Dice, and the regions' mean Dice with them.

  Args:
    cases: of `evidence_of` at component_sizes_to_try(asked.component_mm3).
    asked: mm3 each, or BY_VALIDATION to choose out of 0 (never) and COMPONENT_MM3 or ET_MM3.

  Each rise of a threshold must gain more than a single case accounts for: what one case asks for
  says nothing about the next patient. So few cases leave the prediction as it is.
  """
  tried, et = component_sizes_to_try(asked.component_mm3), asked.et_mm3
  i = _best_component_size(cases, len(tried))
  if et == BY_VALIDATION:
    et = _best_et(cases, i)
  means = [float(np.mean([case.dice[i][r] for case in cases])) for r in range(len(REGIONS) - 1)]
  means.append(float(np.mean([_et_dice(case, i, et) for case in cases])))
  return MinimumSizes(tried[i], et), means


def _best_component_size(cases: Sequence[Evidence], count: int) -> int:
  """By the mean over the regions; without the case that gains most there must be a gain still."""
  best = 0
  for i in range(1, count):
    gains = [math.fsum(case.dice[i]) - math.fsum(case.dice[best]) for case in cases]
    if math.fsum(gains) - max(gains, default=0.0) > _ROUNDING:
      best = i
  return best


def _best_et(cases: Sequence[Evidence], component_size: int) -> float:
  best, i = 0.0, component_size
  for candidate in ET_MM3:
    gain = math.fsum(_et_dice(c, i, candidate) - _et_dice(c, i, best) for c in cases)
    if gain > _ONE_CASE + _ROUNDING:
      best = candidate
  return best


def _et_dice(case: Evidence, component_size: int, minimum_mm3: float) -> float:
  """No ET at all has Dice 1 where there is none, else 0."""
  if case.et_mm3[component_size] < minimum_mm3:
    return float(case.no_et)
  return case.dice[component_size][-1]


def _kept(
  sizes: np.ndarray, core: np.ndarray, minimum_mm3: float, voxel_mm: Sequence[float]
) -> np.ndarray:
  """(n,) which of n components stay; sizes and core: their voxels, in all and of core."""
  volumes = np.round(sizes * float(np.prod(voxel_mm)), 3)
  main = core if core.any() else sizes
  return (volumes >= minimum_mm3) | (main == main.max(initial=0))


def _mm3(volume: float) -> float:
  # Headers hold float32: 200 voxels of 0.99999994 mm are 200 mm3.
  return round(volume, 3)
