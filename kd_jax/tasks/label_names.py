"""What people call the classes, and which label is which by a mapping of such names to numbers."""

import re
from collections.abc import Mapping
from typing import Any

from kd_jax.runtime.errors import ConfigError

CLASSES = ("background", "NCR", "ED", "ET")
_BACKGROUND, _NCR, _ED, _ET = range(4)
_TUMOUR = ("NCR", "ED", "ET")
_EXPECTED = 'expected each class with its number, such as {"NCR": 2, "ED": 1, "ET": 3}'

# A name's letters in lower case -> what it stands for; the first that fits counts. WT and TC are
# regions, as in data sets that nnU-Net trains by region.
_NAMES = (
  ("background", r"background|bg|cavity|resectioncavity|rc"),
  ("WT", r"(whole|complete|entire)?tumou?r|wt"),
  ("TC", r"(tumou?r)?core|tc"),
  ("ED", r"ed|snfh|.*o?edema(tous)?.*|.*flairhyperintensity"),
  ("NCR", r"ncr|net|netc|nec|cc|nc|ncrnet|netncr|.*necro.*|.*non?enhanc.*|.*cyst(ic)?.*"),
  ("ET", r"et|at|active(tumou?r)?|.*enhanc.*"),
)


def class_of(name: str) -> str | None:
  """One of CLASSES, "WT" or "TC" for what people call it; None for other names."""
  letters = re.sub(r"[^a-z]", "", name.lower())
  return next((found for found, names in _NAMES if re.fullmatch(names, letters)), None)


def table_of(said: Any) -> dict[int, int]:
  """Label -> class, for a mapping of names to labels or of labels to names.

  Args:
    said: such as {"NCR": 2, "ED": 1, "ET": 3}; or with longer names and with lists, as in "labels"
      of nnU-Net's dataset.json; or with regions, {"WT": [1, 2, 3], "TC": [2, 3], "ET": 3}. Label 0
      is background; "background": [0, 4] leaves 4 out of the tumour.

  Raises:
    ConfigError: another form, a name that is not understood, a class without a label, a label of
      two classes.
  """
  if not isinstance(said, Mapping) or not said:
    raise ConfigError(f"{said!r} is no mapping of classes to labels; {_EXPECTED}")
  if all(str(key).isdecimal() for key in said):  # number -> name, as nnU-Net's first version
    pairs = [(value, key) for key, value in said.items()]
  else:
    pairs = list(said.items())
  labels: dict[str, list[int]] = {}
  for name, numbers in pairs:
    found = class_of(name) if isinstance(name, str) else None
    if not found:
      raise ConfigError(f"{name!r} is no class of a tumour; {_EXPECTED}")
    labels.setdefault(found, []).extend(_numbers(name, numbers))
  return _table(_without_regions(labels))


def names_a_tumour(said: Any) -> bool:
  """Whether a mapping, of either direction, names anything but background."""
  if not isinstance(said, Mapping):
    return False
  names = [n for pair in said.items() for n in pair if isinstance(n, str) and not n.isdecimal()]
  return any(class_of(name) != "background" for name in names)


def _numbers(name: str, numbers: Any) -> list[int]:
  found = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
  found = [int(n) if isinstance(n, str) and n.isdecimal() else n for n in found]
  if not found or not all(type(n) is int and 0 <= n <= 255 for n in found):
    raise ConfigError(
      f"{name}: {numbers!r} is no label (a whole number from 0 to 255); {_EXPECTED}"
    )
  return found


def _without_regions(labels: Mapping[str, list[int]]) -> dict[str, list[int]]:
  """With WT and TC, which hold the classes within them, taken apart."""
  classes = {name: numbers for name, numbers in labels.items() if name not in ("WT", "TC")}
  whole, core, et = (labels.get(region) for region in ("WT", "TC", "ET"))
  if whole is None and core is None:
    return classes
  if not (whole and core and et) or not set(et) < set(core) < set(whole):
    raise ConfigError(
      f"the labels {dict(labels)} tell regions, and not which of their voxels are NCR, ED and ET: "
      f"a whole tumour or core alone cannot be used; {_EXPECTED}"
    )
  apart = {"NCR": sorted(set(core) - set(et)), "ED": sorted(set(whole) - set(core))}
  return classes | {name: classes.get(name, apart[name]) for name in apart}


def _table(labels: Mapping[str, list[int]]) -> dict[int, int]:
  if missing := [name for name in _TUMOUR if not labels.get(name)]:
    raise ConfigError(f"the labels {dict(labels)} have no {' and no '.join(missing)}; {_EXPECTED}")
  table = {0: _BACKGROUND}
  for name in (*_TUMOUR, "background"):
    for label in labels.get(name, ()):
      cls = CLASSES.index(name)
      if table.setdefault(label, cls) != cls:
        raise ConfigError(
          f"label {label} is {CLASSES[table[label]]} and {name} at once; {_EXPECTED}"
        )
  return table
