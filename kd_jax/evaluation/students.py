"""--mode=evaluate: scores of students on scans, in the scans' own space.

Students are scored as they are used: through the same program as --mode=predict, from the scan
files of their own modalities. No student is scored on the subjects it was trained on.
"""

from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.data import subjects as subjects_lib
from kd_jax.data.cases import Case
from kd_jax.data.patients import read_name_mapping
from kd_jax.evaluation import certainty
from kd_jax.evaluation import summary as scores_lib
from kd_jax.evaluation.case_results import (
  CaseResults,
  check_any,
  data_facts,
  packed,
  truth_of,
)
from kd_jax.evaluation.choice import Choice, choose_cases, default_output, where
from kd_jax.prediction.prediction import Prediction
from kd_jax.prediction.predictor import Predictor, predict_cases
from kd_jax.prediction.student import Student
from kd_jax.report.illustrate import illustrate
from kd_jax.runs.log import read_numbers
from kd_jax.runtime import commands, processes
from kd_jax.runtime.errors import CaseError, UserError, some
from kd_jax.runtime.files import check_folder
from kd_jax.runtime.terminal import Terminal
from kd_jax.settings import record
from kd_jax.settings.inference import InferenceSettings
from kd_jax.tasks.patients import likely_patient

_CONTENT_THREADS = 4


def evaluate(
  predictor: Predictor, choice: Choice, output: Path | None, terminal: Terminal
) -> dict[str, Any]:
  """Scores one student, or the mean of several, on cases that none was trained on.

  Args:
    output: where the files go; None for choice.default_output of a single run.

  Returns:
    What summary.json holds.

  Raises:
    UserError: training subjects among the cases, or something missing. Cases that could not be
      scored are in the summary: see `check_complete`.
  """
  students = predictor.students
  root, split = where(students, choice)
  folder = output or default_output(predictor, choice, root, split)
  check_folder(folder)  # before the work, not after it
  cases, facts, lost, reading = choose_cases(students, root, split, choice, terminal)
  held_out = split == "holdout"
  known = find_known_subjects(predictor, cases, terminal, choice.name_mapping)
  found = known.validated | known.trained if held_out else known.trained
  if found and not choice.exclude_training_subjects:
    of = "trained or validated on" if held_out else "trained on"
    own = split == "val" and choice.data_root is None
    remedy = _of_a_parted_patient(students[0]) if own else subjects_lib.LEFT_OUT
    raise subjects_lib.refuse(found, len(cases), of, remedy)
  cases = [case for case in cases if case.name not in found]
  if not cases:
    raise UserError("no case is left to score: all of them are training subjects")
  if processes.first():
    names = ", ".join(student.source for student in students)
    what = "hold-out cases" if held_out else "cases"
    terminal.line(
      f"{names}: {'+'.join(predictor.modalities)}, {len(cases)} {what} of {root}, "
      f"window {predictor.settings.window}"
    )
  results = score_students(predictor, cases, terminal)
  results.failed |= {error.case: error.reason for error in lost}
  check_any(results.scores, results.failed)

  title = f"{', '.join(dict.fromkeys(s.name for s in students))} on {Path(root).name}"
  if held_out:
    title += ", hold-out cases"
  elif split == "val" and choice.data_root is None:  # of one student
    title = f"{students[0].name}: validation cases of fold {facts.get('fold')}"
  summary = scores_lib.summarise(
    title,
    results.scores,
    students=students,
    data={"root": str(root), "split": split, **facts, **data_facts(cases, results, reading)},
    failed=results.failed,
    excluded=found,
    notes=_notes(predictor, cases, known.validated) + reading.notes(results.scores),
    prediction=predictor.describe(),
    certainty=certainty.summarise(results.certainty, predictor.calibration, results.scores),
  )
  if processes.first():

    def mask(case: Case) -> np.ndarray:
      known = case.name in results.masks
      return results.mask(case) if known else predictor.predict_case(case).classes()

    shown = illustrate(folder, results.scores, mask, cases, predictor.modalities, terminal)
    histories = {s.source: h for s in students if (h := read_numbers(Path(s.source)))}
    scores_lib.write(folder, summary, results.scores, shown, histories, terminal)
  processes.wait()
  return summary


def score_students(predictor: Predictor, cases: Sequence[Case], terminal: Terminal) -> CaseResults:
  """Predicts and scores every case; several processes share them out."""
  results = CaseResults()

  def finish(case: Case, prediction: Prediction) -> None:
    predicted = prediction.classes()
    truth = truth_of(case, prediction.scan)
    results.scores[case.name] = truth.score(predicted)
    results.certainty.add(case.name, prediction, predicted, truth.classes)
    results.masks[case.name] = packed(predicted)

  own = processes.share(cases)
  for case in own:
    if case.seg is None:
      results.failed[case.name] = _unlabelled(case).reason
  progress = terminal.progress("predicting and scoring")
  scorable = [case for case in own if case.seg is not None]
  for error in predict_cases(predictor, scorable, finish, warn=terminal.line, progress=progress):
    results.failed[error.case] = error.reason
  return results.together()


