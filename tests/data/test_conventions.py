"""What a set's label maps mean: decided for the whole set, said in one line, never in silence."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import NEW, SHAPE, brats_root, make_case, seg, write

from kd_jax.data.cases import find_cases
from kd_jax.data.conventions import Reading, decide, settle
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks import labels

CAVITY = (slice(0, 2), slice(0, 3), slice(0, 4))  # 24 voxels, far from the tumour
FLAG = "--labels"


def quiet(*_) -> None:
  pass


def relabelled(**numbers: int) -> np.ndarray:
  """The tumour of synthetic.seg, its NCR, ED and ET with other numbers; 0 leaves one out."""
  classes = labels.to_classes(seg(), "brats2018")
  table = np.array([0, *(numbers.get(name, 0) for name in ("NCR", "ED", "ET"))], np.uint8)
  return table[classes]


def with_cavity(y: np.ndarray) -> np.ndarray:
  y = y.copy()
  y[CAVITY] = 4
  return y


YEAR_2021, YEAR_2023 = seg(et=4), seg(et=3)
YEAR_2024, CAVITY_ONLY = with_cavity(YEAR_2023), with_cavity(np.minimum(YEAR_2023, 2))
NO_ET = np.minimum(YEAR_2021, 2)
MSD, PED = relabelled(NCR=2, ED=1, ET=3), relabelled(NCR=2, ED=4, ET=1)
BINARY = relabelled(NCR=1, ED=1, ET=1)


def judge(root: Path, maps: dict[str, np.ndarray], names=None, asked="auto", flag=FLAG, **more):
  """The reading of loose label maps; names: what their names say, of all or of each."""
  files = {name: write(root / f"{name}.nii.gz", y) for name, y in maps.items()}
  by_name = names if isinstance(names, dict) else dict.fromkeys(files, names)
  return decide(files, by_name, root, asked, flag, quiet, **more)


@pytest.mark.parametrize(
  ("names", "maps", "convention", "why"),
  [
    (None, [YEAR_2021, NO_ET], "brats2018", "a 4 and no 3"),
    (None, [YEAR_2023, NO_ET], "brats2023", "a 3 and no 4"),
    (None, [YEAR_2024, YEAR_2023, CAVITY_ONLY], "brats2024", "3 and 4"),
    (None, [NO_ET], "brats2023", "no label map has ET"),
    (None, [np.zeros(SHAPE, np.uint8)], "brats2023", "no label map has ET"),
    ("brats2018", [YEAR_2021], "brats2018", "by names and contents"),
    ("brats2018", [YEAR_2023, NO_ET], "brats2023", "a 3 and no 4"),  # relabelled for a framework
    ("brats2018", [NO_ET], "brats2018", "no label map has ET"),
    ("brats2023", [YEAR_2023], "brats2023", "by names and contents"),
    ("brats2023", [YEAR_2021, NO_ET], "brats2018", "a 4 and no 3"),
    ("brats2023", [YEAR_2024, NO_ET], "brats2024", "3 and 4"),  # metastases of 2025 have a cavity
    ("brats2024", [YEAR_2023], "brats2024", "by names and contents"),
    ("brats2024", [YEAR_2024, CAVITY_ONLY], "brats2024", "by names and contents"),
    ("brats2024", [YEAR_2021, NO_ET], "brats2018", "a 4 and no 3"),  # 2021 under 2023's names
    ("brats-ped", [PED], "brats-ped", "by names and contents"),
  ],
)
def test_a_set_is_judged_by_names_and_contents(tmp_path, names, maps, convention, why):
  reading = judge(tmp_path, {f"case{i}": y for i, y in enumerate(maps)}, names)
  assert set(reading.conventions.values()) == {convention}
  (line,) = reading.lines
  assert f"are read as {convention} (" in line and why in line and FLAG in line
  assert reading.warnings == []


@pytest.mark.parametrize(
  ("names", "maps", "words"),
  [
    ("brats2024", [YEAR_2021, YEAR_2023], "two label conventions lie in one folder"),
    ("brats2023", [CAVITY_ONLY, YEAR_2023], "--labels=brats2024"),
    (None, [YEAR_2021, YEAR_2023, NO_ET], "1 label maps have a 3 and no 4"),
    (None, [BINARY, np.zeros(SHAPE, np.uint8)], "whole tumours"),
    ("brats2018", [BINARY, BINARY], "no label but 1"),
    ("brats-ped", [relabelled(NCR=2, ED=0, ET=1)], "--labels=brats2023 or --labels=brats-ped"),
    ("brats-ped", [YEAR_2023], "--labels=brats2023 or --labels=brats-ped"),
  ],
)
def test_what_cannot_be_told_is_an_error_with_both_readings(tmp_path, names, maps, words):
  with pytest.raises(ConfigError, match=words):
    judge(tmp_path, {f"case{i}": y for i, y in enumerate(maps)}, names)


@pytest.mark.parametrize("y", [YEAR_2021, CAVITY_ONLY])
def test_a_class_that_vanishes_is_an_error_even_where_it_was_asked_for(tmp_path, y):
  with pytest.raises(ConfigError, match=r"4 would vanish.*If 4 is ET, say --labels=brats2018"):
    judge(tmp_path, {"a": y, "b": NO_ET}, asked="brats2024")
  in_full = labels.canonical('{"NCR": 1, "ED": 2, "ET": 3, "background": [0, 4]}')
  reading = judge(tmp_path, {"a": y, "b": NO_ET}, asked=in_full)  # as the message says
  assert reading.dropped_in({"a", "b"}) == {"4": {"cases": 1, "voxels": int((y == 4).sum())}}


def test_what_is_read_as_no_tumour_is_counted(tmp_path):
  maps = {"a": YEAR_2024, "b": YEAR_2023, "c": CAVITY_ONLY}
  reading = judge(tmp_path, maps, "brats2024")
  assert reading.dropped_in(maps) == {"4": {"cases": 2, "voxels": 48}}
  assert reading.notes(["a"]) == ["label 4 is read as no tumour: 24 voxels in 1 label map"]


def test_a_mixed_folder_is_judged_by_kinds_of_names(tmp_path):
  make_case(tmp_path / "BraTS2021_00001", et=4)
  make_case(tmp_path / "BraTS-GLI-00002-000", NEW, "-", et=3)
  make_case(tmp_path / "patient7", NEW, "_", et=4)
  told = []
  cases, _ = settle(find_cases(tmp_path), tmp_path, "auto", FLAG, quiet, told.append)
  assert {case.name: case.convention for case in cases} == {
    "BraTS2021_00001": "brats2018",
    "BraTS-GLI-00002-000": "brats2024",
    "patient7": "brats2018",
  }
  assert len(told) == 3


# --- What files say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("place", "said", "convention"),
  [
    ("set/predict.json", "brats2023", "brats2023"),
    ("set/predict.json", '{"NCR": 1, "ED": 3, "ET": 2}', '{"NCR": 1, "ED": 3, "ET": 2}'),
    ("set/dataset.json", {"edema": 1, "non-enhancing": 2, "enhancing": 3}, "msd"),
    ("dataset.json", {"0": "background", "1": "ED", "2": "NCR", "3": "ET"}, "msd"),
  ],
)
@pytest.mark.parametrize("inner", ["", "fold0"])
def test_files_beside_the_label_maps_are_believed(tmp_path, place, said, convention, inner):
  files = {"a": write(tmp_path / "set" / inner / "a.nii.gz", YEAR_2023)}
  (tmp_path / place).write_text(json.dumps({"labels": said}))
  reading = decide(files, {"a": None}, tmp_path / "set", "auto", FLAG, quiet)
  assert reading.conventions == {"a": convention}
  assert f"{tmp_path / place} says so" in reading.lines[0]


@pytest.mark.parametrize(
  ("file", "content"),
  [
    ("dataset.json", {"labels": {"background": 0}}),
    ("dataset.json", {"channel_names": {"0": "T1ce"}}),
    ("predict.json", {"made by": "another program"}),
    ("../predict.json", {"labels": "brats2018"}),  # of other masks
  ],
)
def test_files_that_say_nothing_of_the_labels(tmp_path, file, content):
  root = tmp_path / "set"
  root.mkdir()
  (root / file).write_text(json.dumps(content))
  assert "a 3 and no 4" in judge(root, {"a": YEAR_2023}).lines[0]


def test_folders_with_records_of_their_own(tmp_path):
  for name, year, y in (("a", "brats2018", YEAR_2021), ("b", "brats2023", YEAR_2023)):
    write(tmp_path / name / f"{name}.nii.gz", y)
    (tmp_path / name / "predict.json").write_text(json.dumps({"labels": year}))
  files = {name: tmp_path / name / f"{name}.nii.gz" for name in "ab"}
  reading = decide(files, {}, tmp_path, "auto", FLAG, quiet)
  assert reading.conventions == {"a": "brats2018", "b": "brats2023"}


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    ("dataset.json", '{"labels": {"background": 0, "whole tumor": 1}}', "whole tumour or core"),
    ("dataset.json", '{"labels": {"background": 0, "lesion": 1}}', "'lesion' is no class"),
    ("dataset.json", '{"labels": ', "cannot read"),
    ("predict.json", '{"labels": "brats1999"}', "unknown label convention"),
  ],
)
def test_files_that_are_not_understood_are_named(tmp_path, file, content, words):
  (tmp_path / file).write_text(content)
  with pytest.raises(UserError, match=words) as error:
    judge(tmp_path, {"a": YEAR_2023})
  assert str(tmp_path / file) in str(error.value)
  assert judge(tmp_path, {"a": YEAR_2023}, asked="brats2023").conventions == {"a": "brats2023"}


def test_what_is_asked_for_holds_against_a_file_that_is_named(tmp_path):
  (tmp_path / "predict.json").write_text('{"labels": "brats2018"}')
  reading = judge(tmp_path, {"a": YEAR_2023}, asked="brats2023")
  assert reading.conventions == {"a": "brats2023"}
  (warning,) = reading.warnings
  assert "predict.json says that the labels are brats2018" in warning


# --- Predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("truth", "y", "convention"),
  [
    ("brats2024", YEAR_2021, "brats2018"),
    ("brats2018", YEAR_2023, "brats2023"),
    ("brats2018", NO_ET, "brats2018"),
    ("brats2023", YEAR_2024, "brats2024"),
    ("msd", MSD, "msd"),
    ("msd", relabelled(NCR=2, ET=3), "msd"),
    ("brats-ped", relabelled(NCR=2, ET=1), "brats-ped"),
  ],
)
def test_predictions_are_read_as_the_truths_unless_they_hold_another_year_s(
  tmp_path, truth, y, convention
):
  truths = Reading({"a": truth}, [], [], {}, {1, 2})
  assert judge(tmp_path, {"a": y}, truth, truths=truths).conventions == {"a": convention}


@pytest.mark.parametrize("asked", ["auto", "brats2021"])
def test_whole_tumours_against_truths_of_classes(tmp_path, asked):
  """What is asked for holds, with a warning; truths that hold no more are no other case."""
  several, one = (Reading({}, [], [], {}, there) for there in ({1, 2, 4}, {1}))
  if asked == "auto":
    with pytest.raises(ConfigError, match="whole tumours"):
      judge(tmp_path, {"a": BINARY}, "brats2018", truths=several)
    reading = judge(tmp_path, {"a": BINARY}, "brats2018", truths=one)
  else:
    reading = judge(tmp_path, {"a": BINARY}, asked=labels.canonical(asked), truths=several)
  assert reading.conventions == {"a": "brats2018"}
  assert "whole tumours would be read as NCR" in reading.warnings[0]


# --- Anatomy ----------------------------------------------------------------------------------


ROUND = np.zeros(SHAPE, np.uint8)  # necrosis within a rim within oedema
ROUND[2:12, 2:14, 1:11], ROUND[4:10, 4:12, 3:9], ROUND[5:9, 5:11, 4:8] = 2, 3, 1


@pytest.mark.parametrize(
  ("numbers", "words"),
  [
    ({"NCR": 1, "ED": 2, "ET": 3}, ""),
    ({"NCR": 2, "ED": 1, "ET": 3}, "2, which should be oedema, is enclosed"),
    ({"NCR": 1, "ED": 3, "ET": 2}, "2, which should be oedema, is enclosed"),
    ({"NCR": 3, "ED": 1, "ET": 2}, "2, which should be oedema, is enclosed"),
    ({"NCR": 2, "ED": 3, "ET": 1}, "2, which should be oedema, is enclosed"),
    ({"NCR": 3, "ED": 2, "ET": 1}, "3, which should be enhancing tumour, lies within 1"),
  ],
)
def test_every_other_order_is_seen_by_the_anatomy(tmp_path, numbers, words):
  table = np.array([0, *numbers.values()], np.uint8)
  maps = {"a": table[ROUND], "b": table[ROUND], "small": table[np.minimum(seg(et=3), 3)]}
  warnings = judge(tmp_path, maps).warnings
  assert len(warnings) == (words != "")
  assert all(words in warning and "in 2 of 2 label maps" in warning for warning in warnings)
  said = labels.canonical(numbers)
  assert judge(tmp_path, maps, asked=said).warnings == []


@pytest.mark.parametrize(
  ("y", "asked"), [(MSD, "auto"), (MSD, "brats2023"), (PED, "auto"), (YEAR_2023, "msd")]
)
def test_another_order_is_seen_by_the_oedema(tmp_path, y, asked):
  large = np.kron(y, np.ones((2, 2, 2), np.uint8))
  reading = judge(tmp_path, {"a": large, "b": large, "c": NO_ET}, asked=asked)
  (warning,) = reading.warnings
  assert "which should be oedema, is enclosed" in warning and "2 of 2" in warning


def test_a_few_odd_ones_are_no_other_order(tmp_path):
  msd, usual = (np.kron(y, np.ones((2, 2, 2), np.uint8)) for y in (MSD, YEAR_2023))
  assert judge(tmp_path, {"a": msd, "b": usual}).warnings == []


def test_no_warning_for_real_cases(tmp_path):
  """All real cases at hand, in their own order; and all of them with the other one."""
  cases, reading = settle(find_cases(brats_root()), brats_root(), "auto", FLAG, quiet, quiet)
  assert reading.warnings == []
  assert {case.convention for case in cases} == {"brats2018", "brats2024"}
  files = {case.name: case.seg for case in cases if case.convention == "brats2018"}
  for ncr, ed, et in [(2, 1, 4), (1, 4, 2), (2, 4, 1), (4, 1, 2), (4, 2, 1)]:
    other = labels.canonical({"NCR": ncr, "ED": ed, "ET": et})
    memory = tmp_path / "labels.json"
    assert len(decide(files, {}, brats_root(), other, FLAG, quiet, memory).warnings) == 1


# --- Looking ----------------------------------------------------------------------------------


def test_label_maps_are_read_once(tmp_path):
  seen, memory = [], tmp_path / "cache" / "labels.json"
  files = {name: write(tmp_path / f"{name}.nii.gz", YEAR_2021) for name in "ab"}

  def look():
    del seen[:]
    progress = lambda done, total, name: seen.append(name)  # noqa: E731
    return decide(files, {}, tmp_path, "auto", FLAG, progress, memory).conventions

  assert set(look().values()) == {"brats2018"} and sorted(seen) == ["a", "b"]
  assert set(look().values()) == {"brats2018"} and seen == []
  write(files["a"], np.zeros((20, 20, 20), np.uint8))
  assert set(look().values()) == {"brats2018"} and seen == ["a"]
  memory.write_text("[broken")
  assert set(look().values()) == {"brats2018"} and sorted(seen) == ["a", "b"]


def test_what_is_no_label_map_does_not_decide(tmp_path):
  """It is named later, by who reads it in full."""
  rng = np.random.default_rng(0)
  maps = {"a": YEAR_2021, "image": rng.integers(0, 200, SHAPE).astype(np.uint8)}
  maps["probability"] = rng.random(SHAPE).astype(np.float32)
  (tmp_path / "broken.nii.gz").write_bytes(b"no NIfTI")
  files = {name: write(tmp_path / f"{name}.nii.gz", y) for name, y in maps.items()}
  files["broken"] = tmp_path / "broken.nii.gz"
  reading = decide(files, {}, tmp_path, "auto", FLAG, quiet)
  assert reading.conventions == dict.fromkeys(files, "brats2018")
  del files["a"]
  reading = decide(files, {}, tmp_path, "auto", FLAG, quiet)
  assert "none of them can be read as a label map" in reading.lines[0]
