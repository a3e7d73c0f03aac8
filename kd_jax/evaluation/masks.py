"""--mode=evaluate --predictions=DIR --truth=DIR: scores of masks, whatever program made them."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import masks, nifti
from kd_jax.data.cases import Case, search
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.case_results import CaseResults, data_facts, packed, score_against
from kd_jax.report.illustrate import illustrate
from kd_jax.runtime import child_processes, processes
from kd_jax.runtime.errors import CaseError, UserError, some
from kd_jax.runtime.files import check_folder
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels

Job = tuple[Case, Path, str]  # a truth, the file to score, the convention of its labels
_WORTH_PROCESSES = 6  # jobs: starting a process takes as long as scoring a few cases


def evaluate_masks(
  predictions: Path,
  truth: Path,
  conventions: tuple[str, str],
  output: Path | None,
  terminal: Terminal,
) -> dict[str, Any]:
  """Scores a folder of masks against a folder of truths, matched by name.

  Args:
    conventions: of the truths' labels and of the predictions'; "auto" judges the truths by their
      names or labels, and takes the predictions to be written alike.
    output: None for runs/evaluation/NAME.

  Raises:
    UserError: nothing to score. A truth without a prediction is a case that could not be scored.
  """
  folder = output or Path("runs/evaluation") / predictions.resolve().name
  check_folder(folder)
  cases = _truths(truth, conventions[0], terminal)
  found = masks.find_masks(predictions, masks.PREDICTION)
  jobs = [
    (case, found[case.name], case.label_map[1] if conventions[1] == "auto" else conventions[1])
    for case in cases
    if case.name in found
  ]
  results = CaseResults()
  for case in cases:
    if case.name not in found:
      results.failed[case.name] = f"no prediction in {predictions}"
  progress = terminal.progress("scoring")
  own = processes.share(jobs)
  for done, (name, outcome) in enumerate(_score_all(own), 1):
    try:
      results.scores[name], results.masks[name] = outcome()
    except CaseError as e:
      results.failed[name] = e.reason
    progress(done, len(own), name)
  results = results.together()
  if not results.scores and not jobs:
    raise UserError(
      f"no prediction fits a truth: {truth} has {some([case.name for case in cases])}; "
      f"{predictions} has {some(list(found))}"
    )
  notes = []
  if extra := sorted(found.keys() - {case.name for case in cases}):
    notes.append(f"{len(extra)} predictions have no truth: {some(extra)}")
  summary = scores_lib.summarise(
    f"{predictions.name} against {truth.name}",
    results.scores,
    data={"root": str(truth), "predictions": str(predictions), **data_facts(cases, results)},
    failed=results.failed,
    notes=notes,
  )
  if processes.first():
    job_of = {job[0].name: job for job in jobs}

    def mask(case: Case) -> np.ndarray:
      if case.name not in results.masks:  # another process scored it
        _, results.masks[case.name] = _score_mask(*job_of[case.name])
      return results.mask(case)

    shown = illustrate(folder, results.scores, mask, cases, ("t1ce",), terminal)
    scores_lib.write(folder, summary, results.scores, shown, {}, terminal)
  processes.wait()
  return summary


def _score_all(jobs: Sequence[Job]) -> Iterator[tuple[str, Callable]]:
  """(case, a function that gives its scores or raises) for each job, as they get done."""
  if len(jobs) < _WORTH_PROCESSES:
    yield from ((job[0].name, functools.partial(_score_mask, *job)) for job in jobs)
    return
  context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
  workers, end = min(os.cpu_count() or 1, len(jobs)), child_processes.end_with_parent
  with futures.ProcessPoolExecutor(workers, context, initializer=end) as pool:
    with child_processes.without_ctrl_c():
      running = {pool.submit(_score_mask, *job): job[0].name for job in jobs}
    try:
      for future in futures.as_completed(running):
        yield running[future], future.result
    finally:  # Ctrl-C: what has not begun is left out
      pool.shutdown(cancel_futures=True)


def _score_mask(case: Case, path: Path, convention: str) -> tuple[dict[str, float], tuple]:
  """In a worker process: the scores of one file, and its classes, packed."""
  try:
    volume = nifti.read(path)
    predicted = labels.to_classes(volume.data, convention)
  except ValueError as e:
    remedy = "Correct the file, or set --prediction_labels to the convention it is written in."
    raise CaseError(case.name, path, str(e), remedy) from e
  return score_against(case, predicted, volume), packed(predicted)


def _truths(root: Path, convention: str, terminal: Terminal) -> list[Case]:
  """BraTS cases with their images, or loose label maps."""
  if not root.is_dir():
    raise UserError(f"no folder {root}")
  try:
    cases = [case for case in search(root, convention).cases if case.seg]
  except UserError:
    cases = []
  if cases:
    return cases
  found = masks.find_masks(root, masks.TRUTH)
  if convention == "auto":
    progress = terminal.progress("looking at the labels")
    convention = masks.guess_convention(found.values(), progress)
    terminal.line(f"labels are read as {convention}; --labels says otherwise")
  return [Case(name, name, path.parent, {}, path, convention) for name, path in found.items()]
