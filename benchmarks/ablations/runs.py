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
from kd_jax.evaluation.students import find_known_subjects, score_students
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

Scores = dict[str, dict[str, float]]  # case -> column -> score
_SAVING_S = 30.0  # that a run which is stopped may take for its last step and checkpoint
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
  train(settings, folder, Terminal(0))
  student = open_student(folder)
  cases = cases_of(settings, student, test)
  # Of their own fold no scores after postprocessing: the cases would have chosen it.
  raw, postprocessed = score(student, cases, unseen=bool(test), postprocessed=bool(test))
  write_text(folder / SCORES_FILE, to_csv(raw))
  if test:
    write_postprocessed(folder, student, postprocessed)
  write_text(record_file(folder), json.dumps(record_of(folder)) + "\n")


def score(
  student: Student, cases: Sequence[Case], *, unseen: bool, postprocessed: bool = True
) -> tuple[Scores, Scores]:
  """The student's scores as it predicts, and after its postprocessing.

  Args:
    unseen: refuse cases of its training subjects.
    postprocessed: whether the second are asked for; else there are none.

  Raises:
    UserError: there are such, or cases that cannot be scored.
  """
  terminal, source = Terminal(0), student.source
  predictor = Predictor([student], min_component_mm3=0.0, min_et_mm3=0.0)
  if unseen and (found := find_known_subjects(predictor, cases, terminal).trained):
    raise subjects.refuse(found, len(cases))
  scored = score_students(predictor, cases, terminal)
  if scored.failed:
    raise UserError(f"{source}: cases could not be scored: {scored.failed}")
  if not postprocessed:
    return scored.scores, {}
  minimum = student.inference.minimum_sizes
  return scored.scores, _postprocessed(scored, cases, predictor.modalities[0], minimum)


def write_postprocessed(folder: Path, student: Student, scores: Scores) -> None:
  """The scores after postprocessing and the minimum sizes, for record_of."""
  minimum = student.inference.minimum_sizes
  write_text(folder / POSTPROCESSED_FILE, to_csv(scores))
  sizes = {"island": minimum.component_mm3, "et": minimum.et_mm3}  # as finished records have them
  write_text(folder / MINIMUM_SIZES_FILE, json.dumps(sizes) + "\n")


def cases_of(settings: Settings, student: Student, test: Path | None) -> list[Case]:
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
) -> Scores:
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
    own = [*flags, "--one", name, str(seed)]
    run_process(output / name / f"seed{seed}", own, f"{name}, seed {seed}")
    after_each()


def run_process(
  folder: Path, flags: Sequence[str], what: str, seconds: float | None = None
) -> bool:
  """Runs ablation.py with flags; its terminal.log lies in the folder.

  Args:
    what: for the message.
    seconds: after which the run is told to save and stop; None for never.

  Returns:
    Whether it came to its end.

  Raises:
    UserError: it failed; with the end of its terminal.log.
  """
  folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, str(COMMAND), *flags]
  with (
    (folder / "terminal.log").open("w") as log,
    subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
  ):
    try:
      code = process.wait(seconds)
    except subprocess.TimeoutExpired:
      _stop(process)
      return False
    except BaseException:  # Ctrl-C, SIGTERM: the run has to save, too
      _stop(process)
      raise
  if code:
    tail = (folder / "terminal.log").read_text(errors="replace")[-2000:]
    raise UserError(f"{what} ended with exit status {code}:\n{tail}")
  return True


def _stop(process: subprocess.Popen) -> None:
  """Lets a run save its checkpoint; kills it if that takes too long."""
  process.terminate()
  try:
    process.wait(_SAVING_S)
  except subprocess.TimeoutExpired:
    process.kill()