def _unlabelled(case: Case) -> CaseError:
  remedy = "Add its seg file, or take the case away."
  return CaseError(case.name, case.folder, "no label map", remedy)


class Known(NamedTuple):
  """Cases that students have used, each with how that shows.

  Attributes:
    trained, validated: case -> reason, see subjects.find_known.
  """

  trained: dict[str, str]
  validated: dict[str, str]


def find_known_subjects(
  predictor: Predictor,
  cases: Sequence[Case],
  terminal: Terminal,
  name_mapping: Path | None = None,
) -> Known:
  """Cases that a student was trained or validated on, by id, name mapping or image content.

  Raises:
    UserError: a name mapping that is none.
  """
  students = predictor.students
  if unknown := _unknown(students):
    terminal.line(unknown[0])
  train = [subject for student in students for subject in student.train]
  val = [subject for student in students for subject in student.val]
  if not train and not val:
    return Known({}, {})
  mapping = read_name_mapping(name_mapping) if name_mapping else ()
  progress = terminal.progress("looking for training subjects")

  def subject(case: Case) -> subjects_lib.Subject:
    """With all images that are there: what the student does not read tells who it is as well."""
    hashes: dict[str, str] = {}
    own = predictor.modalities
    for modality in (*own, *(m for m in case.images if m not in own)):
      try:
        volume = nifti.read(case.images[modality])
      except (KeyError, ValueError):  # missing or unreadable: if it is needed, prediction says so
        continue
      hashes |= subjects_lib.content_hashes({modality: volume})
    return replace(subjects_lib.subject_of(case, {}), images=hashes)

  share, found = processes.share(cases), {}
  with futures.ThreadPoolExecutor(_CONTENT_THREADS) as pool:
    for done, result in enumerate(pool.map(subject, share), 1):
      found[result.name] = asdict(result)
      progress(done, len(share), result.name)
  everyone = processes.union(found)
  ordered = [subjects_lib.Subject(**everyone[case.name]) for case in cases]
  return Known(
    subjects_lib.find_known(ordered, train, mapping), subjects_lib.find_known(ordered, val, mapping)
  )


# --- Pieces -----------------------------------------------------------------------------------


def _of_a_parted_patient(student: Student) -> str:
  """What to do about training subjects among a run's own validation cases.

  The run may be a fold of a cross-validation, which has no flag that leaves cases out.
  """
  return (
    "The split has parted scans of one patient: take one of them out of the data folder, or say "
    "whose they are (data.patients, a CSV file with the columns case and patient), and train anew "
    f"with another --workdir. {commands.named('evaluate')} --checkpoint={student.source} "
    "--exclude_training_subjects scores this run on the others"
  )


def _unknown(students: Sequence[Student]) -> list[str]:
  """A sentence on the students whose training subjects are not known, if there are any."""
  names = [student.source for student in students if not student.train]
  if not names:
    return []
  return [
    f"warning: the training subjects of {some(names)} are not known, so none can be refused; if "
    "some are among these cases, their scores say nothing about new patients"
  ]


def _notes(predictor: Predictor, cases: Sequence[Case], validated: Mapping[str, str]) -> list[str]:
  """Sentences that belong to the numbers; validated: cases that students were chosen by."""
  students = predictor.students
  notes = _unknown(students)
  trained = [subject for student in students for subject in student.train]
  likely = [
    subjects_lib.Subject(case.name, before, "", {})
    for case in cases
    if (before := likely_patient(case.patient))
  ]
  if names := list(subjects_lib.find_known(likely, trained)):
    notes.append(
      f"warning: {len(names)} cases have names that look like time points of training subjects: "
      f"{some(names)}. If they are, their scores say nothing about new patients: say whose they "
      "are, with --patients"
    )
  chosen = "the checkpoint was"
  if any(_sizes_chosen(student, predictor.settings) for student in students):
    chosen = "the checkpoint and the minimum sizes of postprocessing were"
  if count := sum(case.name in validated for case in cases):
    notes.append(
      f"{chosen} chosen by scores on validation cases; {count} of these {len(cases)} cases were "
      "among them, so their scores are slightly optimistic"
    )
  return notes


def _sizes_chosen(student: Student, used: InferenceSettings) -> bool:
  """Whether a minimum size that is used is the one that the student's validation chose."""
  said = student.training.get("chosen_by_validation")
  names = map(str, said) if isinstance(said, list) else ()  # it may be a stranger's
  chosen = record.modernised(dict.fromkeys(names), "predict")
  sizes = ("min_component_mm3", "min_et_mm3")
  return any(n in chosen and getattr(used, n) == getattr(student.inference, n) for n in sizes)
