"""--mode=cross_validate: every fold trained and scored on its own validation patients, then all.

Each patient is scored once, by the one student that was not trained on it. May be stopped and
started again at any time, and the folds may be shared out over processes (--folds=0,1).
"""

import functools
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import conventions
from kd_jax.data import folds as folds_lib
from kd_jax.data.cases import Case
from kd_jax.data.conventions import Reading
from kd_jax.data.dataset import under_root
from kd_jax.data.label_contents import existing_memory
from kd_jax.evaluation import certainty
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.compare import Scores, read_scores
from kd_jax.evaluation.students import evaluate
from kd_jax.prediction.predictor import Predictor
from kd_jax.report.illustrate import illustrate
from kd_jax.runs.layout import (
  EVALUATION,
  FOLDS_FILE,
  SCORES_FILE,
  fold_runs,
  has_begun,
  validation_summary,
)
from kd_jax.runs.log import read_numbers
from kd_jax.runs.students import open_student
from kd_jax.runtime import processes
from kd_jax.runtime.errors import ConfigError, UserError, some
from kd_jax.runtime.files import read_json
from kd_jax.runtime.terminal import Terminal, table
from kd_jax.settings.run import Settings
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.train import train


def cross_validate(
  settings: Settings, workdir: Path, only: Sequence[int], terminal: Terminal
) -> dict[str, Any] | None:
  """Trains and scores the folds, then gathers the scores of all.

  Args:
    settings: data.fold is of no account.
    workdir: folds lie in WORKDIR/foldK, the whole in WORKDIR/evaluation.
    only: the folds to do here; empty for all.

  Returns:
    summary.json of the whole; None while folds are missing.
  """
  given = settings.data.folds_file
  count = settings.data.folds
  if given:
    kept = folds_lib.read(Path(given))
    count = folds_lib.count(kept)
    if twice := folds_lib.validated_twice(kept):
      raise UserError(
        f"{given} has cases in the validation lists of several folds: {some(twice)}. "
        "Cross-validation scores each case once: keep each in one, or train the folds as single "
        "runs (data.fold)"
      )
  for fold in only:
    if not 0 <= fold < count:
      raise ConfigError(f"--folds names fold {fold}; there are folds 0 to {count - 1}")
  for fold in only or range(count):
    terminal.line(f"--- fold {fold} of 0 to {count - 1} ---")
    run = workdir / f"fold{fold}"
    folds_file = given if has_begun(run) else _common_folds(settings, workdir)
    data = replace(settings.data, fold=fold, folds_file=folds_file)
    train(replace(settings, data=data), run, terminal)
    if not _is_scored(run):
      options = settings.train.compiler_options
      predictor = Predictor([open_student(run)], compiler_options=options)
      evaluate(predictor, Choice(), None, terminal)

  runs = [workdir / f"fold{fold}" for fold in range(count)]
  if missing := [run.name for run in runs if not _is_scored(run)]:
    terminal.line(f"not yet done: {', '.join(missing)}; scores of all folds come with the last one")
    return None
  cases, reading = conventions.settle(
    under_root(settings.data).cases,
    Path(settings.data.root),
    settings.data.labels,
    "--config.data.labels",
    terminal.progress("looking at the labels"),
    lambda line: None,  # the folds have told
    existing_memory(Path(settings.data.cache)),
  )
  return _gather(runs, settings, workdir, cases, reading, terminal) if processes.first() else None


def _common_folds(settings: Settings, workdir: Path) -> str:
  """The file of folds for a fold that has not begun: cases may have been added since others have.

  Raises:
    UserError: a fold that has begun was split in another way than the settings say.
  """
  data = settings.data
  runs = fold_runs(workdir, FOLDS_FILE).values()
  begun = (run / FOLDS_FILE for run in runs if has_begun(run))
  if stored := next(begun, None):
    given = Path(data.folds_file) if data.folds_file else None
    folds_lib.check_same(stored, data.folds, data.folds_seed, given)
  return data.folds_file or str(stored or "")


