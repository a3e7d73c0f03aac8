"""Which cases have their masks already: made of the same scan, with files as they were written.

Everything else that lies where a mask is to be written is judged by the folder's record
(data/own_masks.py): what this program wrote is made anew, what it did not write is left alone.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.data.own_masks import Entry

_CHANGED = "it was changed after it was written, perhaps corrected by hand"
_UNKNOWN = "nothing records that this program wrote it"
_LEAVE = "Move it elsewhere, choose another --output, or replace it with --overwrite."
_RENAME = "Rename the scan, or choose another --output."


class Verdict(NamedTuple):
  """What to do for a case.

  Attributes:
    act: "done": nothing; "make": its files; "refuse": nothing, and say so.
    file: the file that it was judged by, or "".
    why: what is said of that file; "" where there is nothing to say.
    remedy: for "refuse".
  """

  act: Literal["done", "make", "refuse"]
  file: str = ""
  why: str = ""
  remedy: str = ""


class Known(NamedTuple):
  """What is known of a folder before a run.

  Attributes:
    entries: case -> what is recorded of it.
    others: name of a recorded file -> the case it belongs to.
    unrecorded: an earlier version wrote masks there without a record of each.
  """

  entries: Mapping[str, Entry]
  others: Mapping[str, str]
  unrecorded: bool

  @classmethod
  def of(cls, entries: Mapping[str, Entry], unrecorded: bool) -> "Known":
    others = {file: case for case, entry in entries.items() for file in entry.outputs}
    return cls(entries, others, unrecorded)


def judge(case: Case, wanted: Sequence[Path], known: Known, overwrite: bool) -> Verdict:
  """What to do for a case.

  Args:
    case: its images are those that the students read.
    wanted: the files to be written, of one folder.
    known: of that folder.
    overwrite: replace what this program did not write.
  """
  folder, entry = wanted[0].parent, known.entries.get(case.name)
  recorded = entry.outputs if entry else {}
  files = dict.fromkeys((*wanted, *(folder / name for name in recorded)))
  there = [path for path in files if os.path.lexists(path)]
  anew = Verdict("make")
  for path in there:
    if known.others.get(path.name, case.name) != case.name:
      return Verdict("refuse", str(path), f"it belongs to {known.others[path.name]}", _RENAME)
    why = "" if path.name in recorded or known.unrecorded or _is_empty(path) else _UNKNOWN
    if path.name in recorded and digest(path) != recorded[path.name]:
      if _is_volume(path):
        why = _CHANGED
      else:
        anew = Verdict("make", str(path), "the file is damaged")
    if why and not overwrite:
      return Verdict("refuse", str(path), why, _LEAVE)
    if why:
      anew = Verdict("make", str(path), why)
  if anew.why or not there:
    return anew
  if entry is None:
    return Verdict("make", str(there[0]), "nothing records which scan the mask was made from")
  if differs := _other_input(case, entry):
    return Verdict(
      "make", str(case.images[differs]), "the scan is not the one that the mask was made from"
    )
  complete = all(path in there and path.name in recorded for path in wanted)
  return Verdict("done" if complete else "make")


def leftovers(case: str, wanted: Sequence[Path], known: Known) -> list[Path]:
  """Files that an earlier run wrote for a case: they go before the new ones come."""
  entry, folder = known.entries.get(case), wanted[0].parent
  recorded = [folder / name for name in entry.outputs] if entry else []
  return list(dict.fromkeys((*wanted, *recorded)))


def unfounded(case: Case, folder: Path, known: Known) -> list[Path]:
  """Files that an earlier run wrote for a case and that go if no new ones can be made.

  None if all are whole and may be of this scan. What was changed by hand or is another case's is
  never among them.
  """
  entry = known.entries.get(case.name)
  recorded = entry.outputs if entry else {}
  own = {
    path: digest(path) == content
    for name, content in recorded.items()
    if known.others[name] == case.name and os.path.isfile(path := folder / name)
  }
  damaged = [path for path, whole in own.items() if not whole and not _is_volume(path)]
  readable = all(digest(path) for path in case.images.values())  # else the scan may be the same
  if damaged or (entry and readable and _other_input(case, entry)):
    return [*(path for path, whole in own.items() if whole), *damaged]
  return []


# --- Files ------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
  """A scan's file for the record: its name, size and SHA-256, and its own shape and affine.

  Raises:
    OSError, ValueError: it cannot be read.
  """
  facts = {"file": path.name, "bytes": os.stat(path).st_size, "sha256": digest(path)}
  shape, affine = nifti.read_place(path)
  return facts | {"shape": list(shape), "affine": affine.tolist()}


def state(path: Path) -> tuple[int, ...]:
  """What changes when a file is written to or replaced. OSError if it is not there."""
  status = os.stat(path)
  return status.st_ino, status.st_size, status.st_mtime_ns


def sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def digest(path: Path) -> str:
  """SHA-256 of a regular file's bytes; "" where there is none that can be read."""
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
      return ""
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError:
    return ""


def _other_input(case: Case, entry: Entry) -> str:
  """The first modality whose file is not the one that is recorded; "" if all are."""
  if missing := entry.inputs.keys() ^ case.images.keys():
    return min(missing & case.images.keys(), default=next(iter(case.images)))
  for modality, path in case.images.items():
    was = entry.inputs[modality]
    try:
      same = os.stat(path).st_size == was.get("bytes") and digest(path) == was.get("sha256")
    except OSError:
      same = False
    if not same:
      return modality
  return ""


def _is_empty(path: Path) -> bool:
  """Whether nothing is lost with it."""
  status = os.stat(path, follow_symlinks=False)
  return stat.S_ISREG(status.st_mode) and not status.st_size


def _is_volume(path: Path) -> bool:
  try:
    nifti.read(path)
  except ValueError:
    return False
  return True
