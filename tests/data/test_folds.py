"""Folds: by patient, deterministic, kept in a file and checked against the cases."""

import json
import random
from pathlib import Path

import pytest

from kd_jax.data.cases import Case
from kd_jax.data.folds import make_folds, read_or_make, split
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.names import patient_of


def case(name: str) -> Case:
  return Case(name, patient_of(name), Path(name), {}, None, "brats2018")


CASES = [case(f"BraTS2021_{i:05d}") for i in range(23)]
GLI = [case(f"BraTS-GLI-{i:05d}-{t}") for i in range(7) for t in (100, 101, 102)[: 1 + i % 3]]


def names(cases):
  return sorted(c.name for c in cases)


@pytest.mark.parametrize("cases", [CASES, GLI, CASES + GLI])
@pytest.mark.parametrize("folds", [2, 5])
def test_every_case_is_validated_once_and_no_patient_on_both_sides(cases, folds):
  made = make_folds(cases, folds)
  assert sorted(name for part in made["folds"] for name in part) == names(cases)
  for k in range(folds):
    train, val = split(made, k)
    assert sorted(train + val) == names(cases)
    assert val
    assert not {patient_of(n) for n in train} & {patient_of(n) for n in val}


def test_order_of_the_cases_does_not_matter_but_the_seed_does():
  shuffled = random.Random(0).sample(CASES, len(CASES))
  assert make_folds(shuffled) == make_folds(CASES)
  assert make_folds(CASES, seed=21)["folds"] != make_folds(CASES)["folds"]


def test_deals_as_scikit_learn_does():
  """Frozen: [v for _, v in KFold(5, shuffle=True, random_state=20).split(range(23))]."""
  numbers = [[int(n[-5:]) for n in part] for part in make_folds(CASES, 5, 20)["folds"]]
  assert numbers == [
    [1, 4, 13, 17, 19],
    [14, 16, 18, 20, 21],
    [5, 8, 10, 12, 22],
    [0, 2, 6, 7],
    [3, 9, 11, 15],
  ]


def test_sizes_differ_by_one_at_most():
  assert [len(part) for part in make_folds(CASES, 5)["folds"]] == [5, 5, 5, 4, 4]


def test_too_few_patients():
  with pytest.raises(UserError, match="7 patients cannot fill 8 folds"):
    make_folds(GLI, 8)  # 13 cases, but of 7 patients
  with pytest.raises(ConfigError, match="at least 2"):
    make_folds(CASES, 1)


def test_made_once_then_read_back(tmp_path):
  path = tmp_path / "work" / "folds.json"
  made = read_or_make(path, CASES)
  assert made == make_folds(CASES) == json.loads(path.read_text())
  stamp = path.stat().st_mtime_ns
  assert read_or_make(path, CASES) == made
  assert path.stat().st_mtime_ns == stamp
  assert [p.name for p in path.parent.iterdir()] == ["folds.json"]


def test_a_changed_setting_does_not_reshuffle_a_run(tmp_path):
  path = tmp_path / "folds.json"
  read_or_make(path, CASES, folds=5, seed=20)
  for changed in ({"folds": 4}, {"seed": 21}):
    with pytest.raises(UserError, match="made with 5 folds and seed 20"):
      read_or_make(path, CASES, **changed)


A, B, C = "BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002"
THREE = CASES[:3]
FORMS = [
  ({"folds": [[A], [B], [C]]}, 1, ([A, C], [B])),
  ({"seed": 7, "folds": [[A, B], [C]]}, 0, ([C], [A, B])),
  ([{"train": [A], "val": [C, B]}, {"train": [B, C], "val": [A]}], 0, ([A], [B, C])),  # nnU-Net
  ({"train": [C, A], "val": [B]}, 0, ([A, C], [B])),
]


@pytest.mark.parametrize(("form", "fold", "expected"), FORMS)
def test_given_files_are_honoured_and_copied(tmp_path, form, fold, expected):
  (tmp_path / "given.json").write_text(json.dumps(form))
  path = tmp_path / "work" / "folds.json"
  folds = read_or_make(path, THREE, given=tmp_path / "given.json")
  assert split(folds, fold) == expected
  assert json.loads(path.read_text()) == form
  assert read_or_make(path, THREE, given=tmp_path / "given.json") == form  # and again


def test_a_given_file_cannot_replace_the_folds_of_a_run(tmp_path):
  read_or_make(tmp_path / "folds.json", THREE, folds=3)
  (tmp_path / "given.json").write_text(json.dumps(FORMS[0][0]))
  with pytest.raises(UserError, match="holds other folds"):
    read_or_make(tmp_path / "folds.json", THREE, given=tmp_path / "given.json")


@pytest.mark.parametrize("fold", [-1, 3])
def test_no_such_fold(fold):
  with pytest.raises(ConfigError, match="folds 0 to 2"):
    split(make_folds(THREE, 3), fold)


G0, G1 = "BraTS-GLI-00001-100", "BraTS-GLI-00001-101"


@pytest.mark.parametrize(
  ("content", "cases", "message"),
  [
    ({"train": [A, "Nobody"], "val": [B, C]}, THREE, "not in the data: Nobody"),
    ({"folds": [[A], [B]]}, THREE, f"in no fold of .*: {C}"),
    ([{"train": [A], "val": [B]}], THREE, f"in no fold of .*: {C}"),
    ({"train": [A, B], "val": [B, C]}, THREE, f"both training and validation of fold 0: {B}"),
    ({"folds": [[A, B], [B, C]]}, THREE, "both training and validation"),
    ({"train": [G0], "val": [G1]}, [case(G0), case(G1)], "both .*: BraTS-GLI-00001"),
    ({"train": [A, A], "val": [B, C]}, THREE, f"twice in fold 0: {A}"),
    ({"train": [A, B, C], "val": []}, THREE, "no list empty"),
    ({"folds": []}, THREE, "holds no folds"),
    ({"folds": [A, B, C]}, THREE, "holds no folds"),
    ([A, B, C], THREE, "holds no folds"),
    ([], THREE, "holds no folds"),
    (3, THREE, "holds no folds"),
    ({"training": [A]}, THREE, "holds no folds"),
    ({"train": [1], "val": [2]}, THREE, "holds no folds"),
  ],
)
@pytest.mark.parametrize("as_given", [True, False])
def test_files_that_do_not_fit_are_refused(tmp_path, content, cases, message, as_given):
  source = tmp_path / ("given.json" if as_given else "folds.json")
  source.write_text(json.dumps(content))
  with pytest.raises(UserError, match=message) as e:
    read_or_make(tmp_path / "folds.json", cases, given=source if as_given else None)
  assert source.name in str(e.value)
  assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_broken_and_absent_files(tmp_path):
  (tmp_path / "folds.json").write_text('{"folds": [')
  with pytest.raises(UserError, match="holds no folds"):
    read_or_make(tmp_path / "folds.json", THREE)
  with pytest.raises(UserError, match="cannot read the folds"):
    read_or_make(tmp_path / "new.json", THREE, given=tmp_path / "absent.json")
