"""Which settings of a run are possible: each by itself, and together."""

from typing import TYPE_CHECKING

from kd_jax.data.augmentation.warp import MOST_ELASTIC
from kd_jax.data.entry import GRIDS, NORMALISATIONS, SPACING_MM
from kd_jax.method.batch_scores import SCORE_KINDS
from kd_jax.method.confidence import BY, UPDATES
from kd_jax.method.distillation import WHERE
from kd_jax.method.losses import DICE_REDUCTIONS, KD_REDUCTIONS, TARGETS
from kd_jax.models.framework import ATTENTIONS, DTYPES
from kd_jax.models.remat import REMATS
from kd_jax.models.resunet import LEVELS
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import limits
from kd_jax.settings.limits import one_of, within
from kd_jax.tasks.labels import CONVENTIONS, REGIONS
from kd_jax.training.optimisers import ALGORITHMS, SCHEDULES

if TYPE_CHECKING:  # config.py imports this file
  from kd_jax.data.augmentation.augment import AugmentSettings
  from kd_jax.data.dataset import DataSettings
  from kd_jax.models.framework import FrameworkSpec
  from kd_jax.settings.config import Config, OptimSettings


def check(config: "Config") -> None:
  """ConfigError for a setting out of its range, or settings that contradict each other."""
  limits.check_name("name", config.name)
  within("seed", config.seed, 0, 2**31 - 1)
  _check_data(config.data)
  _check_model(config.model)
  _check_losses(config)
  _check_confidence(config)
  _check_optimisers(config.optim)
  _check_augmentation(config.augment)
  _check_training(config)
  limits.check_predict("predict", config.predict)


def _check_data(data: "DataSettings") -> None:
  one_of("data.labels", data.labels, ("auto", *CONVENTIONS))
  one_of("data.normalise", data.normalise, NORMALISATIONS)
  one_of("data.grid", data.grid, GRIDS)
  for key in ("root", "cache"):
    limits.check_path(f"data.{key}", getattr(data, key))
  limits.check_path("data.folds_file", data.folds_file or "none")
  limits.check_patch("data.patch", data.patch)
  within("data.spacing", data.spacing, *SPACING_MM)
  within("data.tumour", data.tumour, 0, 1)
  within("data.batch", data.batch, 1, 1 << 20)
  within("data.workers", data.workers, 0, 1024)
  within("data.prepare_workers", data.prepare_workers, 0, 1024)
  within("data.folds", data.folds, 2, 1000)
  within("data.folds_seed", data.folds_seed, 0, 2**32 - 1)
  within("data.fold", data.fold, 0, 999 if data.folds_file else data.folds - 1)
  within("data.demo_seed", data.demo_seed, 0, 2**32 - 1)
  within("data.demo_cases", data.demo_cases, 0, 100_000)


def _check_model(model: "FrameworkSpec") -> None:
  one_of("model.dtype", model.dtype, DTYPES)
  one_of("model.attention", model.attention, ATTENTIONS)
  limits.check_filters("model.filters", model.filters)
  limits.check_modalities("model.student", model.student)
  for name, modalities in model.teachers.items():
    limits.check_teacher(name)
    limits.check_modalities(f"model.teachers.{name}", modalities)
  within("model.fusion_levels", model.fusion_levels, 0, len(LEVELS))
  within("model.teacher_side_heads", model.teacher_side_heads, 0, len(LEVELS))


def _check_losses(config: "Config") -> None:
  loss, levels = config.loss, config.model.levels
  one_of("loss.dice_reduction", loss.dice_reduction, DICE_REDUCTIONS)
  one_of("loss.targets", loss.targets, TARGETS)
  one_of("loss.kd_reduction", loss.kd_reduction, KD_REDUCTIONS)
  one_of("loss.kd_targets", loss.kd_targets, TARGETS)
  for region in loss.kd_regions or ("",):
    one_of("loss.kd_regions", region, tuple(REGIONS))
  if len(set(loss.kd_regions)) < len(loss.kd_regions):
    raise ConfigError(f"loss.kd_regions = {loss.kd_regions}: a region stands twice")
  if loss.kd_targets == "classes" and len(loss.kd_regions) < len(REGIONS):
    raise ConfigError('loss.kd_regions: fewer than all needs loss.kd_targets = "regions"')
  one_of("loss.kd_where", loss.kd_where, WHERE)
  for level in {*loss.side, *loss.cooperative}:
    one_of("loss.side and loss.cooperative, a level", level, LEVELS)
  for level in levels:
    one_of("loss.side and loss.cooperative, for levels", level, tuple(loss.side))
    one_of("loss.side and loss.cooperative, for levels", level, tuple(loss.cooperative))
  for level, weight in loss.cooperative.items():
    within(f"loss.cooperative.{level}", weight, 0, 1e6)
  for level, side in loss.side.items():
    for name in ("total", "supervised", "kd"):
      within(f"loss.side.{level}.{name}", getattr(side, name), 0, 1e6)
  for name, weight in loss.deep_supervision.items():
    one_of("loss.deep_supervision, for levels", name, LEVELS)
    within(f"loss.deep_supervision.{name}", weight, 0, 1e6)
  if missing := [level for level in LEVELS if level not in loss.deep_supervision]:
    raise ConfigError(f"loss.deep_supervision.{missing[0]} is missing")
  within("loss.temperature", loss.temperature, 1e-3, 1e6)
  for name in ("supervised", "fused_teacher", "bottleneck", "prototype", "kd_ramp_epochs"):
    within(f"loss.{name}", getattr(loss, name), 0, 1e6)
  within("loss.kd_from_epoch", loss.kd_from_epoch, 0, 1 << 30)
  if loss.fused_teacher and not levels:
    raise ConfigError("loss.fused_teacher needs teachers and model.fusion_levels of 1 or 2")


