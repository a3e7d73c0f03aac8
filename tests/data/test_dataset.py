"""Which cases a run works with: chosen before any is prepared, and named if they are left out."""

import dataclasses
import json

import pytest
from synthetic import LARGE, make_case

from kd_jax.data import dataset
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.settings.data import DataSettings
from kd_jax.tasks.names import MODALITIES

G = [f"BraTS-GLI-{p:05d}-{t}" for p in range(4) for t in (100, 101)]


def quiet(_):
  return lambda *_: None


@pytest.fixture
def settings(tmp_path):
  """Of a data folder with eight cases of four patients, whose files are empty."""
  for name in G:
    add(tmp_path / "data", name)
  return DataSettings(str(tmp_path / "data"), cache=str(tmp_path / "cache"), folds=2)


def add(root, name):
  (root / name).mkdir(parents=True)
  for kind in ("t2f", "t1n", "t1c", "t2w", "seg"):
    (root / name / f"{name}-{kind}.nii.gz").touch()


def on_folds(choice):
  """What is said of cases in no fold; of label maps, other tests ask."""
  return [line for line in choice.lines if "fold" in line]


def given(settings, tmp_path, content):
  (tmp_path / "given.json").write_text(json.dumps(content))
  return dataclasses.replace(settings, folds_file=str(tmp_path / "given.json"))


def test_the_cases_that_a_file_leaves_out_are_named(settings, tmp_path):
  files = given(settings, tmp_path, [{"train": G[:4], "val": G[4:6]}])
  choice = dataset.choose(files, None, quiet)
  assert (choice.train, choice.val) == (G[:4], G[4:6])
  (line,) = on_folds(choice)
  assert line.startswith(f"hold-out: 2 of 8 cases are not in fold 0 of {tmp_path / 'given.json'}")
  assert f": {G[6]}, {G[7]}; " in line and "--split=holdout" in line


def test_where_all_are_in_a_fold_nothing_is_said(settings):
  choice = dataset.choose(settings, None, quiet)
  assert on_folds(choice) == [] and sorted(choice.train + choice.val) == G


def test_a_scan_of_a_patient_who_is_used_is_no_holdout(settings, tmp_path):
  files = given(settings, tmp_path, {"train": G[:4], "val": [*G[4:6], G[6]]})
  with pytest.raises(UserError, match=rf"patients that fold 0 .*: {G[7]}; move all") as e:
    dataset.choose(files, None, quiet)
  assert "given.json" in str(e.value)


@pytest.mark.parametrize("made", [True, False], ids=["by seed", "given"])
def test_cases_that_are_added_later_are_named_and_not_used(settings, tmp_path, made):
  if not made:
    settings = given(settings, tmp_path, {"train": G[:4], "val": G[4:]})
  before = dataset.choose(settings, None, quiet)
  stored = tmp_path / "folds.json"
  stored.write_text(json.dumps(before.folds))
  add(tmp_path / "data", "BraTS-GLI-00009-100")
  add(tmp_path / "data", "BraTS-GLI-00000-102")
  after = dataset.choose(settings, stored, quiet)
  assert (after.train, after.val) == (before.train, before.val)
  new, related = on_folds(after)
  assert "hold-out: 1 of 10 cases" in new and "BraTS-GLI-00009-100" in new and "folds.json" in new
  assert "no hold-out" in related and "BraTS-GLI-00000-102" in related


