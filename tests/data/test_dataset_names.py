"""From settings to cases: what is under the root, and what the user is told of it."""

import pytest
from synthetic import make_case

from kd_jax.data import dataset
from kd_jax.runtime.errors import UserError
from kd_jax.settings.data import DataSettings
from kd_jax.tasks.names import MODALITIES


def settings(tmp_path, **more) -> DataSettings:
  cache = str(tmp_path / "cache")
  return DataSettings(root=str(tmp_path / "data"), cache=cache, prepare_workers=1, **more)


def quiet(label):
  return lambda done, total, name: None


def prepare(tmp_path, **more):
  """(ready cases, bad cases, what is said of names)."""
  own = settings(tmp_path, **more)
  found, lines = dataset.find(own, quiet)
  entries, bad = dataset.prepare(own, MODALITIES, found.cases, quiet)
  return sorted(entries), [error.case for error in found.errors + bad], lines


def test_images_that_are_no_cases_are_bad_and_files_beside_cases_are_told(tmp_path):
  make_case(tmp_path / "data" / "A")
  (tmp_path / "data" / "A" / "A_mask.nii.gz").touch()
  (tmp_path / "data" / "B").mkdir()
  (tmp_path / "data" / "B" / "scan.nii.gz").touch()
  ready, bad, told = prepare(tmp_path)
  assert (ready, bad) == (["A"], ["scan"])
  assert told == ["1 other files beside the cases are not read: A/A_mask.nii.gz"]
  with pytest.raises(UserError, match=r"1 case cannot be used:(.|\n)*scan.nii.gz"):
    dataset.report(settings(tmp_path), MODALITIES, quiet, told.append)


def test_a_folder_where_nothing_is_understood_names_what_is_there(tmp_path):
  (tmp_path / "data").mkdir()
  (tmp_path / "data" / "scan.nii.gz").touch()
  with pytest.raises(UserError, match=r"scan.nii.gz\): its name does not say which sequence"):
    prepare(tmp_path)


def test_names_that_look_like_time_points_are_told_until_a_table_says_whose_they_are(tmp_path):
  names = ("A_1", "A_2", "B_1", "B_2")
  for seed, name in enumerate(names):
    make_case(tmp_path / "data" / name, seed=seed)
  told = prepare(tmp_path)[2]
  assert len(told) == 1 and "look like time points" in told[0] and "A_1, A_2, B_1, B_2" in told[0]
  rows = "".join(f"{name},{name[0]}\n" for name in names)
  (tmp_path / "who.csv").write_text("case,patient\n" + rows)
  more = {"patients": str(tmp_path / "who.csv"), "folds": 2}
  assert prepare(tmp_path, **more)[2] == []
  choice = dataset.choose(settings(tmp_path, **more), None, quiet)
  assert sorted(name[0] for name in choice.val) in (["A", "A"], ["B", "B"])
  (tmp_path / "who.csv").write_text("case,patient\nA_1,A\nA_2,A\nB_1,B\n")
  assert "lacks 1 cases, whose names tell the patient: B_2" in prepare(tmp_path, **more)[2][0]


def test_a_table_of_other_cases_is_refused(tmp_path):
  make_case(tmp_path / "data" / "A_1")
  (tmp_path / "who.csv").write_text("case,patient\nA_1.nii.gz,A\n")
  with pytest.raises(UserError, match=r"names no case of .*it has A_1.nii.gz, .* called A_1;"):
    prepare(tmp_path, patients=str(tmp_path / "who.csv"))


def test_names_of_files_can_be_explained(tmp_path):
  folder = make_case(tmp_path / "data" / "A")
  for modality, name in (("t1ce", "post"), ("t1", "pre")):
    (folder / f"A_{modality}.nii.gz").rename(folder / f"axial_{name}.nii.gz")
  assert prepare(tmp_path)[:2] == ([], ["A", "A"])
  ready, bad, _ = prepare(tmp_path, names='{"t1ce": "*post", "t1": "*pre"}')
  assert (ready, bad) == (["A"], [])


def test_a_run_does_not_begin_while_something_is_missed(tmp_path):
  for seed in range(3):
    make_case(tmp_path / "data" / f"C{seed}", seed=seed)
  (tmp_path / "data" / "D").mkdir()
  (tmp_path / "data" / "D" / "scan.nii.gz").touch()
  with pytest.raises(UserError, match=r"1 case cannot be used:(.|\n)*scan.nii.gz"):
    dataset.choose(settings(tmp_path, folds=2), None, quiet)
  assert not (tmp_path / "cache").exists()
  choice = dataset.choose(settings(tmp_path, folds=2, skip_bad_cases=True), None, quiet)
  assert [error.case for error in choice.bad] == ["scan"]
