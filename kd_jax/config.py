"""The typed, validated view of a configuration: unknown or impossible settings fail here.

configs/*.py make ml_collections dicts, for their flags; `parse` turns one into the dataclasses that
the rest of the project is written against. Each section is defined where it is used.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_jax import limits
from kd_jax.confidence import BY, UPDATES, ConfidenceSettings
from kd_jax.data.augment import AugmentSettings
from kd_jax.data.dataset import DataSettings
from kd_jax.data.entry import GRIDS, NORMALISATIONS, SPACING_MM
from kd_jax.data.labels import CONVENTIONS, REGIONS
from kd_jax.data.warp import MOST_ELASTIC
from kd_jax.distillation import WHERE
from kd_jax.errors import ConfigError, UserError, did_you_mean
from kd_jax.inference import PredictSettings
from kd_jax.limits import one_of as _one_of
from kd_jax.limits import within as _within
from kd_jax.losses import DICE_REDUCTIONS, KD_REDUCTIONS, TARGETS
from kd_jax.metrics.device import SCORE_KINDS
from kd_jax.models.framework import ATTENTIONS, DTYPES, FrameworkSpec
from kd_jax.models.remat import REMATS
from kd_jax.models.resunet import LEVELS
from kd_jax.objective import LossSettings
from kd_jax.optim import ALGORITHMS, GROUPS, SCHEDULES, OptimizerSettings
from kd_jax.storage import read_json, write_text

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
  "predict.smallest_et",
)


def parse(config: Mapping[str, Any]) -> Config:
  """The typed view of a configuration. ConfigError if a setting is unknown, missing or wrong."""
  typed = build(Config, config, "config")
  _check(typed)
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


# --- From dicts to dataclasses ----------------------------------------------------------------


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.") or {f"{prefix}{key}": {}}
    else:
      flat[prefix + key] = value
  return flat


def build(kind: Any, value: Any, name: str) -> Any:
  """value as kind: a dataclass, a tuple, a mapping or a plain type; errors carry the name."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, name)
  if origin is tuple:
    many = arguments[-1] is Ellipsis
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ConfigError(f"{name} = {value!r}: expected a list")
    if not many and len(value) != len(arguments):
      raise ConfigError(f"{name} = {tuple(value)}: expected {len(arguments)} values")
    kinds = [arguments[0]] * len(value) if many else arguments
    return tuple(build(k, v, name) for k, v in zip(kinds, value, strict=True))
  if origin is not None and issubclass(origin, Mapping):
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
      raise ConfigError(f"{name} = {value!r}: expected names with values")
    return {key: build(arguments[1], v, f"{name}.{key}") for key, v in value.items()}
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError as e:
      raise ConfigError(f"{name} is larger than any number that can be computed with") from e
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(f"{name} = {value!r}: expected a value of type {kind.__name__}")
  return value


def _build_dataclass(kind: type, value: Any, name: str) -> Any:
  if not isinstance(value, Mapping) and not hasattr(value, "items"):
    raise ConfigError(f"{name} = {value!r}: expected a group of settings")
  hints = typing.get_type_hints(kind)
  known = [field.name for field in dataclasses.fields(kind)]
  given = dict(value.items())
  if unknown := [key for key in given if key not in known]:
    raise ConfigError(did_you_mean("setting", f"{name}.{unknown[0]}", known))
  if missing := [key for key in known if key not in given]:
    raise ConfigError(f"{name}.{missing[0]} is missing")
  return kind(**{key: build(hints[key], given[key], f"{name}.{key}") for key in known})


# --- What is possible -------------------------------------------------------------------------


