"""The files of a work directory and of an evaluation's folder: every name once."""

import os
import re
from pathlib import Path

from kd_jax.data.subjects import SUBJECTS_FILE

__all__ = ["SUBJECTS_FILE"]  # named where it is written; exported students have it too

# In a work directory.
CONFIG_FILE = "config.json"  # the resolved settings
RUN_FILE = "run.json"  # versions, commit, device: one record a start
FOLDS_FILE = "folds.json"  # who is validated on
COHORTS_FILE = "cohorts.json"  # who each cohort of teachers trains on, with model.cohorts = 2
CONVOLUTIONS_FILE = "convolutions.json"  # their times, with train.autotune
LOG_FILE = "train.log"  # what the terminal said
NUMBERS_FILE = "metrics.jsonl"  # every number, a line a step
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
EVALUATION = "evaluation"  # holds one folder an evaluation

# In an evaluation's folder.
SCORES_FILE = "scores.csv"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"


def default_workdir(name: str, fold: int) -> Path:
  """Where a run lies if nobody says where."""
  return Path(f"runs/{name}-fold{fold}")


def fold_runs(path: Path, file: str) -> dict[int, Path]:
  """Fold -> its run, in a cross-validation's folder: those that have a file of that name.

  Other names, such as that of a copy fold0_old, are none of its folds.
  """
  runs = (p.parent for p in path.glob(f"fold*/{file}") if re.fullmatch("fold[0-9]+", p.parent.name))
  return dict(sorted((int(run.name.removeprefix("fold")), run) for run in runs))


def is_run(path: Path) -> bool:
  """Whether a path is the work directory of a run."""
  return os.path.isfile(path / CONFIG_FILE)


def has_begun(workdir: Path) -> bool:
  """Whether a run has a checkpoint: from then on its settings and its folds are fixed."""
  return any(folder.name.isdigit() for folder in workdir.glob(f"{CHECKPOINTS}/*"))


def validation_summary(workdir: Path) -> Path:
  """The summary of the evaluation on a run's own validation cases; own_scores.py reads it."""
  return workdir / EVALUATION / "val" / SUMMARY_FILE
