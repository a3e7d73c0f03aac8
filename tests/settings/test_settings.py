"""Settings: all presets are valid, and what is wrong is named."""

import dataclasses
import importlib
import itertools
import json
import typing
from pathlib import Path

import pytest

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import presets, record, run, schema
from kd_jax.settings.data import DataSettings
from kd_jax.settings.inference import BY_VALIDATION, InferenceSettings
from kd_jax.settings.method import LossSettings
from kd_jax.tasks import labels, names

ROOT = Path(__file__).parents[2]
NAMES = tuple(path.stem for path in sorted((ROOT / "configs").glob("*.py")))


def plain(preset: str) -> dict:
  return run.to_dict(presets.settings(preset))


def test_every_preset_has_a_configuration_file():
  assert set(NAMES) == set(presets.DATASETS)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_parses_and_survives_json(name):
  config = importlib.import_module(f"configs.{name}").get_config("t1")
  settings = run.parse(config)
  assert settings.name == f"{name}-t1" and settings == presets.settings(f"{name}:t1")
  assert run.parse(json.loads(json.dumps(run.to_dict(settings)))) == settings


@pytest.mark.parametrize(
  "variants", [*presets.VARIANTS, "paper,t1,two_level,cbam", "student_only,cbam"]
)
def test_every_variant_parses(variants):
  settings = presets.settings(f"brats21:{variants}")
  assert settings.name == "brats21-" + "-".join(variants.split(","))


def test_the_order_of_variants_does_not_matter():
  for one, other in itertools.combinations(("paper", "t1", "two_level"), 2):
    a, b = (presets.settings(f"brats21:{v}") for v in (f"{one},{other}", f"{other},{one}"))
    assert set(record.differences(a, b)) == {"name"}


def test_the_defaults_are_the_default_recipe():
  settings = presets.settings("brats21")
  assert settings == run.Settings(name="brats21", data=DataSettings(root="data/BraTS2021"))
  assert settings.loss == LossSettings()


def test_the_paper_s_numbers():
  """docs/method.md, "Objective"."""
  settings = presets.settings("brats21:paper,two_level")
  optim, loss = settings.optim, settings.loss
  assert (optim.student.learning_rate, optim.student.beta1) == (4e-6, 0.95)
  assert (optim.teachers.learning_rate, optim.teachers.beta1) == (1e-4, 0.9)
  assert optim.student.schedule == "plateau"
  assert (loss.dice_reduction, loss.kd_reduction) == ("slice", "voxel_sum")
  assert (loss.targets, loss.temperature, loss.supervised) == ("classes", 20, 0.75)
  assert not any(loss.deep_supervision.values())
  assert settings.model.teachers == {name: (name,) for name in ("flair", "t2", "t1")}
  assert loss.cooperative == {"level1": 0.08, "level2": 0.05}
  side = loss.side["level2"]
  assert (side.total, side.supervised, side.kd) == (0.03, 0.6, 0.4)
  assert (settings.confidence.total, settings.confidence.score) == (0.15, "slice_dice")
  assert (settings.confidence.update, settings.data.batch) == ("epoch", 1)
  assert (settings.train.epochs, settings.data.folds, settings.data.folds_seed) == (25, 5, 20)
  assert not settings.augment.any
  assert settings.model.filters == (32, 64, 128, 256) and settings.model.fusion_levels == 2


@pytest.mark.parametrize("name", ["flip", "spatial", "intensity", "artefact"])
def test_each_probability_alone_asks_for_augmentation(name):
  none = presets.settings("brats21:paper").augment
  assert dataclasses.replace(none, **{name: 0.1}).any


def test_the_t1_student_learns_from_t1ce_and_is_scored_on_two_regions():
  settings = presets.settings("brats21:mtcm_kd,t1")
  assert settings.model.student == ("t1",)
  assert settings.model.teachers == {"flair": ("flair",), "t2": ("t2",), "t1ce": ("t1ce",)}
  assert settings.confidence.regions == ("WT", "TC")


def test_published_presets_state_every_published_value():
  """Whatever the defaults become, the published method stays as it is; a weight of 0 is no term."""
  for preset in ("mtcm_kd", "paper"):
    stated = presets.VARIANTS[preset].overrides
    for setting in schema.walk(LossSettings, prefix="loss."):
      assert setting.name in stated or setting.default == 0.0, setting.name


def test_teachers_see_what_the_student_sees():
  settings = presets.settings("brats21:plus_all")
  assert settings.model.teachers == {
    "flair": ("flair", "t1ce"),
    "t2": ("t2", "t1ce"),
    "t1": ("t1", "t1ce"),
    "all": ("flair", "t1", "t1ce", "t2"),
  }
  assert presets.settings("brats21:t1").model.teachers["t1ce"] == ("t1ce", "t1")


