"""Splits as a user gives them: refused before any work, or kept with their hold-out."""

import csv
import json
import shutil

import pytest
from program import REPOSITORY, Place

NAMES = [f"case{i}" for i in range(6)]
QUICK = {
  "variant": "student_only",
  "train__epochs": 1,
  "train__steps_per_epoch": 2,
  "train__save_every": 2,
  "train__validate_every": 1,
}
OTHERS = ("*_flair.nii.gz", "*_t1.nii.gz", "*_t2.nii.gz")
WRONG = {
  "fold 3": ([{"train": NAMES[:4], "val": NAMES[4:]}], "data.fold = 3: there is only fold 0"),
  "endings": ({"train": NAMES[:4], "val": ["case4.nii.gz"]}, "write 'case4' for 'case4.nii.gz'"),
  "channels": ({"train": NAMES[:4], "val": ["case4_0000"]}, "write 'case4' for 'case4_0000'"),
  "both sides": ({"train": NAMES[:4], "val": NAMES[3:]}, "both training and validation of fold 0"),
  "no folds": ({"train": NAMES}, "holds no folds"),
  "6 folds": (None, "6 patients cannot fill 7 folds"),
  "a bad case": ({"train": NAMES[:4], "val": NAMES[4:]}, "1 case cannot be used"),
}


@pytest.fixture(scope="module")
def tries(place: Place) -> dict[str, tuple[int, str]]:
  """(status, output) of a first try with each wrong split, in forks of one process."""
  shutil.copytree(place.folder / "data", place.folder / "one_bad")
  (place.folder / "one_bad" / "case0" / "case0_t1ce.nii.gz").unlink()
  commands = []
  for name, (content, _) in WRONG.items():
    more = {"data__root": place.folder / "one_bad"} if name == "a bad case" else {}
    if content is None:
      more["data__folds"] = 7
    else:
      more["data__folds_file"] = place.folder / f"{name}.json"
      more["data__folds_file"].write_text(json.dumps(content))
    if name == "fold 3":
      more["data__fold"] = 3
    more["data__cache"] = place.folder / f"{name} cache"
    commands.append(place.flags(f"tries/{name}", **QUICK | more))
  forked = REPOSITORY / "tests" / "helpers" / "forked_main.py"
  output = place.finish(place.python(str(forked), json.dumps(commands)))
  return dict(zip(WRONG, json.loads(output.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_try_that_did_not_begin_leaves_nothing(place: Place, tries, name):
  status, output = tries[name]
  assert status == 1 and WRONG[name][1] in output and "Traceback" not in output, output
  assert not (place.folder / "tries").exists()
  assert (place.folder / f"{name} cache").exists() == (name == "a bad case"), "prepared before"


def test_a_holdout_from_training_to_scores(place: Place):
  """The corrected command in the work directory of a failed one; then cases come and go.

  The cases have what the student alone needs: T1ce and label maps.
  """
  folder, data = place.folder, place.folder / "own data"
  shutil.copytree(folder / "data", data, ignore=shutil.ignore_patterns(*OTHERS))
  split = folder / "splits_final.json"
  settings = QUICK | {"data__root": data, "data__folds_file": split}
  split.write_text(json.dumps([{"train": NAMES[:2], "val": ["case2", "case2"]}]))
  assert "twice" in place.finish(place.start("held", **settings), 1)
  split.write_text(json.dumps([{"train": NAMES[:3], "val": ["case3"]}]))
  output = place.finish(place.start("held", **settings))
  assert "hold-out: 2 of 6 cases are not in fold 0 of" in output and "case4, case5" in output
  assert "3 training and 1 validation cases" in output
  assert "hold-out: 2 of 6" in (folder / "held" / "train.log").read_text()

  shutil.copytree(data / "case5", data / "case7")
  for file in (data / "case7").iterdir():
    file.rename(file.with_name(file.name.replace("case5", "case7")))
  (data / "case0" / "case0_t1ce.nii.gz").write_bytes(b"broken")
  more = {"train__epochs": 2, "data__skip_bad_cases": True}
  output = place.finish(place.start("held", **settings | more))
  assert "hold-out: 3 of 7 cases" in output and "case4, case5, case7" in output
  assert "cases have gone" in output and "case0" in output
  subjects = json.loads((folder / "held" / "subjects.json").read_text())
  assert sorted(subject["name"] for subject in subjects["train"]) == NAMES[:3]
  assert "folds.json names cases" not in output

  place.finish(place.main("--mode=evaluate", f"--workdir={folder / 'held'}", "--split=holdout"))
  scores = folder / "held" / "evaluation" / "holdout" / "scores.csv"
  with scores.open() as file:
    assert [row["case"] for row in csv.DictReader(file)] == ["case4", "case5", "case7"]
  shutil.rmtree(data / "case1")
  output = place.finish(place.start("held", **settings | more), 1)
  assert "folds.json names cases that are not in the data: case1" in output
