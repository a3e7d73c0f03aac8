"""Where --checkpoint leads: to a run's best student, to an exported one (here or on the Hugging
Face Hub), to several of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_jax.data import folds
from kd_jax.data.subjects import read_subjects
from kd_jax.prediction import student_directory
from kd_jax.prediction.calibration import Calibration
from kd_jax.prediction.quality import Volumes
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.prediction.student_directory import MODEL_FILE, WEIGHTS_FILE
from kd_jax.runs import hub, own_scores
from kd_jax.runs.layout import (
  CHECKPOINTS,
  CONFIG_FILE,
  FOLDS_FILE,
  SUBJECTS_FILE,
  fold_runs,
  is_run,
)
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import at_home
from kd_jax.settings import record, schema
from kd_jax.settings.inference import BY_VALIDATION
from kd_jax.settings.run import to_dict

# A threshold of postprocessing -> its names in the notes of a checkpoint, the latest first.
_THRESHOLDS = {
  "min_component_mm3": ("min_component_mm3", "smallest_island"),
  "min_et_mm3": ("min_et_mm3", "smallest_et"),
}


def open_students(
  paths: str | Sequence[str], tell: Callable[[str], None] = lambda line: None
) -> list[Student]:
  """Runs, exported students or cross-validations -> students that go together.

  Args:
    paths: each is one path, or several with commas; one that exists as it is given is one. In
      place of a path, hf://OWNER/NAME@REVISION.
    tell: called with a line for each cross-validation that lacks folds.

  Raises:
    UserError: a path that holds no student, or students that read different inputs.
    ConfigError: commas that can be read in two ways, or a student that is named twice.
  """
  given = [paths] if isinstance(paths, str) else paths
  folders: list[Path] = []
  fetched: dict[Path, str] = {}
  for path in (path for text in given for path in _separated(text)):
    if isinstance(path, str):
      copy = hub.fetch(path)
      path, fetched[copy.folder] = copy
    folders.append(path)
  members = [folder for path in folders for folder in _members(path, tell)]
  places = [os.path.realpath(folder) for folder in members]
  for folder, place in zip(members, places, strict=True):
    if places.count(place) > 1:  # it would have two votes in the average
      raise ConfigError(f"--checkpoint names {folder} twice; name each student once")
  opened = [(open_student(folder), fetched.get(folder)) for folder in members]
  students = [replace(student, source=hf) if hf else student for student, hf in opened]
  if not students:
    raise ConfigError("--checkpoint names no run")
  first = students[0]
  for other in students[1:]:
    if (other.architecture.modalities, other.preparation) != (
      first.architecture.modalities,
      first.preparation,
    ):
      raise UserError(
        f"{first.source} and {other.source} cannot be averaged: they read "
        f"{_input_of(first)} and {_input_of(other)}"
      )
  if len(students) > 1:
    _refuse_copies(students)
  return students


def _refuse_copies(students: Sequence[Student]) -> None:
  """ConfigError if two students are one: a run and its export, or copies of either."""
  source_of: dict[str, str] = {}
  for student in students:
    digest = student.digest()
    if digest in source_of:
      raise ConfigError(
        f"--checkpoint names one student twice: {source_of[digest]} and {student.source} have the "
        "same weights, which would have two votes in the average; name one of them"
      )
    source_of[digest] = student.source


def _separated(text: str) -> list[Path | str]:
  """The paths and hf:// references in a text with commas, some of which may belong to a path."""
  parts, paths, first = text.split(","), list[Path | str](), 0
  while first < len(parts):
    if parts[first].strip().startswith(hub.PREFIX):
      paths.append(parts[first].strip())
      first += 1
      continue
    last = len(parts)
    while last > first + 1 and not os.path.exists(at_home(",".join(parts[first:last]).strip())):
      last -= 1
    own = [part.strip() for part in parts[first:last]]
    path = ",".join(parts[first:last]).strip()
    if len(own) > 1 and all(part and os.path.exists(at_home(part)) for part in own):
      raise ConfigError(
        f"{path} is one path and also {len(own)} that exist; give each of the {len(own)} a "
        "--checkpoint of its own, or rename what has the commas"
      )
    paths += [at_home(path)] if path else []
    first = last
  return paths


