"""The tables of the bench of real patients, made of the rows of patient_summary.py. Without JAX."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablations.patient_summary import summary_of
from benchmarks.ablations.patients import KEPT_ASIDE
from benchmarks.ablations.recipes import ALONE
from benchmarks.ablations.tables import HEAD, comparison, means
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import table
from kd_jax.tasks.labels import REGIONS


def text_of(rows: Sequence[Mapping[str, Any]], folds: int, against: str = ALONE) -> str:
  """The tables that people read."""
  parts = []
  head = ["recipe", "runs", *HEAD[2:]]
  costs = {
    row["recipe"]: [row["steps"], f"{row['train_seconds']:.0f}", f"{row['memory_gb']:.1f}"]
    for row in rows
  }
  chosen, out = "postprocessed as each fold's patients chose", f"out of {folds} folds by patient"
  for which, short, words in (
    ("cleaned", "postprocessed", f"{out}, {chosen}"),
    ("scores", "as predicted", f"{out}, as predicted"),
    (KEPT_ASIDE, "kept aside, postprocessed", f"patients that were kept aside, {chosen}"),
  ):
    own = [
      {"seeds": row["seeds"], **row[which], "recipe": row["recipe"]} for row in rows if which in row
    ]
    if not own:
      continue
    cells = [[row["recipe"], row["seeds"], *means(row), *costs[row["recipe"]]] for row in own]
    title = f"Dice (%) and HD95 (mm) in the scans' own space, {words}: mean ± sd over seeds"
    parts.append(f"{title}\n\n" + table([*head, "steps", "train s", "GB"], cells))
    parts += comparison(own, against, f" ({short})", over="patients")
  parts += [_networks(rows), *_shares(rows), *_over_time(rows)]
  parts.append(table(["recipe", "what it is"], [[row["recipe"], row["what"]] for row in rows]))
  return "\n\n".join(parts) + "\n"


def _networks(rows: Sequence[Mapping[str, Any]]) -> str:
  cells = [
    [row["recipe"], network, *(_points(regions[r]) for r in REGIONS)]
    for row in rows
    for network, regions in row["networks"].items()
  ]
  title = "Every network on the training grid, as predicted, out of fold, Dice (%)"
  return f"{title}\n\n" + table(["recipe", "network", *REGIONS], cells)


def _shares(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  cells = []
  for row in rows:
    for region, own in row["share"].items():
      taken = "-" if own["share"] is None else f"{100 * own['share']:.0f} %"
      values = [_points(own[name]) for name in ("alone", "student", "best")]
      cells.append([row["recipe"], region, *values, own["teacher"], taken])
  if not cells:
    return []
  head = ["recipe", "region", "alone", "student", "best teacher", "which", "share"]
  title = "What of the best teacher's lead over the student alone the student takes over"
  return [f"{title} (that table's Dice)\n\n" + table(head, cells)]


def _over_time(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  dice, losses = [], []
  for row in rows:
    for point in row["over_time"]:
      for network in point["training"]:
        sides = [
          _points(point[side][network][r]) for r in REGIONS for side in ("training", "validation")
        ]
        dice.append([row["recipe"], point["step"], network, *sides])
      if "loss/distillation" in (own := point["losses"]):
        part = own["loss/distillation"] / own["loss/student"]
        terms = [f"{n.removeprefix('loss/')} {x:.3g}" for n, x in own.items() if "/kd" in n]
        values = [f"{own['loss/student']:.3f}", f"{100 * part:.1f} %", ", ".join(terms)]
        losses.append([row["recipe"], point["step"], *values])
  sides = [f"{r} {side}" for r in REGIONS for side in ("seen", "new")]
  parts = [
    "Over time: Dice (%) on the training grid of patients that the networks train on (seen) and of "
    "the fold's others (new)\n\n" + table(["recipe", "step", "network", *sides], dice)
  ]
  if losses:
    head = ["recipe", "step", "student's loss", "from teachers", "distillation terms, unweighted"]
    title = "Over time: what of the student's loss comes from teachers (means of the epoch before)"
    parts.append(f"{title}\n\n" + table(head, losses))
  return parts


def _points(dice: float) -> str:
  return f"{100 * dice:.1f}"


def write_tables(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], folds: int, against: str = ALONE
) -> str:
  rows = summary_of(output, recipes, seeds, folds, against)
  text = text_of(rows, folds, against)
  write_text(output / "ablation.json", json.dumps(rows, indent=1) + "\n")
  write_text(output / "ablation.md", f"```\n{text}```\n")
  return text
