"""--mode=predict: masks of new scans, each in its scan's own space."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.data.scans import find_scans
from kd_jax.metrics.volumetric import region_mask
from kd_jax.prediction.predictor import Prediction, Predictor, predict_cases
from kd_jax.runtime import processes
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json, write_text
from kd_jax.runtime.terminal import Terminal, error_table, table
from kd_jax.settings import record
from kd_jax.settings.inference import MinimumSizes
from kd_jax.tasks import labels
from kd_jax.tasks.names import Patterns

RECORD_FILE = "predict.json"


@dataclass(frozen=True)
class Output:
  """What to write.

  Attributes:
    folder: where.
    convention: what the numbers in the masks mean, a key of labels.CONVENTIONS.
    probabilities: write maps of WT, TC and ET too.
  """

  folder: Path
  convention: str
  probabilities: bool = False

  def mask(self, name: str) -> Path:
    return self.folder / f"{name}.nii.gz"

  def map(self, name: str, region: str) -> Path:
    return self.folder / f"{name}_{region}.nii.gz"

  def done(self, name: str) -> bool:
    """The mask is written last: where it is, the maps are."""
    maps = labels.REGIONS if self.probabilities else ()
    files = (self.mask(name), *(self.map(name, region) for region in maps))
    return all(os.path.exists(file) for file in files)


def predict(
  predictor: Predictor,
  scans_path: Path,
  output: Output,
  terminal: Terminal,
  patterns: Patterns | None = None,
) -> None:
  """Writes a mask for every scan that has none yet; several processes share the scans out.

  Raises:
    UserError: nothing to predict, an output that cannot be written, or (after all others were
      done) scans that could not be used.
  """
  cases, failed, notes = find_scans(scans_path, predictor.modalities, patterns)
  if processes.first():
    for note in notes:
      terminal.line(note)
  total = len(cases) + len({error.case for error in failed})
  _protect_inputs(cases, output)
  _claim(predictor, output)
  finished = processes.gather([case.name for case in cases if output.done(case.name)])[0]
  waiting = processes.share([case for case in cases if case.name not in set(finished)])
  if finished and processes.first():
    terminal.line(f"{len(finished)} of {len(cases)} cases are finished already")
  volumes: dict[str, list[str]] = {}

  def finish(case: Case, prediction: Prediction) -> None:
    volumes[case.name] = _write(case.name, prediction, output)

  progress = terminal.progress("predicting")
  broken = predict_cases(predictor, waiting, finish, warn=terminal.line, progress=progress)
  failed += processes.all_errors(broken)
  volumes = processes.union(volumes)
  if volumes and processes.first():
    _tell(terminal, volumes, output, predictor.settings.minimum_sizes)
  if failed:
    count = len({error.case for error in failed})
    raise UserError(
      f"{count} of {total} cases could not be done (all others are):\n\n{error_table(failed)}"
    )


def _write(name: str, prediction: Prediction, output: Output) -> list[str]:
  """Writes a case; returns its regions' volumes in ml."""
  reference = prediction.scan
  if output.probabilities:
    for region, probability in prediction.regions().items():
      nifti.write_like(output.map(name, region), probability, reference)
  predicted = prediction.classes()
  nifti.write_like(output.mask(name), labels.from_classes(predicted, output.convention), reference)
  ml = np.prod(reference.voxel_mm) / 1000
  return [f"{region_mask(predicted, r).sum() * ml:.1f}" for r in labels.REGIONS]


def _tell(
  terminal: Terminal, volumes: Mapping[str, list[str]], output: Output, minimum: MinimumSizes
) -> None:
  rows = [[name, *values] for name, values in sorted(volumes.items())]
  head = ["case", *(f"{region} ml" for region in labels.REGIONS)]
  terminal.line(f"{table(head, rows)}\nwritten: {len(volumes)} masks in {output.folder}")
  if minimum.component_mm3:
    terminal.line(f"components of less than {minimum.component_mm3:g} mm3 are left out")
  if minimum.et_mm3:
    terminal.line(f"ET of less than {minimum.et_mm3:g} mm3 in a case is written as core")


def _protect_inputs(cases: Sequence[Case], output: Output) -> None:
  inputs = {os.path.realpath(path) for case in cases for path in case.images.values()}
  for case in cases:
    regions = labels.REGIONS if output.probabilities else ()
    for path in (output.mask(case.name), *(output.map(case.name, r) for r in regions)):
      if os.path.realpath(path) in inputs:
        raise UserError(f"{path} is an input and would be overwritten; choose another --output")


def _claim(predictor: Predictor, output: Output) -> None:
  """Masks of one folder come from one student in one way: else a restart would mix them."""
  made_by = {
    "students": [
      {"source": student.source, "sha256": student.digest()} for student in predictor.students
    ],
    "labels": output.convention,
    "prediction": predictor.describe(),
  }
  path = output.folder / RECORD_FILE
  if path.exists() and _essence(read_json(path)) != _essence(made_by):
    raise UserError(
      f"{output.folder} holds masks by another student, label convention or inference settings "
      f"(see {path.name}); choose another --output"
    )
  processes.wait()  # until all have read what it was
  if processes.first():
    write_text(path, json.dumps(made_by, indent=1) + "\n")


def _essence(made_by: dict) -> dict:
  """What must agree; records of earlier versions have other names for the same settings."""
  digests = [student.get("sha256") for student in made_by.get("students", [])]
  prediction = record.modernised(made_by.get("prediction", {}), "predict")
  return made_by | {"students": digests, "prediction": prediction}
