"""One run on patients: trained, scored out of fold and on kept-aside patients, and diagnosed."""

import functools
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import flops
from benchmarks.ablations import patients
from benchmarks.ablations.patients import DEFAULT, EQUAL_TIME, KEPT_ASIDE, Job, Machine
from benchmarks.ablations.recipes import ALONE
from benchmarks.ablations.records import COLUMNS, read_record, record_file, record_of
from benchmarks.ablations.runs import Scores, cases_of, score, write_postprocessed
from kd_jax.data.cases import Case
from kd_jax.data.dataset import choose, open_dataset, spread
from kd_jax.evaluation.summary import to_csv
from kd_jax.models.framework import Framework, Params
from kd_jax.prediction import sliding_window
from kd_jax.prediction.student import Student
from kd_jax.runs.checkpoints import Checkpoints
from kd_jax.runs.layout import CHECKPOINTS, FOLDS_FILE, SCORES_FILE
from kd_jax.runs.log import read_numbers
from kd_jax.runs.students import open_student
from kd_jax.runtime.files import write_text
from kd_jax.runtime.startup import keep_compiled
from kd_jax.runtime.terminal import Terminal, quiet_libraries
from kd_jax.settings.run import Settings
from kd_jax.training.train import train
from kd_jax.training.validation import validate

_LOSSES = ("loss/student", "loss/supervised", "loss/distillation", "loss/teachers")


def machine(spacing: float | None, filters: Sequence[int] | None, epochs: int | None) -> Machine:
  """What is asked for; what is not, by the first device."""
  usual = patients.CPU if jax.default_backend() == "cpu" else patients.ACCELERATOR
  return Machine(spacing or usual.spacing, tuple(filters or usual.filters), epochs or usual.epochs)


def run(
  job: Job,
  data: Path,
  output: Path,
  on: Machine,
  folds: int,
  kept_aside: Path | None,
  measured: bool,
) -> None:
  """Trains and scores one student, and leaves its record; goes on where it was stopped.

  Args:
    data: a folder of BraTS cases.
    output: the folder of all runs.
    measured: whether EQUAL_TIME goes by times of a step; else by operations.
    kept_aside: of patients that none is trained on, to be scored too; added to a record that has
      none.

  Raises:
    UserError: as `train`; cases that cannot be scored, or kept-aside patients who are not.
  """
  quiet_libraries()
  keep_compiled()
  began, folder = time.monotonic(), job.folder(output, folds)
  plain = functools.partial(patients.settings, data=data, cache=output / "cache", machine=on)
  factor = 1.0
  if job.recipe == EQUAL_TIME:
    operations = [
      flops.step_flops(own.model, own.data.patch)
      for own in (plain(job._replace(recipe=name), folds=folds) for name in (DEFAULT, ALONE))
    ]
    said = patients.settle_equal_time(output, job, folds, operations[0] / operations[1], measured)
    factor = said["factor"]
  settings = plain(job, folds=folds, factor=factor)
  if not record_file(folder).is_file():
    train(settings, folder, Terminal(0))
    trained = time.monotonic()
    record = _record(settings, folder, on)
    now = time.monotonic()  # the second: where the run was begun by an earlier process
    seconds = max(now - began, record["train_seconds"] + now - trained)
    record["wall_seconds"] = round(seconds, 1)
    write_text(record_file(folder), json.dumps(record) + "\n")
    _drop_earlier_checkpoints(folder)
  record = read_record(record_file(folder))
  if kept_aside and KEPT_ASIDE not in record:
    student = open_student(folder)
    cases = cases_of(settings, student, kept_aside)
    scores = dict(zip(("scores", "cleaned"), score(student, cases, unseen=True), strict=True))
    record[KEPT_ASIDE] = {name: _rows(own) for name, own in scores.items()} | _patients(cases)
    write_text(record_file(folder), json.dumps(record) + "\n")


