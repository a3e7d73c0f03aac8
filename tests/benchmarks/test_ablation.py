"""The ablation: recipes that are possible, and a table that says what the runs found."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import ablation
from benchmarks.ablations import (
  patient_summary,
  patient_tables,
  patients,
  recipes,
  records,
  runs,
  tables,
)
from kd_jax.metrics.case import columns
from kd_jax.prediction.postprocess import NO_POSTPROCESSING
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.settings.inference import BY_VALIDATION, MinimumSizes
from kd_jax.settings.run import to_dict


@pytest.mark.parametrize("size", recipes.SIZES)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_possible(size, name):
  """With and without one's own data; no checkpoint is chosen by validation."""
  settings = recipes.settings_of(recipes.SIZES[size], name, 3, None)
  assert settings.seed == 3
  chosen = NO_POSTPROCESSING if name == "paper" else MinimumSizes(BY_VALIDATION, BY_VALIDATION)
  assert settings.inference.minimum_sizes == chosen
  assert settings.train.validate_every == settings.train.epochs
  assert (not settings.model.teachers) == (name in (recipes.ALONE, "regions_alone"))
  assert settings.data.grid == ("paper" if (size, name) == ("gpu", "paper") else "brain")


def test_epochs_can_be_others():
  settings = recipes.settings_of(recipes.SIZES["cpu"], "best", 0, None, 40)
  assert (settings.train.epochs, settings.train.validate_every) == (40, 40)


def test_ones_own_data_replaces_the_demonstration(tmp_path):
  settings = recipes.settings_of(recipes.SIZES["cpu"], "cdsfl", 0, tmp_path)
  assert (settings.data.root, settings.data.demo_cases) == (str(tmp_path), 0)


def test_recipes_differ_from_each_other():
  seen = []
  for name in recipes.RECIPES:
    settings = to_dict(recipes.settings_of(recipes.SIZES["cpu"], name, 0, None))
    del settings["name"]
    assert settings not in seen, name
    seen.append(settings)


def test_an_unknown_recipe_is_named():
  with pytest.raises(ConfigError, match="cdsfl"):
    recipes.settings_of(recipes.SIZES["cpu"], "cdfsl", 0, None)


def made_up(folder, name, seed, by_case, seconds):
  """A finished run whose Dice of each region and case is known; HD95 is ten times the Dice."""
  run = folder / name / f"seed{seed}"
  run.mkdir(parents=True)
  lines = [",".join(["case", *columns()])]
  for case, dice in by_case.items():
    values = [10 * dice if c.startswith("hd95") else dice for c in columns()]
    lines.append(",".join([case, *map(str, values)]))
  (run / "scores.csv").write_text("\n".join(lines) + "\n")
  numbers = [
    {"step": 1, "train/seconds_per_step": seconds, "train/memory/process_gb": 1.5},
    {"step": 2, "val/dice/student/WT": dice, "val/dice/student/TC": 0.1, "val/dice/student/ET": 0},
  ]
  (run / "metrics.jsonl").write_text("".join(json.dumps(n) + "\n" for n in numbers))
  start = {"git": {"commit": "c", "modified": False}, "packages": {"jax": "1"}, "devices": {}}
  (run / "run.json").write_text(json.dumps({"starts": [start]}))
  records.record_file(run).write_text(json.dumps(records.record_of(run)))
  shutil.rmtree(run)  # the table needs the records alone


