"""--mode=evaluate --predictions=DIR --truth=DIR: scores of masks, whatever program made them."""

import functools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import conventions as conventions_lib
from kd_jax.data import masks
from kd_jax.data.cases import Case, search
from kd_jax.data.truths import read_classes
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.case_results import (
  CaseResults,
  check_any,
  data_facts,
  packed,
  score_against,
)
from kd_jax.report.illustrate import illustrate
from kd_jax.runtime import child_processes, processes
from kd_jax.runtime.errors import CaseError, UserError, some
from kd_jax.runtime.files import check_folder
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels
from kd_jax.tasks.names import parse_name

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
    conventions: of the truths' labels and of the predictions'; for "auto" see
      conventions.decide: without a sign of another one, predictions are written as the truths are.
    output: None for runs/evaluation/NAME.

  Raises:
    UserError: nothing to score, or labels of unknown meaning. A truth without a prediction is a
      case that could not be scored.
  """
  folder = output or Path("runs/evaluation") / predictions.resolve().name
  check_folder(folder)
  cases, lost, reading = _truths(truth, conventions[0], terminal)
  found = masks.find_masks(predictions, masks.PREDICTION)
  results = CaseResults(failed={error.case: error.reason for error in lost})
  for case in cases:
    if case.seg is None:
      results.failed[case.name] = f"no label map in {case.folder}; add it, or take the case away"
    elif case.name not in found:
      results.failed[case.name] = f"no prediction in {predictions}"
  pairs = {case.name: case for case in cases if case.seg and case.name in found}
  if not pairs:
    raise UserError(
      f"no prediction fits a truth: {truth} has {some([case.name for case in cases])}; "
      f"{predictions} has {some(list(found))}"
    )
  predicted = _predicted(pairs, reading, found, predictions, conventions[1], terminal)
  jobs = {name: (case, found[name], predicted.conventions[name]) for name, case in pairs.items()}
  results = _score(list(jobs.values()), results, terminal)
  check_any(results.scores, results.failed)
  scored = results.scores
  notes = [f"truths: {note}" for note in reading.notes(scored)]
  notes += [f"predictions: {note}" for note in predicted.notes(scored)]
  if extra := sorted(found.keys() - {case.name for case in cases}):
    notes.append(f"{len(extra)} predictions have no truth: {some(extra)}")
  summary = scores_lib.summarise(
    f"{predictions.name} against {truth.name}",
    scored,
    data={
      "root": str(truth),
      "predictions": str(predictions),
      **data_facts(cases, results, reading),
      "prediction_conventions": sorted({predicted.conventions[name] for name in scored}),
      "dropped_prediction_labels": predicted.dropped_in(scored),
    },
    failed=results.failed,
    notes=notes,
  )
  if processes.first():

    def mask(case: Case) -> np.ndarray:
      if case.name not in results.masks:  # another process scored it
        _, results.masks[case.name] = _score_mask(*jobs[case.name])
      return results.mask(case)

    shown = illustrate(folder, scored, mask, cases, ("t1ce",), terminal)
    scores_lib.write(folder, summary, scored, shown, {}, terminal)
  processes.wait()
  return summary


def _predicted(
  pairs: Mapping[str, Case],
  reading: conventions_lib.Reading,
  found: Mapping[str, Path],
  root: Path,
  convention: str,
  terminal: Terminal,
) -> conventions_lib.Reading:
  """How the labels of the predictions that have a truth are read; reading: the truths'."""
  own = conventions_lib.decide(
    {name: found[name] for name in pairs},
    {name: case.convention for name, case in pairs.items()},
    root,
    convention,
    "--prediction_labels",
    terminal.progress("looking at the labels of the predictions"),
    truths=reading,
  )
  _tell("predictions", own, pairs, terminal)
  return own


def _score(jobs: Sequence[Job], results: CaseResults, terminal: Terminal) -> CaseResults:
  """With what comes of the jobs, which several processes share out."""
  progress = terminal.progress("scoring")
  own = processes.share(jobs)
  for done, (name, outcome) in enumerate(_score_all(own), 1):
    try:
      results.scores[name], results.masks[name] = outcome()
    except CaseError as e:
      results.failed[name] = e.reason
    progress(done, len(own), name)
  return results.together()


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
  volume, predicted = read_classes(case.name, path, convention, "--prediction_labels")
  return score_against(case, predicted, volume, path), packed(predicted)


def _truths(
  root: Path, convention: str, terminal: Terminal
) -> tuple[list[Case], list[CaseError], conventions_lib.Reading]:
  """BraTS cases with their images, or loose label maps; what is none; how their labels are read."""
  if not root.is_dir():
    raise UserError(f"no folder {root}")
  cases, lost, unused, _ = search(root, convention, wanted=("seg",))
  if not any(case.seg for case in cases):
    if unclear := [error for error in lost if parse_name(Path(error.file).name)]:
      raise unclear[0]
    lost = []  # all images are looked at now, whatever their names
    loose = _without_images(root, masks.find_masks(root, masks.TRUTH))
    cases = [
      Case(name, name, path.parent, {}, path, labels.by_name(name, None))
      for name, path in loose.items()
    ]
  else:
    cases += _loose_among(cases, root, unused)
  cases, reading = conventions_lib.settle(
    cases,
    root,
    convention,
    "--labels",
    terminal.progress("looking at the labels"),
    lambda line: None,
  )
  _tell("truths", reading, reading.conventions, terminal)
  return cases, lost, reading


def _loose_among(cases: Sequence[Case], root: Path, unused: Sequence[Path]) -> list[Case]:
  """Label maps without images in a folder where other cases have some: they are truths as well.

  What lies in or below a folder with one case (older versions of its label map) is not.
  """
  count = Counter(case.folder for case in cases)
  alone = [case for case in cases if count[case.folder] == 1]
  homes = {case.folder for case in alone if case.folder != root or case.name == root.name}
  taken = {case.name for case in cases}
  found: dict[str, Path] = {}
  for path in unused:
    kind = parse_name(path.name)
    if kind is None or kind.kind != "seg" or kind.case in taken or homes & set(path.parents):
      continue
    if kind.case in found:
      raise UserError(f"two truths of {kind.case}: {found[kind.case]} and {path}; keep one")
    found[kind.case] = path
  return [
    Case(name, name, path.parent, {}, path, labels.by_name(name, None))
    for name, path in found.items()
  ]


def _without_images(root: Path, found: dict[str, Path]) -> dict[str, Path]:
  """Without files that are images by their names."""
  kinds = {name: parse_name(path.name) for name, path in found.items()}
  kept = {n: p for n, p in found.items() if (kind := kinds[n]) is None or kind.kind == "seg"}
  if not kept:
    raise UserError(
      f"{root} has images and no label map ({some([path.name for path in found.values()])}); "
      "add the label maps, named for instance CASE_seg.nii.gz"
    )
  return kept


def _tell(
  what: str, reading: conventions_lib.Reading, names: Collection[str], terminal: Terminal
) -> None:
  """How a side's label maps are read; what speaks against it stands in the summary's notes too."""
  if processes.first():
    for line in (*reading.lines, *(f"warning: {note}" for note in reading.notes(names))):
      terminal.line(f"{what}: {line}")