def _record(settings: Settings, folder: Path, on: Machine) -> dict[str, Any]:
  """Of a trained run: record_of's, who the patients are, what it cost, what it learned when."""
  student = open_student(folder)
  cases = cases_of(settings, student, None)
  raw, postprocessed = score(student, cases, unseen=False)
  write_text(folder / SCORES_FILE, to_csv(raw))
  write_postprocessed(folder, student, postprocessed)
  record = record_of(folder)
  return {
    **record,
    **_patients(cases),
    "spacing": on.spacing,
    "filters": list(on.filters),
    "train_seconds": round(record["steps"] * record["seconds_per_step"], 1),
    "over_time": over_time(settings, folder, student),
  }


def _patients(cases: Sequence[Case]) -> dict[str, dict[str, str]]:
  return {"patients": {case.name: case.patient for case in cases}}


def _rows(scores: Scores) -> dict[str, list[float]]:
  return {name: [round(case[c], 5) for c in COLUMNS] for name, case in scores.items()}


def over_time(settings: Settings, folder: Path, student: Student) -> list[dict[str, Any]]:
  """Where the teaching goes: what every network knows, and what of it the student is told.

  Returns:
    For each planned checkpoint {"step", "training", "validation", "losses"}. The middle two:
    network -> region -> mean Dice of whole volumes on the training grid, of the validation
    patients and of as many training patients, evenly spread. "losses": of the log, their means
    over the epoch before; loss/distillation is what of loss/student comes from teachers, loss/kd/*
    are the unweighted terms.
  """
  terminal = Terminal(0)
  choice = choose(settings.data, folder / FOLDS_FILE, terminal.progress)
  dataset = open_dataset(settings.data, settings.model.sequences, choice, terminal.progress)
  sides = {"training": spread(dataset.train, len(dataset.val)), "validation": dataset.val}
  framework, data = Framework(settings.model), settings.data
  shapes = sliding_window.shapes(
    data.patch, data.spacing, data.grid, multiple=settings.model.multiple
  )

  def predict(name: str, params: Params, volume: np.ndarray) -> np.ndarray:
    member = (framework.network_of(name), params)
    return sliding_window.predict([member], volume, shapes, settings.inference)

  every, points = settings.train.save_every, []
  checkpoints = Checkpoints(folder, read_only=True)
  for step in checkpoints.steps():
    if step % every and step != checkpoints.steps()[-1]:
      continue  # saved where the run was stopped
    tree = checkpoints.restore_networks(step)
    networks = framework.networks(tree["params"])
    if tree["ema"] is not None:
      networks["student"] = (tree["ema"], settings.model.student)
    point: dict[str, Any] = {"step": step}
    for side, names in sides.items():
      entries = {name: dataset.entries[name] for name in names}
      progress = terminal.progress(f"{side} patients after step {step}")
      dice = validate(predict, networks, entries, progress=progress).dice
      point[side] = {
        name: {r: round(x, 5) for r, x in regions.items()} for name, regions in dice.items()
      }
    point["losses"] = losses_before(folder, step, settings.train.steps_per_epoch)
    points.append(point)
  return points


def losses_before(folder: Path, step: int, steps: int) -> dict[str, float]:
  """The logged losses' means over the steps before one."""
  lines = [line for line in read_numbers(folder) if step - steps < line["step"] <= step]
  found: dict[str, list[float]] = {}
  for line in lines:
    for key, value in line.items():
      name = key.removeprefix("train/")
      if name in _LOSSES or "/kd" in name or name.startswith("confidence/weight"):
        found.setdefault(name, []).append(value)
  return {name: float(f"{statistics.fmean(values):.5g}") for name, values in found.items()}


def _drop_earlier_checkpoints(folder: Path) -> None:
  """Only the last one, whose student is scored, is of use any more."""
  steps = sorted((p for p in (folder / CHECKPOINTS).glob("*") if p.name.isdigit()), key=_step)
  for path in steps[:-1]:
    shutil.rmtree(path)


def _step(path: Path) -> int:
  return int(path.name)
