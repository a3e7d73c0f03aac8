"""Calibration: how sure a student may be, known from validation cases; no mask changes by it.

A network says 0.9 where it is right with 0.8 of the voxels. One temperature a region corrects that
(Guo et al., ICML 2017): the logit of the region's probability is divided by it, so 0.5 stays 0.5.
Masks come from the classes, not from regions, and stay as they are in any case.

All that is asked of a case is a histogram of its logits, apart for voxels of the region and others:
likelihoods, calibration errors and reliability follow from it at any temperature.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from scipy import optimize

from kd_jax.settings.constraints import Range
from kd_jax.settings.inference import RegionName
from kd_jax.tasks.labels import REGIONS

COOLEST, HOTTEST = 0.2, 5.0  # temperatures to choose out of
RELIABILITY_BINS = 15  # of probability, as in Guo et al.
_MOST = 24.0  # of a logit
_BINS = 768  # of logits: a sixteenth each
_STEP = 2 * _MOST / _BINS
_LOGITS = (np.arange(_BINS) + 0.5) * _STEP - _MOST  # (bins,) their middles
_LEAST = np.float32(math.exp(-_MOST))  # the least probability that is told apart from 0
_GREATEST = np.nextafter(np.float32(1), np.float32(0))  # and from 1, which is coarser: 6e-8 off
_SLAB = 1 << 20  # voxels that are computed at once

Histogram = np.ndarray  # (2, bins) int64: voxels outside the region, and of it


@dataclass(frozen=True)
class Calibration:
  """What validation says of a student's probabilities.

  Attributes:
    temperatures: of each region; empty if none was fitted, which means 1.
    cases: how many validation cases they were fitted on.
  """

  temperatures: Mapping[RegionName, Annotated[float, Range(COOLEST, HOTTEST)]] = field(
    default_factory=dict
  )
  cases: Annotated[int, Range(0, 1 << 30)] = 0

  def of(self, region: str) -> float:
    return self.temperatures.get(region, 1.0)

  @property
  def known(self) -> bool:
    return bool(self.temperatures)


NONE = Calibration()  # nothing is known: probabilities are read as they are


def joint(students: Iterable[Calibration]) -> Calibration:
  """Of several students' mean probabilities: the lower median of their temperatures.

  An approximation: a mean is less sure than each of those that it is made of. Nothing is known if
  nothing is known of one of them.
  """
  own = list(students)
  if not own or not all(calibration.known for calibration in own):
    return NONE
  temperatures = {r: statistics.median_low(c.of(r) for c in own) for r in REGIONS}
  return Calibration(temperatures, min(calibration.cases for calibration in own))


class Errors(NamedTuple):
  """How far probabilities are from what is true; 0 is best.

  Attributes:
    ece: expected calibration error: mean gap between a bin's probability and the region's share in
      it, each bin weighted by its voxels.
    ace: average calibration error: the same, each bin that has voxels weighted alike. Nearly all
      voxels are clear background, so that the first hardly sees the others.
    brier: mean squared difference between probability and truth.
  """

  ece: float
  ace: float
  brier: float


class Bin(NamedTuple):
  """Of a reliability diagram: the mean probability of its voxels, the region's share in them."""

  probability: float
  share: float
  voxels: int


# --- Probabilities ----------------------------------------------------------------------------


def with_temperature(p: np.ndarray, temperature: float) -> np.ndarray:
  """Probabilities of a region, (D, H, W) float32, with their logits divided by temperature.

  p itself for a temperature of 1. What is 0 or 1 is read as very near to it.
  """
  if temperature == 1:
    return p
  result = np.empty_like(p)
  for part in _slabs(p):
    logits = _logits(p[part])
    result[part] = _sigmoid(np.divide(logits, np.float32(temperature), out=logits))
  return result


def expected_dice(p: np.ndarray, mask: np.ndarray) -> float:
  """The Dice that a mask may be expected to have, if p are true probabilities.

  2 sum(p in the mask) / (|mask| + sum(p)): the Dice of the expected numbers of true and false
  voxels (Li et al., Estimating Model Performance under Domain Shifts with Class-Specific Confidence
  Scores, MICCAI 2022). An empty mask has Dice 1 where the truth is empty too, else 0: the chance of
  that is at most 1 - max(p), which is exact if all voxels depend on one fact, such as whether the
  region is there.

  Args:
    p: (D, H, W) float32, calibrated.
    mask: (D, H, W) boolean.
  """
  voxels = int(np.count_nonzero(mask))
  if not voxels:
    return 1.0 - float(p.max(initial=0.0))
  inside = float(np.sum(p, where=mask, dtype=np.float64))
  return 2 * inside / (voxels + float(np.sum(p, dtype=np.float64)))


