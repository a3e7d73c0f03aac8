"""What the records of the bench of real patients say together: a row a recipe. Without JAX.

All is out of fold, a patient's cases averaged first, then over the seeds; intervals are over
patients. What is compared is compared on the seeds and folds that both recipes have.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablations import patients
from benchmarks.ablations.patients import EQUAL_TIME, KEPT_ASIDE
from benchmarks.ablations.recipes import ALONE
from benchmarks.ablations.records import COLUMNS, read_record, record_file
from kd_jax.evaluation.intervals import paired
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.labels import REGIONS

Record = Mapping[str, Any]
Unit = tuple[int, int]  # seed, fold
Units = Mapping[Unit, Record]
Scores = Mapping[Unit, Mapping[str, Sequence[float]]]  # patient -> number of each of COLUMNS
STUDENT = "student"
SMALLEST_LEAD = 0.01  # of Dice: no share is taken of less


def read(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], folds: int
) -> dict[str, dict[Unit, Record]]:
  """{recipe: {(seed, fold): record}} of the finished runs.

  Raises:
    UserError: a record that cannot be read, or records that do not belong in one table.
  """
  found: dict[str, dict[Unit, Record]] = {}
  first: dict[Any, tuple[Path, Any]] = {}  # what must agree -> where it was first said, and what
  for job in patients.jobs(recipes, seeds, folds):
    path = record_file(job.folder(output, folds))
    if not path.is_file():
      continue
    record = read_record(path)
    alike = {
      "spacing": record["spacing"],
      "filters": record["filters"],
      ("steps", job.recipe == EQUAL_TIME): record["steps"],
      ("cases", job.fold): sorted(record["scores"]),
    }
    for what, said in alike.items():
      where, before = first.setdefault(what, (path, said))
      if said != before:
        name = what[0] if isinstance(what, tuple) else what
        raise UserError(
          f"{path} and {where} differ in their {name}: they do not belong in one table; give each "
          "its own --output"
        )
    found.setdefault(job.recipe, {})[job.seed, job.fold] = record
  return found


def summary_of(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], folds: int, against: str = ALONE
) -> list[dict[str, Any]]:
  """A row a recipe, of the runs that are finished. UserError: as `read`."""
  wanted = list(dict.fromkeys([*recipes, against, ALONE]))
  records = read(output, wanted, seeds, folds)
  rows = []
  for name in patients.in_order(recipes):
    if not (runs := records.get(name)):
      continue
    others = records.get(against, {}) if name != against else {}
    row: dict[str, Any] = {
      "recipe": name,
      "what": patients.what(name, output),
      "seeds": len(runs),  # runs; the name that the shared tables have
      "steps": next(iter(runs.values()))["steps"],
      "train_seconds": statistics.median(r["train_seconds"] for r in runs.values()),
      "memory_gb": max(r["memory_gb"] for r in runs.values()),
      "scores": columns(_scores(runs, "scores"), _scores(others, "scores")),
      "cleaned": columns(_scores(runs, "cleaned"), _scores(others, "cleaned")),
      "networks": networks(runs),
      "share": {} if name == ALONE else share(runs, records.get(ALONE, {})),
      "over_time": over_time(runs),
    }
    if aside := {unit: r[KEPT_ASIDE] for unit, r in runs.items() if KEPT_ASIDE in r}:
      beside = {unit: r[KEPT_ASIDE] for unit, r in others.items() if KEPT_ASIDE in r}
      row[KEPT_ASIDE] = columns(_scores(aside, "cleaned"), _scores(beside, "cleaned"))
      row[KEPT_ASIDE]["seeds"] = len(aside)
    rows.append(row)
  return rows


def _scores(runs: Units, which: str) -> dict[Unit, dict[str, list[float]]]:
  """Each patient's mean over their cases."""
  found = {}
  for unit, record in runs.items():
    cases: dict[str, list[Sequence[float]]] = {}
    for case, scores in record[which].items():
      cases.setdefault(record["patients"][case], []).append(scores)
    found[unit] = {
      patient: [statistics.fmean(values) for values in zip(*rows, strict=True)]
      for patient, rows in cases.items()
    }
  return found


