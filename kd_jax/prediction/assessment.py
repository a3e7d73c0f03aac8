"""What --mode=predict says of a mask: its volumes, how sure they are, and what is odd about it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.data.own_masks import RECORD_FILE
from kd_jax.metrics.volumetric import region_mask, volume_mm3
from kd_jax.prediction.prediction import Prediction
from kd_jax.prediction.quality import Volumes, findings
from kd_jax.prediction.uncertainty import interval
from kd_jax.runtime.errors import one_line
from kd_jax.runtime.terminal import table
from kd_jax.tasks.labels import REGIONS

_FIRST = 5  # cases, at most, that are named as the least sure
_SHARE = 5  # one of so many
_TOLD = 20  # cases whose findings are told


def assess(prediction: Prediction, classes: np.ndarray, volumes: Volumes) -> dict[str, Any]:
  """Of one mask, as plain values.

  Args:
    classes: (D, H, W), the mask, in the scan's space.
    volumes: of the training cases.

  Returns:
    "volumes_ml": region -> its volume; "interval_ml": region -> [low, high], where there are
    several opinions; "predicted_dice": region -> expected Dice; "calibrated": whether that rests
    on calibrated probabilities; "findings": clauses.
  """
  scan = prediction.prepared.reference
  ml = volumes_ml(classes, scan.voxel_mm)
  facts: dict[str, Any] = {"volumes_ml": ml}
  if prediction.opinions is not None and len(prediction.opinions.classes) > 1:
    own = prediction.volumes_mm3()
    ranges = {region: interval([mm3 / 1000 for mm3 in own[region]], ml[region]) for region in own}
    facts["interval_ml"] = {r: [round(bound, 4) for bound in both] for r, both in ranges.items()}
  facts["predicted_dice"] = _rounded(prediction.expected_dice(classes))
  facts["calibrated"] = prediction.calibration.known
  grid = prediction.prepared.grid
  facts["findings"] = findings(classes, scan.data, scan.voxel_mm, grid, volumes)
  return facts


def volumes_ml(classes: np.ndarray, voxel_mm: Sequence[float]) -> dict[str, float]:
  """Region -> its volume in a mask (D, H, W)."""
  return _rounded({r: volume_mm3(region_mask(classes, r), voxel_mm) / 1000 for r in REGIONS})


def lines(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The table of all masks, which of them to look at first, and what is odd about each.

  Args:
    cases: name -> what `assess` says; one at least.
  """
  everyone = list(cases.values())
  ranged = all("interval_ml" in facts for facts in everyone)
  calibrated = all(facts["calibrated"] for facts in everyone)
  head = ["case", *(f"{region} ml" for region in REGIONS)]
  if calibrated:
    head += [f"predicted Dice {region}" if not i else region for i, region in enumerate(REGIONS)]
  rows = []
  for name, facts in sorted(cases.items()):
    row = [name, *(_volume(facts, region, ranged) for region in REGIONS)]
    rows.append(row + [f"{facts['predicted_dice'][r]:.2f}" for r in REGIONS if calibrated])
  told = [table(head, rows)]
  if ranged:
    told.append("in brackets: between which volumes the networks and mirror images lie")
  if first := _least_sure(cases):
    why = "least predicted Dice" if calibrated else "least sure; probabilities are not calibrated"
    told.append(f"look at these first ({why}): {', '.join(first)}")
  odd = [name for name, facts in sorted(cases.items()) if facts["findings"]]
  for name in odd[:_TOLD]:
    told.append(f"check the mask of {one_line(name)}: {'; '.join(cases[name]['findings'])}")
  if len(odd) > _TOLD:
    told.append(f"check the masks of {len(odd) - _TOLD} more cases: see findings in {RECORD_FILE}")
  return told


def _volume(facts: Mapping[str, Any], region: str, ranged: bool) -> str:
  text = f"{facts['volumes_ml'][region]:.1f}"
  if not ranged:
    return text
  low, high = facts["interval_ml"][region]
  return f"{text} ({low:.1f}-{high:.1f})"


def _least_sure(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A fifth of the cases, at most _FIRST, by the mean predicted Dice; none of a single case."""
  means = {n: math.fsum(facts["predicted_dice"].values()) for n, facts in cases.items()}
  ranked: Sequence[str] = sorted(means, key=lambda name: (means[name], name))
  count = min(_FIRST, math.ceil(len(ranked) / _SHARE)) if len(ranked) > 1 else 0
  return [f"{one_line(name)} ({means[name] / len(REGIONS):.2f})" for name in ranked[:count]]


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
  return {name: round(value, 4) for name, value in values.items()}
