"""Where --checkpoint leads: to a run's best student, to a shared directory, to several of them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax.data.subjects import SUBJECTS_FILE, read_subjects
from kd_jax.models.framework import Framework
from kd_jax.prediction import student_directory as share
from kd_jax.prediction.postprocess import BY_VALIDATION
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.prediction.student_directory import MODEL_FILE, WEIGHTS_FILE
from kd_jax.runs.checkpoints import FOLDER as CHECKPOINTS
from kd_jax.runs.checkpoints import read_best
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_json
from kd_jax.settings import config as config_lib
from kd_jax.settings.config import CONFIG_FILE
from kd_jax.training import optimisers as optim
from kd_jax.training import step as step_lib


def open_students(paths: str) -> list[Student]:
  """Comma-separated runs, shared directories or cross-validations -> students that go together.

  Raises:
    UserError: a path that holds no student, or students that read different inputs.
  """
  students = [
    open_student(folder)
    for path in paths.split(",")
    if path.strip()
    for folder in _members(Path(os.path.expanduser(path.strip())))
  ]
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
  return students


def open_student(path: Path) -> Student:
  """A run's best student, or the one of a shared directory. UserError if there is none."""
  if os.path.isfile(path / MODEL_FILE):
    return share.read(path)
  if is_run(path):
    return _open_run(path)
  if not os.path.exists(path):
    raise UserError(f"no such checkpoint: {path}")
  raise UserError(
    f"{path} holds no student; expected a run's work directory ({CONFIG_FILE} and {CHECKPOINTS}/) "
    f"or an exported student ({MODEL_FILE} and {WEIGHTS_FILE})"
  )


def is_run(path: Path) -> bool:
  return os.path.isfile(path / CONFIG_FILE)


def _open_run(workdir: Path) -> Student:
  raw = config_lib.read(workdir / CONFIG_FILE)
  try:
    config = config_lib.parse(raw)
  except ConfigError as e:
    raise UserError(
      f"{workdir / CONFIG_FILE} was written by another version of kd_jax: {e}. Use that version "
      "(its number is in the run's train.log), or export the student there"
    ) from e
  step, networks, notes, score = read_best(workdir, _abstract_state(config))
  asked = config.predict.smallest._asdict()
  chosen = [f"smallest_{name}" for name, value in asked.items() if value == BY_VALIDATION]
  look = replace(config.predict, **{name: notes.get(name, 0.0) for name in chosen})
  averaged = networks.ema is not None
  params = networks.ema if averaged else networks.params["student"]
  params = {name: part for name, part in params.items() if name != "side_heads"}
  if not (workdir / SUBJECTS_FILE).is_file():
    raise UserError(f"{workdir} has no {SUBJECTS_FILE}: whom it was trained on is not known")
  train, val = read_subjects(workdir / SUBJECTS_FILE)
  return Student(
    name=config.name,
    source=str(workdir),
    architecture=Architecture(config.model.student, config.model.filters, config.model.attention),
    preparation=Preparation(
      config.data.grid, config.data.normalise, config.data.spacing, config.data.patch
    ),
    predict=look,
    params=jax.tree.map(np.asarray, params),
    training={
      "data": config.name,
      "convention": train[0].convention,
      "cases": len(train),
      "validation_cases": len(val),
      "fold": config.data.fold,
      "teachers": {name: list(m) for name, m in config.model.teachers.items()},
      "step": step,
      "averaged": averaged,
      "validation_score": score,
      "chosen_by_validation": chosen,
    },
    scores=_scores(workdir, step),
    train=train,
    val=val,
    settings=raw,
  )


def _abstract_state(config: config_lib.Config) -> step_lib.TrainState:
  """The shapes of a checkpoint's state; nothing is computed."""
  framework = Framework(config.model)
  optimizers = {group: optim.optimizer(s, 1) for group, s in config.optim.groups.items()}
  ema = config.optim.ema_decay > 0
  return jax.eval_shape(
    lambda key: step_lib.init_state(framework, optimizers, config.confidence, key, ema=ema),
    jax.random.key(0),
  )


def _scores(workdir: Path, step: int) -> dict[str, Any] | None:
  """What the last evaluation on the validation cases found, if it was of this checkpoint."""
  path = workdir / "evaluation" / "val" / "summary.json"
  if not path.is_file():
    return None
  summary = read_json(path)
  if [student.get("step") for student in summary.get("students", [])] != [step]:
    return None
  scores = {key: summary.get(key) for key in ("title", "data", "prediction", "rules", "regions")}
  scores["data"].pop("root", None)  # where the data lies is nobody's business who gets the student
  return scores


def _members(path: Path) -> list[Path]:
  """The runs of a cross-validation's folder; any other path as it is."""
  folds = sorted(path.glob(f"fold*/{CONFIG_FILE}"))
  return [file.parent for file in folds] if folds and not is_run(path) else [path]


def _input_of(student: Student) -> str:
  p = student.preparation
  modalities = "+".join(student.architecture.modalities)
  return f"{modalities} at {p.spacing:g} mm ({p.grid}, {p.normalise}, patches of {p.patch})"
