"""One scan at a time, from an array or a file: what the Python interface does with a predictor."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from kd_jax.data import nifti
from kd_jax.data.cases import Case, loose_case
from kd_jax.data.plain_images import from_arrays
from kd_jax.data.scan_files import is_of
from kd_jax.data.scans import find_scans
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.student import parameter_count
from kd_jax.runtime import commands
from kd_jax.runtime.errors import CaseError, ConfigError, UserError, some
from kd_jax.tasks import labels

PathLike: TypeAlias = str | os.PathLike[str]
Scan: TypeAlias = PathLike | Mapping[str, PathLike]  # one path, or modality -> file
Image: TypeAlias = ArrayLike | Mapping[str, ArrayLike] | Scan
Warn: TypeAlias = Callable[[str], None]

_DEFAULT_MM = (1.0, 1.0, 1.0)


class Segmentation(NamedTuple):
  """Classes, and the probabilities behind them.

  Attributes:
    classes: (D, H, W) uint8, postprocessed: 0 background, 1 NCR, 2 ED, 3 ET.
    regions: "WT", "TC" and "ET" -> (D, H, W) float32 probability, calibrated where the student
      has a calibration, not postprocessed.
  """

  classes: np.ndarray
  regions: dict[str, np.ndarray]


class ScanWarning(UserWarning):
  """A scan that is not like the training data: its mask may be wrong."""


def warn_caller(*lines: str, category: type[Warning] = ScanWarning) -> None:
  """A warning for each line, at the line of the caller's code that called this package."""
  frame, level = sys._getframe(), 1  # as `warnings` counts: 1 is this function
  while frame.f_back and frame.f_globals["__name__"].split(".")[0] == "kd_jax":
    frame, level = frame.f_back, level + 1
  for line in lines:
    warnings.warn(line.removeprefix("warning: "), category, stacklevel=level)


def segment(
  predictor: Predictor, image: Image, voxel_mm: Sequence[float] | None, warn: Warn
) -> Prediction:
  """What the students say of one scan.

  Args:
    image: (D, H, W) in LPS axes for students of one modality, modality -> such an array, a path
      that means one scan, or modality -> file.
    voxel_mm: the edges of an array's voxels in mm; None for 1 mm.
    warn: called with each line that speaks against the scan, before the students see it.

  Raises:
    CaseError: an image that is missing or cannot be used.
    ConfigError: voxel_mm is not three positive numbers, or is given for a file.
    UserError: a path that means no scan or several, or too little device memory.
  """
  if _is_scan(image):
    if voxel_mm is not None:
      raise ConfigError("voxel_mm goes with an array: a file has its own voxel size")
    prepared = predictor.load(_one_case(image, predictor.modalities), warn)
  else:
    prepared = _prepare(predictor, image, _DEFAULT_MM if voxel_mm is None else voxel_mm, warn)
  return predictor.predict(prepared)


def segment_file(
  predictor: Predictor, scan: Scan, mask: Path, convention: str, warn: Warn
) -> Prediction:
  """As segment, and writes the mask in the scan's own space.

  Args:
    mask: the file, .nii.gz or .nii; one that is there already is replaced.
    convention: what the numbers in it mean, see labels.canonical.

  Raises:
    UserError: as segment; or the mask would overwrite a file of the scan, or cannot be written.
  """
  if not mask.name.endswith((".nii", ".nii.gz")):
    raise UserError(f"{mask} is no name for a mask; end it with .nii.gz or .nii")
  case = _one_case(scan, predictor.modalities)
  if is_of(case, mask):
    raise UserError(f"{mask} is a file of the scan and would be overwritten; choose another name")
  prediction = predictor.predict(predictor.load(case, warn))
  written = labels.from_classes(prediction.classes(), convention)
  nifti.write_like(mask, written, prediction.scan)
  return prediction


def facts(predictor: Predictor) -> dict[str, Any]:
  """What students read, how they predict and what they were trained on, as plain values."""
  return {
    "modalities": list(predictor.modalities),
    "classes": list(labels.CLASSES),
    "regions": list(labels.REGIONS),
    "labels": predictor.students[0].training["convention"],
    "spacing_mm": predictor.preparation.spacing,
    "patch": list(predictor.preparation.patch),
    "inference": dataclasses.asdict(predictor.settings),
    "students": [
      {
        "name": student.name,
        "source": student.source,
        "parameters": parameter_count(student.architecture.framework()),
        "training": student.training,
        "scores": student.scores,
      }
      for student in predictor.students
    ],
  }


def _prepare(predictor: Predictor, image: Any, voxel_mm: Sequence[float], warn: Warn) -> Prepared:
  """An array, or modality -> array, as the students read it."""
  if not isinstance(image, Mapping):
    if len(predictor.modalities) > 1:
      raise UserError(
        f"the student reads {' and '.join(predictor.modalities)}: give a dictionary with an array "
        "for each of them"
      )
    image = {predictor.modalities[0]: image}
  images = from_arrays(image, voxel_mm, predictor.modalities, warn)
  try:
    return predictor.prepare(images)
  except ValueError as e:
    raise CaseError("array", "", str(e), "Correct or replace the scan.") from e


def _is_scan(image: Image) -> TypeGuard[Scan]:
  """Whether an image is given by paths."""
  if isinstance(image, Mapping):
    return bool(image) and all(isinstance(x, str | os.PathLike) for x in image.values())
  return isinstance(image, str | os.PathLike)


def _one_case(scan: Scan, modalities: Sequence[str]) -> Case:
  """The case that a path, or a file for each modality, means. UserError if it is not one."""
  if isinstance(scan, Mapping):
    files = {modality: Path(os.path.expanduser(file)) for modality, file in scan.items()}
    return loose_case("scan", files)
  cases, errors, _ = find_scans(scan, modalities)
  if len(cases) + len(errors) > 1:
    names = [*(case.name for case in cases), *(error.case for error in errors)]
    raise UserError(
      f"{scan} holds {len(names)} scans ({some(names)}) and one is expected; give the path of one, "
      f"or use {commands.typed('predict')} for all of them"
    )
  if errors:
    raise errors[0]
  return cases[0]
