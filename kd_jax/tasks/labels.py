"""Label conventions: what the numbers in label maps mean, and the four classes that all else uses.

Classes: 0 background, 1 NCR/NET (necrotic and non-enhancing core), 2 ED (oedema), 3 ET (enhancing
tumour). The files of 2018-2021 write ET as 4, those of 2023 as 3; in 2024 (post-treatment) 4 is
the resection cavity, which is not tumour.

A convention is a text everywhere: a key of CONVENTIONS, or for other numbers the JSON that
`canonical` makes of a mapping, such as '{"NCR": 3, "ED": 1, "ET": 2}'.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.tasks.label_names import CLASSES, table_of

Region = Literal["WT", "TC", "ET"]
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}

# Label in the file -> class. 2023 and 2024 name their folders alike, and 2023 never has a 4.
CONVENTIONS = {
  "brats2018": {0: 0, 1: 1, 2: 2, 4: 3},
  "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
  "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 0},
  # The Medical Segmentation Decathlon, and nnU-Net's own conversion of BraTS.
  "msd": {0: 0, 1: 2, 2: 1, 3: 3},
  # Children, from 2024 on: 2 is non-enhancing tumour and 3 cysts, both part of the core.
  "brats-ped": {0: 0, 1: 3, 2: 1, 3: 1, 4: 2},
}
AUTO = "auto"  # in place of a convention: by names and contents of the files
EXAMPLE = '{"NCR": 2, "ED": 1, "ET": 3}'

_SAME_AS_2018 = ("brats2017", "brats2019", "brats2020", "brats2021")

_UNKNOWN = 255
_INTEGER_TOLERANCE = 1e-3
_MOST_TOLERANCE = 0.25  # of a label; a coarser scale has no numbers for labels
_MOST_LABELS = 12  # a file with more numbers than that is no label map


def canonical(said: str | Mapping, auto: bool = False) -> str:
  """The text of a convention, for whatever says it.

  Args:
    said: a key of CONVENTIONS, any year's name such as brats2021, or a mapping of classes to labels
      such as {"NCR": 2, "ED": 1, "ET": 3} (see label_names.table_of), as such or as JSON.
    auto: AUTO is allowed too, and stays as it is.

  Raises:
    ConfigError: an unknown name, or a mapping that does not say what each number means.
  """
  if isinstance(said, Mapping):
    return _text(table_of(said))
  name = said.strip().lower() if "{" not in said else said
  name = "brats2018" if name in _SAME_AS_2018 else name
  others = (AUTO,) if auto else ()
  if name in (*others, *CONVENTIONS):
    return name
  if "{" in name:
    return _text(_parsed(name))
  known = (*others, *CONVENTIONS, *_SAME_AS_2018)
  raise ConfigError(f"{did_you_mean('label convention', name, known)}, or a mapping: {EXAMPLE}")


def by_name(case: str, new_names: bool | None) -> str | None:
  """What the names of a case say of its labels; what its label map holds may say otherwise.

  Args:
    case: the case's name.
    new_names: whether its images have the names that 2023 introduced; None without images.

  Returns:
    A key of CONVENTIONS; None where nothing is known.
  """
  if case.lower().startswith("brats-gli"):
    return "brats2024"
  if case.lower().startswith("brats-ped"):
    return "brats-ped"
  return None if new_names is None else "brats2023" if new_names else "brats2018"


def meaning(convention: str) -> str:
  """A convention in words: "1 = NCR, 2 = ED, 4 = ET"."""
  table = _convention(convention)
  said = ((label, CLASSES[cls] if cls else "no tumour") for label, cls in sorted(table.items()))
  return ", ".join(f"{label} = {name}" for label, name in said if label)


def labels_of(convention: str, cls: int) -> list[int]:
  """The numbers that a convention reads as a class, the one to write first."""
  return [label for label, own in _convention(convention).items() if own == cls]


def to_classes(raw: np.ndarray, convention: str, step: float = 0.0) -> np.ndarray:
  """The classes of a label map as it stands in a file.

  Args:
    raw: labels of any shape, integers or floats.
    convention: see `canonical`.
    step: between neighbouring numbers that the file can hold, where it scales them; see `rounded`.

  Returns:
    uint8 classes 0..3 of raw's shape.

  Raises:
    ValueError: a value that is no integer or that the convention does not know; the message has
      the values and how many voxels hold each.
  """
  table = np.full(256, _UNKNOWN, np.uint8)
  for label, cls in _convention(convention).items():
    table[label] = cls
  try:
    labels = rounded(raw, step)
  except ValueError as e:
    raise ValueError(f"{e}; {_known(convention)}") from None
  classes = table[labels]
  if classes.max(initial=0) == _UNKNOWN:
    odd = classes == _UNKNOWN
    raise ValueError(f"{_unknown(labels, odd)}; {_known(convention)}")
  return classes


def from_classes(classes: np.ndarray, convention: str) -> np.ndarray:
  """The labels to write for classes 0..3, as uint8 of the same shape."""
  table = np.array([labels_of(convention, cls)[0] for cls in range(len(CLASSES))], np.uint8)
  return table[classes]


def rounded(raw: np.ndarray, step: float = 0.0) -> np.ndarray:
  """A label map's numbers as uint8.

  Args:
    raw: integers or floats. Floats within 1e-3 of an integer are that integer.
    step: where the file scales what it stores, the least difference of two of its numbers: then
      half a step is as near as the file can come. (With 4 / 255, label 1 is stored as 1.00392.)

  Raises:
    ValueError: other numbers; the message has the values and how many voxels hold each.
  """
  if raw.dtype == np.bool_:
    return raw.astype(np.uint8)
  whole = raw
  if np.issubdtype(raw.dtype, np.floating):
    # float32 numbers: a little more than half a step.
    tolerance = max(_INTEGER_TOLERANCE, min(step / 2 + 1e-4, _MOST_TOLERANCE))
    whole = np.rint(raw)
    with np.errstate(invalid="ignore"):  # Inf - Inf
      odd = ~(np.abs(raw - whole) <= tolerance)  # NaN and Inf are odd too
    if odd.any():
      raise ValueError(_unknown(raw, odd))
  if raw.size and (whole.min() < 0 or whole.max() > 255):
    raise ValueError(_unknown(raw, (whole < 0) | (whole > 255)))
  return whole.astype(np.uint8, copy=False)


def _text(table: Mapping[int, int]) -> str:
  """The name of a table of labels, or else its JSON: the same for all that mean the same."""
  for name, known in CONVENTIONS.items():
    # 2024's name stays apart: in full, it says that a 4 is no tumour even where no 3 is.
    if known == table and name != "brats2024":
      return name
  said: dict[str, int | list[int]] = {}
  for cls in (1, 2, 3, 0):
    labels = [label for label, own in table.items() if own == cls]
    if labels != [0]:
      said[CLASSES[cls]] = labels if len(labels) > 1 else labels[0]
  return json.dumps(said)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> dict[int, int]:
  try:
    said = json.loads(text, object_pairs_hook=_once_each)
  except (ValueError, RecursionError) as e:
    raise ConfigError(f"the label convention {text!r} is no JSON ({e}); expected {EXAMPLE}") from e
  return table_of(said)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON; a name that stands there twice would else lose its first number."""
  if len({name for name, _ in pairs}) < len(pairs):
    raise ValueError("a name stands there twice")
  return dict(pairs)


def _convention(name: str) -> Mapping[int, int]:
  if name in CONVENTIONS:
    return CONVENTIONS[name]
  if "{" in name:
    return _parsed(name)
  raise ConfigError(did_you_mean("label convention", name, tuple(CONVENTIONS)))


def _known(convention: str) -> str:
  return f"{convention} has {', '.join(map(str, _convention(convention)))}"


def _unknown(raw: np.ndarray, odd: np.ndarray) -> str:
  """What is wrong with the odd ones among a file's numbers."""
  values, counts = np.unique(raw[odd], return_counts=True)
  listed = [f"{v:g} ({n} voxels)" for v, n in zip(values[:5].tolist(), counts[:5], strict=True)]
  if len(values) > 5:
    listed.append(f"{len(values) - 5} more values")
  message = f"unknown label {', '.join(listed)}"
  if len(values) <= _MOST_LABELS:
    return message
  unit = raw.dtype.kind == "f" and raw.min() >= 0 and raw.max() <= 1
  return f"{message}: this is {'a probability map' if unit else 'an image'}, not a label map"
