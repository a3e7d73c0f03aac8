"""--mode=cross_validate: every fold trained and scored on its own validation patients, then all.

Each patient is scored once, by the one student that was not trained on it. May be stopped and
started again at any time, and the folds may be shared out over processes (--folds=0,1).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import folds as folds_lib
from kd_jax.data.cases import Case, find_cases
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.case_results import SCORES_FILE, SUMMARY_FILE
from kd_jax.evaluation.compare import read_scores
from kd_jax.evaluation.students import Choice, evaluate, predict_case
from kd_jax.prediction.predictor import Ensemble
from kd_jax.prediction.student import Student
from kd_jax.report.illustrate import illustrate
from kd_jax.runs.log import read_numbers
from kd_jax.runs.students import open_student
from kd_jax.runtime import processes
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.files import read_json
from kd_jax.runtime.terminal import Terminal, table
from kd_jax.settings import config as config_lib
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.train import train


def cross_validate(
  raw: Mapping[str, Any], workdir: Path, only: Sequence[int], terminal: Terminal
) -> dict[str, Any] | None:
  """Trains and scores the folds, then gathers the scores of all.

  Args:
    raw: the resolved configuration; data.fold is of no account.
    workdir: folds lie in WORKDIR/foldK, the whole in WORKDIR/evaluation.
    only: the folds to do here; empty for all.

  Returns:
    summary.json of the whole; None while folds are missing.
  """
  config = config_lib.parse(raw)
  given = config.data.folds_file
  count = folds_lib.count(folds_lib.read(Path(given))) if given else config.data.folds
  for fold in only:
    if not 0 <= fold < count:
      raise ConfigError(f"--folds names fold {fold}; there are folds 0 to {count - 1}")
  for fold in only or range(count):
    terminal.line(f"--- fold {fold} of 0 to {count - 1} ---")
    run = workdir / f"fold{fold}"
    train({**raw, "data": {**raw["data"], "fold": fold}}, run, terminal)
    student = open_student(run)
    if not _is_scored(run, student):
      evaluate(Ensemble([student]), Choice(), None, terminal)

  runs = [workdir / f"fold{fold}" for fold in range(count)]
  if missing := [run.name for run in runs if not _summary_path(run).exists()]:
    terminal.line(f"not yet done: {', '.join(missing)}; scores of all folds come with the last one")
    return None
  return _gather(runs, config, workdir, terminal) if processes.first() else None


def _gather(
  runs: Sequence[Path], config: config_lib.Config, workdir: Path, terminal: Terminal
) -> dict[str, Any]:
  """The out-of-fold scores of all cases."""
  scores, run_of, summaries = {}, {}, []
  for run in runs:
    own = read_scores(_summary_path(run).with_name(SCORES_FILE))
    summaries.append(read_json(_summary_path(run)))
    scores |= own
    run_of |= dict.fromkeys(own, run)
  scores = {name: scores[name] for name in sorted(scores)}
  students = [open_student(run) for run in runs]
  cases = find_cases(config.data.root, config.data.labels)
  scored = [case for case in cases if case.name in scores]
  summary = scores_lib.summarise(
    f"{config.name}: cross-validation, {len(runs)} folds, each case scored out of fold",
    scores,
    students=students,
    data={
      "root": config.data.root,
      "split": "out of fold",
      "folds": len(runs),
      "patients": len({case.patient for case in scored}),
      "conventions": sorted({case.convention for case in scored}),
    },
    failed={name: why for s in summaries for name, why in s["failed"].items()},
    notes=[
      "each fold's checkpoint (and threshold of small ET, where the configuration leaves it to "
      "validation) was chosen by scores on the fold's own validation cases, so the scores are "
      "slightly optimistic"
    ],
    prediction=_prediction(summaries),
  )

  @functools.cache
  def ensemble(run: Path) -> Ensemble:
    return Ensemble([students[runs.index(run)]])

  def predicted(case: Case) -> np.ndarray:
    return predict_case(ensemble(run_of[case.name]), case)

  folder = workdir / "evaluation"
  shown = illustrate(folder, scores, predicted, scored, config.model.student, terminal)
  histories = {run.name: read_numbers(run) for run in runs}
  scores_lib.write(folder, summary, scores, shown, histories, terminal)
  rows = [
    [run.name, s["data"]["cases"], *(s["regions"][r]["dice"]["mean"] for r in REGIONS)]
    for run, s in zip(runs, summaries, strict=True)
    if s["regions"]
  ]
  terminal.line(f"mean Dice of each fold\n{table(['fold', 'cases', *REGIONS], rows)}")
  whole = [
    [region, f"{d['mean']:.4f} ± {d['sd']:.4f}", f"{d['low']:.4f} to {d['high']:.4f}"]
    for region, d in ((r, summary["regions"][r]["dice"]) for r in summary["regions"])
  ]
  head = ["Dice, all cases", "mean ± sd", "95% interval of the mean"]
  terminal.line(table(head, whole))
  return summary


def _prediction(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How the folds' students predict; each has thresholds of its own."""
  own = [summary["prediction"] for summary in summaries]
  thresholds = ("smallest_island", "smallest_et")
  return own[0] | {name: [prediction.get(name, 0.0) for prediction in own] for name in thresholds}


def _summary_path(run: Path) -> Path:
  return run / "evaluation" / "val" / SUMMARY_FILE


def _is_scored(run: Path, student: Student) -> bool:
  """Whether the fold's scores are there already, of this very student."""
  path = _summary_path(run)
  if not path.exists():
    return False
  stored = read_json(path)["students"]
  return [s["weights_sha256"] for s in stored] == [student.digest()]
