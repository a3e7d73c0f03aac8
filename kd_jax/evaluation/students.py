"""--mode=evaluate: scores of students on scans, in the scans' own space.

Students are scored as they are used: through the same program as --mode=predict, from the scan
files of their own modalities. No student is scored on the subjects it was trained on.
"""

from collections.abc import Sequence
from concurrent import futures
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import folds, nifti
from kd_jax.data import subjects as subjects_lib
from kd_jax.data.cases import Case, Naming, naming_of, no_case, search
from kd_jax.data.patients import read_name_mapping
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.case_results import CaseResults, data_facts, packed, score_against
from kd_jax.prediction.predictor import Prediction, Predictor, predict_cases
from kd_jax.prediction.student import Student
from kd_jax.report.illustrate import illustrate
from kd_jax.runs.layout import EVALUATION, FOLDS_FILE, is_run
from kd_jax.runs.log import read_numbers
from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, ConfigError, UserError, did_you_mean, some
from kd_jax.runtime.files import check_folder
from kd_jax.runtime.terminal import Terminal

SPLITS = ("val", "holdout", "all")
_CONTENT_THREADS = 4


@dataclass(frozen=True)
class Choice:
  """Which cases to score a student on.

  Attributes:
    data_root: a folder of cases; None for the run's own.
    split: "val", the run's validation cases; "holdout", those that it neither trained nor validated
      on; "all"; None for "val" of the run's own data and "all" of another folder.
    labels: the data's label convention, or "auto".
    exclude_training_subjects: leave them out instead of refusing.
    name_mapping: a BraTS name_mapping.csv, or None.
    naming: what is said of names; None for what the run's settings say of its own data.
  """

  data_root: Path | None = None
  split: str | None = None
  labels: str = "auto"
  exclude_training_subjects: bool = False
  name_mapping: Path | None = None
  naming: Naming | None = None


def evaluate(
  predictor: Predictor, choice: Choice, output: Path | None, terminal: Terminal
) -> dict[str, Any]:
  """Scores one student, or the mean of several, on cases that none was trained on.

  Args:
    output: where the files go; None for RUN/evaluation/SPLIT (or the data's name) of a single run.

  Returns:
    What summary.json holds.

  Raises:
    UserError: training subjects among the cases, or something missing. Cases that could not be
      scored are in the summary: see `check_complete`.
  """
  students = predictor.students
  root, split = _where(students, choice)
  folder = output or _default_output(students, choice, root, split)
  check_folder(folder)  # before the work, not after it
  cases, facts, lost = _cases(students, root, split, choice)
  held_out = split == "holdout"
  found = find_training_subjects(
    predictor, cases, terminal, choice.name_mapping, and_validation=held_out
  )
  if found and not choice.exclude_training_subjects:
    known = "trained or validated on" if held_out else "trained on"
    raise subjects_lib.refuse(found, len(cases), known)
  cases = [case for case in cases if case.name not in found]
  if not cases:
    raise UserError("no case is left to score: all of them are training subjects")
  if processes.first():
    names = ", ".join(student.source for student in students)
    what = "hold-out cases" if held_out else "cases"
    terminal.line(
      f"{names}: {'+'.join(predictor.modalities)}, {len(cases)} {what} of {root}, "
      f"window {predictor.settings.window}"
    )
  results = score_students(predictor, cases, terminal)
  results.failed |= {error.case: error.reason for error in lost}

  title = f"{', '.join(dict.fromkeys(s.name for s in students))} on {Path(root).name}"
  if held_out:
    title += ", hold-out cases"
  elif split == "val" and choice.data_root is None:  # of one student
    title = f"{students[0].name}: validation cases of fold {facts.get('fold')}"
  summary = scores_lib.summarise(
    title,
    results.scores,
    students=students,
    data={"root": str(root), "split": split, **facts, **data_facts(cases, results)},
    failed=results.failed,
    excluded=found,
    notes=_notes(students, cases),
    prediction=predictor.describe(),
  )
  if processes.first():

    def mask(case: Case) -> np.ndarray:
      known = case.name in results.masks
      return results.mask(case) if known else predictor.predict_case(case).classes()

    shown = illustrate(folder, results.scores, mask, cases, predictor.modalities, terminal)
    histories = {s.source: h for s in students if (h := read_numbers(Path(s.source)))}
    scores_lib.write(folder, summary, results.scores, shown, histories, terminal)
  processes.wait()
  return summary