def _gather(
  runs: Sequence[Path],
  settings: Settings,
  workdir: Path,
  cases: Sequence[Case],
  reading: Reading,
  terminal: Terminal,
) -> dict[str, Any]:
  """The out-of-fold scores of all cases."""
  scores: Scores = {}
  run_of: dict[str, Path] = {}
  summaries = []
  for run in runs:
    own = read_scores(validation_summary(run).with_name(SCORES_FILE))
    if twice := sorted(scores.keys() & own.keys()):
      raise UserError(
        f"{run} scored cases that another fold has scored too: {some(twice)}. The folds of "
        f"{workdir} do not belong together; train them anew with another --workdir"
      )
    summaries.append(read_json(validation_summary(run)))
    scores |= own
    run_of |= dict.fromkeys(own, run)
  scores = {name: scores[name] for name in sorted(scores)}
  students = [open_student(run) for run in runs]
  scored = [case for case in cases if case.name in scores]
  failed = {name: why for s in summaries for name, why in s["failed"].items()}
  summary = scores_lib.summarise(
    f"{settings.name}: cross-validation, {len(runs)} folds, each case scored out of fold",
    scores,
    students=students,
    data={
      "root": settings.data.root,
      "split": "out of fold",
      "folds": len(runs),
      "patients": len({case.patient for case in scored}),
      "conventions": sorted({case.convention for case in scored if case.convention}),
      "dropped_labels": reading.dropped_in(scores),
    },
    failed=failed,
    notes=[
      "each fold's checkpoint (and minimum sizes of postprocessing, where the settings leave them "
      "to validation) was chosen by scores on the fold's own validation cases, so the scores are "
      "slightly optimistic",
      *_unscored(cases, scores.keys() | failed.keys()),
      *reading.notes(scores),
    ],
    prediction=_prediction(summaries),
    certainty=certainty.pool(summaries, scores),
  )

  @functools.cache
  def predictor(run: Path) -> Predictor:
    student = students[runs.index(run)]
    return Predictor([student], compiler_options=settings.train.compiler_options)

  def predicted(case: Case) -> np.ndarray:
    return predictor(run_of[case.name]).predict_case(case).classes()

  folder = workdir / EVALUATION
  shown = illustrate(folder, scores, predicted, scored, settings.model.student, terminal)
  histories = {run.name: read_numbers(run) for run in runs}
  scores_lib.write(folder, summary, scores, shown, histories, terminal)
  rows = [
    [run.name, s["data"]["cases"], *(s["regions"][r]["dice"]["mean"] for r in REGIONS)]
    for run, s in zip(runs, summaries, strict=True)
    if s["regions"]
  ]
  terminal.line(f"mean Dice of each fold\n{table(['fold', 'cases', *REGIONS], rows)}")
  whole = [
    [region, *(own["dice"][key] for key in ("mean", "sd", "low", "high"))]
    for region, own in summary["regions"].items()
  ]
  head = ["Dice, all cases", "mean", "sd", "low", "high"]
  terminal.line(f"{table(head, whole)}\nlow, high: 95% interval of the mean")
  return summary


def _unscored(cases: Sequence[Case], validated: Container[str]) -> list[str]:
  """A sentence on the cases that no fold validated on, if there are any."""
  names = [case.name for case in cases if case.name not in validated]
  if not names:
    return []
  return [
    f"{len(names)} of {len(cases)} cases are validated on in no fold and have no score: "
    f"{some(names)}"
  ]


def _prediction(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """How the folds' students predict; each has thresholds of its own."""
  own = [summary["prediction"] for summary in summaries]
  thresholds = ("min_component_mm3", "min_et_mm3")
  return own[0] | {name: [prediction.get(name, 0.0) for prediction in own] for name in thresholds}


def _is_scored(run: Path) -> bool:
  """Whether the fold's scores are there already: of its student now, as it predicts by itself."""
  return validation_summary(run).exists() and open_student(run).scores is not None
