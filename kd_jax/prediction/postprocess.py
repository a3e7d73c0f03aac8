"""What of a prediction is too small to be believed, and what becomes of it?

Two rules, each with a threshold in mm3, chosen on validation cases and kept with the student:

- Islands. From one sequence a network takes many a place for tumour that is none. Each costs little
  Dice, but HD95 and the lesion-wise scores are made of them. A component of WT (26-connected) below
  the threshold becomes background. What has the largest core always stays; where there is no core,
  the largest: a network of T1ce knows core, but what it takes for oedema may outgrow the tumour.
- ET. Where a patient has none, a single voxel of it costs the region's whole Dice, and true ET is
  seldom that small. So an ET that is less in all becomes core, as in nnU-Net's entry to BraTS 2020
  (Isensee et al.): TC and WT stay as they are.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kd_jax.metrics.volumetric import region_mask, volume_mm3
from kd_jax.tasks.labels import CLASSES, REGIONS

ISLANDS = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0, 32000.0, 64000.0)
ETS = (50.0, 100.0, 200.0, 300.0, 500.0, 1000.0)
BY_VALIDATION = -1.0  # as a threshold, in a run's configuration
_CORE = CLASSES.index("NCR")
_WT, _TC = (list(REGIONS).index(region) for region in ("WT", "TC"))
_TOUCHING = np.ones((3, 3, 3), bool)  # 26-connectivity
_ONE_CASE = 1.0  # the most ET Dice that a case can gain
_ROUNDING = 1e-6


class Smallest(NamedTuple):
  """mm3 below which an island of WT is none, and all ET of a case is core; 0 for never."""

  island: float = 0.0
  et: float = 0.0


NOTHING = Smallest()


class Evidence(NamedTuple):
  """What `choose` has to know of a case, at each of some thresholds of islands.

  Attributes:
    dice: the regions' Dice, in the order of REGIONS.
    et_mm3: how much ET is predicted.
    no_et: whether the truth has none.
  """

  dice: Sequence[Sequence[float]]
  et_mm3: Sequence[float]
  no_et: bool


# --- The rules --------------------------------------------------------------------------------


def clean(classes: np.ndarray, smallest: Smallest, voxel_mm: Sequence[float]) -> np.ndarray:
  """(D, H, W) classes by both rules, islands first."""
  classes = without_small_islands(classes, smallest.island, voxel_mm)
  return without_small_et(classes, smallest.et, voxel_mm)


def without_small_islands(
  classes: np.ndarray, smallest: float, voxel_mm: Sequence[float]
) -> np.ndarray:
  """classes (D, H, W) without the components of WT that are less than `smallest` mm3."""
  wt = region_mask(classes, "WT")
  if not smallest or not wt.any():
    return classes
  box = ndimage.find_objects(wt.view(np.uint8))[0]
  component, count = ndimage.label(wt[box], _TOUCHING)
  sizes = _sizes(component, count)
  core = _sizes(component[region_mask(classes[box], "TC")], count)
  kept = _kept(sizes, core, smallest, voxel_mm)
  if kept.all():
    return classes
  cleaned = classes.copy()
  cleaned[box][~np.append(True, kept)[component]] = 0
  return cleaned


def without_small_et(classes: np.ndarray, smallest: float, voxel_mm: Sequence[float]) -> np.ndarray:
  """classes (D, H, W), with ET as NCR if all of it together is less than `smallest` mm3."""
  et = region_mask(classes, "ET")
  if not 0 < _mm3(volume_mm3(et, voxel_mm)) < smallest:
    return classes
  return np.where(et, classes.dtype.type(_CORE), classes)


# --- The choice -------------------------------------------------------------------------------


def islands_to_try(asked: float) -> tuple[float, ...]:
  """The thresholds to gather evidence at: all, or the one that was asked for."""
  return (0.0, *ISLANDS) if asked == BY_VALIDATION else (asked,)


def compare(
  predicted: np.ndarray, truth: np.ndarray, voxel_mm: Sequence[float], islands: Sequence[float]
) -> Evidence:
  """What (D, H, W) classes as predicted would score, with each of some thresholds of islands."""
  component, count = ndimage.label(region_mask(predicted, "WT"), _TOUCHING)
  found, true, totals = [], [], []  # by region; the first two by component
  for region in REGIONS:
    p, t = region_mask(predicted, region), region_mask(truth, region)
    found.append(_sizes(component[p], count))
    true.append(_sizes(component[p & t], count))
    totals.append(int(np.count_nonzero(t)))
  dice, et_mm3 = [], []
  for smallest in islands:
    kept = _kept(found[_WT], found[_TC], smallest, voxel_mm)
    sizes = [int(f[kept].sum()) for f in found]
    both = [int(b[kept].sum()) for b in true]
    sums = [s + t for s, t in zip(sizes, totals, strict=True)]
    dice.append([2 * b / s if s else 1.0 for b, s in zip(both, sums, strict=True)])
    et_mm3.append(_mm3(sizes[-1] * float(np.prod(voxel_mm))))
  return Evidence(dice, et_mm3, not totals[-1])


def choose(cases: Sequence[Evidence], island: float, et: float) -> tuple[Smallest, list[float]]:
  """The thresholds for the best mean Dice, and the regions' mean Dice with them.

  Args:
    cases: of `compare` at islands_to_try(island).
    island, et: mm3, or BY_VALIDATION to choose out of 0 (never) and ISLANDS or ETS.

  Each rise of a threshold must gain more than a single case accounts for: what one case asks for
  says nothing about the next patient. So few cases leave the prediction as it is.
  """
  tried = islands_to_try(island)
  i = _best_island(cases, len(tried))
  if et == BY_VALIDATION:
    et = _best_et(cases, i)
  means = [float(np.mean([case.dice[i][r] for case in cases])) for r in range(len(REGIONS) - 1)]
  means.append(float(np.mean([_et_dice(case, i, et) for case in cases])))
  return Smallest(tried[i], et), means


def _best_island(cases: Sequence[Evidence], count: int) -> int:
  """By the mean over the regions; without the case that gains most there must be a gain still."""
  best = 0
  for i in range(1, count):
    gains = [math.fsum(case.dice[i]) - math.fsum(case.dice[best]) for case in cases]
    if math.fsum(gains) - max(gains, default=0.0) > _ROUNDING:
      best = i
  return best


def _best_et(cases: Sequence[Evidence], island: int) -> float:
  best = 0.0
  for candidate in ETS:
    gain = math.fsum(_et_dice(c, island, candidate) - _et_dice(c, island, best) for c in cases)
    if gain > _ONE_CASE + _ROUNDING:
      best = candidate
  return best


def _et_dice(case: Evidence, island: int, smallest: float) -> float:
  """No ET at all has Dice 1 where there is none, else 0."""
  return float(case.no_et) if case.et_mm3[island] < smallest else case.dice[island][-1]


def _kept(
  sizes: np.ndarray, core: np.ndarray, smallest: float, voxel_mm: Sequence[float]
) -> np.ndarray:
  """(n,) which of n components, of so many voxels in all and of core, are believed."""
  volumes = np.round(sizes * float(np.prod(voxel_mm)), 3)
  main = core if core.any() else sizes
  return (volumes >= smallest) | (main == main.max(initial=0))


def _sizes(component: np.ndarray, count: int) -> np.ndarray:
  """(count,) how often each of 1..count stands in an array."""
  return np.bincount(component.ravel(), minlength=count + 1)[1:]


def _mm3(volume: float) -> float:
  # Headers hold float32: 200 voxels of 0.99999994 mm are 200 mm3.
  return round(volume, 3)
