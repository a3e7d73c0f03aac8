"""The default run, and the variants that every configuration takes after a colon.

  python main.py --config=configs/brats21.py:t1,two_level --config.data.root=/data/BraTS2021

What each setting means: kd_jax/settings/config.py and the classes that it names.
"""

from ml_collections import ConfigDict

from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.tasks.labels import REGIONS


def base(name: str, root: str) -> ConfigDict:
  """T1ce student; FLAIR, T2 and T1 teachers that see T1ce too; one CDSFL level; 1 mm, 128^3."""
  return ConfigDict(
    {
      "name": name,
      "seed": 0,
      "data": {
        "root": root,
        "labels": "auto",
        "cache": "runs/cache",
        "spacing": 1.0,  # mm
        "normalise": "zscore",
        "grid": "brain",
        "patch": (128, 128, 128),
        "tumour": 0.67,
        "workers": 4,
        "batch": 2,
        "folds": 5,
        "folds_seed": 20,
        "folds_file": "",
        "fold": 0,
        "skip_bad_cases": False,
        "prepare_workers": 0,
        "demo_cases": 0,
        "demo_seed": 0,
      },
      "model": {
        "student": ("t1ce",),
        "teachers": {"flair": ("flair", "t1ce"), "t2": ("t2", "t1ce"), "t1": ("t1", "t1ce")},
        "filters": (32, 64, 128, 256),
        "fusion_levels": 1,
        "attention": "channel",
        "fusion_activation": False,
        "fusion_detached": False,
        "teacher_side_heads": 0,
        "dtype": "auto",
      },
      "loss": {
        "dice_reduction": "volume",  # or sample, slice
        "targets": "classes",  # or regions
        "kd_reduction": "voxel_mean",
        "kd_targets": "regions",  # or classes
        "kd_regions": ("WT",),  # where T1ce shows least and teachers see most; with regions
        "kd_where": "all",  # or brain, agreement, balanced
        "temperature": 1.0,
        "supervised": 1.0,
        "cooperative": {"level1": 0.08, "level2": 0.05},
        "side": {
          "level1": {"total": 0.10, "supervised": 0.7, "kd": 0.3},
          "level2": {"total": 0.03, "supervised": 0.6, "kd": 0.4},
        },
        "deep_supervision": {"level1": 0.0, "level2": 0.0},
        "fused_teacher": 0.0,
        "bottleneck": 0.0,
        "prototype": 0.0,
        "kd_from_epoch": 1,
        "kd_ramp_epochs": 3.0,
      },
      "confidence": {
        "total": 0.5,
        "score": "soft_dice",
        "regions": ("WT",),
        "by": "teacher",  # or region, voxel
        "update": "ema",  # or epoch, batch
        "ema_decay": 0.99,
        "above_student": False,
      },
      "optim": {"cohort": _adam(), "student": _adam(), "ema_decay": 0.999},
      "augment": {
        "flip": 0.5,
        "spatial": 0.25,
        "rotate": 15.0,  # degrees
        "scale": 0.15,
        "elastic": 4.0,  # voxels
        "intensity": 0.3,
        "gamma": 0.4,
        "contrast": 0.25,
        "brightness": 0.25,
        "noise": 0.15,
        "artefact": 0.15,
        "bias": 0.5,
        "blur": 1.0,  # voxels
        "lowres": 3.0,  # voxels
      },
      "train": {
        "epochs": 300,
        "steps_per_epoch": 250,
        "space": 1,
        "accumulate": 1,
        "remat": "none",  # or norms, stages: less memory
        "skip_nonfinite": 0,  # steps that may be left out for it, in all; 0 stops at once
        "log_every": 10,
        "save_every": 250,
        "keep": 2,
        "validate_every": 10,
        "validate_cases": 40,
        "pictures": 3,
      },
      "predict": {
        "mode": "sliding",
        "overlap": 0.5,
        "mirror": False,
        "smallest_island": -1.0,  # mm3; 0 for any, -1 for what is best on validation
        "smallest_et": -1.0,
      },
    }
  )


def _adam() -> dict:
  return {
    "algorithm": "adamw",  # or sgd
    "learning_rate": 5e-4,
    "schedule": "warmup_cosine",  # or constant, poly, plateau
    "warmup": 0.02,
    "final": 0.0,
    "power": 0.9,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 1e-5,
    "clip_norm": 12.0,
    "plateau": {"factor": 0.1, "patience": 5, "from_epoch": 0},
  }


def with_variants(config: ConfigDict, arg: str) -> ConfigDict:
  """Applies comma-separated variants. ConfigError for an unknown one."""
  names = [name for name in arg.split(",") if name]
  for name in names:
    if name not in VARIANTS:
      raise ConfigError(did_you_mean("variant", name, tuple(VARIANTS)))
  teachers = [name for name in names if name in _CHOOSE_TEACHERS]
  if len(teachers) > 1:
    raise ConfigError(f"variants {' and '.join(teachers)} each choose the teachers; give one")
  for name in sorted(names, key=list(VARIANTS).index):  # so that their order does not matter
    VARIANTS[name](config)
  config.name = "-".join([config.name, *names])
  return config