def histogram(p: np.ndarray, truth: np.ndarray) -> Histogram:
  """The logits of a region's probabilities (D, H, W), apart for voxels that are not of it, and are.

  Args:
    p: as predicted, not calibrated.
    truth: (D, H, W) boolean, the true region.
  """
  counts = np.zeros(2 * _BINS, np.int64)
  for part in _slabs(p):
    bins = np.clip((_logits(p[part]) + _MOST) / _STEP, 0, _BINS - 1).astype(np.int32)
    bins += np.where(truth[part], np.int32(_BINS), np.int32(0))
    counts += np.bincount(bins.ravel(), minlength=2 * _BINS)
  return counts.reshape(2, _BINS)


def _slabs(p: np.ndarray) -> Iterator[slice]:
  """Parts of the first axis, small enough that what is computed of them needs little memory."""
  planes = max(1, _SLAB // max(1, p[0].size)) if len(p) else 1
  return (slice(i, i + planes) for i in range(0, len(p), planes))


def _logits(p: np.ndarray) -> np.ndarray:
  p = np.clip(p, _LEAST, _GREATEST)
  return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))


# --- The fit ----------------------------------------------------------------------------------


def fit(cases: Sequence[Mapping[str, Histogram]]) -> Calibration:
  """One temperature a region, for the greatest likelihood of the truth.

  Args:
    cases: each has its regions' histograms.

  A temperature must help patients that it was not fitted on: with each case left out in turn, the
  gain in likelihood on the cases left out must be more than the best of them accounts for. Else it
  is 1. Fewer than two cases calibrate nothing.
  """
  if len(cases) < 2:
    return NONE
  return Calibration(
    {region: _fitted([np.asarray(case[region]) for case in cases]) for region in REGIONS},
    len(cases),
  )


def _fitted(cases: Sequence[Histogram]) -> float:
  total = np.sum(cases, axis=0)
  gains = []
  for case in cases:
    others = _most_likely(total - case)
    gains.append(_surprise(case, 1.0) - _surprise(case, others))
  return _most_likely(total) if math.fsum(gains) - max(gains) > 0 else 1.0


def _most_likely(counts: Histogram) -> float:
  """The likelihood has one maximum: its logarithm is concave in 1 / temperature."""
  found = optimize.minimize_scalar(
    lambda x: _surprise(counts, math.exp(x)),
    bounds=(math.log(COOLEST), math.log(HOTTEST)),
    method="bounded",
    options={"xatol": 1e-4},
  )
  return round(math.exp(found.x), 4)


def _surprise(counts: Histogram, temperature: float) -> float:
  """Negative log-likelihood, nats."""
  logits = _LOGITS / temperature
  return float(counts[0] @ np.logaddexp(0, logits) + counts[1] @ np.logaddexp(0, -logits))


# --- The errors -------------------------------------------------------------------------------


def errors(counts: Histogram, temperature: float) -> Errors:
  """Of a histogram of one case or the sum over cases. All are 0 if it is empty."""
  p, voxels = _sigmoid(_LOGITS / temperature), counts.sum()
  if not voxels:
    return Errors(0.0, 0.0, 0.0)
  brier = counts[0] @ p**2 + counts[1] @ (1 - p) ** 2
  return Errors(*gaps(reliability(counts, temperature)), float(brier / voxels))


def gaps(bins: Sequence[Bin]) -> tuple[float, float]:
  """The ECE and the ACE of a reliability diagram's bins, one at least."""
  own = [abs(b.probability - b.share) for b in bins]
  weighted = math.fsum(gap * b.voxels for gap, b in zip(own, bins, strict=True))
  return weighted / sum(b.voxels for b in bins), math.fsum(own) / len(bins)


def bin_of(p: Any) -> Any:
  """The reliability diagram's bin of a probability, or of an array of them."""
  return np.minimum((np.asarray(p) * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)


def reliability(counts: Histogram, temperature: float) -> list[Bin]:
  """The reliability diagram: the bins of equal width that have voxels, by probability."""
  p = _sigmoid(_LOGITS / temperature)
  place = bin_of(p)
  voxels, true, sums = (
    np.bincount(place, weights=x, minlength=RELIABILITY_BINS)
    for x in (counts.sum(axis=0), counts[1], counts.sum(axis=0) * p)
  )
  return [
    Bin(float(s / n), float(t / n), int(n)) for n, t, s in zip(voxels, true, sums, strict=True) if n
  ]