def open_student(path: Path) -> Student:
  """A run's best student, or an exported one. UserError if there is none."""
  if os.path.isfile(path / MODEL_FILE):
    return student_directory.read(path)
  if is_run(path):
    return _open_run(path)
  if not os.path.exists(path):
    raise UserError(f"no such checkpoint: {path}")
  raise UserError(
    f"{path} holds no student; expected a run's work directory ({CONFIG_FILE} and {CHECKPOINTS}/) "
    f"or an exported student ({MODEL_FILE} and {WEIGHTS_FILE})"
  )


def _open_run(workdir: Path) -> Student:
  from kd_jax.runs.checkpoints import read_best  # Orbax is not needed for exported students

  settings = record.read(workdir / CONFIG_FILE)
  best = read_best(workdir)
  chosen = [name for name in _THRESHOLDS if getattr(settings.inference, name) == BY_VALIDATION]
  found: dict[str, Any] = {
    name: next((best.notes[key] for key in _THRESHOLDS[name] if key in best.notes), 0.0)
    for name in chosen
  }
  if not (workdir / SUBJECTS_FILE).is_file():
    raise UserError(f"{workdir} has no {SUBJECTS_FILE}: its training subjects are not known")
  train, val = read_subjects(workdir / SUBJECTS_FILE)
  data, model = settings.data, settings.model
  student = Student(
    name=settings.name,
    source=str(workdir),
    architecture=Architecture(model.student, model.filters, model.attention, model.network),
    preparation=Preparation(data.grid, data.normalise, data.spacing, data.patch),
    inference=replace(settings.inference, **found),
    params={name: part for name, part in best.student.items() if name != "side_heads"},
    training={
      "data": settings.name,
      "convention": train[0].convention,
      "cases": len(train),
      "validation_cases": len(val),
      "fold": data.fold,
      "teachers": {name: list(m) for name, m in model.teachers.items()},
      "step": best.step,
      "averaged": best.averaged,
      "validation_score": best.score,
      "chosen_by_validation": chosen,
    },
    scores=None,
    train=train,
    val=val,
    settings=to_dict(settings),
    calibration=_noted(Calibration, best.notes, "calibration", workdir),
    volumes=_noted(Volumes, best.notes, "volumes", workdir),
  )
  return replace(student, scores=own_scores.read(workdir, student))


def _noted(kind: Any, notes: Mapping[str, Any], name: str, workdir: Path) -> Any:
  """Of a checkpoint's notes; what earlier versions did not note is empty."""
  try:
    return schema.build(kind, notes.get(name) or {}, name)
  except ConfigError as e:
    raise UserError(f"the notes of the best checkpoint in {workdir} are damaged: {e}") from e


def _members(path: Path, tell: Callable[[str], None]) -> list[Path]:
  """The runs of a cross-validation's folder, telling if some are missing; any other path as is."""
  runs = fold_runs(path, CONFIG_FILE)
  if not runs or is_run(path):
    return [path]
  kept = next((run / FOLDS_FILE for run in runs.values() if (run / FOLDS_FILE).is_file()), None)
  count = folds.count(folds.read(kept)) if kept else 0
  if missing := sorted(set(range(count)) - set(runs)):
    tell(
      f"warning: {path} has {len(runs)} of {count} folds: {', '.join(f'fold{k}' for k in runs)}; "
      f"without {', '.join(f'fold{k}' for k in missing)} it is no finished cross-validation"
    )
  return list(runs.values())


def _input_of(student: Student) -> str:
  p = student.preparation
  modalities = "+".join(student.architecture.modalities)
  return f"{modalities} at {p.spacing:g} mm ({p.grid}, {p.normalise}, patches of {p.patch})"