def _mtcm_kd(config: ConfigDict) -> None:
  """The published teachers and terms, with the volume's Dice and a KL that is a mean."""
  config.model.teachers = ConfigDict({name: (name,) for name in config.model.teachers})
  _hear_of_all_classes(config)
  config.loss.temperature = 4.0
  config.loss.supervised = 0.75
  config.loss.kd_ramp_epochs = 0.0


def _hear_of_all_classes(config: ConfigDict) -> None:
  config.loss.kd_targets = "classes"
  config.loss.kd_regions = tuple(REGIONS)


def _paper(config: ConfigDict) -> None:
  """The published code, to the letter of METHOD §3; its Dice is not comparable."""
  _mtcm_kd(config)
  config.data.normalise = "paper"
  config.data.grid = "paper"
  config.data.patch = (128, 128, 128)
  config.data.tumour = 0.0
  config.data.batch = 1
  config.model.dtype = "float32"
  config.loss.dice_reduction = "slice"
  config.loss.kd_reduction = "voxel_sum"
  config.loss.temperature = 20.0
  config.confidence.total = 0.15
  config.confidence.score = "slice_dice"
  config.confidence.update = "epoch"
  for group in ("cohort", "student"):
    adam = config.optim[group]
    adam.schedule = "constant"
    adam.weight_decay = 0.0
    adam.clip_norm = 0.0
  config.optim.cohort.learning_rate = 1e-4
  config.optim.student.learning_rate = 4e-6  # of a OneCycle schedule that is never stepped
  config.optim.student.beta1 = 0.95
  config.optim.student.schedule = "plateau"
  config.optim.student.plateau = {"factor": 0.1, "patience": 5, "from_epoch": 4}
  config.optim.ema_decay = 0.0
  for name in ("flip", "spatial", "intensity", "artefact"):
    config.augment[name] = 0.0
  config.train.epochs = 25
  config.train.steps_per_epoch = 0
  config.train.validate_every = 1
  config.train.validate_cases = 0
  config.predict.mode = "whole"
  config.predict.smallest_island = 0.0
  config.predict.smallest_et = 0.0


def _t1(config: ConfigDict) -> None:
  """The paper's second set-up: a T1 student with T1ce among its teachers."""
  alone = all(len(modalities) == 1 for modalities in config.model.teachers.values())
  config.model.student = ("t1",)
  config.model.teachers = ConfigDict(
    {name: (name,) if alone else (name, "t1") for name in ("flair", "t2", "t1ce")}
  )
  config.confidence.regions = ("WT", "TC")
  config.loss.kd_regions = tuple(REGIONS)  # T1 shows less than its teachers see everywhere


def _two_level(config: ConfigDict) -> None:
  """CDSFL at half and quarter resolution."""
  config.model.fusion_levels = 2


def _cbam(config: ConfigDict) -> None:
  """Spatial gates after the channel gates."""
  config.model.attention = "cbam"


def _student_only(config: ConfigDict) -> None:
  """The baseline without distillation."""
  config.model.teachers = ConfigDict({})


def _from(name: str, *modalities: str):
  def variant(config: ConfigDict) -> None:
    config.model.teachers = ConfigDict({name: modalities})

  variant.__doc__ = f"The baseline with a single teacher, {name}."
  return variant


def _plus_all(config: ConfigDict) -> None:
  """A teacher that sees all four sequences beside the others."""
  config.model.teachers["all"] = _ALL


def _kd_net(config: ConfigDict) -> None:
  """In the style of KD-Net: soft labels and bottleneck of one teacher that sees all sequences."""
  _from("all", *_ALL)(config)
  config.model.fusion_levels = 0
  config.loss.bottleneck = 0.5
  _hear_of_all_classes(config)


def _proto_kd(config: ConfigDict) -> None:
  """In the style of ProtoKD: soft labels and prototypes of one teacher that sees all sequences."""
  _from("all", *_ALL)(config)
  config.model.fusion_levels = 0
  config.loss.prototype = 1.0
  _hear_of_all_classes(config)


_ALL = ("flair", "t1", "t1ce", "t2")

# In the order in which they apply.
VARIANTS = {
  "paper": _paper,
  "mtcm_kd": _mtcm_kd,
  "t1": _t1,
  "two_level": _two_level,
  "cbam": _cbam,
  "student_only": _student_only,
  "from_flair": _from("flair", "flair"),
  "from_t2": _from("t2", "t2"),
  "from_t1": _from("t1", "t1"),
  "from_t1ce": _from("t1ce", "t1ce"),
  "from_all": _from("all", *_ALL),
  "plus_all": _plus_all,
  "kd_net": _kd_net,
  "proto_kd": _proto_kd,
}
_CHOOSE_TEACHERS = ("student_only", "kd_net", "proto_kd", *(v for v in VARIANTS if "from_" in v))
