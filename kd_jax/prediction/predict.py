"""--mode=predict: masks of new scans, each in its scan's own space."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax.data import nifti, own_masks
from kd_jax.data.cases import Case
from kd_jax.data.own_masks import RECORD_FILE, Entry, Journal
from kd_jax.data.scan_files import files_of
from kd_jax.data.scans import Scans, find_scans
from kd_jax.prediction import finished
from kd_jax.prediction.assessment import assess, lines, volumes_ml
from kd_jax.prediction.finished import Known, Verdict
from kd_jax.prediction.output import Output
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.predictor import Predictor, overlapped
from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, UserError, one_line, some
from kd_jax.runtime.files import read_json, write_bytes
from kd_jax.runtime.terminal import Terminal, error_table
from kd_jax.settings import record
from kd_jax.settings.inference import MinimumSizes
from kd_jax.tasks.names import Patterns

# In predict.json where an earlier version, which recorded no cases, has written masks too.
_UNRECORDED = "masks_without_record"


def predict(
  predictor: Predictor,
  scans_path: Path,
  output: Output,
  terminal: Terminal,
  patterns: Patterns | None = None,
) -> None:
  """As `predict_scans`, of the scans that a path means (see `find_scans`)."""
  scans = find_scans(scans_path, predictor.modalities, patterns)
  predict_scans(predictor, scans, output, terminal)


def predict_scans(predictor: Predictor, scans: Scans, output: Output, terminal: Terminal) -> None:
  """Writes a mask for every scan that has none yet; several processes share the scans out.

  A mask counts as finished if predict.json records that it was made of the very same scan, and if
  its file is as it was written (see `finished`).

  Raises:
    UserError: nothing to predict, an output that cannot be written, or (after all others were
      done) scans that could not be used and files that would have been overwritten.
  """
  cases, failed, notes = scans
  if processes.first():
    for note in notes:
      terminal.line(note)
  total = len(cases) + len({error.case for error in failed})
  _protect_inputs(cases, output)
  made_by, known = _claim(predictor, output)
  verdicts = _judge(cases, output, known)
  to_do = [case for case in cases if verdicts[case.name].act == "make"]
  failed += [
    CaseError(case.name, v.file, v.why, v.remedy)
    for case in cases
    if (v := verdicts[case.name]).act == "refuse"
  ]
  if processes.first():
    _tell_plan(terminal, verdicts)
    if to_do or (output.folder / RECORD_FILE).exists():
      own_masks.write_record(output.folder, made_by)
  processes.wait()
  journal = Journal(output.folder)
  assessed: dict[str, dict[str, Any]] = {}

  def load(case: Case) -> tuple[Prepared, dict[str, Any]]:
    return _load(predictor, case, terminal)

  def compute(loaded: tuple[Prepared, dict[str, Any]]) -> tuple[Prediction, dict[str, Any]]:
    return predictor.predict(loaded[0], opinions=bool(output.uncertainty)), loaded[1]

  def finish(case: Case, result: tuple[Prediction, dict[str, Any]]) -> None:
    prediction, inputs = result
    classes = prediction.classes()
    facts = assess(prediction, classes, predictor.volumes)
    facts["window"] = list(predictor.window(prediction.prepared))  # "auto" depends on free memory
    if output.onto:  # all else is judged where the student has looked
      prediction = output.onto(prediction)
      classes = prediction.classes()
      facts["volumes_ml"] = volumes_ml(classes, prediction.scan.voxel_mm)
    _write(case.name, prediction, classes, inputs, facts, output, known, journal)
    assessed[case.name] = facts

  try:
    progress = terminal.progress("predicting")
    broken = overlapped(processes.share(to_do), load, compute, finish, progress)
    gone = processes.union(_remove_unfounded(cases, broken, output, known, journal))
    failed += processes.all_errors(broken)
    everyone, journals = processes.union(assessed), processes.gather(journal.path.name)
  except BaseException:  # Ctrl-C too: what is finished stays finished
    with contextlib.suppress(UserError):
      own_masks.write_record(output.folder, made_by)
    raise
  if (everyone or gone) and processes.first():
    own_masks.write_record(output.folder, made_by, journals)
    if gone:
      files = some([one_line(file) for names in gone.values() for file in names])
      terminal.line(f"removed, because no mask of the scan that is there now came of it: {files}")
  if everyone and processes.first():
    _tell(terminal, everyone, output, predictor.settings.minimum_sizes)
  if failed:
    count = len({error.case for error in failed})
    raise UserError(
      f"{count} of {total} cases could not be done (all others are):\n\n{error_table(failed)}"
    )


# --- What is to be done -----------------------------------------------------------------------


def _protect_inputs(cases: Sequence[Case], output: Output) -> None:
  """UserError if a file to be written is one of a scan, or is to be written for two cases."""
  inputs = {os.path.realpath(path) for case in cases for path in files_of(case)}
  owner: dict[str, str] = {}  # some file systems see no difference between A and a
  for case in cases:
    for path in output.files(case.name):
      if os.path.realpath(path) in inputs:
        raise UserError(
          f"{path} is a file of a scan and would be overwritten; choose another --output"
        )
      other = owner.setdefault(path.name.casefold(), case.name)
      if other != case.name:
        raise UserError(
          f"{one_line(path.name)} would be written for {one_line(other)} and for "
          f"{one_line(case.name)}, as a mask and as a map. Leave --probabilities and --uncertainty "
          "out, rename one of the scans, or predict them into different folders"
        )


def _claim(predictor: Predictor, output: Output) -> tuple[dict[str, Any], Known]:
  """(what predict.json is to say of the folder, what it has said).

  Masks of one folder come from one student in one way: else a restart would mix them. UserError
  if they would.
  """
  made_by: dict[str, Any] = {
    "students": [
      {"source": student.source, "sha256": student.digest()} for student in predictor.students
    ],
    "labels": output.convention,
    "prediction": predictor.describe(),
  }
  path, unrecorded = output.folder / RECORD_FILE, False
  if path.exists():
    before = read_json(path)
    if _essence(before) != _essence(made_by):
      raise UserError(
        f"{output.folder} holds masks by another student, label convention or inference settings "
        f"(see {path.name}); choose another --output"
      )
    unrecorded = "cases" not in before or bool(before.get(_UNRECORDED))
  known = Known.of(own_masks.entries(output.folder), unrecorded)
  processes.wait()  # until all have read what it was
  return made_by | ({_UNRECORDED: True} if unrecorded else {}), known


def _essence(made_by: Mapping[str, Any]) -> tuple[Any, ...]:
  """What must agree; records of earlier versions have other names for the same settings."""
  try:
    digests = [student.get("sha256") for student in made_by.get("students", [])]
    prediction = record.modernised(made_by["prediction"], "predict")
    # Students that were made before there were temperatures have none.
    return digests, made_by.get("labels"), {"calibrate": True} | prediction
  except (AttributeError, KeyError, TypeError):  # a predict.json of another program
    return ()


def _judge(cases: Sequence[Case], output: Output, known: Known) -> dict[str, Verdict]:
  """Case -> what to do for it; several processes share out the reading of files."""
  own = {
    case.name: finished.judge(case, output.files(case.name), known, output.overwrite)
    for case in processes.share(cases)
  }
  return {name: Verdict(*verdict) for name, verdict in processes.union(own).items()}


def _tell_plan(terminal: Terminal, verdicts: Mapping[str, Verdict]) -> None:
  done = sum(verdict.act == "done" for verdict in verdicts.values())
  if done:
    terminal.line(f"{done} of {len(verdicts)} cases are finished already")
  anew: dict[str, list[str]] = {}
  for name, verdict in sorted(verdicts.items()):
    if verdict.act == "make" and verdict.why:
      file = one_line(os.path.basename(verdict.file))
      anew.setdefault(verdict.why, []).append(f"{one_line(name)} ({file})")
  for why, names in anew.items():
    terminal.line(f"made anew, because {why}: {some(names)}")


# --- A case -----------------------------------------------------------------------------------


def _load(predictor: Predictor, case: Case, terminal: Terminal) -> tuple[Prepared, dict[str, Any]]:
  """A case as the network reads it, and its scans for the record. CaseError if it is unfit."""
  paths = case.images.items()
  try:
    before = {modality: finished.state(path) for modality, path in paths}
  except OSError:
    before = {}  # loading says what is wrong with it
  prepared = predictor.load(case, terminal.line)
  try:
    inputs = {modality: finished.describe(path) for modality, path in paths}
    after = {modality: finished.state(path) for modality, path in paths}
  except (OSError, ValueError):
    after = None
  if before != after:
    finding = "it was changed while it was read"
    raise CaseError(case.name, case.folder, finding, "Start again when it is no longer written to.")
  return prepared, inputs


def _write(
  name: str,
  prediction: Prediction,
  classes: np.ndarray,
  inputs: dict[str, Any],
  facts: dict[str, Any],
  output: Output,
  known: Known,
  journal: Journal,
) -> None:
  """Notes and writes a case; classes: of the mask."""
  reference = prediction.scan
  content = {
    path: nifti.encode_like(path.name, x, reference)
    for path, x in output.arrays(name, prediction, classes)
  }
  if output.dicom:
    content[output.segmentation(name)] = output.dicom(classes)
  # A kill at any point leaves no file, or one that the record knows by its bytes.
  for path in finished.leftovers(name, list(content), known):
    _remove(path)
  outputs = {path.name: finished.sha256(x) for path, x in content.items()}
  journal.note(name, Entry(inputs, outputs, facts))
  for path, x in content.items():
    write_bytes(path, x)


def _remove_unfounded(
  cases: Sequence[Case],
  broken: Sequence[CaseError],
  output: Output,
  known: Known,
  journal: Journal,
) -> dict[str, list[str]]:
  """Removes the old files, and the record, of cases that failed; see `finished.unfounded`.

  Returns:
    Case -> names of the files that are gone.
  """
  gone: dict[str, list[str]] = {}
  names = {error.case for error in broken}
  for case in cases:
    if case.name in names and (old := finished.unfounded(case, output.folder, known)):
      for path in old:
        _remove(path)
      journal.note(case.name, Entry({}, {}))
      gone[case.name] = [path.name for path in old]
  return gone


def _remove(path: Path) -> None:
  try:
    path.unlink(missing_ok=True)
  except OSError as e:
    raise UserError(f"cannot replace {path}: {e.strerror or e}") from e


def _tell(
  terminal: Terminal,
  assessed: Mapping[str, Mapping[str, Any]],
  output: Output,
  minimum: MinimumSizes,
) -> None:
  for line in lines(assessed):
    terminal.line(line)
  terminal.line(f"written: {len(assessed)} masks in {output.folder}")
  if minimum.component_mm3:
    terminal.line(f"components of less than {minimum.component_mm3:g} mm3 are left out")
  if minimum.et_mm3:
    terminal.line(f"ET of less than {minimum.et_mm3:g} mm3 in a case is written as core")
