"""How sure students are against how right they are: calibration, and predicted Dice against true.

In summary.json, under "certainty":

  cases            how many
  fitted_on        validation cases that the temperatures were fitted on; 0 if there are none
  regions          WT, TC, ET ->
    temperature      1 if there is none; a list, one a fold, of a cross-validation
    before, after    ece, ace, brier, and reliability: [probability, share, voxels] of each bin;
                     after only where there is a temperature
    predicted_dice   n, pearson, spearman (None where there are too few), mean_absolute_error
  predicted_dice   case -> region -> the Dice that was expected of its mask
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from kd_jax.metrics.volumetric import region_mask
from kd_jax.prediction import calibration
from kd_jax.prediction.calibration import Bin, Calibration, Errors, Histogram
from kd_jax.prediction.prediction import Prediction
from kd_jax.runtime import processes
from kd_jax.runtime.terminal import table
from kd_jax.tasks.labels import REGIONS

_ENOUGH = 3  # cases, for a correlation
_DIGITS = 6

Scores = Mapping[str, Mapping[str, float]]  # case -> column -> value


class Certainty:
  """What is gathered of the cases of this process.

  Attributes:
    histograms: region -> of all voxels of all cases, as predicted.
    predicted_dice: case -> region -> expected Dice.
  """

  def __init__(self):
    self.histograms: dict[str, Histogram] = {}
    self.predicted_dice: dict[str, dict[str, float]] = {}

  def add(self, case: str, prediction: Prediction, mask: np.ndarray, truth: np.ndarray) -> None:
    """mask, truth: (D, H, W) classes in the scan's space."""
    box = prediction.prepared.grid.box
    dice = {}
    for region in REGIONS:
      p = prediction.region(region, calibrated=False)
      counts = calibration.histogram(p, region_mask(truth[box], region))
      self.histograms[region] = self.histograms.get(region, 0) + counts
      p = calibration.with_temperature(p, prediction.calibration.of(region))
      dice[region] = calibration.expected_dice(p, region_mask(mask[box], region))
    self.predicted_dice[case] = dice

  def together(self) -> "Certainty":
    """Of all processes."""
    everyone = Certainty()
    everyone.predicted_dice = processes.union(self.predicted_dice)
    for part in processes.gather({r: x.tolist() for r, x in self.histograms.items()}):
      for region, counts in part.items():
        everyone.histograms[region] = everyone.histograms.get(region, 0) + np.asarray(counts)
    return everyone


def summarise(found: Certainty, known: Calibration, scores: Scores) -> dict[str, Any]:
  """What summary.json says, see the module; {} without cases.

  Args:
    known: the students' calibration.
    scores: of the cases, with their Dice.
  """
  cases = [name for name in scores if name in found.predicted_dice]
  regions: dict[str, dict[str, Any]] = {}
  for region, counts in found.histograms.items():
    temperature = known.of(region)
    stages = {"before": 1.0} | ({"after": temperature} if known.known else {})
    regions[region] = {"temperature": temperature} | {
      stage: _stage(calibration.errors(counts, t), calibration.reliability(counts, t))
      for stage, t in stages.items()
    }
  predicted = {name: found.predicted_dice[name] for name in cases}
  return _complete(regions, predicted, known.cases, scores) if cases else {}


def pool(folds: Sequence[Mapping[str, Any]], scores: Scores) -> dict[str, Any]:
  """The folds' "certainty" as one, each case by the student that has not seen it.

  {} if a fold was evaluated by an earlier version.
  """
  own = [fold.get("certainty") or {} for fold in folds]
  if not own or not all(own):
    return {}
  regions: dict[str, dict[str, Any]] = {}
  for region in REGIONS:
    parts = [fold["regions"][region] for fold in own]
    regions[region] = {"temperature": [part["temperature"] for part in parts]} | {
      stage: _pooled([part[stage] for part in parts])
      for stage in ("before", "after")
      if all(stage in part for part in parts)
    }
  predicted = {name: dice for fold in own for name, dice in fold["predicted_dice"].items()}
  predicted = {name: predicted[name] for name in sorted(predicted) if name in scores}
  return _complete(regions, predicted, sum(fold["fitted_on"] for fold in own), scores)


def lines(certainty: Mapping[str, Any]) -> list[str]:
  """The table for the terminal; [] of {}."""
  if not certainty:
    return []
  rows = []
  for region, facts in certainty["regions"].items():
    after = facts.get("after") or {}
    told = facts["predicted_dice"]
    pairs = [(facts["before"][e], after.get(e)) for e in Errors._fields]
    errors = [f"{a:.4f}" + ("" if b is None else f" -> {b:.4f}") for a, b in pairs]
    correlation = "-" if told["spearman"] is None else f"{told['spearman']:.2f}"
    rows.append([region, *errors, correlation, f"{told['mean_absolute_error']:.3f}"])
  head = ["how sure", *(name.upper() for name in Errors._fields[:2]), "Brier"]
  head += ["predicted Dice: rank correlation", "mean error"]
  return [table(head, rows)]


def _complete(
  regions: dict[str, dict[str, Any]],
  predicted: Mapping[str, Mapping[str, float]],
  fitted_on: int,
  scores: Scores,
) -> dict[str, Any]:
  for region, facts in regions.items():
    pairs = [(dice[region], scores[name][f"dice_{region}"]) for name, dice in predicted.items()]
    facts["predicted_dice"] = _agreement(pairs)
  return {
    "cases": len(predicted),
    "fitted_on": fitted_on,
    "regions": regions,
    "predicted_dice": {
      name: {region: round(x, _DIGITS) for region, x in dice.items()}
      for name, dice in predicted.items()
    },
  }


def _agreement(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
  """Of predicted and true Dice."""
  predicted, true = np.array(pairs, float).reshape(-1, 2).T
  able = len(pairs) >= _ENOUGH and np.ptp(predicted) > 0 and np.ptp(true) > 0
  correlations = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
  return {
    "n": len(pairs),
    **{
      name: round(float(f(predicted, true).statistic), _DIGITS) if able else None
      for name, f in correlations.items()
    },
    "mean_absolute_error": round(float(np.abs(predicted - true).mean()), _DIGITS),
  }


def _stage(errors: Errors, bins: Sequence[Bin]) -> dict[str, Any]:
  own = {name: float(f"{value:.6g}") for name, value in errors._asdict().items()}
  return own | {"reliability": [[round(b[0], 6), round(b[1], 6), b[2]] for b in bins]}


def _pooled(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Errors of all folds' voxels together: their bins are the same ones."""
  sums: dict[int, np.ndarray] = {}  # bin -> [sum of probabilities, voxels of the region, voxels]
  for stage in stages:
    for p, share, voxels in stage["reliability"]:
      place = calibration.bin_of(p)
      sums[place] = sums.get(place, 0) + np.array([p * voxels, share * voxels, voxels])
  bins = [Bin(float(p / n), float(true / n), int(n)) for _, (p, true, n) in sorted(sums.items())]
  voxels = [sum(b[2] for b in stage["reliability"]) for stage in stages]
  brier = float(np.average([stage["brier"] for stage in stages], weights=voxels))
  return _stage(Errors(*calibration.gaps(bins), brier), bins)
