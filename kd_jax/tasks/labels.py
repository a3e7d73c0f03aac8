"""Label conventions of the BraTS years, and the four classes that everything else works on.

Classes: 0 background, 1 NCR/NET (necrotic and non-enhancing core), 2 ED (oedema), 3 ET (enhancing
tumour). The files of 2018-2021 write ET as 4, those of 2023 as 3; in 2024 (post-treatment) 4 is
the resection cavity, which is not tumour.
"""

from typing import Literal

import numpy as np

from kd_jax.runtime.errors import ConfigError, did_you_mean

Region = Literal["WT", "TC", "ET"]
Convention = Literal["brats2018", "brats2023", "brats2024"]
CLASSES = ("background", "NCR", "ED", "ET")
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}

# Label in the file -> class. 2023 and 2024 name their folders alike, and 2023 never has a 4.
CONVENTIONS = {
  "brats2018": {0: 0, 1: 1, 2: 2, 4: 3},
  "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
  "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 0},
}

_SAME_AS_2018 = ("brats2017", "brats2019", "brats2020", "brats2021")

_UNKNOWN = 255
_INTEGER_TOLERANCE = 1e-3


def canonical(name: str) -> str:
  """The key of CONVENTIONS for any year's name, such as brats2021. ConfigError if unknown."""
  name = "brats2018" if name in _SAME_AS_2018 else name
  if name not in CONVENTIONS:
    raise ConfigError(did_you_mean("label convention", name, (*CONVENTIONS, *_SAME_AS_2018)))
  return name


def to_classes(raw: np.ndarray, convention: str) -> np.ndarray:
  """The classes of a label map as it stands in a file.

  Args:
    raw: labels of any shape, integers or floats. Floats within 1e-3 of an integer are rounded.
    convention: a key of CONVENTIONS.

  Returns:
    uint8 classes 0..3 of raw's shape.

  Raises:
    ValueError: a value that is no integer or that the convention does not know; the message has
      the values and how many voxels hold each.
  """
  labels = _as_uint8(raw, convention)
  table = np.full(256, _UNKNOWN, np.uint8)
  for label, cls in _convention(convention).items():
    table[label] = cls
  classes = table[labels]
  if classes.max(initial=0) == _UNKNOWN:
    raise _unknown(labels[classes == _UNKNOWN], convention)
  return classes


def from_classes(classes: np.ndarray, convention: str) -> np.ndarray:
  """The labels to write for classes 0..3, as uint8 of the same shape."""
  table = np.zeros(len(CLASSES), np.uint8)
  for label, cls in reversed(_convention(convention).items()):
    table[cls] = label  # reversed: of the labels that mean background, 0 is the one to write
  return table[classes]


def _as_uint8(raw: np.ndarray, convention: str) -> np.ndarray:
  if raw.dtype == np.bool_:
    return raw.astype(np.uint8)
  if np.issubdtype(raw.dtype, np.floating):
    rounded = np.rint(raw)
    with np.errstate(invalid="ignore"):  # Inf - Inf
      odd = ~(np.abs(raw - rounded) <= _INTEGER_TOLERANCE)  # NaN and Inf are odd too
    if odd.any():
      raise _unknown(raw[odd], convention)
    raw = rounded
  if raw.size and (raw.min() < 0 or raw.max() > 255):
    raise _unknown(raw[(raw < 0) | (raw > 255)], convention)
  return raw.astype(np.uint8, copy=False)


def _convention(name: str) -> dict[int, int]:
  if name not in CONVENTIONS:
    raise ConfigError(did_you_mean("label convention", name, tuple(CONVENTIONS)))
  return CONVENTIONS[name]


def _unknown(found: np.ndarray, convention: str) -> ValueError:
  values, counts = np.unique(found, return_counts=True)
  listed = [f"{v:g} ({n} voxels)" for v, n in zip(values[:5].tolist(), counts[:5], strict=True)]
  if len(values) > 5:
    listed.append(f"{len(values) - 5} more values")
  known = ", ".join(map(str, _convention(convention)))
  return ValueError(f"unknown label {', '.join(listed)}; {convention} has {known}")