def score_students(predictor: Predictor, cases: Sequence[Case], terminal: Terminal) -> CaseResults:
  """Predicts and scores every case; several processes share them out."""
  results = CaseResults()

  def finish(case: Case, prediction: Prediction) -> None:
    predicted = prediction.classes()
    results.scores[case.name] = score_against(case, predicted, prediction.scan)
    results.masks[case.name] = packed(predicted)

  own = processes.share(cases)
  for case in own:
    if case.seg is None:
      results.failed[case.name] = CaseError(case.name, case.folder, "no label map", "").reason
  progress = terminal.progress("predicting and scoring")
  scorable = [case for case in own if case.seg is not None]
  for error in predict_cases(predictor, scorable, finish, warn=terminal.line, progress=progress):
    results.failed[error.case] = error.reason
  return results.together()


def find_training_subjects(
  predictor: Predictor,
  cases: Sequence[Case],
  terminal: Terminal,
  name_mapping: Path | None = None,
  *,
  and_validation: bool = False,
) -> dict[str, str]:
  """Cases that a student was trained on (or validated on, if asked for) -> how that shows.

  They are known by id, name mapping or image content.
  """
  known = [subject for student in predictor.students for subject in student.train]
  if and_validation:
    known += [subject for student in predictor.students for subject in student.val]
  if not known:
    terminal.line("warning: the student's training subjects are not known; no case can be refused")
    return {}
  mapping = read_name_mapping(name_mapping) if name_mapping else ()
  progress = terminal.progress("looking for training subjects")

  def subject(case: Case) -> subjects_lib.Subject:
    volumes: dict[str, nifti.Volume] = {}
    for modality in predictor.modalities:
      try:
        volumes[modality] = nifti.read(case.images[modality])
      except (KeyError, ValueError):  # missing or unreadable: prediction reports it
        continue
    return subjects_lib.subject_of(case, volumes)

  own, found = processes.share(cases), {}
  with futures.ThreadPoolExecutor(_CONTENT_THREADS) as pool:
    for done, result in enumerate(pool.map(subject, own), 1):
      found[result.name] = asdict(result)
      progress(done, len(own), result.name)
  everyone = processes.union(found)
  ordered = [subjects_lib.Subject(**everyone[case.name]) for case in cases]
  return subjects_lib.find_known(ordered, known, mapping)


# --- Pieces -----------------------------------------------------------------------------------


def _where(students: Sequence[Student], choice: Choice) -> tuple[Path, str]:
  """(data root, split). UserError if the split is refused, or the choice makes no sense."""
  if choice.split == "train":
    raise UserError(
      "REFUSED: --split=train would score the student on the subjects it was trained on. Such "
      "numbers say nothing about new patients and must not be reported. Use --split=val."
    )
  if choice.split not in (None, *SPLITS):
    raise ConfigError(did_you_mean("--split", choice.split, SPLITS))
  runs = [student for student in students if student.settings]
  split = choice.split or ("val" if choice.data_root is None else "all")
  if choice.data_root is None and len(runs) != len(students):
    raise ConfigError("an exported student has no data of its own: give --data_root")
  if split == "val" and (len(students) > 1 or not runs):
    raise ConfigError(
      "--split=val is for one run: students of several folds have no validation cases in common. "
      "Give --data_root of data that none was trained on, or use --mode=cross_validate"
    )
  if split == "holdout" and len(runs) != len(students):
    raise ConfigError(
      "--split=holdout is for runs: an exported student does not say which cases its folds left "
      "out. Give the run, or --data_root of a folder that holds these cases alone"
    )
  return choice.data_root or Path(runs[0].settings["data"]["root"]), split