def _check_confidence(config: "Config") -> None:
  confidence = config.confidence
  one_of("confidence.score", confidence.score, SCORE_KINDS)
  one_of("confidence.by", confidence.by, BY)
  one_of("confidence.update", confidence.update, UPDATES)
  for region in confidence.regions or ("",):
    one_of("confidence.regions", region, tuple(REGIONS))
  within("confidence.total", confidence.total, 0, 1e6)
  within("confidence.ema_decay", confidence.ema_decay, 0, 0.999999)
  if confidence.by == "voxel" and confidence.above_student:
    raise ConfigError(
      'confidence.above_student goes by scores, and confidence.by = "voxel" has none'
    )
  for by, targets in (("region", "regions"), ("voxel", "classes")):
    if confidence.by == by and config.loss.kd_targets != targets:
      raise ConfigError(f'confidence.by = "{by}" needs loss.kd_targets = "{targets}"')


def _check_optimisers(optim: "OptimSettings") -> None:
  within("optim.ema_decay", optim.ema_decay, 0, 0.999999)
  for group, settings in optim.groups.items():
    prefix = f"optim.{group}"
    one_of(f"{prefix}.algorithm", settings.algorithm, ALGORITHMS)
    one_of(f"{prefix}.schedule", settings.schedule, SCHEDULES)
    within(f"{prefix}.learning_rate", settings.learning_rate, 0, 1e3)
    for name in ("warmup", "final"):
      within(f"{prefix}.{name}", getattr(settings, name), 0, 1)
    for name in ("beta1", "beta2"):
      within(f"{prefix}.{name}", getattr(settings, name), 0, 0.999999)
    within(f"{prefix}.epsilon", settings.epsilon, 1e-12, 1e6)
    for name in ("weight_decay", "clip_norm", "power"):
      within(f"{prefix}.{name}", getattr(settings, name), 0, 1e6)
    within(f"{prefix}.plateau.factor", settings.plateau.factor, 0, 1)
    within(f"{prefix}.plateau.patience", settings.plateau.patience, 0, 1 << 30)
    within(f"{prefix}.plateau.from_epoch", settings.plateau.from_epoch, 0, 1 << 30)


def _check_augmentation(augment: "AugmentSettings") -> None:
  for name in ("flip", "spatial", "intensity", "artefact", "scale"):
    within(f"augment.{name}", getattr(augment, name), 0, 1)
  for name in ("gamma", "contrast", "brightness", "noise", "bias", "blur"):
    within(f"augment.{name}", getattr(augment, name), 0, 10)
  within("augment.rotate", augment.rotate, 0, 180)
  within("augment.elastic", augment.elastic, 0, MOST_ELASTIC)
  within("augment.lowres", augment.lowres, 1, 16)


def _check_training(config: "Config") -> None:
  train, batch = config.train, config.data.batch
  one_of("train.remat", train.remat, REMATS)
  for name in ("epochs", "space", "accumulate", "log_every", "save_every", "keep"):
    within(f"train.{name}", getattr(train, name), 1, 1 << 30)
  within("train.validate_every", train.validate_every, 1, 1 << 30)
  for name in ("steps_per_epoch", "skip_nonfinite", "validate_cases", "pictures"):
    within(f"train.{name}", getattr(train, name), 0, 1 << 30)
  if train.epochs * train.steps_per_epoch >= 2**31:
    raise ConfigError(
      f"train.epochs = {train.epochs} times train.steps_per_epoch = {train.steps_per_epoch}: at "
      f"most {2**31 - 1} steps are counted"
    )
  if batch % train.accumulate:
    raise ConfigError(f"train.accumulate = {train.accumulate} does not divide data.batch = {batch}")
