"""Folds: by patient, deterministic, kept in a file and checked against the cases."""

import json
import random
from pathlib import Path

import pytest

from kd_jax.data.cases import Case
from kd_jax.data.folds import (
  decide,
  holdout,
  known_patients,
  listed,
  make_folds,
  split,
  validated_twice,
)
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.patients import patient_of


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


def test_made_as_asked_where_nothing_is_stored():
  assert decide(CASES) == make_folds(CASES)
  assert decide(CASES, 3, 7) == make_folds(CASES, 3, 7)


def write(path, content):
  path.write_text(json.dumps(content))
  return path


def test_a_changed_setting_does_not_reshuffle_a_run(tmp_path):
  stored = write(tmp_path / "folds.json", make_folds(CASES, 5, 20))
  assert decide(CASES, 5, 20, stored=stored) == make_folds(CASES, 5, 20)
  for changed in ({"folds": 4}, {"seed": 21}):
    with pytest.raises(UserError, match="made with 5 folds and seed 20"):
      decide(CASES, **changed, stored=stored)


A, B, C = "BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002"
THREE = CASES[:3]
FORMS = [
  ({"folds": [[A], [B], [C]]}, 1, ([A, C], [B])),
  ({"seed": 7, "folds": [[A, B], [C]]}, 0, ([C], [A, B])),
  ([{"train": [A], "val": [C, B]}, {"train": [B, C], "val": [A]}], 0, ([A], [B, C])),  # nnU-Net
  ({"train": [C, A], "val": [B]}, 0, ([A, C], [B])),
]


@pytest.mark.parametrize(("form", "fold", "expected"), FORMS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_given_files_are_honoured(tmp_path, form, fold, expected, mark):
  given = tmp_path / "given.json"
  given.write_bytes(mark + json.dumps(form).encode())
  folds = decide(THREE, given=given)
  assert folds == form and split(folds, fold) == expected
  stored = write(tmp_path / "stored.json", folds)
  assert decide(THREE, stored=stored, given=given) == form  # and again


def test_a_given_file_cannot_replace_the_folds_of_a_run(tmp_path):
  stored = write(tmp_path / "folds.json", make_folds(THREE, 3))
  given = write(tmp_path / "given.json", FORMS[0][0])
  with pytest.raises(UserError, match="holds other folds"):
    decide(THREE, stored=stored, given=given)


@pytest.mark.parametrize("fold", [-1, 3])
def test_no_such_fold(fold):
  with pytest.raises(ConfigError, match="folds 0 to 2"):
    split(make_folds(THREE, 3), fold)


G0, G1 = "BraTS-GLI-00001-100", "BraTS-GLI-00001-101"


@pytest.mark.parametrize(
  ("content", "cases", "message"),
  [
    ({"train": [A, "Nobody"], "val": [B, C]}, THREE, "not in the data: Nobody"),
    ({"train": [A], "val": [B], "test": ["Nobody"]}, THREE, "not in the data: Nobody"),
    ({"train": [A], "val": [B], "test": [B]}, THREE, f"both validation and test of fold 0: {B}"),
    ({"train": [G0], "val": [A], "test": [G1]}, [*THREE, case(G0), case(G1)], "training and test"),
    ({"train": [A], "val": [B], "testing": [C]}, THREE, "an entry 'testing', .* not understood"),
    ([{"train": [A], "val": [B], "fold": 1}], THREE, "an entry 'fold', .* not understood"),
    ({"folds": [[A], [B]], "holdout": [C]}, THREE, "an entry 'holdout', .* not understood"),
    ({"train": [A], "val": [B], "test": "C"}, THREE, "holds no folds"),
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
@pytest.mark.parametrize("source", ["given", "stored"])
def test_files_that_do_not_fit_are_refused(tmp_path, content, cases, message, source):
  path = write(tmp_path / f"{source}.json", content)
  with pytest.raises(UserError, match=message) as e:
    decide(cases, **{source: path})
  assert path.name in str(e.value)


def test_broken_and_absent_files(tmp_path):
  (tmp_path / "folds.json").write_text('{"folds": [')
  with pytest.raises(UserError, match="holds no folds"):
    decide(THREE, stored=tmp_path / "folds.json")
  with pytest.raises(UserError, match="cannot read the folds"):
    decide(THREE, given=tmp_path / "absent.json")


@pytest.mark.parametrize(
  ("written", "meant"),
  [
    (f"{A}.nii.gz", A),
    (f"{A}_0000", A),
    (f"imagesTr/{A}_0000.nii.gz", A),
    (f"{A}_t1ce.nii.gz", A),
    (f"data\\{A}\\", A),
    (f" {A}", A),
    (A.upper(), A),
    (f"/data/{G0}/{G0}-t1c.nii.gz", G0),
  ],
)
def test_how_a_case_is_named_is_said(tmp_path, written, meant):
  cases = [*THREE, case(G0)]
  others = [c.name for c in cases if c.name != meant]
  given = write(tmp_path / "given.json", {"train": [written], "val": others})
  with pytest.raises(UserError) as e:
    decide(cases, given=given)
  assert f"write {meant!r} for {written!r}" in str(e.value)


def test_names_of_other_data_are_answered_with_some_of_this(tmp_path):
  given = write(tmp_path / "given.json", {"train": ["BRATS_001"], "val": ["BRATS_002"]})
  with pytest.raises(UserError, match=f"it has 3 cases, such as {A}, {B}, {C}"):
    decide(THREE, given=given)


# --- Hold-outs --------------------------------------------------------------------------------

D = CASES[3].name


@pytest.mark.parametrize(
  ("form", "fold", "expected"),
  [
    ({"folds": [[A], [B]]}, 0, [C, D]),
    ([{"train": [A], "val": [B]}, {"train": [B], "val": [A]}], 1, [C, D]),
    ({"train": [A, B], "val": [C], "test": [D]}, 0, [D]),
    ({"train": [A], "val": [C], "test": []}, 0, [B, D]),
    ([{"train": [A], "val": [B], "test": [C]}, {"train": [C], "val": [B], "test": [A]}], 0, [C, D]),
    ({"folds": [[A, C], [B, D]]}, 0, []),
  ],
)
def test_what_a_fold_does_not_use_is_its_holdout(tmp_path, form, fold, expected):
  folds = decide(CASES[:4], given=write(tmp_path / "given.json", form))
  assert [c.name for c in holdout(folds, fold, CASES[:4])] == expected
  assert known_patients(folds, fold, CASES[:4]) == []
  assert listed(folds) == {name for name in (A, B, C, D) if f'"{name}"' in json.dumps(form)}


def test_of_a_known_patient_nothing_is_unseen():
  cases = [*THREE, case(G0), case(G1)]
  assert known_patients({"train": [G0], "val": [A]}, 0, cases) == [G1]
  assert known_patients({"train": [A], "val": [G1]}, 0, cases) == [G0]
  assert known_patients({"train": [A], "val": [B]}, 0, cases) == []


def test_cases_that_several_folds_validate_on():
  assert validated_twice(make_folds(CASES)) == []
  repeated = [{"train": [A], "val": [B, C]}, {"train": [C], "val": [A, B]}]
  assert validated_twice(repeated) == [B]