def test_unknown_and_contradicting_presets():
  with pytest.raises(ConfigError, match=r"unknown variant 'papr'; did you mean 'paper'\? known: "):
    presets.settings("brats21:papr")
  with pytest.raises(ConfigError, match="unknown preset 'brats22'; did you mean 'brats2"):
    presets.settings("brats22")
  with pytest.raises(ConfigError, match="student_only and from_t2"):
    presets.settings("brats21:student_only,from_t2")
  with pytest.raises(ConfigError, match=r"unknown setting 'data\.fol'; did you mean 'fold'"):
    presets.settings("brats21", {"data.fol": 1})
  with pytest.raises(ConfigError, match="unknown setting 'dta'"):
    presets.settings("brats21", {"dta.fold": 1})


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("data.patch", (100, 128, 128), "multiple"),
    ("data.patch", (128, 128), "expected 3 values"),
    ("data.foreground_oversampling", 1.5, "between 0 and 1"),
    ("data.foreground_oversampling", float("nan"), "between"),
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
    ("loss.deep_supervision", {"level1": 0.1, "level2": 0.1, "level9": 1.0}, "level1"),
    ("confidence", {"by": "voxel"}, "kd_targets"),
    ("loss.kd_regions", ("AT",), "WT"),
    ("loss.kd_targets", "classes", 'kd_targets = "regions"'),
    ("loss.kd_regions", ("WT", "TC", "WT"), "twice"),
    ("loss.kd_regions", (), "one region at least"),
    ("confidence.by", "patient", "voxel"),
    ("confidence", {"by": "voxel", "above_student": True}, "above_student"),
    ("model.teacher_side_heads", 9, "teacher_side_heads"),
    ("optim.teachers.algorithm", "lion", "adamw"),
    ("confidence.regions", ("AT",), "WT"),
    ("confidence.score", "dice", "soft_dice"),
    ("optim.student.schedule", "cosine", "warmup_cosine"),
    ("optim.student.learning_rate", -1.0, "learning_rate"),
    ("optim.ema_decay", 1.0, "ema_decay"),
    ("inference.window", "tiles", "sliding"),
    ("inference.min_et_mm3", -2.0, "min_et_mm3"),
    ("inference.min_et_mm3", float("nan"), "min_et_mm3"),
    ("inference.min_component_mm3", -2.0, "min_component_mm3"),
    ("model.network", "unet", "resenc"),
    ("model.teacher_network", "unet", "same, resunet"),
    ("model.teacher_width", 0.0, "model.teacher_width"),
    ("model.filters", (8, 16, 32), "expected 4 values for the network resunet"),
    ("model", {"network": "resenc", "attention": "cbam"}, "resenc has no such gates"),
    ("model", {"teacher_network": "resenc", "attention": "cbam"}, "resenc has no such gates"),
    ("model", {"network": "resenc", "filters": (8, 8)}, "expected 3 to 7 values"),
    ("model", {"teacher_network": "resenc", "filters": (8,) * 5}, "4 values .* resunet"),
    ("model", {"network": "resenc", "filters": (8,) * 3, "fusion_levels": 2}, "fusion_levels"),
    ("model", {"network": "resenc", "filters": (8,) * 3, "teacher_side_heads": 2}, "side_heads"),
    (
      "model",
      {"network": "resenc", "filters": (8,) * 6, "teacher_side_heads": 3},
      "deep_supervision.level3 is missing",
    ),
    (
      "loss.deep_supervision",
      {"level1": 0.1, "level2": 0.1, "level3": 0.1},
      "no network has a head at level3",
    ),
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
def test_settings_that_are_not_allowed_are_named(name, value, message):
  raw = plain("brats21")
  *sections, key = name.split(".")
  section = raw
  for part in sections:
    section = section[part]
  part = isinstance(value, dict) and key in ("confidence", "model")
  section[key] = section[key] | value if part else value
  with pytest.raises(ConfigError, match=message):
    run.parse(raw)


def test_patches_suit_the_networks():
  residual = {"model.network": "resenc", "model.filters": (8, 8, 8, 16, 16, 16)}
  assert presets.settings("brats21", residual).model.multiple == 32
  with pytest.raises(ConfigError, match=r"data\.patch = .*multiple of 32"):
    presets.settings("brats21", residual | {"data.patch": (112, 128, 128)})
  assert presets.settings("brats21", residual | {"model.filters": (8,) * 4}).model.multiple == 8


def test_teachers_with_more_side_heads_have_a_weight_for_each():
  settings = presets.settings(
    "brats21",
    {
      "loss.deep_supervision": {"level1": 0.0, "level2": 0.0, "level3": 0.1},
      "model.network": "resenc",
      "model.filters": (8,) * 6,
      "model.teacher_side_heads": 3,
    },
  )
  assert settings.loss.deep_supervision["level3"] == 0.1


@pytest.mark.parametrize(
  "network, width, filters, wanted",
  [
    ("resunet", 0.5, (32, 64, 128, 256), (16, 32, 64, 128)),
    ("resunet", 0.7, (4, 8, 16, 32), (4, 8, 12, 24)),
    ("resenc", 0.5, (4, 6, 10, 12), (4, 4, 8, 8)),
    ("resenc", 1.0, (4, 6, 10, 12), (4, 6, 10, 12)),
  ],
)
def test_teachers_channels_are_rounded_up_to_what_every_network_can_have(
  network, width, filters, wanted
):
  own = {"network": network, "teacher_width": width, "filters": filters}
  settings = presets.settings("brats21", {f"model.{name}": value for name, value in own.items()})
  assert settings.model.teacher_filters == wanted


