"""The typed, validated view of a configuration: unknown or impossible settings fail here.

configs/*.py make ml_collections dicts, for their flags; `parse` turns one into the dataclasses that
the rest of the project is written against. Each section is defined where it is used.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_jax.data.augmentation.augment import AugmentSettings
from kd_jax.data.dataset import DataSettings
from kd_jax.method.confidence import ConfidenceSettings
from kd_jax.method.objective import LossSettings
from kd_jax.models.framework import FrameworkSpec
from kd_jax.prediction.sliding_window import PredictSettings
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_json, write_text
from kd_jax.settings import possible
from kd_jax.settings.typed import build
from kd_jax.training.optimisers import GROUPS, OptimizerSettings

CONFIG_FILE = "config.json"  # in a work directory


@dataclass(frozen=True)
class OptimSettings:
  """Both groups' optimisers, and the decay of the student's average (0 for none)."""

  cohort: OptimizerSettings
  student: OptimizerSettings
  ema_decay: float

  @property
  def groups(self) -> dict[str, OptimizerSettings]:
    return {group: getattr(self, group) for group in GROUPS}


@dataclass(frozen=True)
class TrainSettings:
  """How long, and on how many devices.

  Attributes:
    epochs: in all.
    steps_per_epoch: 0 for one pass over the training cases.
    space: devices that share one volume; the rest of them share the batch.
    accumulate: parts of a batch that are computed one after the other (accumulate.py).
    remat: what is kept for the backward pass: "none", "norms" or "stages" (models/remat.py).
    skip_nonfinite: steps of a run, in all, that may be left out because a loss or gradient was NaN
      or infinite; one more stops it. 0 stops at the first.
    log_every: steps between two lines of the log.
    save_every: steps between two checkpoints, beside the one after each validation.
    keep: latest checkpoints kept, beside the best.
    validate_every: epochs between two validations.
    validate_cases: validation cases scored in training, evenly spread; 0 for all.
    pictures: validation cases drawn.
  """

  epochs: int
  steps_per_epoch: int
  space: int
  accumulate: int
  remat: str
  skip_nonfinite: int
  log_every: int
  save_every: int
  keep: int
  validate_every: int
  validate_cases: int
  pictures: int


@dataclass(frozen=True)
class Config:
  """One run."""

  name: str
  seed: int
  data: DataSettings
  model: FrameworkSpec
  loss: LossSettings
  confidence: ConfidenceSettings
  optim: OptimSettings
  augment: AugmentSettings
  train: TrainSettings
  predict: PredictSettings


# Settings that a run may change when it continues: they change where things lie, how often the
# program looks, how fast it goes or how long; not what a step computes.
MAY_CHANGE = (
  "name",
  "data.root",
  "data.cache",
  "data.workers",
  "data.prepare_workers",
  "data.folds_file",
  "data.skip_bad_cases",
  "data.demo_cases",
  "train.epochs",
  "train.space",
  "train.accumulate",
  "train.remat",
  "train.skip_nonfinite",
  "train.log_every",
  "train.save_every",
  "train.keep",
  "train.pictures",
  "predict.smallest_island",
  "predict.smallest_et",
)


def parse(config: Mapping[str, Any]) -> Config:
  """The typed view of a configuration. ConfigError if a setting is unknown, missing or wrong."""
  typed = build(Config, config, "config")
  possible.check(typed)
  return typed


def to_dict(config: Any) -> dict:
  """A ConfigDict, with tuples as lists: what is written to JSON and read back."""
  return json.loads(json.dumps(config.to_dict()))


def write(path: Path, config: Mapping[str, Any]) -> None:
  write_text(path, json.dumps(config, indent=1) + "\n")


def read(path: Path) -> dict:
  """The settings of a work directory. UserError if there are none."""
  try:
    return read_json(path)
  except UserError as e:
    if not os.path.exists(path):
      raise UserError(f"{path.parent} is no work directory: it has no {path.name}") from e
    raise


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
  """Settings that differ, by dotted name -> (old, new)."""
  flat_old, flat_new = _flatten(old), _flatten(new)
  return {
    name: (flat_old.get(name), flat_new.get(name))
    for name in sorted(flat_old.keys() | flat_new.keys())
    if flat_old.get(name) != flat_new.get(name)
  }


def check_resumable(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  workdir: Path,
  may_change: Sequence[str] = MAY_CHANGE,
) -> list[str]:
  """What a continued run has changed, as lines; ConfigError if it changed what may not change."""
  lines, forbidden = [], []
  for name, (was, now) in differences(old, new).items():
    line = f"{name}: was {was!r}, now {now!r}"
    (lines if name in may_change else forbidden).append(line)
  if forbidden:
    raise ConfigError(
      f"{workdir} holds a run with other settings, which cannot change half-way:\n  "
      + "\n  ".join(forbidden)
      + "\nGive the settings that the run began with, or another --workdir."
    )
  return lines


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.") or {f"{prefix}{key}": {}}
    else:
      flat[prefix + key] = value
  return flat
