"""The settings of a run: all sections together, parsed once at the edge of the program.

python -m kd_jax.settings.run > docs/settings.md     # the table of all settings
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import schema
from kd_jax.settings.constraints import Pattern, Range
from kd_jax.settings.data import AugmentSettings, DataSettings
from kd_jax.settings.inference import InferenceSettings
from kd_jax.settings.method import ConfidenceSettings, LossSettings
from kd_jax.settings.model import (
  FUSION_LEVELS,
  LEVELS,
  ModelSettings,
  check_network,
  check_patch,
)
from kd_jax.settings.schema import FREE
from kd_jax.settings.training import OptimSettings, TrainSettings
from kd_jax.tasks.labels import REGIONS

_NAME = Pattern(
  r"\w[\w.,+ -]{0,99}",
  "it becomes a folder's, so allowed are at most 100 letters, digits, blanks and _ . , + -, the "
  "first a letter, digit or _",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
  """One run; the defaults are the default recipe."""

  name: Annotated[str, _NAME, FREE, "of the run, and of its folder"]
  seed: Annotated[int, Range(0, 2**31 - 1), "of parameters, order, patches, augmentation"] = 0
  data: DataSettings
  model: ModelSettings = field(default_factory=ModelSettings)
  loss: LossSettings = field(default_factory=LossSettings)
  confidence: ConfidenceSettings = field(default_factory=ConfidenceSettings)
  optim: OptimSettings = field(default_factory=OptimSettings)
  augment: AugmentSettings = field(default_factory=AugmentSettings)
  train: TrainSettings = field(default_factory=TrainSettings)
  inference: InferenceSettings = field(default_factory=InferenceSettings)


def parse(values: Mapping[str, Any], *, recorded: bool = False) -> Settings:
  """Plain values, or a ConfigDict, as settings.

  Args:
    values: sections of settings; what is missing has its default.
    recorded: they were written with a run: what did not exist then has the value that held then.

  Raises:
    ConfigError: a setting that is unknown, of another type, out of its range, or at odds with
      another one.
  """
  settings: Settings = schema.build(Settings, values, recorded=recorded)
  check(settings)
  return settings


def check(settings: Settings) -> None:
  """ConfigError for settings that contradict each other."""
  data, model, loss = settings.data, settings.model, settings.loss
  if data.fold >= data.folds and not data.folds_file:
    raise ConfigError(f"data.fold = {data.fold} is not between 0 and {data.folds - 1}")
  _check_networks(model, loss)
  check_patch("data.patch", data.patch, model.multiple)
  for level in model.levels:
    for name in ("side", "cooperative"):
      if level not in getattr(loss, name):
        raise ConfigError(f"loss.{name}.{level} is missing, and model.fusion_levels asks for it")
  if loss.kd_targets == "classes" and len(loss.kd_regions) < len(REGIONS):
    raise ConfigError('loss.kd_regions: fewer than all needs loss.kd_targets = "regions"')
  if loss.fused_teacher and not model.levels:
    raise ConfigError("loss.fused_teacher needs teachers and model.fusion_levels of 1 or 2")
  _check_confidence(settings.confidence, loss)
  _check_training(settings.train, data.batch)
  if model.cohorts > 1:
    _check_cohorts(model, loss, settings.confidence)
  if (data.batch // settings.train.accumulate) % model.cohorts:
    raise ConfigError(
      f"model.cohorts = 2 needs an even number of samples: data.batch = {data.batch}"
      + (f" in {settings.train.accumulate} parts" if settings.train.accumulate > 1 else "")
    )


def _check_cohorts(
  model: ModelSettings, loss: LossSettings, confidence: ConfidenceSettings
) -> None:
  if not model.teachers:
    raise ConfigError("model.cohorts = 2 needs teachers, and model.teachers has none")
  if loss.prototype:
    raise ConfigError(
      "loss.prototype averages one network's features over a batch, and with model.cohorts = 2 a "
      "batch hears two networks: use one of the two"
    )
  if confidence.above_student:
    raise ConfigError(
      "confidence.above_student compares scores on the same footing, and with model.cohorts = 2 "
      "teachers are scored on cases that they have not trained on, the student on its own: use "
      "one of the two"
    )


def _check_networks(model: ModelSettings, loss: LossSettings) -> None:
  check_network("model", model.network, model.filters, model.attention)
  if model.teachers:
    _check_teachers(model, loss)
  levels = len(model.filters) - 2  # all but full resolution and the bottleneck
  Range(0, min(len(FUSION_LEVELS), levels)).check("model.fusion_levels", model.fusion_levels)
  Range(0, levels).check("model.teacher_side_heads", model.teacher_side_heads)
  if unsaid := set(LEVELS[: model.teacher_side_heads]) - set(loss.deep_supervision):
    raise ConfigError(f"loss.deep_supervision.{min(unsaid)} is missing")
  heads = max(model.teacher_side_heads, min(len(FUSION_LEVELS), levels))  # the student's
  weights = cast(Mapping[str, float], loss.deep_supervision)
  if deaf := [level for level in LEVELS[heads:] if weights.get(level)]:
    raise ConfigError(f"loss.deep_supervision.{deaf[0]}: no network has a head at {deaf[0]}")


def _check_teachers(model: ModelSettings, loss: LossSettings) -> None:
  check_network("model", model.teacher_kind, model.filters, model.attention)
  if loss.bottleneck and model.teacher_filters[-1] != model.filters[-1]:
    raise ConfigError(
      "loss.bottleneck compares the channels of student and teacher one by one: it needs "
      f"model.teacher_width = 1, not {model.teacher_width:g}"
    )


def _check_confidence(confidence: ConfidenceSettings, loss: LossSettings) -> None:
  if confidence.by == "voxel" and confidence.above_student:
    raise ConfigError(
      'confidence.above_student goes by scores, and confidence.by = "voxel" has none'
    )
  for by, targets in (("region", "regions"), ("voxel", "classes")):
    if confidence.by == by and loss.kd_targets != targets:
      raise ConfigError(f'confidence.by = "{by}" needs loss.kd_targets = "{targets}"')


def _check_training(train: TrainSettings, batch: int) -> None:
  if train.epochs * train.steps_per_epoch >= 2**31:
    raise ConfigError(
      f"train.epochs = {train.epochs} times train.steps_per_epoch = {train.steps_per_epoch}: at "
      f"most {2**31 - 1} steps are counted"
    )
  if batch % train.accumulate:
    raise ConfigError(f"train.accumulate = {train.accumulate} does not divide data.batch = {batch}")


def to_dict(settings: Settings) -> dict[str, Any]:
  """Plain values, ready for JSON: the record of a run."""
  return schema.plain(settings)


def table() -> str:
  """docs/settings.md: every setting, in Markdown."""
  lines = [
    "# Settings",
    "",
    "Every setting can be given on the command line, such as "
    "`--config.optim.student.learning_rate=1e-4` or "
    "`--config.model.filters='(16,32,64,128)'`. The defaults are the default recipe; presets "
    "([configs/](../configs), `kd_jax/settings/presets.py`) change some. A run that continues may "
    "change those with a ✓. This page is generated: "
    "`python -m kd_jax.settings.run > docs/settings.md`.",
  ]
  section = None
  for setting in schema.walk(Settings):
    head = setting.name.rpartition(".")[0].split(".")[0] or "run"
    if head != section:
      section = head
      lines += ["", f"## {section}", "", "| setting | type | default | allowed | ✓ | meaning |"]
      lines += ["|---|---|---|---|---|---|"]
    default = "required" if setting.default is schema.REQUIRED else f"`{_shown(setting.default)}`"
    cells = [f"`{setting.name}`", setting.kind, default, setting.allowed]
    cells += ["✓" if setting.free else "", setting.words]
    lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
  return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
  if isinstance(value, str):
    return value or "(empty)"
  if isinstance(value, Mapping):
    return ", ".join(f"{key}: {_shown(schema.plain(v))}" for key, v in value.items())
  if isinstance(value, tuple | list):
    return f"({', '.join(map(str, value))})"
  return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
  print(table(), end="")
