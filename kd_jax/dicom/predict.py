"""--mode=predict of a folder of DICOM files: a series in, NIfTI and DICOM-SEG in its space out."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from kd_jax import __version__
from kd_jax.data import nifti
from kd_jax.data.cases import loose_case
from kd_jax.data.scans import Scans
from kd_jax.dicom import convert, seg, transform
from kd_jax.dicom import prepare as preparation
from kd_jax.dicom.choose import choose
from kd_jax.dicom.files import is_dicom
from kd_jax.dicom.geometry import Stack, stack
from kd_jax.dicom.packages import needed
from kd_jax.dicom.prepare import Steps
from kd_jax.dicom.series import Series, read_folder, text
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict_scans
from kd_jax.prediction.prediction import Prediction
from kd_jax.prediction.predictor import Predictor
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import check_folder, load_json, write_text
from kd_jax.runtime.terminal import Terminal

_SERIES_FILE = "series.json"  # which series the steps belong to; no name of HD-BET's own files


@dataclass(frozen=True)
class Request:
  """What the user asks for.

  Attributes:
    folder: with the DICOM files.
    series: number or UID of one; "" to choose by the headers.
    prepare: run the steps that the series needs.
  """

  folder: Path
  series: str = ""
  prepare: bool = False


def predict(predictor: Predictor, request: Request, output: Output, terminal: Terminal) -> None:
  """Writes the mask of one series, as NIfTI and as DICOM-SEG.

  Args:
    output: folder, labels and so on; its files have the name of the DICOM folder. What lies in
      NAME_steps there is the series as NIfTI, and what the preparation made of it.

  Raises:
    UserError: no series that the students read, or one that needs preparation; as
      `predict_scans`.
  """
  folder = request.folder
  name = _check(predictor, folder, output)
  for package in ("pydicom", "highdicom", "dcm2niix"):
    needed(package)
  (modality,) = predictor.modalities
  choice = choose(read_folder(folder), modality, request.series, folder)
  for line in choice.said:
    terminal.line(line)
  series = choice.series
  where = stack(series)
  images = convert.read_images(series)
  check_folder(output.folder)
  steps = Steps(output.folder / f"{name}_steps")
  _convert(series, where, steps)
  scan = nifti.read(steps.scan)
  found = preparation.needs(scan, modality)
  ready, onto = steps.scan, None
  if any(found):
    gpu = jax.local_devices()[0].platform == "gpu"
    ready = preparation.prepare(steps, found, modality, request.prepare, gpu, terminal.line)
    onto = _back(steps, scan)
  encode = None
  ordered = [images[i] for i in where.order]
  if why := seg.obstacle(series, ordered):
    terminal.line(f"warning: no DICOM segmentation will be written: {why}")
  else:
    students = [student.digest() for student in predictor.students]

    def encode(classes: np.ndarray) -> bytes:
      made_by = {f"student {i}": digest for i, digest in enumerate(students, 1)}
      return seg.encode(seg.frames(classes, scan, where), ordered, made_by, __version__)

  case = loose_case(name, {modality: ready})
  predict_scans(
    predictor, Scans([case], [], []), replace(output, onto=onto, dicom=encode), terminal
  )


def _check(predictor: Predictor, folder: Path, output: Output) -> str:
  """The case's name. UserError for what cannot be done with any DICOM folder."""
  if not folder.is_dir() and not is_dicom(folder):
    raise UserError(f"--series and --prepare are for a folder of DICOM files, and {folder} is none")
  if not folder.is_dir():
    raise UserError(f"{folder} is a DICOM file; give the folder with all files of its series")
  if jax.process_count() > 1:
    raise ConfigError("a DICOM folder is one scan, work for one process; start it alone")
  if len(predictor.modalities) > 1:
    raise UserError(
      f"the student reads {' and '.join(predictor.modalities)}, which must lie on one grid: "
      "convert and align the series, and give them as a BraTS case (docs/clinical-scans.md)"
    )
  inside = Path(os.path.realpath(output.folder))
  if Path(os.path.realpath(folder)) in (inside, *inside.parents):
    raise UserError(f"--output={output.folder} lies in the DICOM folder; choose another place")
  return os.path.basename(os.path.realpath(folder)) or "scan"


def _convert(series: Series, where: Stack, steps: Steps) -> None:
  """The series as NIfTI, unless it is there already. UserError if another one's steps are."""
  uids = sorted(text(header, "SOPInstanceUID") for header in series.headers)
  # A digest tells series apart, and leads nobody back to the patient.
  mark = {"series_sha256": hashlib.sha256("\n".join(uids).encode()).hexdigest()}
  record = steps.folder / _SERIES_FILE
  if os.path.isdir(steps.folder) and os.listdir(steps.folder):
    try:
      same = load_json(record) == mark
    except (OSError, ValueError):
      same = False
    if not same:
      raise UserError(
        f"{steps.folder} holds the steps of another series, or of other images of this one; choose "
        "another --output, or move it away"
      )
  else:
    write_text(record, json.dumps(mark) + "\n")
  try:
    nifti.read(steps.scan)
  except ValueError:  # not there, or not whole
    convert.to_nifti(series, where, steps.scan)


def _back(steps: Steps, scan: nifti.Volume) -> Callable[[Prediction], Prediction]:
  """Brings predictions from the atlas to the series."""
  atlas_to_scan = transform.read(steps.transform)
  return lambda prediction: transform.onto(prediction, scan, atlas_to_scan)
