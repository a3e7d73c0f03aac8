"""Configurations: all variants are valid, and what is wrong is named."""

import dataclasses
import importlib
import itertools
import json

import pytest

from configs import common
from kd_jax.method.objective import LossSettings
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import config as config_lib

NAMES = ("brats18", "brats19", "brats20", "brats21", "brats23", "quickstart")


def get(name: str, arg: str = ""):
  return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_parses_and_survives_json(name):
  config = get(name)
  typed = config_lib.parse(config)
  assert typed.name == name
  assert config_lib.parse(json.loads(json.dumps(config_lib.to_dict(config)))) == typed


@pytest.mark.parametrize("arg", [*common.VARIANTS, "paper,t1,two_level,cbam", "student_only,cbam"])
def test_every_variant_parses(arg):
  typed = config_lib.parse(get("brats21", arg))
  assert typed.name == "brats21-" + "-".join(arg.split(","))


def test_the_order_of_variants_does_not_matter():
  for one, other in itertools.combinations(("paper", "t1", "two_level"), 2):
    a, b = (config_lib.to_dict(get("brats21", arg)) for arg in (f"{one},{other}", f"{other},{one}"))
    assert set(config_lib.differences(a, b)) == {"name"}


def test_the_paper_s_numbers():
  """METHOD §2 and §3."""
  typed = config_lib.parse(get("brats21", "paper,two_level"))
  assert (typed.optim.student.learning_rate, typed.optim.student.beta1) == (4e-6, 0.95)
  assert (typed.optim.cohort.learning_rate, typed.optim.cohort.beta1) == (1e-4, 0.9)
  assert typed.optim.student.schedule == "plateau"
  assert (typed.loss.dice_reduction, typed.loss.kd_reduction) == ("slice", "voxel_sum")
  assert (typed.loss.targets, typed.loss.temperature, typed.loss.supervised) == (
    "classes",
    20,
    0.75,
  )
  assert not any(typed.loss.deep_supervision.values())
  assert typed.model.teachers == {name: (name,) for name in ("flair", "t2", "t1")}
  assert (typed.loss.temperature, typed.loss.supervised) == (20.0, 0.75)
  assert typed.loss.cooperative == {"level1": 0.08, "level2": 0.05}
  side = typed.loss.side["level2"]
  assert (side.total, side.supervised, side.kd) == (0.03, 0.6, 0.4)
  assert (typed.confidence.total, typed.confidence.score) == (0.15, "slice_dice")
  assert (typed.confidence.update, typed.data.batch, typed.train.epochs) == ("epoch", 1, 25)
  assert (typed.data.folds, typed.data.folds_seed) == (5, 20)
  assert not typed.augment.any
  assert typed.model.filters == (32, 64, 128, 256) and typed.model.fusion_levels == 2


@pytest.mark.parametrize("name", ["flip", "spatial", "intensity", "artefact"])
def test_each_probability_alone_asks_for_augmentation(name):
  none = config_lib.parse(get("brats21", "paper")).augment
  assert dataclasses.replace(none, **{name: 0.1}).any


def test_the_t1_student_hears_t1ce_and_is_scored_on_two_regions():
  typed = config_lib.parse(get("brats21", "mtcm_kd,t1"))
  assert typed.model.student == ("t1",)
  assert typed.model.teachers == {"flair": ("flair",), "t2": ("t2",), "t1ce": ("t1ce",)}
  assert typed.confidence.regions == ("WT", "TC")


def test_the_published_terms_are_the_settings_defaults():
  typed = config_lib.parse(get("brats21", "mtcm_kd"))
  assert typed.loss == LossSettings()
  assert typed.model.teachers == {name: (name,) for name in ("flair", "t2", "t1")}


def test_teachers_see_what_the_student_sees():
  typed = config_lib.parse(get("brats21", "plus_all"))
  assert typed.model.teachers == {
    "flair": ("flair", "t1ce"),
    "t2": ("t2", "t1ce"),
    "t1": ("t1", "t1ce"),
    "all": ("flair", "t1", "t1ce", "t2"),
  }
  typed = config_lib.parse(get("brats21", "t1"))
  assert typed.model.teachers["t1ce"] == ("t1ce", "t1")


