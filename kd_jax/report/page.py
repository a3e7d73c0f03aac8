"""An evaluation as one HTML page that needs nothing else: scores, figures, cases, how it was made.

The page loads nothing from anywhere. Its sections come from what the summary holds; one that would
be empty is left out.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from kd_jax.metrics.case import METRICS
from kd_jax.report import figures
from kd_jax.report.cases import Scores, case_table, pictures_section
from kd_jax.report.parts import (
  NOTHING,
  as_float,
  box,
  count,
  facts,
  folded,
  metric_heading,
  metric_name,
  number,
  statement,
)
from kd_jax.runtime.files import write_text
from kd_jax.tasks.labels import REGIONS

_APART = "slice_dice_reference"


@dataclass(frozen=True)
class Report:
  """What a page is made of.

  Attributes:
    summary: the content of summary.json; any part may be missing.
    scores: case -> METRIC_REGION -> value, as in scores.csv.
    pictures: case -> PNG of pictures.error_panel, of any cases, above all those of showcase.
    histories: run -> the lines of its metrics.jsonl.
    viewers: case -> path of its 3-D page, relative to this one (not quoted as a URL).
  """

  summary: Mapping
  scores: Scores = field(default_factory=dict)
  pictures: Mapping[str, bytes] = field(default_factory=dict)
  histories: Mapping[str, Sequence[Mapping]] = field(default_factory=dict)
  viewers: Mapping[str, str] = field(default_factory=dict)


def write(path: Path, report: Report) -> None:
  """Writes the page whole or not at all. UserError if it cannot."""
  write_text(path, render(report))


def render(report: Report) -> str:
  """The page; the same report gives the same text."""
  failed = report.summary.get("failed") or {}
  sections = {
    "scores": ("Scores", _summary_table(report)),
    "distribution": ("Distribution over cases", _distribution(report.scores)),
    "volume": ("Dice and tumour volume", _volume(report.scores)),
    "showcase": (
      "Best, median and worst case",
      pictures_section(report.scores, report.pictures, report.viewers),
    ),
    "cases": ("All cases", case_table(report.scores, failed, report.viewers)),
    "training": ("Training", _training(report.histories)),
    "method": ("How this was made", _method(report.summary)),
  }
  sections = {key: section for key, section in sections.items() if section[1]}
  script = _asset("sort.js")
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return Template(_asset("page.html")).substitute(
    title=escape(str(report.summary.get("title") or "Evaluation")),
    dateline=_dateline(report.summary),
    statement=escape(statement(report.summary, len(report.scores))),
    alerts=_alerts(report),
    contents="".join(
      f'<li><a href="#{key}">{heading}</a></li>' for key, (heading, _) in sections.items()
    ),
    sections="\n".join(
      f'<section id="{key}" aria-labelledby="{key}-h">\n<h2 id="{key}-h">{heading}</h2>\n'
      f"{content}\n</section>"
      for key, (heading, content) in sections.items()
    ),
    style=_asset("style.css"),
    script=script,
    script_hash=f"sha256-{digest}",  # the browser runs this script and no other
  )


def _asset(name: str) -> str:
  return (files("kd_jax.report") / "assets" / name).read_text(encoding="utf-8")


def _dateline(summary: Mapping) -> str:
  created = str(summary.get("created", ""))[:16].replace("T", " ")
  zone = " UTC" if str(summary.get("created", "")).endswith(("+00:00", "Z")) else ""
  made = f"{created}{zone} · " if created else ""
  return f"{escape(made)}research software, not a medical device"


def _alerts(report: Report) -> str:
  failed, excluded, notes = (report.summary.get(k) for k in ("failed", "excluded", "notes"))
  alerts = []
  if failed:
    lead = f"{count(len(failed), 'case')} could not be scored: no number below includes "
    alerts.append(box("alarm", lead + ("it." if len(failed) == 1 else "them."), failed))
  elif not report.scores:
    alerts.append(box("alarm", "No case was scored.", []))
  if excluded:
    alerts.append(box("note", f"{count(len(excluded), 'case')} left out on purpose.", excluded))
  if notes:
    alerts.append(box("note", "To know when reading the numbers", notes))
  return "\n".join(alerts)


def _summary_table(report: Report) -> str:
  table = report.summary.get("regions") or {}
  regions = [r for r in REGIONS if r in table]
  found = {metric for region in regions for metric in table[region]}
  metrics = [m for m in METRICS if m in found] + sorted(found - set(METRICS))
  if not metrics:
    return ""
  groups = "".join(
    f'<th class="first centre" colspan="3" scope="colgroup">{region}</th>' for region in regions
  )
  columns = '<th class="first" scope="col">mean ± SD</th>'
  columns += '<th scope="col">median</th><th scope="col">95 % interval</th>'
  rows, apart = [], ""
  for metric in metrics:
    cells = "".join(
      _summary_cells(metric, table[region].get(metric) or {}, len(report.scores))
      for region in regions
    )
    badge = ' <span class="badge">not comparable</span>' if metric == _APART else ""
    row = f'<tr><th scope="row">{metric_heading(metric)}{badge}</th>{cells}</tr>'
    if metric == _APART:
      apart = f'<tbody class="apart">{row}</tbody>'
    else:
      rows.append(row)
  meaning = {metric_name(m): METRICS[m][2] for m in metrics if m in METRICS}
  return f"""<div class="scroll wide" tabindex="0" role="region" aria-label="Scores by region">
