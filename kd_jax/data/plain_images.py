"""Arrays in place of scan files: what they may be, and the checks that need no header."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from kd_jax.data.preprocess import PlainImage
from kd_jax.data.scan_checks import check_scan
from kd_jax.runtime.errors import CaseError, ConfigError

_FORM = "Give a 3-D array of numbers, (D, H, W): left-right, front-back, feet-head."


def from_arrays(
  arrays: Mapping[str, ArrayLike],
  voxel_mm: Sequence[float],
  modalities: Sequence[str],
  warn: Callable[[str], None],
) -> dict[str, PlainImage]:
  """Arrays as images, checked as scans from files are.

  Args:
    arrays: modality -> (D, H, W) in LPS axes, at least the modalities asked for, all of one shape.
    voxel_mm: the three edges of a voxel in mm, along D, H and W.
    modalities: which of them are wanted, in this order.
    warn: called with a line for each finding that speaks against an array.

  Raises:
    ConfigError: voxel_mm is not three positive numbers.
    CaseError: a modality is missing, shapes differ, or an array cannot be used.
  """
  edges = _edges(voxel_mm)
  images: dict[str, PlainImage] = {}
  for modality in modalities:
    if modality not in arrays:
      given = ", ".join(map(str, arrays)) or "nothing"
      remedy = f"The student reads {' and '.join(modalities)}; given is {given}."
      raise CaseError("array", "", f"no {modality} image", remedy)
    images[modality] = PlainImage(_numbers(arrays[modality], modality), edges)
  first = modalities[0]
  for modality, image in images.items():
    if image.data.shape != images[first].data.shape:
      differs = f"shape {image.data.shape} differs from {images[first].data.shape} of {first}"
      raise CaseError(_name(modality), "", differs, "All images must share one voxel grid.")
  for modality, image in images.items():
    for finding in check_scan(image, modality):
      if finding.severity == "error":
        raise CaseError(_name(modality), "", finding.text, finding.remedy)
      warn(f"{_name(modality)}: {finding.text}. {finding.remedy}")
  return images


def _edges(voxel_mm: Sequence[float]) -> tuple[float, float, float]:
  try:
    d, h, w = (float(mm) for mm in voxel_mm)
  except (TypeError, ValueError) as e:
    raise ConfigError(f"voxel_mm = {voxel_mm!r}: expected three edges in mm, (D, H, W)") from e
  if not all(math.isfinite(mm) and mm > 0 for mm in (d, h, w)):
    raise ConfigError(f"voxel_mm = {voxel_mm!r}: expected three positive numbers, in mm")
  return d, h, w


def _numbers(array: ArrayLike, modality: str) -> np.ndarray:
  """(D, H, W) of a type that files have too: doubles as float32."""
  try:
    x = np.asarray(array)
  except (TypeError, ValueError) as e:  # lists of unequal lengths
    raise CaseError(_name(modality), "", f"it is no array ({e})", _FORM) from e
  if x.dtype.kind not in "iuf":
    raise CaseError(_name(modality), "", f"expected numbers, found type {x.dtype}", _FORM)
  if x.ndim != 3 or not x.size:
    raise CaseError(_name(modality), "", f"expected (D, H, W), found shape {x.shape}", _FORM)
  if x.dtype.kind != "f":
    return x
  with np.errstate(over="ignore"):  # infinite, and told by the checks
    return x.astype(np.float32, copy=False)


def _name(modality: str) -> str:
  return f"{modality} array"