def test_unknown_and_contradicting_variants():
  with pytest.raises(ConfigError, match=r"unknown variant 'papr'; known: paper, .*from_all"):
    get("brats21", "papr")
  with pytest.raises(ConfigError, match="student_only and from_t2"):
    get("brats21", "student_only,from_t2")


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("data.patch", (100, 128, 128), "multiple"),
    ("data.patch", (128, 128), "expected 3 values"),
    ("data.tumour", 1.5, "between 0 and 1"),
    ("data.tumour", float("nan"), "between"),
    ("data.batch", 0, "data.batch"),
    ("data.labels", "brats1999", "brats2018"),
    ("data.normalise", "max", "zscore"),
    ("data.spacing", 0.0, "spacing"),
    ("model.student", ("t1c",), "t1ce"),
    ("model.student", (), "student"),
    ("model.filters", (30, 64, 128, 256), "group norm"),
    ("model.fusion_levels", 3, "fusion_levels"),
    ("model.attention", "none", "cbam"),
    ("model.dtype", "float16", "bfloat16"),
    ("loss.kd_reduction", "sum", "voxel_mean"),
    ("loss.supervised", float("inf"), "loss.supervised"),
    ("loss.targets", "organs", "regions"),
    ("loss.kd_where", "skull", "brain"),
    ("loss.prototype", -1.0, "loss.prototype"),
    ("loss.deep_supervision", {"level1": 0.1}, "deep_supervision.level2 is missing"),
    ("loss.deep_supervision", {"level1": 0.1, "level2": 0.1, "level3": 1.0}, "level1"),
    ("confidence", {"by": "voxel"}, "kd_targets"),
    ("loss.kd_regions", ("AT",), "WT"),
    ("loss.kd_targets", "classes", 'kd_targets = "regions"'),
    ("loss.kd_regions", ("WT", "TC", "WT"), "twice"),
    ("loss.kd_regions", (), "WT"),
    ("confidence.by", "patient", "voxel"),
    ("confidence", {"by": "voxel", "above_student": True}, "above_student"),
    ("model.teacher_side_heads", 3, "teacher_side_heads"),
    ("optim.cohort.algorithm", "lion", "adamw"),
    ("confidence.regions", ("AT",), "WT"),
    ("confidence.score", "dice", "soft_dice"),
    ("optim.student.schedule", "cosine", "warmup_cosine"),
    ("optim.student.learning_rate", -1.0, "learning_rate"),
    ("optim.ema_decay", 1.0, "ema_decay"),
    ("predict.mode", "tiles", "sliding"),
    ("predict.smallest_et", -2.0, "smallest_et"),
    ("predict.smallest_et", float("nan"), "smallest_et"),
    ("predict.smallest_island", -2.0, "smallest_island"),
    ("train.epochs", 0, "train.epochs"),
    ("train.accumulate", 3, "does not divide data.batch = 2"),
    ("train.remat", "blocks", "norms"),
    ("train.epochs", 2.5, "of type int"),
    ("augment.flip", 2.0, "augment.flip"),
    ("augment.spatial", -0.1, "augment.spatial"),
    ("augment.artefact", 1.5, "augment.artefact"),
    ("augment.elastic", 20.0, "augment.elastic"),
    ("augment.lowres", 0.0, "augment.lowres"),
  ],
)
def test_impossible_settings_are_named(name, value, message):
  raw = config_lib.to_dict(get("brats21"))
  *sections, key = name.split(".")
  section = raw
  for part in sections:
    section = section[part]
  section[key] = section[key] | value if isinstance(value, dict) and key == "confidence" else value
  with pytest.raises(ConfigError, match=message):
    config_lib.parse(raw)


def test_unknown_and_missing_settings_are_named():
  raw = config_lib.to_dict(get("brats21"))
  raw["loss"]["temprature"] = 3.0
  with pytest.raises(ConfigError, match=r"config\.loss\.temprature.*temperature"):
    config_lib.parse(raw)
  del raw["loss"]["temprature"], raw["loss"]["temperature"]
  with pytest.raises(ConfigError, match=r"config\.loss\.temperature is missing"):
    config_lib.parse(raw)


def test_a_teacher_cannot_be_named_student():
  raw = config_lib.to_dict(get("brats21"))
  raw["model"]["teachers"] = {"student": ["flair"]}
  with pytest.raises(ConfigError, match="cannot be named student"):
    config_lib.parse(raw)


def test_settings_that_may_change_exist(tmp_path):
  flat = config_lib.differences({}, config_lib.to_dict(get("brats21")))
  assert set(config_lib.MAY_CHANGE) <= set(flat)


def test_resuming_lists_what_may_not_change(tmp_path):
  old, new = (config_lib.to_dict(get("brats21", arg)) for arg in ("", "cbam"))
  new["train"]["epochs"] = 10
  with pytest.raises(ConfigError) as error:
    config_lib.check_resumable(old, new, tmp_path)
  assert "model.attention: was 'channel', now 'cbam'" in str(error.value)
  assert "epochs" not in str(error.value)
  new["model"]["attention"] = "channel"
  assert "train.epochs: was 300, now 10" in config_lib.check_resumable(old, new, tmp_path)


def test_teachers_that_differ_count_as_a_difference():
  old, new = (config_lib.to_dict(get("brats21", arg)) for arg in ("", "student_only"))
  assert any(name.startswith("model.teachers") for name in config_lib.differences(old, new))
