"""What the ablation trains: the recipes, one a row of its table, and the sizes of its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.settings import presets
from kd_jax.settings.presets import Overrides
from kd_jax.settings.run import Settings
from kd_jax.tasks.labels import REGIONS
from kd_jax.tasks.names import MODALITIES

ALONE, PAPER = "student_only", "paper"


class Recipe(NamedTuple):
  """A row of the table.

  Attributes:
    what: in words.
    variants: of kd_jax/settings/presets.py, with commas.
    settings: dotted names -> values, applied after the variants and the size's own.
  """

  what: str
  variants: str = ""
  settings: Mapping[str, Any] = {}


_OWN = {"model.teachers": {"flair": ("flair",), "t2": ("t2",), "t1": ("t1",)}}
_ALL_CLASSES = {"loss.kd_targets": "classes", "loss.kd_regions": tuple(REGIONS)}
_AS_WIDE = {"model.teacher_width": 1.0}
_QUARTER = {"model.teacher_width": 0.25}
_STRONG = {"confidence.total": 2.0}
_REGION_LOSSES = {
  "loss.targets": "regions",
  "loss.deep_supervision": {"level1": 0.3, "level2": 0.0},
  "model.teacher_side_heads": 1,
}
RECIPES = {
  ALONE: Recipe("the student alone", ALONE),
  "best": Recipe(
    "the default: teachers of half the width that see T1ce too, and are distilled on WT"
  ),
  "classes": Recipe("the default, distilled over all classes", "", _ALL_CLASSES),
  "as_wide": Recipe("the default; its teachers have as many channels as the student", "", _AS_WIDE),
  "quarter": Recipe("the default; its teachers have a quarter of the channels", "", _QUARTER),
  "strong": Recipe("as_wide with four times the weight of the teachers", "", _AS_WIDE | _STRONG),
  "fused_teacher": Recipe(
    "as_wide; CDSFL's fused logits are a teacher, too, with the weight of all others",
    "",
    _AS_WIDE | {"loss.fused_teacher": 0.5},
  ),
  "best_detached": Recipe(
    "the default; its teachers do not learn from CDSFL", "", {"model.fusion_detached": True}
  ),
  "cross_fit": Recipe(
    "the default; of a case the student hears teachers who have not trained on it", "cross_fit"
  ),
  "cross_fit_strong": Recipe(
    "cross_fit with four times the weight of the teachers", "cross_fit", _STRONG
  ),
  "no_fusion": Recipe("the default without CDSFL", "", {"model.fusion_levels": 0}),
  "no_kd": Recipe(
    "the default without any KD term: the deep supervision of its student alone",
    "",
    {
      "confidence.total": 0.0,
      "loss.side.level1.kd": 0.0,
      "loss.side.level2.kd": 0.0,
    },
  ),
  "response": Recipe("response KD by confidence", "mtcm_kd", {"model.fusion_levels": 0}),
  "cdsfl": Recipe("response KD and CDSFL, each teacher sees its own sequence: MTCM-KD", "mtcm_kd"),
  "two_level": Recipe("CDSFL at two levels", "mtcm_kd,two_level"),
  "detached": Recipe(
    "CDSFL from which teachers do not learn", "mtcm_kd", {"model.fusion_detached": True}
  ),
  "balanced": Recipe(
    "cdsfl, KD balanced over the classes", "mtcm_kd", {"loss.kd_where": "balanced"}
  ),
  "region_wise": Recipe(
    "cdsfl, KD and confidence by region",
    "mtcm_kd",
    {"loss.kd_targets": "regions", "confidence.by": "region"},
  ),
  "above_student": Recipe(
    "region_wise, only from teachers that score above the student",
    "mtcm_kd",
    {
      "loss.kd_targets": "regions",
      "confidence.by": "region",
      "confidence.above_student": True,
    },
  ),
  "gated": Recipe(
    "above_student and balanced at T = 2, a teacher that sees all, losses over the regions",
    "plus_all",
    {
      **_REGION_LOSSES,
      "model.teachers": {
        **_OWN["model.teachers"],
        "all": MODALITIES,
      },
      "loss.kd_targets": "regions",
      "loss.kd_regions": tuple(REGIONS),
      "loss.kd_where": "balanced",
      "loss.temperature": 2.0,
      "loss.supervised": 0.75,
      "loss.kd_ramp_epochs": 0.0,
      "confidence.by": "region",
      "confidence.above_student": True,
    },
  ),
  "voxel_wise": Recipe("cdsfl, confidence by voxel", "mtcm_kd", {"confidence.by": "voxel"}),
  "privileged": Recipe(
    "cdsfl, each teacher sees T1ce too",
    "mtcm_kd",
    {"model.teachers": {name: (name, "t1ce") for name in ("flair", "t2", "t1")}},
  ),
  "regions_alone": Recipe(
    "the student alone, losses over the regions and deep supervision",
    ALONE,
    _REGION_LOSSES,
  ),
  "regions": Recipe("classes, with these losses", "", _REGION_LOSSES | _ALL_CLASSES),
  "regions_own": Recipe(
    "regions, each teacher sees its own sequence alone", "", _REGION_LOSSES | _ALL_CLASSES | _OWN
  ),
  "plus_all": Recipe("the default and a teacher that sees all sequences", "plus_all"),
  "from_all": Recipe(
    "response KD of one teacher that sees all", "from_all", {"model.fusion_levels": 0}
  ),
  "kd_net": Recipe(
    "KD-Net's style: soft labels, bottleneck of one teacher that sees all", "kd_net"
  ),
  "proto_kd": Recipe(
    "ProtoKD's style: soft labels, prototypes of one teacher that sees all", "proto_kd"
  ),
  PAPER: Recipe("the published protocol; on this size's grid with --size=cpu", PAPER),
}


class Size(NamedTuple):
  """What one machine can do.

  Attributes:
    preset: of kd_jax/settings/presets.py, without variants.
    settings: dotted names -> values, applied after a recipe's variants.
    test_cases: generated cases to score on: indices, of the training cases' seed.
    paper_grid: whether `paper` is run on the published grid; else on this size's.
    recipes: those that are run when none are named.
  """

  preset: str
  settings: Overrides
  test_cases: range
  paper_grid: bool
  recipes: Sequence[str]


SIZES = {
  "cpu": Size(
    "quickstart",
    {
      "data.demo_cases": 72,
      "data.root": "runs/ablation-cpu/demo",
      "data.cache": "runs/ablation-cpu/cache",
      "data.folds": 3,
      "train.epochs": 10,
      "train.steps_per_epoch": 40,
      "optim.ema_decay": 0.98,
    },
    test_cases=range(144, 216),  # earlier ones were used while recipes were tried
    paper_grid=False,
    recipes=(ALONE, "best", "classes", "cdsfl", "kd_net", "proto_kd", PAPER),
  ),
  "gpu": Size(
    "brats21",
    {"data.cache": "runs/ablation-gpu/cache", "train.epochs": 100},
    test_cases=range(0),
    paper_grid=True,
    recipes=tuple(RECIPES),
  ),
  "patients": Size(  # the rest depends on the machine: patients.py
    "brats21",
    {
      "data.cache": "runs/ablation-patients/cache",
      "data.folds": 4,
      "data.workers": 0,
      "train.steps_per_epoch": 100,
      "optim.ema_decay": 0.995,
    },
    test_cases=range(0),
    paper_grid=False,
    recipes=("best", ALONE),
  ),
}


def settings_of(
  size: Size,
  name: str,
  seed: int,
  data: Path | None,
  epochs: int | None = None,
  folds: int | None = None,
) -> Settings:
  """The settings of one run.

  Args:
    data: a folder of BraTS cases; None: generated ones.
    epochs, folds: None: those of the size.

  Raises:
    ConfigError: an unknown recipe, or a value that is not allowed.
  """
  if name not in RECIPES:
    raise ConfigError(did_you_mean("recipe", name, tuple(RECIPES)))
  recipe = RECIPES[name]
  own = dict(_grid_of(size)) if name == PAPER and not size.paper_grid else {}
  own |= {**size.settings, **recipe.settings, "seed": seed, "name": f"{name}-{seed}"}
  if data:
    own |= {"data.root": str(data), "data.demo_cases": 0}
  if epochs:
    own["train.epochs"] = epochs
  if folds:
    own["data.folds"] = folds
  settings = presets.settings(f"{size.preset}:{recipe.variants}", own)
  every = {"train.validate_every": settings.train.epochs}  # nothing is chosen by validation
  return presets.override(settings, {**every, "train.validate_cases": 0})


def _grid_of(size: Size) -> Overrides:
  """The size's own grid, patches and window, for a variant that changes them."""
  usual = presets.settings(size.preset)
  names = ("grid", "patch", "foreground_oversampling", "batch")
  own = {f"data.{name}": getattr(usual.data, name) for name in names}
  return {**own, "inference.window": usual.inference.window}
