"""Which evaluation counts as a run's own: of its student as it is, on its validation cases."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from runs import make_data, make_run
from synthetic import LARGE, make_case

from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.students import evaluate
from kd_jax.exports import model_card
from kd_jax.prediction.predictor import Predictor
from kd_jax.runs.students import open_student
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.terminal import Terminal

NOTES = {"min_component_mm3": 4000.0, "min_et_mm3": 50.0}


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
  """data/ and run/, which is evaluated on its validation cases."""
  place = tmp_path_factory.mktemp("place")
  make_run(place / "run", make_data(place / "data"), folds=2, notes=NOTES)
  evaluate(Predictor([open_student(place / "run")]), Choice(), None, Terminal(quiet=True))
  return place


@pytest.fixture
def run(scored, tmp_path) -> Path:
  """A copy, to be changed."""
  return shutil.copytree(scored / "run", tmp_path / "run")


def card(run: Path) -> str:
  students = [open_student(run)]
  return model_card.write(students, Predictor(students).settings, None, {}, "safetensors")


def edit(run: Path, **changes) -> None:
  path = run / "evaluation" / "val" / "summary.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def summary_of(run: Path) -> dict:
  return json.loads((run / "evaluation" / "val" / "summary.json").read_text())


def test_its_notes_and_failures_are_handed_on_without_names(run):
  summary = summary_of(run)
  name = open_student(run).val[0].name
  note = f"1 cases look odd in {summary['data']['root']}: {name}"
  edit(run, notes=[*summary["notes"], note])
  scores = open_student(run).scores
  assert scores["regions"] == summary["regions"] and "root" not in scores["data"]
  assert scores["notes"] == [*summary["notes"], "1 cases look odd in …: …"]
  assert scores["failed"] == 0 and "could not be scored" not in card(run)
  rows = (run / "evaluation" / "val" / "scores.csv").read_text().splitlines()
  kept = [row for row in rows if not row.startswith(f"{name},")]
  (run / "evaluation" / "val" / "scores.csv").write_text("\n".join(kept) + "\n")
  edit(run, failed={name: "no label map"})
  text = card(run)
  assert "the minimum sizes of postprocessing were chosen by scores on validation cases" in text
  assert "slightly optimistic." in text
  assert "- cases that could not be scored and are in no mean: 1." in text
  assert name not in text


def test_what_is_not_the_run_s_own_is_not_taken_for_it(run):
  summary = summary_of(run)
  own = summary["students"][0]
  assert open_student(run).scores is not None
  for changes in (
    {"students": [own | {"weights_sha256": "ab" * 32}]},  # of the same step
    {"students": []},
    {"data": summary["data"] | {"split": "all"}},
    {"data": summary["data"] | {"fold": 1}},
    {"prediction": summary["prediction"] | {"min_component_mm3": 0.0}},
    {"prediction": summary["prediction"] | {"mirror": True}},
    {"prediction": None},
    {"failed": {"a_stranger": "no label map"}},
  ):
    edit(run, **changes)
    assert open_student(run).scores is None, changes
    edit(run, **summary)
  assert open_student(run).scores is not None
  scores = run / "evaluation" / "val" / "scores.csv"
  scores.write_text("\n".join(scores.read_text().splitlines()[:-1]) + "\n")
  assert open_student(run).scores is None  # a case is missing


def test_a_summary_of_version_0_1_is_read(run):
  prediction = summary_of(run)["prediction"]
  old = {"window": "mode", "min_component_mm3": "smallest_island", "min_et_mm3": "smallest_et"}
  edit(run, prediction={old.get(key, key): value for key, value in prediction.items()})
  assert open_student(run).scores is not None


@pytest.mark.parametrize(
  ("chosen", "said"),
  [(["smallest_et"], True), (["min_et_mm3"], True), ([], False), (None, False), (3, False)],
)
def test_what_an_exported_student_s_validation_chose_is_said(scored, tmp_path, chosen, said):
  """By the names of version 0.1, too."""
  student = open_student(scored / "run")
  training = student.training | {"chosen_by_validation": chosen}
  name = student.val[0].name
  shutil.copytree(scored / "data" / name, tmp_path / "data" / name)
  predictor = Predictor([dataclasses.replace(student, training=training)])
  choice = Choice(data_root=tmp_path / "data")
  (note,) = evaluate(predictor, choice, tmp_path / "out", Terminal(quiet=True))["notes"]
  assert ("the minimum sizes of postprocessing were chosen" in note) == said


def test_scores_with_other_flags_have_a_folder_of_their_own(scored, run, terminal):
  before = open_student(run).scores
  flags = {"min_component_mm3": 0.0, "min_et_mm3": 0.0, "calibrate": False}
  summary = evaluate(Predictor([open_student(run)], **flags), Choice(), None, terminal)
  name = "val-min_component_mm3=0.0-min_et_mm3=0.0-calibrate=false"
  assert (run / "evaluation" / name / "scores.csv").is_file()
  assert open_student(run).scores == before
  (note,) = summary["notes"]
  assert note.startswith("the checkpoint was chosen by scores")
  one = Predictor([open_student(run)], min_et_mm3=0.0)
  (note,) = evaluate(one, Choice(), None, terminal)["notes"]
  assert note.startswith("the checkpoint and the minimum sizes of postprocessing were chosen")
  evaluate(Predictor([open_student(run)], **flags), Choice(), run / "evaluation" / "val", terminal)
  assert open_student(run).scores is None
  assert "No evaluation is kept with" in card(run)


@pytest.mark.parametrize("name", ["val", "holdout"])
def test_other_data_has_a_folder_that_is_no_split(run, tmp_path, terminal, name):
  for site in ("a", "b"):
    make_case(tmp_path / site / name / "other", seed=77, affine=LARGE)
  before = open_student(run).scores
  predictor = Predictor([open_student(run)])
  for _ in range(2):
    evaluate(predictor, Choice(data_root=tmp_path / "a" / name), None, terminal)
  there = run / "evaluation" / f"data-{name}"
  assert (there / "scores.csv").is_file() and open_student(run).scores == before
  with pytest.raises(ConfigError, match=rf"data-{name} holds the scores of other data .*--output"):
    evaluate(predictor, Choice(data_root=tmp_path / "b" / name), None, terminal)
  shutil.copytree(there, run / "evaluation" / name, dirs_exist_ok=True)  # as earlier versions did
  assert (open_student(run).scores is None) == (name == "val")