def test_the_table_pairs_cases_and_spreads_over_seeds(tmp_path):
  made_up(tmp_path, recipes.ALONE, 0, {"a": 0.5, "b": 0.7}, 0.1)
  made_up(tmp_path, recipes.ALONE, 1, {"a": 0.6, "b": 0.8}, 0.1)
  made_up(tmp_path, "cdsfl", 0, {"b": 0.8, "a": 0.7}, 0.4)
  made_up(tmp_path, "cdsfl", 1, {"a": 0.8, "b": 0.7}, 0.6)
  made_up(tmp_path, "cdsfl", 2, {"a": 0.9, "b": 0.9}, 0.5)  # no partner yet
  alone, cdsfl = tables.summary_of(tmp_path, [recipes.ALONE, "response", "cdsfl"], range(3))
  assert (alone["seeds"], cdsfl["seeds"]) == (2, 3)
  assert alone["dice_WT"]["mean"] == pytest.approx(0.65)
  assert alone["dice_WT"]["sd_over_seeds"] == pytest.approx(0.1 / 2**0.5)
  assert alone["hd95_mm_ET"]["mean"] == pytest.approx(6.5)
  against = cdsfl["dice_TC"]["against"]
  assert against["n"] == 2  # cases: a 0.55 -> 0.75, b 0.75 -> 0.75
  assert against["difference"] == pytest.approx(0.1)
  assert (against["better"], against["equal"]) == (1, 1)
  assert cdsfl["dice_TC"]["against_by_seed"] == pytest.approx([0.15, 0.05])
  assert cdsfl["seconds_per_step"] == 0.5
  assert cdsfl["networks"]["student"]["TC"] == pytest.approx(0.1)
  text = tables.write_tables(tmp_path, [recipes.ALONE, "cdsfl"], range(3))
  assert "65.0 ± 7.1" in text
  assert "+10.0" in text
  # By hand: mean 10, sd 7.071, t(0.975, 1) = 12.706, so 10 -+ 12.706 * 7.071 / sqrt(2).
  assert "+15.0 +5.0 [-53.5, +73.5]" in text
  # HD95 is ten times the Dice: 1.5 and 0.5 mm, a mean of 1, and a tenth of that interval.
  hd95 = text.partition("HD95 against student_only, mm")[2]
  assert "+1.0 [" in hd95.partition("HD95 seed by seed")[0]
  assert "+1.5 +0.5 [-5.4, +7.4]" in hd95
  assert (tmp_path / "ablation.md").read_text() == f"```\n{text}```\n"


def test_postprocessed_scores_have_tables_of_their_own(tmp_path):
  """Of the seeds whose records have them; a run from before that has none."""
  rows = [("best", 0, 0.3), ("best", 1, 0.4), ("cdsfl", 0, None)]
  for name, seed, gain in rows:
    made_up(tmp_path, name, seed, {"a": 0.5, "b": 0.6}, 0.1)
    made_up(tmp_path, recipes.ALONE, seed, {"a": 0.5, "b": 0.7}, 0.1) if name == "best" else None
    for recipe, plus in ((name, gain), (recipes.ALONE, 0.1)) if gain else ():
      path = records.record_file(tmp_path / recipe / f"seed{seed}")
      record = json.loads(path.read_text())
      cleaned = {case: [x + plus for x in scores] for case, scores in record["scores"].items()}
      record |= {"cleaned": cleaned, "smallest": {"island": 500.0 * seed, "et": 50.0}}
      path.write_text(json.dumps(record))
  alone, best, cdsfl = tables.summary_of(tmp_path, [recipes.ALONE, "best", "cdsfl"], range(3))
  assert "cleaned" not in cdsfl
  assert best["dice_WT"]["mean"] == pytest.approx(0.55)
  assert best["cleaned"]["dice_WT"]["mean"] == pytest.approx(0.55 + 0.35)
  assert alone["cleaned"]["dice_WT"]["mean"] == pytest.approx(0.7)
  assert best["cleaned"]["dice_WT"]["against"]["difference"] == pytest.approx(0.2)
  assert best["cleaned"]["dice_WT"]["against_by_seed"] == pytest.approx([0.15, 0.25])
  text = tables.text_of([alone, best, cdsfl])
  raw, _, cleaned = text.partition("Postprocessed, with")
  assert "+20.0 [" in cleaned.partition("Dice postprocessed against")[2]
  assert "cdsfl" in raw and "cdsfl" not in cleaned.partition("Every network")[0]
  (line,) = (x for x in cleaned.splitlines() if x.startswith("best") and "90.0" in x)
  assert line.split()[-4:] == ["0", "500", "50", "50"]


