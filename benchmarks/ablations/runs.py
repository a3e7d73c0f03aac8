"""Runs of the ablation: one student's training and scores, one a fold, and all that are missing."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablations.recipes import ALONE, Size, settings_of
from benchmarks.ablations.records import (
  MINIMUM_SIZES_FILE,
  POSTPROCESSED_FILE,
  joined,
  read_record,
  record_file,
  record_of,
)
from kd_jax.data import conventions, nifti, subjects
from kd_jax.data.cases import Case, find_cases
from kd_jax.data.demo import writer as demo
from kd_jax.evaluation.case_results import CaseResults, score_against
from kd_jax.evaluation.students import find_training_subjects, score_students
from kd_jax.evaluation.summary import to_csv
from kd_jax.prediction.postprocess import postprocess
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.student import Student
from kd_jax.runs.layout import SCORES_FILE
from kd_jax.runs.students import open_student
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import write_text
from kd_jax.runtime.startup import keep_compiled
from kd_jax.runtime.terminal import Terminal, duration, quiet_libraries
from kd_jax.settings import presets
from kd_jax.settings.inference import MinimumSizes
from kd_jax.settings.run import Settings
from kd_jax.training.train import train

COMMAND = Path(__file__).parents[1] / "ablation.py"


def run(settings: Settings, folder: Path, test: Path | None) -> None:
  """Trains and scores one student, and leaves its record; goes on where it was stopped.

  Args:
    folder: of the run; the record lies beside it.
    test: the cases to score on; None for the validation fold.

  Raises:
    UserError: as `train`; training subjects among the cases, or cases that cannot be scored.
  """
  quiet_libraries()
  keep_compiled()
  terminal = Terminal(0)
  train(settings, folder, terminal)
  student = open_student(folder)
  predictor = Predictor([student], min_component_mm3=0.0, min_et_mm3=0.0)
  cases = _cases(settings, student, test)
  if test and (found := find_training_subjects(predictor, cases, terminal)):
    raise subjects.refuse(found, len(cases))
  scored = score_students(predictor, cases, terminal)
  if scored.failed:
    raise UserError(f"{folder}: cases could not be scored: {scored.failed}")
  write_text(folder / SCORES_FILE, to_csv(scored.scores))
  if test:  # the validation cases have chosen the minimum sizes
    minimum = student.inference.minimum_sizes
    scores = _postprocessed(scored, cases, predictor.modalities[0], minimum)
    write_text(folder / POSTPROCESSED_FILE, to_csv(scores))
    sizes = {"island": minimum.component_mm3, "et": minimum.et_mm3}  # as finished records have them
    write_text(folder / MINIMUM_SIZES_FILE, json.dumps(sizes) + "\n")
  write_text(record_file(folder), json.dumps(record_of(folder)) + "\n")


def _cases(settings: Settings, student: Student, test: Path | None) -> list[Case]:
  """The cases to score on: of a folder, or of the student's validation fold."""
  root, said = Path(test or settings.data.root), settings.data.labels
  tell, looking = Terminal(0).line, Terminal(0).progress("looking at the labels")
  cases = find_cases(root, said)
  found, _ = conventions.settle(cases, root, said, "data.labels", looking, tell)
  if test:
    return found
  names = {subject.name for subject in student.val}
  return [case for case in found if case.name in names]


def _postprocessed(
  scored: CaseResults, cases: Sequence[Case], modality: str, minimum: MinimumSizes
) -> dict[str, dict[str, float]]:
  """The scores of the same predictions after postprocessing."""
  scores, progress = {}, Terminal(0).progress("scoring after postprocessing")
  for done, case in enumerate(cases, 1):
    scan = nifti.read(case.images[modality])
    predicted = postprocess(scored.mask(case), minimum, scan.voxel_mm)  # (D, H, W) classes
    scores[case.name] = score_against(case, predicted, scan)
    progress(done, len(cases), case.name)
  return scores


def run_folds(settings: Settings, folder: Path) -> None:
  """Trains a student a fold, scores each on its own fold, and leaves one record of all cases.

  Args:
    folder: of the folds' runs and records; those that are finished are not run again.

  Raises:
    UserError: as `run`.
  """
  records, folds = [], settings.data.folds
  for fold in range(folds):
    part = folder / f"fold{fold}of{folds}"  # a seed may be run anew with other folds
    if not record_file(part).is_file():
      run(presets.override(settings, {"data.fold": fold}), part, None)
    records.append(read_record(record_file(part)))
  write_text(record_file(folder), json.dumps(joined(records)) + "\n")


def generate_test_cases(size: Size) -> Path:
  """The folder of the size's test cases; complete ones are left as they are."""
  data = settings_of(size, ALONE, 0, None).data
  root = Path(data.root).parent / "test"
  count, first = len(size.test_cases), size.test_cases.start
  progress = Terminal(0).progress("generating cases to score on")
  demo.write_dataset(root, count, data.demo_seed, progress=progress, first=first)
  return root


def run_all(
  output: Path,
  recipes: Sequence[str],
  seeds: Sequence[int],
  flags: Sequence[str],
  after_each: Callable[[], Any],
) -> None:
  """Runs what has no record yet, each in a process of its own; its terminal.log lies in its folder.

  Seed by seed, so that a table of all recipes is there early.

  Args:
    flags: of ablation.py, for every run.
    after_each: called after each run.

  Raises:
    UserError: a run failed; with the end of its terminal.log.
  """
  jobs = [(name, seed) for seed in seeds for name in recipes]
  waiting = [j for j in jobs if not record_file(output / j[0] / f"seed{j[1]}").is_file()]
  began = time.monotonic()
  for done, (name, seed) in enumerate(waiting):
    spent = time.monotonic() - began
    left = duration(spent / done * (len(waiting) - done)) if done else "?"
    print(f"[{done + 1}/{len(waiting)}] {name}, seed {seed}; {left} left", flush=True)
    folder = output / name / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(COMMAND), *flags, "--one", name, str(seed)]
    with (folder / "terminal.log").open("w") as log:
      code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
      tail = (folder / "terminal.log").read_text(errors="replace")[-2000:]
      raise UserError(f"{name}, seed {seed} ended with exit status {code}:\n{tail}")
    after_each()