def columns(runs: Scores, others: Scores) -> dict[str, Any]:
  """Of each of COLUMNS the mean and, in the seeds and folds that both have, the difference."""
  both = [unit for unit in runs if unit in others]
  found: dict[str, Any] = {}
  for i, column in enumerate(COLUMNS):
    by_seed = {
      seed: by_patient({unit: own for unit, own in runs.items() if unit[0] == seed}, i)
      for seed in {unit[0] for unit in runs}
    }
    comparable = len(by_seed) > 1 and len({tuple(sorted(p)) for p in by_seed.values()}) == 1
    spread = [statistics.fmean(p.values()) for p in by_seed.values()]
    found[column] = {
      "mean": statistics.fmean(by_patient(runs, i).values()),
      "sd_over_seeds": statistics.stdev(spread) if comparable else None,
    }
    if both:
      a, b = (by_patient({unit: own[unit] for unit in both}, i) for own in (others, runs))
      values = [[side[patient] for patient in sorted(a)] for side in (a, b)]
      higher = column.startswith("dice")
      found[column]["against"] = paired(*values, higher_is_better=higher)
      found[column]["against_by_seed"] = _by_seed(runs, others, both, i)
  return found


def _by_seed(runs: Scores, others: Scores, both: Sequence[Unit], i: int) -> list[float]:
  differences = []
  for seed in sorted({seed for seed, _ in both}):
    own = [unit for unit in both if unit[0] == seed]
    b, a = (by_patient({unit: side[unit] for unit in own}, i) for side in (runs, others))
    differences.append(statistics.fmean(b.values()) - statistics.fmean(a.values()))
  return differences


def by_patient(runs: Scores, i: int) -> dict[str, float]:
  """Patient -> the mean of number i over all runs that have scored them."""
  values: dict[str, list[float]] = {}
  for scores in runs.values():
    for patient, row in scores.items():
      values.setdefault(patient, []).append(row[i])
  return {patient: statistics.fmean(own) for patient, own in values.items()}


def networks(runs: Units) -> dict[str, dict[str, float]]:
  """Each network's Dice on the training grid, as predicted, the mean over out-of-fold cases."""
  weights = [len(record["scores"]) for record in runs.values()]
  first = next(iter(runs.values()))["networks"]
  return {
    network: {
      r: statistics.fmean([record["networks"][network][r] for record in runs.values()], weights)
      for r in REGIONS
    }
    for network in first
  }


def share(runs: Units, alone: Units) -> dict[str, dict[str, Any]]:
  """What of the teachers' lead over the student alone the student takes over, by region.

  (student - alone) / (best teacher - alone), Dice of the training grid, of the seeds and folds that
  both have.

  Returns:
    Region -> alone, student, teacher (its name), best, and share: None where the lead is below a
    point. {} without teachers, or without a run of the student alone to compare with.
  """
  both = [unit for unit in runs if unit in alone]
  if not both:
    return {}
  own, base = (networks({unit: side[unit] for unit in both}) for side in (runs, alone))
  teachers = [name for name in own if name != STUDENT]
  if not teachers:
    return {}
  found = {}
  for region in REGIONS:
    teacher = max(teachers, key=lambda name: own[name][region])
    least, best, student = base[STUDENT][region], own[teacher][region], own[STUDENT][region]
    lead = best - least
    found[region] = {
      "alone": least,
      "student": student,
      "teacher": teacher,
      "best": best,
      "share": (student - least) / lead if lead >= SMALLEST_LEAD else None,
    }
  return found


def over_time(runs: Units) -> list[dict[str, Any]]:
  """The records' over_time, the mean over the runs."""
  by_step: dict[int, list[Record]] = {}
  for record in runs.values():
    for point in record["over_time"]:
      by_step.setdefault(point["step"], []).append(point)
  points = []
  for step, same in sorted(by_step.items()):
    first, point = same[0], {"step": step}
    for side in ("training", "validation"):
      point[side] = {
        name: {r: statistics.fmean(p[side][name][r] for p in same) for r in REGIONS}
        for name in first[side]
      }
    point["losses"] = {
      name: statistics.fmean(p["losses"][name] for p in same) for name in first["losses"]
    }
    points.append(point)
  return points