def test_every_fold_is_trained_once_and_every_case_is_in_the_seeds_record(tmp_path, monkeypatch):
  """Stopped after its second fold of three, the recipe goes on with the third."""
  settings = recipes.settings_of(recipes.SIZES["cpu"], "best", 0, tmp_path, folds=3)
  seed = tmp_path / "best" / "seed0"
  trained = []

  def run(settings, folder, test):
    fold = settings.data.fold
    if len(trained) == 2 and not stopped:
      stopped.append(fold)
      raise KeyboardInterrupt
    trained.append((folder, fold, test))
    made_up(seed.parent, seed.name, fold, {f"case{fold}": 0.1 * (fold + 1)}, 0.5 + fold)
    records.record_file(seed / f"seed{fold}").rename(records.record_file(folder))

  stopped = []
  monkeypatch.setattr(runs, "run", run)
  with pytest.raises(KeyboardInterrupt):
    runs.run_folds(settings, seed)
  assert not records.record_file(seed).exists()
  runs.run_folds(settings, seed)
  assert trained == [(seed / f"fold{fold}of3", fold, None) for fold in range(3)]
  record = records.read_record(records.record_file(seed))
  assert sorted(record["scores"]) == ["case0", "case1", "case2"]
  assert record["scores"]["case2"][0] == pytest.approx(0.3)
  assert (record["steps"], record["seconds_per_step"]) == (2, 1.5)
  assert record["networks"]["student"]["WT"] == pytest.approx(0.2)


def test_folds_and_other_cases_to_score_on_exclude_each_other(tmp_path, monkeypatch):
  arguments = ["ablation.py", "--folds=3", f"--test={tmp_path}", f"--output={tmp_path}"]
  monkeypatch.setattr("sys.argv", arguments)
  with pytest.raises(SystemExit, match="--test"):
    ablation.main()


def test_recipes_are_compared_with_another_one_too(tmp_path):
  made_up(tmp_path, "best", 0, {"a": 0.5, "b": 0.7}, 0.1)
  made_up(tmp_path, "cdsfl", 0, {"a": 0.6, "b": 0.9}, 0.1)
  best, cdsfl = tables.summary_of(tmp_path, ["best", "cdsfl"], [0], against="best")
  assert "against" not in best["dice_WT"]
  assert cdsfl["dice_WT"]["against"]["difference"] == pytest.approx(0.15)
  assert "Dice against best, points" in tables.text_of([best, cdsfl], "best")


@pytest.mark.parametrize("spoil", ["steps", "scores"])
def test_records_that_do_not_belong_together_are_refused(tmp_path, spoil):
  made_up(tmp_path, "best", 0, {"a": 0.5, "b": 0.7}, 0.1)
  made_up(tmp_path, "cdsfl", 0, {"a": 0.5, "b": 0.7}, 0.1)
  path = tmp_path / "cdsfl" / "seed0.json"
  record = json.loads(path.read_text())
  if spoil == "steps":
    record["steps"] = 7
  else:
    record["scores"]["c"] = record["scores"].pop("b")
  path.write_text(json.dumps(record))
  with pytest.raises(UserError, match=r"cdsfl.seed0\.json is of \d steps.*best.seed0\.json"):
    records.read_records(tmp_path, ["best", "cdsfl"], [0])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"steps": 1}', '{"steps": 1, "scores": 3}'])
def test_what_is_no_record_is_named(tmp_path, content):
  (tmp_path / "best").mkdir()
  (tmp_path / "best" / "seed0.json").write_text(content)
  with pytest.raises(UserError, match=r"seed0\.json is no record of a run"):
    records.read_records(tmp_path, ["best"], [0])


@pytest.mark.parametrize("size", recipes.SIZES.values())
def test_no_generated_case_is_both_trained_and_scored_on(size):
  settings = recipes.settings_of(size, "best", 0, None)
  assert not set(size.test_cases) & set(range(settings.data.demo_cases))


RECORDS = Path(ablation.__file__).parent / "records"


@pytest.mark.parametrize("folder", sorted(RECORDS.iterdir()), ids=lambda folder: folder.name)
def test_a_table_that_is_kept_is_that_of_its_records(folder):
  seeds = range(3)
  if folder.name.startswith("patients"):
    names = [*recipes.RECIPES, patients.EQUAL_TIME]
    text = patient_tables.text_of(
      patient_summary.summary_of(folder, names, seeds, folds=4), folds=4
    )
  else:
    text = tables.text_of(tables.summary_of(folder, list(recipes.RECIPES), seeds))
  assert (folder / "ablation.md").read_text() == f"```\n{text}```\n"