def test_narrow_teachers_are_not_compared_channel_by_channel():
  narrow = {"model.teacher_width": 0.5}
  with pytest.raises(ConfigError, match=r"loss\.bottleneck .* model\.teacher_width = 1, not 0\.5"):
    presets.settings("brats21:kd_net", narrow)


def test_runs_of_before_there_was_a_choice_of_networks_are_read(tmp_path):
  raw = plain("brats21")
  for name in ("network", "teacher_network", "teacher_width"):
    del raw["model"][name]
  (tmp_path / "config.json").write_text(json.dumps(raw))
  model = record.read(tmp_path / "config.json").model
  assert (model.network, model.teacher_network) == ("resunet", "same")
  assert model.teacher_filters == model.filters


def test_a_missing_setting_has_its_default_and_an_unknown_one_is_named():
  raw = plain("brats21:mtcm_kd")
  raw["loss"]["temprature"] = 3.0
  with pytest.raises(ConfigError, match=r"loss\.temprature'; did you mean 'temperature'"):
    run.parse(raw)
  del (
    raw["loss"]["temprature"],
    raw["loss"]["temperature"],
    raw["loss"]["deep_supervision"]["level2"],
  )
  settings = run.parse(raw)
  assert settings.loss.temperature == LossSettings().temperature
  assert settings.loss.deep_supervision["level2"] == 0.0
  with pytest.raises(ConfigError, match=r"data\.root is missing"):
    run.parse({"name": "x", "data": {}})


def test_a_record_has_the_value_that_held_before_a_setting_existed():
  """Runs of the first versions predicted without postprocessing."""
  assert schema.build(InferenceSettings, {}, recorded=True).min_et_mm3 == 0.0
  assert schema.build(InferenceSettings, {}).min_et_mm3 == BY_VALIDATION


def test_a_teacher_cannot_be_named_student():
  raw = plain("brats21")
  raw["model"]["teachers"] = {"student": ["flair"]}
  with pytest.raises(ConfigError, match="cannot be named student"):
    run.parse(raw)


def test_every_setting_says_what_it_means_and_its_default_is_allowed():
  settings = list(schema.walk(run.Settings))
  assert len(settings) > 90
  assert [s.name for s in settings if not s.words] == []
  assert {s.name for s in settings if s.free} >= {"train.epochs", "data.workers", "name"}


def test_the_page_of_settings_is_the_code_s():
  """python -m kd_jax.settings.run > docs/settings.md"""
  assert (ROOT / "docs" / "settings.md").read_text() == run.table()


def test_choices_are_those_of_the_task():
  assert typing.get_args(labels.Region) == tuple(labels.REGIONS)
  assert typing.get_args(names.Modality) == names.MODALITIES


@pytest.mark.parametrize(
  ("said", "text"),
  [
    ("auto", "auto"),
    ("brats2021", "brats2018"),
    ("msd", "msd"),
    ('{"ED":1, "NCR":2, "ET":3}', "msd"),
    ('{"ET": 2, "ED": 3, "NCR": 1}', '{"NCR": 1, "ED": 3, "ET": 2}'),
  ],
)
def test_label_conventions_have_one_text_in_the_record(tmp_path, said, text):
  settings = presets.settings("brats21", {"data.labels": said})
  assert settings.data.labels == text
  record.write(tmp_path / "config.json", settings)
  assert record.read(tmp_path / "config.json") == settings


@pytest.mark.parametrize("said", ["nnunet", '{"WT": 1}', '{"NCR": 1, "ED": 1, "ET": 3}'])
def test_label_conventions_that_do_not_exist(said):
  with pytest.raises(ConfigError, match=r"^data\.labels: "):
    presets.settings("brats21", {"data.labels": said})


def test_resuming_lists_what_may_not_change(tmp_path):
  old, new = (presets.settings(f"brats21:{v}", {"name": "same"}) for v in ("", "cbam"))
  new = presets.override(new, {"train.epochs": 10})
  with pytest.raises(ConfigError) as error:
    record.check_resumable(old, new, tmp_path)
  assert "model.attention: was 'channel', now 'cbam'" in str(error.value)
  assert "epochs" not in str(error.value)
  new = presets.override(new, {"model.attention": "channel"})
  assert "train.epochs: was 300, now 10" in record.check_resumable(old, new, tmp_path)


def test_teachers_that_differ_count_as_a_difference():
  old, new = (presets.settings(f"brats21:{v}") for v in ("", "student_only"))
  assert any(name.startswith("model.teachers") for name in record.differences(old, new))


@pytest.mark.parametrize(
  ("variants", "sequences"),
  [
    ("", ("flair", "t1", "t1ce", "t2")),
    ("student_only", ("t1ce",)),
    ("from_flair", ("flair", "t1ce")),
    ("t1,student_only", ("t1",)),
  ],
)
def test_what_a_case_must_have_is_what_networks_read(variants, sequences):
  assert presets.settings(f"brats21:{variants}").model.sequences == sequences
