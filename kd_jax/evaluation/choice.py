"""Which cases a student is scored on: of its run's validation, its hold-out, or other data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.data import conventions, folds
from kd_jax.data.cases import Case, Naming, naming_of, no_case, on_names, search
from kd_jax.data.conventions import Reading
from kd_jax.data.label_contents import existing_memory
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.student import Student
from kd_jax.runs.layout import EVALUATION, FOLDS_FILE, SUMMARY_FILE, is_run
from kd_jax.runtime import commands, processes
from kd_jax.runtime.errors import CaseError, ConfigError, UserError, did_you_mean, some
from kd_jax.runtime.files import read_json
from kd_jax.runtime.terminal import Terminal
from kd_jax.settings import schema
from kd_jax.tasks import labels

SPLITS = ("val", "holdout", "all")


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
    naming: what is said of names; what it leaves open, a run's settings say of its own data.
  """

  data_root: Path | None = None
  split: str | None = None
  labels: str = "auto"
  exclude_training_subjects: bool = False
  name_mapping: Path | None = None
  naming: Naming | None = None


class Chosen(NamedTuple):
  """What is to be scored.

  Attributes:
    cases: in the order of their names.
    facts: on the split, for the summary.
    lost: what lies there and is no case, or cannot be told apart.
    reading: how all label maps there are read.
  """

  cases: list[Case]
  facts: dict[str, Any]
  lost: list[CaseError]
  reading: Reading


def where(students: Sequence[Student], choice: Choice) -> tuple[Path, str]:
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
    why = "students of several folds have no validation cases in common"
    if len(students) == 1:
      why = "an exported student does not say which cases it was validated on"
    remedy = "Leave --split out, and all cases of --data_root are scored"
    if choice.data_root is None:
      cross_validate = commands.named("cross_validate")
      remedy = f"Give --data_root of data that none was trained on, or use {cross_validate}"
    raise ConfigError(f"--split=val is for one run: {why}. {remedy}")
  if split == "holdout" and len(runs) != len(students):
    raise ConfigError(
      "--split=holdout is for runs: an exported student does not say which cases its folds left "
      "out. Give the run, or --data_root of a folder that holds these cases alone"
    )
  return choice.data_root or Path(runs[0].settings["data"]["root"]), split


def default_output(predictor: Predictor, choice: Choice, root: Path, split: str) -> Path:
  """The folder for scores where none is given: RUN/evaluation/NAME.

  NAME is the split of the run's own data, or "data-" (no split begins so) and the name of another
  folder. What flags change of how the student predicts is added: RUN/evaluation/val holds what
  the student scores as it is.

  Raises:
    ConfigError: the students are not one run, or the folder holds the scores of other data.
  """
  students = predictor.students
  source = Path(students[0].source)
  if len(students) > 1 or not is_run(source):
    raise ConfigError("give --output: a folder for the scores")
  name = split
  if choice.data_root is not None:
    name = f"data-{root.resolve().name}" + ("" if split == "all" else f"-{split}")
  own, used = schema.plain(students[0].inference), schema.plain(predictor.settings)
  changed = {key: value for key, value in used.items() if value != own[key]}
  name += "".join(f"-{key}={str(value).lower()}" for key, value in changed.items())
  folder = source / EVALUATION / name
  if choice.data_root is not None and (folder / SUMMARY_FILE).exists():
    there = (read_json(folder / SUMMARY_FILE).get("data") or {}).get("root")
    if there is None or Path(there).resolve() != root.resolve():
      raise ConfigError(
        f"{folder} holds the scores of other data ({there}); give --output: a folder for those of "
        f"{root}"
      )
  return folder


def choose_cases(
  students: Sequence[Student], root: Path, split: str, choice: Choice, terminal: Terminal
) -> Chosen:
  """The cases to score. UserError if there are none, or it is not known which they are."""
  settings, convention, naming = students[0].settings, choice.labels, choice.naming
  memory = None
  if settings and str(root) == settings["data"]["root"]:
    own = settings["data"]
    convention = own["labels"] if convention == labels.AUTO else convention
    known = naming_of(own.get("names", ""), own.get("patients", ""))
    given = naming or known
    naming = Naming(given.patterns or known.patterns, given.patients or known.patients)
    memory = existing_memory(Path(own["cache"]))
  found = search(root, convention, naming, (*students[0].architecture.modalities, "seg"))
  if not found.cases:
    raise found.errors[0] if found.errors else no_case(root)
  if split != "val" and processes.first():  # the run's own were told when it began
    for line in on_names(found, root, naming or Naming()):
      terminal.line(line)
  cases, reading = conventions.settle(
    found.cases,
    root,
    convention,
    "--labels",
    terminal.progress("looking at the labels"),
    terminal.line if processes.first() else lambda line: None,
    memory,
  )
  if split == "all":
    return Chosen(cases, {}, found.errors, reading)
  if split == "holdout":
    return Chosen(*_holdout(students, root, cases), found.errors, reading)
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
  facts = {"fold": fold, "folds": folds.count(kept)}
  return Chosen([by_name[name] for name in val], facts, [], reading)


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
