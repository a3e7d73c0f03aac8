"""What a report's page says of single cases: pictures of a few, scores of all; as plain data."""

import base64
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from kd_jax.report.parts import Metric, as_float, metric, number
from kd_jax.tasks.labels import REGIONS

_COLUMNS = ("dice", "hd95_mm", "lesionwise_dice", "sensitivity", "truth_mm3")
_MORE_PICTURES = 12

Scores = Mapping[str, Mapping[str, float]]  # case -> METRIC_REGION -> value


class ShownCase(NamedTuple):
  """A case with its picture.

  Attributes:
    what: such as "Best case".
    mean: the mean Dice, as text.
    metrics, rows: a heading for each column; region -> its cells.
    png: in base64; "" where there is no picture.
  """

  what: str
  name: str
  mean: str
  metrics: list[Metric]
  rows: dict[str, list[str]]
  png: str


class Showcase(NamedTuple):
  """The cases that stand for all, and a few more, which are folded away."""

  chosen: list[ShownCase]
  further: list[ShownCase]


class CaseTable(NamedTuple):
  """All cases, by name.

  Attributes:
    metrics, regions: the columns after the mean Dice are those of every metric and region.
    rows: case -> its cells; none for a case that could not be scored.
  """

  metrics: list[Metric]
  regions: list[str]
  rows: dict[str, list[str]]


def showcase(scores: Scores) -> dict[str, str]:
  """What ("Best", "Median", "Worst", or "Only") -> case, by the mean Dice over the regions.

  Cases without any Dice are passed over; equal ones are ranked by name.
  """
  ranked = _ranked(scores)
  if len(ranked) < 2:
    return {"Only": ranked[0]} if ranked else {}
  chosen = {"Best": ranked[-1], "Median": ranked[(len(ranked) - 1) // 2], "Worst": ranked[0]}
  return chosen if len(ranked) > 2 else {"Best": ranked[1], "Worst": ranked[0]}


def mean_dice(scores: Mapping[str, float]) -> float:
  """The mean of a case's Dice over the regions that have one; NaN if none has."""
  found = [as_float(scores.get(f"dice_{region}")) for region in REGIONS]
  found = [x for x in found if np.isfinite(x)]
  return float(np.mean(found)) if found else float("nan")


def shown_cases(scores: Scores, drawn: Mapping[str, bytes]) -> Showcase | None:
  """showcase's cases, and others that were drawn, the worst first; None if no case has a Dice."""
  chosen = showcase(scores)
  if not chosen:
    return None
  further = [case for case in _ranked(scores) if case in drawn and case not in chosen.values()]
  return Showcase(
    [_shown(f"{what} case", case, scores[case], drawn) for what, case in chosen.items()],
    [_shown("Case", case, scores[case], drawn) for case in further[:_MORE_PICTURES]],
  )


def case_table(scores: Scores, failed: Iterable[str]) -> CaseTable | None:
  """The table of all cases, failed ones among them; None if there are none."""
  keys = _columns(column for values in scores.values() for column in values)
  rows = {
    case: [_mean(values), *(number(k, values.get(f"{k}_{r}")) for k in keys for r in REGIONS)]
    for case, values in scores.items()
  }
  rows |= {case: [] for case in failed}
  if not rows:
    return None
  return CaseTable([metric(k) for k in keys], list(REGIONS), dict(sorted(rows.items())))


def _ranked(scores: Scores) -> list[str]:
  """Cases that have a Dice, the worst first."""
  means = {case: mean_dice(values) for case, values in scores.items()}
  return sorted((c for c in means if np.isfinite(means[c])), key=lambda c: (means[c], c))


def _shown(
  what: str, case: str, values: Mapping[str, float], drawn: Mapping[str, bytes]
) -> ShownCase:
  keys = _columns(values)
  return ShownCase(
    what=what,
    name=case,
    mean=_mean(values),
    metrics=[metric(k) for k in keys],
    rows={r: [number(k, values.get(f"{k}_{r}")) for k in keys] for r in REGIONS},
    png=base64.b64encode(drawn.get(case, b"")).decode(),
  )


def _mean(values: Mapping[str, float]) -> str:
  return number("dice", mean_dice(values))


def _columns(present: Iterable[str]) -> list[str]:
  present = set(present)
  return [m for m in _COLUMNS if any(f"{m}_{region}" in present for region in REGIONS)]