<table><caption><span>Over {count(len(report.scores), "scored case")}. WT: whole tumour, TC:
tumour core, ET: enhancing tumour. ↑ higher is better, ↓ lower is better. The 95 % interval is that
of the mean.</span></caption>
<thead><tr><th class="name" rowspan="2" scope="col">Metric</th>{groups}</tr>
<tr>{columns * len(regions)}</tr></thead>
<tbody>
{"".join(rows)}
</tbody>{apart}</table></div>
{folded("What the metrics mean", facts(meaning))}
{folded("Rules: empty masks, distances, lesions", facts(report.summary.get("rules") or {}))}"""


def _summary_cells(metric: str, stats: Mapping, cases: int) -> str:
  mean, sd, median, low, high = (
    number(metric, stats.get(key)) for key in ("mean", "sd", "median", "low", "high")
  )
  n = stats.get("n")
  few = f" <small>(n = {n})</small>" if n is not None and n != cases else ""
  spread = f" ± {sd}" if sd != NOTHING else ""
  interval = f"{low} – {high}" if NOTHING not in (low, high) else NOTHING
  return f'<td class="first">{mean}{spread}{few}</td><td>{median}</td><td>{interval}</td>'


def _values(scores: Scores, column: str) -> list[float]:
  return [as_float(values.get(column)) for values in scores.values()]


def _card(title: str, description: str, svg: str) -> str:
  named = f'<svg role="img" aria-label="{escape(f"{title}. {description}")}"'
  return (
    f'<figure class="card"><figcaption><b>{escape(title)}</b><small>{escape(description)}</small>'
    f"</figcaption>{svg.replace('<svg', named, 1)}</figure>"
  )


def _distribution(scores: Scores) -> str:
  cards = []
  for metric, label, distance in (("dice", "Dice", False), ("hd95_mm", "HD95 / mm", True)):
    values = {region: _values(scores, f"{metric}_{region}") for region in REGIONS}
    finite = {region: [x for x in xs if np.isfinite(x)] for region, xs in values.items()}
    if not any(finite.values()):
      continue
    medians = ", ".join(
      f"{region} {number(metric, float(np.median(xs)))}" for region, xs in finite.items() if xs
    )
    scale = "Linear up to 1 mm, logarithmic above. " if distance else ""
    svg = figures.boxes(values, label, distance)
    cards.append(_card(label, f"{scale}Medians: {medians}.", svg))
  hint = (
    "Every point is a case. Box: quartiles, thick line: median, whiskers: the furthest case "
    f"within 1.5 box heights; boxes from {figures.MIN_BOX} cases on. HD95 has a fixed penalty "
    "where only one of the two masks is empty."
  )
  return f'<p class="hint">{hint}</p>\n<div class="charts">{"".join(cards)}</div>' if cards else ""


def _volume(scores: Scores) -> str:
  cards = []
  for region in REGIONS:
    volume = [x / 1000 for x in _values(scores, f"truth_mm3_{region}")]  # ml
    dice = _values(scores, f"dice_{region}")
    known = [v for v, d in zip(volume, dice, strict=True) if np.isfinite(v) and np.isfinite(d)]
    if known:
      absent = sum(v == 0 for v in known)
      note = f"{count(len(known), 'case')}"
      note += f"; {absent} without {region} in the truth (hollow, at the left)." if absent else "."
      svg = figures.against_volume(volume, dice, region)
      cards.append(_card(f"Dice of {region} by its true volume", note, svg))
  return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


def _training(histories: Mapping[str, Sequence[Mapping]]) -> str:
  runs = []
  for run, history in histories.items():
    cards = [_card(title, note, svg) for title, note, svg in figures.training(history)]
    if cards:
      runs.append(f'<h3>{escape(run)}</h3>\n<div class="charts">{"".join(cards)}</div>')
  hint = (
    "Losses and training Dice are of patches, as training sees them; validation Dice is of whole "
    "volumes on the training grid. The teachers’ confidence weighs what each of them teaches the "
    f"student. Curves of more than {figures.MAX_POINTS} points are averaged."
  )
  return f'<p class="hint">{hint}</p>\n{"".join(runs)}' if runs else ""


def _method(summary: Mapping) -> str:
  parts = []
  for key, heading in (("data", "Data"), ("prediction", "Prediction")):
    if content := facts(summary.get(key) or {}):
      parts.append(f"<div><h3>{heading}</h3>{content}</div>")
  for student in summary.get("students") or []:
    name = escape(str(student.get("name", "")))
    parts.append(f"<div><h3>Student {name}</h3>{facts(student)}</div>")
  for key, heading in (("software", "Software"), ("hardware", "Hardware")):
    if content := facts(summary.get(key) or {}):
      parts.append(f"<div><h3>{heading}</h3>{content}</div>")
  columns = f'<div class="columns">{"".join(parts)}</div>' if parts else ""
  return columns + folded("Settings of the run", facts(summary.get("settings") or {}))
