"""An evaluation as one HTML page that needs nothing else: scores, figures, cases, how it was made.

The page loads nothing from anywhere. Its sections come from what the summary holds; one that would
be empty is left out.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from kd_jax.metrics.case import METRICS
from kd_jax.report import figures
from kd_jax.report.cases import Scores, case_table, shown_cases
from kd_jax.report.certainty import certainty_of
from kd_jax.report.parts import NOTHING, Metric, as_float, count, facts, metric, number, statement
from kd_jax.report.slices import COLOURS, ERRORS
from kd_jax.report.templating import asset, fill
from kd_jax.runtime.files import write_text
from kd_jax.tasks.labels import CLASSES, REGIONS

Chart = tuple[str, str, Markup]  # title, description, SVG


@dataclass(frozen=True)
class Report:
  """What a page is made of.

  Attributes:
    summary: the content of summary.json; any part may be missing.
    scores: case -> METRIC_REGION -> value, as in scores.csv.
    pictures: case -> PNG of pictures.error_panel, of any cases, above all of the showcase's.
    histories: run -> the lines of its metrics.jsonl.
    viewers: case -> path of its 3-D page, relative to this one (not quoted as a URL).
  """

  summary: Mapping
  scores: Scores = field(default_factory=dict)
  pictures: Mapping[str, bytes] = field(default_factory=dict)
  histories: Mapping[str, Sequence[Mapping]] = field(default_factory=dict)
  viewers: Mapping[str, str] = field(default_factory=dict)


class Summary(NamedTuple):
  """A metric's statistics in one region, as text; n: cases, None where it is all of them."""

  mean: str
  median: str
  interval: str
  n: int | None


class ScoreTable(NamedTuple):
  """Statistics over cases: a cell for each region; meaning and rules: term -> what it means."""

  regions: list[str]
  rows: list[tuple[Metric, list[Summary]]]
  meaning: dict[str, str]
  rules: dict[str, str]


def write(path: Path, report: Report) -> None:
  """Writes the page whole or not at all. UserError if it cannot."""
  write_text(path, render(report))


def render(report: Report) -> str:
  """The page; the same report gives the same text."""
  summary, scores = report.summary, report.scores
  failed, excluded, notes = (summary.get(key) or {} for key in ("failed", "excluded", "notes"))
  digest = base64.b64encode(hashlib.sha256(asset("sort.js").encode()).digest()).decode()
  return fill(
    "page.html",
    script_hash=f"sha256-{digest}",  # the browser runs this script and no other
    title=str(summary.get("title") or "Evaluation"),
    created=_created(summary),
    statement=statement(summary, len(scores)),
    scored=len(scores),
    failed=failed,
    excluded=excluded,
    notes=notes,
    viewers=report.viewers,
    scores=_score_table(report),
    distribution=_distribution(scores),
    min_box=figures.MIN_BOX,
    volume=_volume(scores),
    certainty=certainty_of(summary.get("certainty") or {}, scores),
    showcase=shown_cases(scores, report.pictures),
    class_colours=dict(zip(CLASSES, COLOURS.astype(int).tolist(), strict=True)),
    error_colours=ERRORS,
    cases=case_table(scores, failed),
    training=_training(report.histories),
    max_points=figures.MAX_POINTS,
    method=_method(summary),
    settings=facts(summary.get("settings") or {}),
  )


def _created(summary: Mapping) -> str:
  created = str(summary.get("created", ""))
  zone = " UTC" if created.endswith(("+00:00", "Z")) else ""
  return created[:16].replace("T", " ") + zone


def _score_table(report: Report) -> ScoreTable | None:
  table = report.summary.get("regions") or {}
  regions = [r for r in REGIONS if r in table]
  found = {key for region in regions for key in table[region]}
  keys = [m for m in METRICS if m in found] + sorted(found - set(METRICS))
  if not keys:
    return None
  cases = len(report.scores)
  return ScoreTable(
    regions,
    [(metric(k), [_summary(k, table[r].get(k) or {}, cases) for r in regions]) for k in keys],
    meaning=facts({metric(k).name: metric(k).description for k in keys if k in METRICS}),
    rules=facts(report.summary.get("rules") or {}),
  )


def _summary(key: str, stats: Mapping, cases: int) -> Summary:
  mean, sd, median, low, high = (
    number(key, stats.get(name)) for name in ("mean", "sd", "median", "low", "high")
  )
  n = stats.get("n")
  return Summary(
    mean=f"{mean} ± {sd}" if sd != NOTHING else mean,
    median=median,
    interval=f"{low} – {high}" if NOTHING not in (low, high) else NOTHING,
    n=n if n != cases else None,
  )


def _values(scores: Scores, column: str) -> list[float]:
  return [as_float(values.get(column)) for values in scores.values()]


def _chart(title: str, description: str, svg: str) -> Chart:
  # Safe: the SVG is matplotlib's, which escapes the names that it draws.
  return title, description, Markup(svg)


def _distribution(scores: Scores) -> list[Chart]:
  charts = []
  for key, label, distance in (("dice", "Dice", False), ("hd95_mm", "HD95 / mm", True)):
    values = {region: _values(scores, f"{key}_{region}") for region in REGIONS}
    finite = {region: [x for x in xs if np.isfinite(x)] for region, xs in values.items()}
    if not any(finite.values()):
      continue
    medians = ", ".join(
      f"{region} {number(key, float(np.median(xs)))}" for region, xs in finite.items() if xs
    )
    scale = "Linear up to 1 mm, logarithmic above. " if distance else ""
    svg = figures.boxes(values, label, distance)
    charts.append(_chart(label, f"{scale}Medians: {medians}.", svg))
  return charts


def _volume(scores: Scores) -> list[Chart]:
  charts = []
  for region in REGIONS:
    volume = [x / 1000 for x in _values(scores, f"truth_mm3_{region}")]  # ml
    dice = _values(scores, f"dice_{region}")
    known = [v for v, d in zip(volume, dice, strict=True) if np.isfinite(v) and np.isfinite(d)]
    if known:
      absent = sum(v == 0 for v in known)
      note = f"{count(len(known), 'case')}"
      note += f"; {absent} without {region} in the truth (hollow, at the left)." if absent else "."
      svg = figures.against_volume(volume, dice, region)
      charts.append(_chart(f"Dice of {region} by its true volume", note, svg))
  return charts


def _training(histories: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Chart]]:
  """Run -> its charts; runs without numbers are left out."""
  runs = {
    run: [_chart(*chart) for chart in figures.training(history)]
    for run, history in histories.items()
  }
  return {run: charts for run, charts in runs.items() if charts}


def _method(summary: Mapping) -> list[tuple[str, dict[str, str]]]:
  """Headings with their facts."""
  return [
    *_columns(summary, "data", "prediction"),
    *((f"Student {s.get('name', '')}", facts(s)) for s in summary.get("students") or []),
    *_columns(summary, "software", "hardware"),
  ]


def _columns(summary: Mapping, *keys: str) -> list[tuple[str, dict[str, str]]]:
  """A heading and its facts for each key that has any."""
  found = {key.capitalize(): facts(summary.get(key) or {}) for key in keys}
  return [column for column in found.items() if column[1]]
