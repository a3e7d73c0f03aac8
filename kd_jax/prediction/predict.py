"""--mode=predict: masks of new scans, each in its scan's own space."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cache import error_table
from kd_jax.data.scans import Scan, find_scans
from kd_jax.metrics.volumetric import region_mask
from kd_jax.prediction.postprocess import Smallest, clean
from kd_jax.prediction.predictor import (
  Ensemble,
  Prepared,
  load_scan,
  native_classes,
  native_probabilities,
  overlapped,
)
from kd_jax.runtime import processes
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json, write_text
from kd_jax.runtime.terminal import Terminal, table
from kd_jax.tasks import labels

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


def predict(ensemble: Ensemble, scans_path: Path, output: Output, terminal: Terminal) -> None:
  """Writes a mask for every scan that has none yet; several processes share the scans out.

  Raises:
    UserError: nothing to predict, an output that cannot be written, or (after all others were
      done) scans that could not be used.
  """
  scans, failed = find_scans(scans_path, ensemble.modalities)
  total = len(scans) + len({error.case for error in failed})
  _protect_inputs(scans, output)
  _claim(ensemble, output)
  finished = processes.gather([scan.name for scan in scans if output.done(scan.name)])[0]
  waiting = processes.share([scan for scan in scans if scan.name not in set(finished)])
  if finished and processes.first():
    terminal.line(f"{len(finished)} of {len(scans)} cases are finished already")
  volumes: dict[str, list[str]] = {}

  def load(scan: Scan) -> Prepared:
    return load_scan(ensemble, scan, terminal.line)

  def finish(scan: Scan, prepared: Prepared, probabilities: np.ndarray) -> None:
    smallest = ensemble.settings.smallest
    volumes[scan.name] = _write(scan.name, prepared, probabilities, smallest, output)

  broken = overlapped(waiting, load, ensemble.predict, finish, terminal.progress("predicting"))
  failed += processes.all_errors(broken)
  volumes = processes.union(volumes)
  if volumes and processes.first():
    rows = [[name, *values] for name, values in sorted(volumes.items())]
    head = ["case", *(f"{region} ml" for region in labels.REGIONS)]
    terminal.line(f"{table(head, rows)}\nwritten: {len(volumes)} masks in {output.folder}")
    smallest = ensemble.settings.smallest
    if smallest.island:
      terminal.line(f"islands of less than {smallest.island:g} mm3 are left out")
    if smallest.et:
      terminal.line(f"ET of less than {smallest.et:g} mm3 in a case is written as core")
  if failed:
    count = len({error.case for error in failed})
    raise UserError(
      f"{count} of {total} cases could not be done (all others are):\n\n{error_table(failed)}"
    )


def _write(
  name: str, prepared: Prepared, probabilities: np.ndarray, smallest: Smallest, output: Output
) -> list[str]:
  """Writes a case; returns its regions' volumes in ml."""
  reference = prepared.reference
  if output.probabilities:
    native = native_probabilities(probabilities, prepared)
    for region, classes in labels.REGIONS.items():
      nifti.write_like(output.map(name, region), native[list(classes)].sum(axis=0), reference)
    predicted = np.argmax(native, axis=0).astype(np.uint8)
    predicted = clean(predicted, smallest, reference.voxel_mm)
  else:
    predicted = native_classes(probabilities, prepared, smallest)
  nifti.write_like(output.mask(name), labels.from_classes(predicted, output.convention), reference)
  ml = np.prod(reference.voxel_mm) / 1000
  return [f"{region_mask(predicted, r).sum() * ml:.1f}" for r in labels.REGIONS]


def _protect_inputs(scans: Sequence[Scan], output: Output) -> None:
  inputs = {os.path.realpath(path) for scan in scans for path in scan.images.values()}
  for scan in scans:
    regions = labels.REGIONS if output.probabilities else ()
    for path in (output.mask(scan.name), *(output.map(scan.name, r) for r in regions)):
      if os.path.realpath(path) in inputs:
        raise UserError(f"{path} is an input and would be overwritten; choose another --output")


def _claim(ensemble: Ensemble, output: Output) -> None:
  """Masks of one folder come from one student in one way: else a restart would mix them."""
  record = {
    "students": [
      {"source": student.source, "sha256": student.digest()} for student in ensemble.students
    ],
    "labels": output.convention,
    "prediction": ensemble.describe(),
  }
  path = output.folder / RECORD_FILE
  if path.exists() and _essence(read_json(path)) != _essence(record):
    raise UserError(
      f"{output.folder} holds masks by another student, label convention or way to look at "
      f"volumes (see {path.name}); choose another --output"
    )
  processes.wait()  # until all have read what it was
  if processes.first():
    write_text(path, json.dumps(record, indent=1) + "\n")


def _essence(record: dict) -> dict:
  digests = [student.get("sha256") for student in record.get("students", [])]
  return record | {"students": digests}
