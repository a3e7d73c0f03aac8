"""Which files of a folder are DICOM: their bytes say so, whatever their names are."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kd_jax.data.walk import visible
from kd_jax.tasks.names import nifti_stem

# A file without a preamble begins with its first element. Those that a header can begin with:
# group 2 (the file's own), or in group 8 its length, character set or image type.
_FIRST_ELEMENTS = tuple(
  bytes((group, 0, element, 0))
  for group, element in ((2, 0x00), (2, 0x01), (8, 0x00), (8, 0x01), (8, 0x05), (8, 0x08))
)
_LONGEST_VALUE = 1 << 12  # bytes, of such an element


def is_dicom(path: str | os.PathLike) -> bool:
  """Whether a file's first bytes are those of a DICOM file, with or without a preamble."""
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
      return False
    with open(path, "rb") as file:
      start = file.read(132)
  except OSError:
    return False
  return start[128:] == b"DICM" or _begins_as_element(start)


def _begins_as_element(start: bytes) -> bool:
  """Little endian, with or without the two letters that say an element's type."""
  if start[:4] not in _FIRST_ELEMENTS or len(start) < 132:
    return False
  typed = start[4:6] in (b"UL", b"OB", b"CS")
  length = int.from_bytes(start[6:8] if typed else start[4:8], "little")
  return length < _LONGEST_VALUE


def walk_files(folder: Path) -> Iterator[Path]:
  """Every visible file at and below a folder, sorted; each folder once, links are followed.

  Raises:
    UserError: a folder that cannot be read.
  """
  seen, waiting = set(), [folder]
  while waiting:
    here = waiting.pop()
    real = os.path.realpath(here)
    if real in seen:
      continue
    seen.add(real)
    entries = sorted(visible(here))
    yield from (entry for entry in entries if not entry.is_dir())
    waiting += reversed([entry for entry in entries if entry.is_dir()])


def holds_dicom(path: Path) -> bool:
  """Whether a path is a DICOM file, or a folder that holds DICOM files and no NIfTI file."""
  if not path.is_dir():
    return is_dicom(path)
  found = False
  for file in walk_files(path):
    if nifti_stem(file.name) is not None:  # then NIfTI files are what is meant
      return False
    found = found or is_dicom(file)
  return found
