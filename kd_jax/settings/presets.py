"""Presets: data sets, and variants of the default recipe that every data set takes.

  python main.py --config=configs/brats21.py:t1,two_level --config.data.root=/data/BraTS2021
  kd_jax.train("brats21:t1,two_level", ...)

A preset is a table of dotted settings and their values. What each setting means, and the default
recipe: docs/settings.md.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.settings.data import DataSettings
from kd_jax.settings.run import Settings, parse, to_dict
from kd_jax.settings.training import GROUPS
from kd_jax.tasks.labels import REGIONS
from kd_jax.tasks.names import MODALITIES

if TYPE_CHECKING:
  from ml_collections import ConfigDict

Overrides = Mapping[str, Any]  # dotted name -> value


class Variant(NamedTuple):
  """A change of the default recipe.

  Attributes:
    words: what it is.
    overrides: the settings that it changes; or a function of the settings so far that gives them.
  """

  words: str
  overrides: Overrides | Callable[[Settings], Overrides]


# --- Data sets ----------------------------------------------------------------------------------

DATASETS: dict[str, Overrides] = {
  "brats18": {"data.root": "data/BraTS2018"},
  "brats19": {"data.root": "data/BraTS2019"},
  "brats20": {"data.root": "data/BraTS2020"},
  "brats21": {"data.root": "data/BraTS2021"},
  "brats23": {"data.root": "data/BraTS2023"},
  # Everything is as in a real run but small: generated cases, 3 mm voxels, a quarter of the
  # channels; minutes on two CPU cores.
  "quickstart": {
    "data.root": "runs/demo",
    "data.demo_cases": 16,
    "data.spacing": 3.0,
    "data.patch": (32, 32, 32),
    "data.workers": 0,
    "model.filters": (8, 16, 32, 64),
    "train.epochs": 6,
    "train.steps_per_epoch": 20,
    "train.validate_every": 3,
    "train.save_every": 50,
    "optim.teachers.learning_rate": 3e-3,
    "optim.student.learning_rate": 3e-3,
    "optim.ema_decay": 0.98,
    "augment.elastic": 1.5,  # voxels, of 3 mm
    "augment.blur": 0.6,
    "augment.lowres": 2.0,
    "inference.overlap": 0.25,
  },
}

# --- Variants -----------------------------------------------------------------------------------

_AS_WIDE = {"model.teacher_width": 1.0}  # as the student
_ALL_CLASSES = {"loss.kd_targets": "classes", "loss.kd_regions": tuple(REGIONS)}

# docs/method.md, "Objective": the published terms, but Dice is the volume's and the KL a mean.
_MTCM_KD = {
  "model.teachers": {"flair": ("flair",), "t2": ("t2",), "t1": ("t1",)},
  "model.teacher_width": 1.0,
  "model.fusion_levels": 1,
  "model.attention": "channel",
  "model.fusion_activation": False,
  "model.fusion_detached": False,
  "model.teacher_side_heads": 0,
  "loss.dice_reduction": "volume",
  "loss.targets": "classes",
  "loss.kd_reduction": "voxel_mean",
  **_ALL_CLASSES,
  "loss.kd_where": "all",
  "loss.temperature": 4.0,
  "loss.supervised": 0.75,
  "loss.cooperative": {"level1": 0.08, "level2": 0.05},
  "loss.side": {
    "level1": {"total": 0.10, "supervised": 0.7, "kd": 0.3},
    "level2": {"total": 0.03, "supervised": 0.6, "kd": 0.4},
  },
  "loss.deep_supervision": {"level1": 0.0, "level2": 0.0},
  "loss.fused_teacher": 0.0,
  "loss.kd_from_epoch": 1,
  "loss.kd_ramp_epochs": 0.0,
  "confidence.regions": ("WT",),
  "confidence.by": "teacher",
  "confidence.above_student": False,
}

# To the letter; its Dice is not comparable:
# docs/method.md, "The published protocol and what it really does".
_PAPER = {
  **_MTCM_KD,
  "data.normalise": "paper",
  "data.grid": "paper",
  "data.patch": (128, 128, 128),
  "data.foreground_oversampling": 0.0,
  "data.batch": 1,
  "data.folds": 5,
  "data.folds_seed": 20,
  "model.dtype": "float32",
  "loss.dice_reduction": "slice",
  "loss.kd_reduction": "voxel_sum",
  "loss.temperature": 20.0,
  "confidence.total": 0.15,
  "confidence.score": "slice_dice",
  "confidence.update": "epoch",
  **{
    f"optim.{group}.{name}": value
    for group in GROUPS
    for name, value in {
      "algorithm": "adamw",  # without weight decay: Adam
      "weight_decay": 0.0,
      "clip_norm": 0.0,
      "beta2": 0.999,
      "epsilon": 1e-8,
    }.items()
  },
  "optim.teachers.schedule": "constant",
  "optim.teachers.learning_rate": 1e-4,
  "optim.teachers.beta1": 0.9,
  "optim.student.schedule": "plateau",
  "optim.student.learning_rate": 4e-6,  # of a OneCycle schedule that is never stepped
  "optim.student.beta1": 0.95,
  "optim.student.plateau": {"factor": 0.1, "patience": 5, "from_epoch": 4},
  "optim.ema_decay": 0.0,
  "augment.flip": 0.0,
  "augment.spatial": 0.0,
  "augment.intensity": 0.0,
  "augment.artefact": 0.0,
  "train.epochs": 25,
  "train.steps_per_epoch": 0,
  "train.validate_every": 1,
  "train.validate_cases": 0,
  "inference.window": "whole",
  "inference.min_component_mm3": 0.0,
  "inference.min_et_mm3": 0.0,
}


def _t1(settings: Settings) -> Overrides:
  alone = all(len(modalities) == 1 for modalities in settings.model.teachers.values())
  names = ("flair", "t2", "t1ce")
  return {
    "model.student": ("t1",),
    "model.teachers": {name: (name,) if alone else (name, "t1") for name in names},
    "confidence.regions": ("WT", "TC"),
    "loss.kd_regions": tuple(REGIONS),  # T1 shows less than its teachers see, everywhere
  }


def _plus_all(settings: Settings) -> Overrides:
  return {"model.teachers": {**settings.model.teachers, "all": MODALITIES}}


def _single(name: str, *modalities: str) -> Variant:
  words = "with a single teacher, that sees all four sequences" if name == "all" else f"from {name}"
  return Variant(f"the baseline {words}", {"model.teachers": {name: modalities}, **_AS_WIDE})


# In the order in which they apply, whatever order they are given in.
VARIANTS: dict[str, Variant] = {
  "paper": Variant(
    "the published code's protocol: 128^3 resize, raw intensities, slice-wise losses and scores, "
    "its learning rates",
    _PAPER,
  ),
  "mtcm_kd": Variant(
    "the published teachers (each sees its own sequence alone) and terms, in volumetric Dice",
    _MTCM_KD,
  ),
  "t1": Variant("T1 student; FLAIR, T2 and T1ce teachers", _t1),
  "two_level": Variant("CDSFL at half and quarter resolution", {"model.fusion_levels": 2}),
  "cross_fit": Variant(
    "two cohorts of teachers: of a case the student hears those who have not trained on it",
    {"model.cohorts": 2},
  ),
  "resenc": Variant(
    "nnU-Net's residual encoder U-Net, as student and as teachers",
    {"model.network": "resenc", "model.teacher_network": "same"},
  ),
  "cbam": Variant("spatial gates after the channel gates", {"model.attention": "cbam"}),
  "student_only": Variant("the baseline without teachers", {"model.teachers": {}}),
  "from_flair": _single("flair", "flair"),
  "from_t2": _single("t2", "t2"),
  "from_t1": _single("t1", "t1"),
  "from_t1ce": _single("t1ce", "t1ce"),
  "from_all": _single("all", *MODALITIES),
  "plus_all": Variant("a teacher that sees all four sequences beside the three", _plus_all),
  # method/distillation.py names the sources of these two.
  "kd_net": Variant(
    "in the style of KD-Net: soft labels and bottleneck of one teacher that sees all sequences",
    {
      "model.teachers": {"all": MODALITIES},
      **_AS_WIDE,
      "model.fusion_levels": 0,
      "loss.bottleneck": 0.5,
      **_ALL_CLASSES,
    },
  ),
  "proto_kd": Variant(
    "in the style of ProtoKD: soft labels and prototypes of one teacher that sees all sequences",
    {
      "model.teachers": {"all": MODALITIES},
      **_AS_WIDE,
      "model.fusion_levels": 0,
      "loss.prototype": 1.0,
      **_ALL_CLASSES,
    },
  ),
}
_CHOOSE_TEACHERS = ("student_only", "kd_net", "proto_kd", *(v for v in VARIANTS if "from_" in v))


def settings(preset: str, overrides: Overrides | None = None) -> Settings:
  """The settings of a preset.

  Args:
    preset: a key of DATASETS, then a colon and variants with commas: "brats21:t1,two_level".
    overrides: dotted name -> value, applied last.

  Raises:
    ConfigError: a data set, variant or setting that does not exist, variants that exclude each
      other, a value that is not allowed.
  """
  name, _, variants = preset.partition(":")
  if name not in DATASETS:
    raise ConfigError(did_you_mean("preset", name, tuple(DATASETS)))
  base = Settings(name=name, data=DataSettings(root="data"))
  result = with_variants(override(base, DATASETS[name]), variants)
  return override(result, overrides or {})


def config_dict(preset: str) -> "ConfigDict":
  """The settings of a preset as a ConfigDict: what a configuration file gives to --config."""
  from ml_collections import ConfigDict

  return ConfigDict(_tuples(to_dict(settings(preset))))


def with_variants(base: Settings, names: str) -> Settings:
  """Applies variants, given with commas. ConfigError as `settings`."""
  chosen = [name for name in names.split(",") if name]
  for name in chosen:
    if name not in VARIANTS:
      raise ConfigError(did_you_mean("variant", name, tuple(VARIANTS)))
  teachers = [name for name in chosen if name in _CHOOSE_TEACHERS]
  if len(teachers) > 1:
    raise ConfigError(f"variants {' and '.join(teachers)} each choose the teachers; give one")
  for name in sorted(chosen, key=list(VARIANTS).index):
    change = VARIANTS[name].overrides
    base = override(base, change(base) if callable(change) else change)
  return override(base, {"name": "-".join([base.name, *chosen])})


def override(base: Settings, overrides: Overrides) -> Settings:
  """Settings with other values by dotted name; what is no group is replaced as a whole.

  Raises:
    ConfigError: a name that does not exist, or a value that is not allowed.
  """
  values = to_dict(base)
  for name, value in overrides.items():
    *path, last = name.split(".")
    group = values
    for depth, part in enumerate(path):
      if not isinstance(group.get(part), dict):
        whole = ".".join(path[: depth + 1])
        raise ConfigError(did_you_mean("setting", whole, tuple(group)))
      group = group[part]
    group[last] = value
  return parse(values)


def _tuples(value: Any) -> Any:
  """Lists as tuples: the command line writes '(16,16,16)', and a ConfigDict keeps types."""
  if isinstance(value, dict):
    return {key: _tuples(v) for key, v in value.items()}
  return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