def _default_output(students: Sequence[Student], choice: Choice, root: Path, split: str) -> Path:
  source = Path(students[0].source)
  if len(students) > 1 or not is_run(source):
    raise ConfigError("give --output: a folder for the scores")
  name = split if choice.data_root is None else root.resolve().name
  return source / EVALUATION / (f"{name}-{split}" if choice.data_root and split != "all" else name)


def _cases(
  students: Sequence[Student], root: Path, split: str, choice: Choice
) -> tuple[list[Case], dict[str, Any], list[CaseError]]:
  """The cases to score, facts on the split for the summary, and what is no case of the data."""
  settings, convention, naming = students[0].settings, choice.labels, choice.naming
  if settings and str(root) == settings["data"]["root"]:
    own = settings["data"]
    convention = own["labels"] if convention == "auto" else convention
    naming = naming or naming_of(own.get("names", ""), own.get("patients", ""))
  found = search(root, convention, naming)
  cases = found.cases
  if not cases:
    raise found.errors[0] if found.errors else no_case(root)
  if split == "all":
    return cases, {}, found.errors
  if split == "holdout":
    return *_holdout(students, root, cases), found.errors
  kept, path = _kept_folds(students[0])
  fold = settings["data"]["fold"]
  train, val = folds.split(kept, fold)
  by_name = {case.name: case for case in cases}
  if missing := [name for name in val if name not in by_name]:
    raise UserError(f"{root} lacks validation cases of {path}: {some(missing)}")
  patients = {by_name[name].patient for name in val}
  if both := patients & {by_name[name].patient for name in train if name in by_name}:
    raise UserError(  # the folds were checked when they were made; a file may have been edited
      f"REFUSED: {len(both)} patients stand in training and validation: {some(sorted(both))}"
    )
  return [by_name[name] for name in val], {"fold": fold, "folds": folds.count(kept)}, []


def _holdout(
  students: Sequence[Student], root: Path, cases: list[Case]
) -> tuple[list[Case], dict[str, Any]]:
  """The cases that no student was trained or validated on, by the folds of their runs."""
  left, facts = cases, {}
  for student in students:
    kept, path = _kept_folds(student)
    # A case that goes by another name now would pass for one of the hold-out.
    if missing := sorted(folds.listed(kept) - {case.name for case in cases}):
      raise UserError(
        f"{root} lacks cases of {path}: {some(missing)}. Without them it is not known who is not "
        "in these folds; give the folder with all cases of the run"
      )
    fold = student.settings["data"]["fold"]
    left = folds.holdout(kept, fold, left)
    facts = {"fold": fold, "folds": folds.count(kept)}
  if not left:
    raise UserError(
      f"there is no hold-out: each case of {root} is trained or validated on. A run with a file of "
      "folds that leaves cases out (data.folds_file) has one"
    )
  return left, facts if len(students) == 1 else {}


def _kept_folds(student: Student) -> tuple[folds.Folds, Path]:
  """The folds of a student's run, and their file."""
  path = Path(student.source) / FOLDS_FILE
  if not path.exists():
    raise UserError(f"{path.parent} has no {FOLDS_FILE}: which subjects it was trained on is lost")
  return folds.read(path), path


def _notes(students: Sequence[Student], cases: Sequence[Case]) -> list[str]:
  """Sentences that belong to the numbers."""
  chosen = "the checkpoint was"
  if any(student.training.get("chosen_by_validation") for student in students):
    chosen = "the checkpoint and the minimum sizes of postprocessing were"
  chosen_by = [subject for student in students for subject in student.val]
  here = [subjects_lib.Subject(case.name, case.patient, "", {}) for case in cases]
  if count := len(subjects_lib.find_known(here, chosen_by)):
    return [
      f"{chosen} chosen by scores on validation cases; {count} of these {len(cases)} cases were "
      "among them, so their scores are slightly optimistic"
    ]
  return []
