"""What an evaluation leaves: scores.csv, summary.json, report.html, and a table on the terminal.

scores.csv has a row a case and the columns of metrics/case.py. summary.json (schema 1) has, beside
the means, all that a reader needs to judge them:

  title, created        what was scored, when (UTC)
  students              source, name, modalities, step, sha256 of each; [] for masks of elsewhere
  data                  root, split, fold, folds, cases, patients, conventions, dropped_labels
  failed, excluded      case -> reason; they are in no mean
  notes                 sentences that belong to the numbers
  prediction            inference settings
  rules                 definitions of the scores
  regions               WT, TC, ET -> metric -> n, mean, sd, median, low and high (95% bootstrap
                        interval of the mean); sd, low and high are null of one case
  certainty             how sure the students are, and how right: see certainty.py
  software, hardware    versions, device
  settings              the run's settings, where there is a run
"""

import csv
import datetime
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax import __version__
from kd_jax.evaluation import intervals as statistics
from kd_jax.evaluation.certainty import lines as certainty_lines
from kd_jax.metrics.case import HD95_RULE, LESIONWISE_RULE, METRICS, columns, empty_hd95
from kd_jax.metrics.volumetric import EMPTY_MASK_RULE, SLICE_DICE_NOTE
from kd_jax.prediction.student import Student
from kd_jax.report.illustrate import Illustrated
from kd_jax.report.page import Report
from kd_jax.report.page import write as write_report
from kd_jax.runs.layout import REPORT_FILE, SCORES_FILE, SUMMARY_FILE
from kd_jax.runtime import versions
from kd_jax.runtime.errors import one_line
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import Terminal, table
from kd_jax.tasks.labels import REGIONS

SCHEMA = 1
_ON_TERMINAL = ("dice", "hd95_mm", "slice_dice_reference")

Scores = Mapping[str, Mapping[str, float]]  # case -> column -> value


def summarise(
  title: str,
  scores: Scores,
  *,
  students: Sequence[Student] = (),
  data: Mapping[str, Any],
  failed: Mapping[str, str],
  excluded: Mapping[str, str] = {},
  notes: Sequence[str] = (),
  prediction: Mapping[str, Any] | None = None,
  certainty: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The content of summary.json; see the module."""
  summary = {
    "schema": SCHEMA,
    "title": title,
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "students": [_identity(student) for student in students],
    "data": dict(data) | {"cases": len(scores)},
    "failed": dict(sorted(failed.items())),
    "excluded": dict(excluded),
    "notes": list(notes),
    "rules": rules(data.get("conventions", ())),
    "regions": {
      region: {
        metric: statistics.describe([case[f"{metric}_{region}"] for case in scores.values()])
        for metric in METRICS
      }
      for region in (REGIONS if scores else ())
    },
    "software": _software(),
    "hardware": _hardware(),
  }
  if prediction:
    summary["prediction"] = dict(prediction)
  if certainty:
    summary["certainty"] = dict(certainty)
  if settings := [student.settings for student in students if student.settings]:
    summary["settings"] = settings[0]
  return summary


def rules(conventions: Sequence[str]) -> dict[str, str]:
  """The definitions that the scores follow."""
  penalties = sorted({empty_hd95(convention) for convention in conventions})
  one_empty = " or ".join(f"{mm:g}" for mm in penalties) or "the year's penalty"
  return {
    "space": "masks are compared voxel by voxel in the scan's own space",
    "empty_masks": f"{EMPTY_MASK_RULE}; HD95 of one empty mask: {one_empty} mm, of two: 0",
    "hd95": HD95_RULE,
    "lesionwise": LESIONWISE_RULE,
    "slice_dice_reference": SLICE_DICE_NOTE,
  }


def write(
  folder: Path,
  summary: Mapping[str, Any],
  scores: Scores,
  shown: Illustrated,
  histories: Mapping[str, list[dict]],
  terminal: Terminal,
) -> None:
  """Writes all files of an evaluation and tells the main numbers."""
  write_text(folder / SCORES_FILE, to_csv(scores))
  write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")
  report = Report(
    summary=dict(summary),
    scores={name: dict(case) for name, case in scores.items()},
    pictures=shown.pictures,
    histories=dict(histories),
    viewers=shown.viewers,
  )
  write_report(folder / REPORT_FILE, report)
  _tell(terminal, scores, summary, folder)


def to_csv(scores: Scores) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["case", *columns()])
  for name, case in scores.items():
    writer.writerow([one_line(name), *(f"{case[column]:.9g}" for column in columns())])
  return text.getvalue()


def _tell(terminal: Terminal, scores: Scores, summary: Mapping[str, Any], folder: Path) -> None:
  head = ["case"]
  for label in ("Dice", "HD95 mm", "slice ref."):
    head += [f"{label} {region}" for region in REGIONS]
  shown = [f"{metric}_{region}" for metric in _ON_TERMINAL for region in REGIONS]
  rows = [[name, *(case[column] for column in shown)] for name, case in scores.items()]
  if scores:
    for statistic in ("mean", "sd"):
      rows.append(
        [statistic] + [summary["regions"][r][m][statistic] for m in _ON_TERMINAL for r in REGIONS]
      )
  terminal.line(f"{summary['title']}\n{table(head, rows)}")
  rules = summary["rules"]
  terminal.line(f"{rules['empty_masks']}\nslice ref.: {SLICE_DICE_NOTE}")
  for line in certainty_lines(summary.get("certainty") or {}):
    terminal.line(line)
  for note in summary["notes"]:
    terminal.line(f"note: {note}")
  for name, reason in summary["excluded"].items():
    terminal.line(f"excluded: {name}: {reason}")
  terminal.line(
    f"report: {folder / REPORT_FILE}\nscores: {folder / SCORES_FILE}, {folder / SUMMARY_FILE}"
  )


def _identity(student: Student) -> dict[str, Any]:
  return {
    "source": student.source,
    "name": student.name,
    "modalities": list(student.architecture.modalities),
    "step": student.training.get("step"),
    "averaged": student.training.get("averaged"),
    "weights_sha256": student.digest(),
  }


def _software() -> dict[str, str]:
  return {"python": platform.python_version(), "kd_jax": __version__, **versions.packages()}


def _hardware() -> dict[str, Any]:
  devices = versions.devices()
  return {
    "device": devices["kind"],
    "platform": devices["platform"],
    "devices": devices["count"],
    "processors": os.cpu_count(),
    "system": f"{platform.system()} {platform.machine()}",
  }