def _check(config: Config) -> None:
  data, model, train = config.data, config.model, config.train
  _one_of("data.labels", data.labels, ("auto", *CONVENTIONS))
  _one_of("model.dtype", model.dtype, DTYPES)
  _one_of("model.attention", model.attention, ATTENTIONS)
  _one_of("loss.dice_reduction", config.loss.dice_reduction, DICE_REDUCTIONS)
  _one_of("loss.targets", config.loss.targets, TARGETS)
  _one_of("loss.kd_reduction", config.loss.kd_reduction, KD_REDUCTIONS)
  _one_of("loss.kd_targets", config.loss.kd_targets, TARGETS)
  _one_of("loss.kd_where", config.loss.kd_where, WHERE)
  _one_of("confidence.score", config.confidence.score, SCORE_KINDS)
  _one_of("confidence.by", config.confidence.by, BY)
  _one_of("confidence.update", config.confidence.update, UPDATES)
  if config.confidence.by == "voxel" and config.confidence.above_student:
    raise ConfigError(
      'confidence.above_student goes by scores, and confidence.by = "voxel" has none'
    )
  for by, targets in (("region", "regions"), ("voxel", "classes")):
    if config.confidence.by == by and config.loss.kd_targets != targets:
      raise ConfigError(f'confidence.by = "{by}" needs loss.kd_targets = "{targets}"')
  limits.check_predict("predict", config.predict)
  _one_of("train.remat", train.remat, REMATS)
  _one_of("data.normalise", data.normalise, NORMALISATIONS)
  _one_of("data.grid", data.grid, GRIDS)
  _within("data.spacing", data.spacing, *SPACING_MM)
  limits.check_name("name", config.name)
  for key in ("root", "cache"):
    limits.check_path(f"data.{key}", getattr(data, key))
  limits.check_path("data.folds_file", data.folds_file or "none")

  for region in config.confidence.regions or ("",):
    _one_of("confidence.regions", region, tuple(REGIONS))
  limits.check_modalities("model.student", model.student)
  for name, modalities in model.teachers.items():
    limits.check_modalities(f"model.teachers.{name}", modalities)
  for level in {*config.loss.side, *config.loss.cooperative}:
    _one_of("loss.side and loss.cooperative, a level", level, LEVELS)
  for level in model.levels:
    _one_of("loss.side and loss.cooperative, for levels", level, tuple(config.loss.side))
    _one_of("loss.side and loss.cooperative, for levels", level, tuple(config.loss.cooperative))
  for name in model.teachers:
    limits.check_teacher(name)
  limits.check_patch("data.patch", data.patch)
  limits.check_filters("model.filters", model.filters)
  _within("model.fusion_levels", model.fusion_levels, 0, len(LEVELS))
  _within("model.teacher_side_heads", model.teacher_side_heads, 0, len(LEVELS))
  _within("seed", config.seed, 0, 2**31 - 1)
  _within("data.tumour", data.tumour, 0, 1)
  _within("data.batch", data.batch, 1, 1 << 20)
  _within("data.workers", data.workers, 0, 1024)
  _within("data.prepare_workers", data.prepare_workers, 0, 1024)
  _within("data.folds", data.folds, 2, 1000)
  _within("data.folds_seed", data.folds_seed, 0, 2**32 - 1)
  _within("data.fold", data.fold, 0, 999 if data.folds_file else data.folds - 1)
  _within("data.demo_seed", data.demo_seed, 0, 2**32 - 1)
  _within("data.demo_cases", data.demo_cases, 0, 100_000)
  _within("loss.temperature", config.loss.temperature, 1e-3, 1e6)
  _within("loss.supervised", config.loss.supervised, 0, 1e6)
  for level, weight in config.loss.cooperative.items():
    _within(f"loss.cooperative.{level}", weight, 0, 1e6)
  for name, weight in config.loss.deep_supervision.items():
    _one_of("loss.deep_supervision, for levels", name, LEVELS)
    _within(f"loss.deep_supervision.{name}", weight, 0, 1e6)
  if missing := [level for level in LEVELS if level not in config.loss.deep_supervision]:
    raise ConfigError(f"loss.deep_supervision.{missing[0]} is missing")
  for level, side in config.loss.side.items():
    for name in ("total", "supervised", "kd"):
      _within(f"loss.side.{level}.{name}", getattr(side, name), 0, 1e6)
  for name in ("fused_teacher", "bottleneck", "prototype", "kd_ramp_epochs"):
    _within(f"loss.{name}", getattr(config.loss, name), 0, 1e6)
  if config.loss.fused_teacher and not model.levels:
    raise ConfigError("loss.fused_teacher needs teachers and model.fusion_levels of 1 or 2")
  _within("loss.kd_from_epoch", config.loss.kd_from_epoch, 0, 1 << 30)
  _within("confidence.total", config.confidence.total, 0, 1e6)
  _within("confidence.ema_decay", config.confidence.ema_decay, 0, 0.999999)
  for name in ("epochs", "space", "accumulate", "log_every", "save_every", "keep"):
    _within(f"train.{name}", getattr(train, name), 1, 1 << 30)
  _within("train.validate_every", train.validate_every, 1, 1 << 30)
  if train.epochs * train.steps_per_epoch >= 2**31:
    raise ConfigError(
      f"train.epochs = {train.epochs} times train.steps_per_epoch = {train.steps_per_epoch}: at "
      f"most {2**31 - 1} steps are counted"
    )
  if data.batch % train.accumulate:
    raise ConfigError(
      f"train.accumulate = {train.accumulate} does not divide data.batch = {data.batch}"
    )
  for name in ("steps_per_epoch", "skip_nonfinite", "validate_cases", "pictures"):
    _within(f"train.{name}", getattr(train, name), 0, 1 << 30)
  for name in ("flip", "spatial", "intensity", "artefact"):
    _within(f"augment.{name}", getattr(config.augment, name), 0, 1)
  for name in ("gamma", "contrast", "brightness", "noise", "bias", "blur"):
    _within(f"augment.{name}", getattr(config.augment, name), 0, 10)
  _within("augment.rotate", config.augment.rotate, 0, 180)
  _within("augment.scale", config.augment.scale, 0, 1)
  _within("augment.elastic", config.augment.elastic, 0, MOST_ELASTIC)
  _within("augment.lowres", config.augment.lowres, 1, 16)
  _within("optim.ema_decay", config.optim.ema_decay, 0, 0.999999)
  for group, settings in config.optim.groups.items():
    prefix = f"optim.{group}"
    _one_of(f"{prefix}.algorithm", settings.algorithm, ALGORITHMS)
    _one_of(f"{prefix}.schedule", settings.schedule, SCHEDULES)
    _within(f"{prefix}.learning_rate", settings.learning_rate, 0, 1e3)
    for name in ("warmup", "final"):
      _within(f"{prefix}.{name}", getattr(settings, name), 0, 1)
    for name in ("beta1", "beta2"):
      _within(f"{prefix}.{name}", getattr(settings, name), 0, 0.999999)
    _within(f"{prefix}.epsilon", settings.epsilon, 1e-12, 1e6)
    for name in ("weight_decay", "clip_norm", "power"):
      _within(f"{prefix}.{name}", getattr(settings, name), 0, 1e6)
    _within(f"{prefix}.plateau.factor", settings.plateau.factor, 0, 1)
    _within(f"{prefix}.plateau.patience", settings.plateau.patience, 0, 1 << 30)
    _within(f"{prefix}.plateau.from_epoch", settings.plateau.from_epoch, 0, 1 << 30)