@pytest.mark.parametrize(
  ("changes", "content", "message"),
  [
    ({"fold": 3}, [{"train": G[:4], "val": G[4:]}], "fold = 3: there is only fold 0"),
    ({"fold": 2}, {"folds": [G[:4], G[4:]]}, "fold = 2: there are folds 0 to 1"),
    ({}, {"train": G[:4], "val": ["BraTS-GLI-00002-100-t1c.nii.gz"]}, f"write '{G[4]}' for"),
    ({}, {"train": G[:3], "val": G[3:]}, "both training and validation"),
    ({"folds": 5}, None, "4 patients cannot fill 5 folds"),
    ({"root": "nowhere"}, None, "no data folder nowhere"),
  ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
  settings, tmp_path, changes, content, message
):
  if content is not None:
    settings = given(settings, tmp_path, content)
  settings = dataclasses.replace(settings, **changes)
  there = sorted(path.name for path in tmp_path.iterdir())
  with pytest.raises(UserError, match=message):
    dataset.choose(settings, None, quiet)
  assert sorted(path.name for path in tmp_path.iterdir()) == there


def test_a_fold_that_is_not_in_the_file_is_said_before_the_data_is_looked_for(tmp_path):
  (tmp_path / "f.json").write_text('{"train": ["A"], "val": ["B"]}')
  settings = DataSettings("nowhere", folds_file=str(tmp_path / "f.json"), fold=1)
  with pytest.raises(ConfigError, match="only fold 0"):
    dataset.choose(settings, None, quiet)


def test_only_cases_that_a_fold_names_are_prepared(tmp_path):
  """A hold-out may be broken, or without a label map: that is for its evaluation to say."""
  for seed, name in enumerate("ABC"):
    make_case(tmp_path / "data" / name, seed=seed, affine=LARGE)
  (tmp_path / "data" / "C" / "C_seg.nii.gz").write_bytes(b"broken")
  settings = DataSettings(
    str(tmp_path / "data"), cache=str(tmp_path / "cache"), spacing=3.0, prepare_workers=1
  )
  settings = given(settings, tmp_path, {"train": ["A"], "val": ["B"]})
  choice = dataset.choose(settings, None, quiet)
  opened = dataset.open_dataset(settings, MODALITIES, choice, quiet)
  assert sorted(opened.entries) == sorted(opened.cases) == ["A", "B"] and not opened.bad
  both = given(settings, tmp_path, {"folds": [["A"], ["B", "C"]]})
  with pytest.raises(UserError, match="1 case cannot be used"):
    dataset.open_dataset(both, MODALITIES, dataset.choose(both, None, quiet), quiet)


def test_prepare_checks_a_file_of_folds_before_its_work(settings, tmp_path):
  files = given(settings, tmp_path, {"train": G[:3], "val": G[3:]})
  with pytest.raises(UserError, match="both training and validation"):
    dataset.report(files, MODALITIES, quiet, print)
  assert not (tmp_path / "cache").exists()


@pytest.fixture
def twice(tmp_path):
  """Of four cases, two of which are one scan under the names of two patients."""
  for name, seed in (("A_0001", 1), ("B_0001", 1), ("C", 2), ("D", 3)):
    make_case(tmp_path / "data" / name, seed=seed, affine=LARGE)
  return DataSettings(
    str(tmp_path / "data"), cache=str(tmp_path / "cache"), spacing=3.0, prepare_workers=1
  )


def opened(settings):
  told = []
  dataset.open_dataset(
    settings, MODALITIES, dataset.choose(settings, None, quiet), quiet, told.append
  )
  return told


def test_one_scan_in_training_and_validation_is_refused_before_training(twice, tmp_path):
  parted = given(twice, tmp_path, {"train": ["A_0001", "C"], "val": ["B_0001", "D"]})
  message = (
    r"training and validation share images: A_0001 and B_0001 \(flair\)(.|\n)*data\.patients"
  )
  with pytest.raises(UserError, match=message):
    opened(parted)
  with pytest.raises(UserError, match=message):
    dataset.report(parted, MODALITIES, quiet, lambda line: None)
  (tmp_path / "p.csv").write_text("case,patient\nA_0001,A\nB_0001,A\nC,C\nD,D\n")
  told = opened(dataclasses.replace(twice, folds=2, patients=str(tmp_path / "p.csv")))
  assert not any("same image" in line for line in told)  # the remedy is one


def test_one_scan_under_two_names_on_one_side_is_told(twice, tmp_path):
  together = given(twice, tmp_path, {"train": ["A_0001", "B_0001"], "val": ["C", "D"]})
  prepared: list[str] = []
  dataset.report(twice, MODALITIES, quiet, prepared.append)  # which knows of no split
  for told in (opened(together), prepared):
    (line,) = (line for line in told if "A_0001 and B_0001" in line)
    assert line.startswith("warning: 1 pairs of cases have the same image")


def test_sequences_that_no_case_has_are_named_with_recipes_that_read_less(tmp_path):
  for i in range(2):
    folder = make_case(tmp_path / "data" / f"P{i}", seed=i)
    for kind in ("flair", "t2"):
      (folder / f"P{i}_{kind}.nii.gz").unlink()
  settings = DataSettings(str(tmp_path / "data"), cache=str(tmp_path / "cache"), spacing=3.0)
  with pytest.raises(
    UserError, match=r"No case has flair or t2\. Mend them, or .* student_only reads .* from_t1"
  ):
    dataset.report(settings, MODALITIES, quiet, lambda line: None)
  ready: list[str] = []
  dataset.report(settings, ("t1", "t1ce"), quiet, ready.append)
  assert "2 of 2 cases are ready" in ready[-1]
