"""Folds trained apart and scored together; training itself is replaced by its outcome."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import make_data, make_run

from kd_jax.data import folds
from kd_jax.data.cases import find_cases
from kd_jax.evaluation import cross_validate as cross_validate_lib
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.compare import compare
from kd_jax.evaluation.cross_validate import cross_validate
from kd_jax.evaluation.students import evaluate
from kd_jax.prediction.predictor import Predictor
from kd_jax.runs.students import open_students
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.settings import record


@pytest.fixture
def trained(monkeypatch) -> list[int]:
  """Replaces training; the list says which folds were asked for."""
  asked = []

  def train(settings, workdir, terminal):
    fold = settings.data.fold
    asked.append(fold)
    if not (workdir / "checkpoints").exists():
      notes = {"min_et_mm3": 50.0 * fold}
      make_run(workdir, Path(settings.data.root), fold, seed=fold, folds=2, notes=notes)

  monkeypatch.setattr(cross_validate_lib, "train", train)
  return asked


def rows(folder: Path) -> dict[str, dict[str, str]]:
  with (folder / "scores.csv").open() as f:
    return {row["case"]: row for row in csv.DictReader(f)}


def test_every_case_is_scored_once_out_of_fold(tmp_path, terminal, trained):
  root = make_data(tmp_path / "data")
  settings = record.read(make_run(tmp_path / "probe", root, folds=2) / "config.json")
  cv = tmp_path / "cv"
  assert cross_validate(settings, cv, [1], terminal) is None
  assert "not yet done: fold0" in terminal.console.file.getvalue()
  first = rows(cv / "fold1" / "evaluation" / "val")
  stamp = (cv / "fold1" / "evaluation" / "val" / "scores.csv").stat().st_mtime_ns

  summary = cross_validate(settings, cv, [], terminal)
  assert trained == [1, 0, 1]
  assert (cv / "fold1" / "evaluation" / "val" / "scores.csv").stat().st_mtime_ns == stamp
  whole = rows(cv / "evaluation")
  assert sorted(whole) == [case.name for case in find_cases(root)]
  kept = folds.read(cv / "fold0" / "folds.json")
  for fold in (0, 1):
    own = rows(cv / f"fold{fold}" / "evaluation" / "val")
    assert sorted(own) == folds.split(kept, fold)[1]
    assert all(whole[name]["dice_WT"] == row["dice_WT"] for name, row in own.items())
  assert first == rows(cv / "fold1" / "evaluation" / "val")
  wt = [float(row["dice_WT"]) for row in whole.values()]
  assert summary["regions"]["WT"]["dice"]["mean"] == pytest.approx(np.mean(wt))
  assert summary["regions"]["WT"]["dice"]["sd"] == pytest.approx(np.std(wt, ddof=1))
  assert summary["data"]["split"] == "out of fold" and len(summary["students"]) == 2
  assert summary["prediction"]["min_et_mm3"] == [0, 50]
  assert (cv / "evaluation" / "report.html").stat().st_size > 10_000
  output = terminal.console.file.getvalue()
  assert "mean Dice of each fold" in output and "95% interval" in output

  result = compare(cv, cv / "fold0", None, terminal)
  assert result["cases"] == sorted(rows(cv / "fold0" / "evaluation" / "val"))
  with pytest.raises(UserError, match="REFUSED: 6 of 6"):  # all folds together know everyone
    evaluate(Predictor(open_students(str(cv))), Choice(data_root=root), tmp_path / "x", terminal)


def test_a_fold_that_was_scored_otherwise_is_scored_again(tmp_path, terminal, trained):
  """With other flags, or on other data: neither is the fold's result."""
  root = make_data(tmp_path / "data")
  settings = record.read(make_run(tmp_path / "probe", root, folds=2) / "config.json")
  cv = tmp_path / "cv"
  cross_validate(settings, cv, [1], terminal)
  folder = cv / "fold1" / "evaluation" / "val"
  first, scores = rows(folder), (folder / "scores.csv").stat()
  flagged = Predictor(open_students(str(cv / "fold1")), min_et_mm3=1e6)
  evaluate(flagged, Choice(), folder, terminal)
  assert rows(folder) != first
  assert cross_validate(settings, cv, [0], terminal) is None  # fold 1's are not its result
  assert terminal.console.file.getvalue().endswith(
    "not yet done: fold1; scores of all folds come with the last one\n"
  )
  assert cross_validate(settings, cv, [1], terminal)["prediction"]["min_et_mm3"] == [0, 50]
  assert rows(folder) == first and (folder / "scores.csv").stat().st_mtime_ns > scores.st_mtime_ns


def test_folds_that_there_are_not(tmp_path, terminal, trained):
  root = make_data(tmp_path / "data")
  settings = record.read(make_run(tmp_path / "probe", root, folds=2) / "config.json")
  with pytest.raises(ConfigError, match="folds 0 to 1"):
    cross_validate(settings, tmp_path / "cv", [2], terminal)
  assert trained == []


def test_all_folds_are_split_as_the_first_was(tmp_path, terminal, trained, monkeypatch):
  """Cases that are added between two folds are in none, and are named."""
  root = make_data(tmp_path / "data")
  settings = record.read(make_run(tmp_path / "probe", root, folds=2) / "config.json")
  files = []
  train = cross_validate_lib.train

  def note(settings, workdir, terminal):
    files.append(settings.data.folds_file)
    train(settings, workdir, terminal)

  monkeypatch.setattr(cross_validate_lib, "train", note)
  cross_validate(settings, tmp_path / "cv", [0], terminal)
  cross_validate(settings, tmp_path / "cv", [0, 1], terminal)
  assert files == ["", "", str(tmp_path / "cv" / "fold0" / "folds.json")]
  make_data(root, cases=1, first=70)
  summary = cross_validate(settings, tmp_path / "cv", [], terminal)
  assert summary["data"]["cases"] == 6
  assert any("1 of 7 cases" in note and "case70" in note for note in summary["notes"])
  other = replace(settings, data=replace(settings.data, folds_seed=3))
  (tmp_path / "cv" / "fold1" / "checkpoints").rename(tmp_path / "elsewhere")
  with pytest.raises(UserError, match="made with 2 folds and seed 20, not 2 and 3"):
    cross_validate(other, tmp_path / "cv", [1], terminal)


def test_a_case_that_two_folds_validate_on_is_named(tmp_path, terminal, trained):
  root = make_data(tmp_path / "data", cases=3)
  settings = record.read(make_run(tmp_path / "probe", root, folds=2) / "config.json")
  repeated = [
    {"train": ["case0"], "val": ["case1", "case2"]},
    {"train": ["case1"], "val": ["case2", "case0"]},
  ]
  (tmp_path / "repeated.json").write_text(json.dumps(repeated))
  data = replace(settings.data, folds_file=str(tmp_path / "repeated.json"))
  with pytest.raises(UserError, match="validation lists of several folds: case2"):
    cross_validate(replace(settings, data=data), tmp_path / "cv", [], terminal)
  assert trained == []
  for fold in (0, 1):
    make_run(tmp_path / "cv" / f"fold{fold}", root, fold, folds=2, given=repeated)
  with pytest.raises(UserError, match=r"fold1 scored cases that another .*: case2"):
    cross_validate(settings, tmp_path / "cv", [], terminal)
