"""What --mode=predict has written into a folder: its predict.json, and the journals beside it.

A process notes in a journal of its own what it is about to write, one line a case, and then writes.
At its end the journal is added to predict.json and removed; that of a killed process stays until
the next start. So every file that was written is known, and a note costs the same in a folder of
ten thousand masks.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import is_abandoned, read_json, read_text, write_text

RECORD_FILE = "predict.json"
_JOURNAL = re.compile(r"\.predict\.(?P<writer>.+)\.jsonl\Z", re.DOTALL)


class Entry(NamedTuple):
  """What is recorded of a case.

  Attributes:
    inputs: modality -> {"file", "bytes", "sha256", "shape", "affine"} of the scan's file.
    outputs: name of each file that was written -> SHA-256 of its bytes.
    facts: what else is to be known of the mask, as plain values, for people and other programs.
  """

  inputs: dict[str, dict[str, Any]]
  outputs: dict[str, str]
  facts: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def written_by_us(folder: Path) -> frozenset[str]:
  """Names of the files in a folder that are recorded as masks and maps of --mode=predict.

  Empty where there is no record, or one that cannot be read: a predict.json may be of any program.
  """
  try:
    return frozenset(name for entry in entries(folder).values() for name in entry.outputs)
  except UserError:
    return frozenset()


def entries(folder: Path) -> dict[str, Entry]:
  """Case -> what is recorded of it. UserError if predict.json cannot be read."""
  path, found = folder / RECORD_FILE, {}
  # Journals first: one that is added to predict.json meanwhile is found there.
  noted = [_noted(journal) for journal in _journals(folder)]
  if os.path.exists(path):
    cases = read_json(path).get("cases", {})
    try:
      found = {name: _entry(content) for name, content in cases.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise UserError(
        f"{path} has no usable record of cases ({type(e).__name__}: {e}). Put it back from a copy, "
        "or choose another --output"
      ) from e
  for part in noted:
    found |= part
  return {name: entry for name, entry in found.items() if entry.outputs}


# --- Writing ----------------------------------------------------------------------------------


class Journal:
  """The journal of this process in a folder; the file appears with the first note."""

  def __init__(self, folder: Path):
    self.path = folder / f".predict.{_self()}.jsonl"

  def note(self, case: str, entry: Entry) -> None:
    """Before the files of a case are written; without outputs, once they are removed.

    UserError if the disk refuses.
    """
    try:
      with self.path.open("a", encoding="ascii") as file:
        file.write(json.dumps({"case": case, **entry._asdict()}) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a mask without its note would count as another program's
    except OSError as e:
      raise UserError(f"cannot write {self.path}: {e.strerror or e}") from e


def write_record(folder: Path, facts: Mapping[str, Any], done: Iterable[str] = ()) -> None:
  """Writes predict.json with `facts` and all that is recorded, and removes finished journals.

  Args:
    facts: the record without "cases".
    done: names of journals of this run that get no more notes; this process's own and those of
      killed ones are known.

  Raises:
    UserError: the record cannot be written; what was recorded before stays.
  """
  finished = set(done)
  with _alone(folder / RECORD_FILE):
    journals = [
      path
      for path in _journals(folder)
      if path.name in finished or is_abandoned(path, _writer(path)) or _writer(path) == _self()
    ]
    write_text(folder / RECORD_FILE, _record(facts, entries(folder)))
    for path in journals:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
  """While one process rewrites a file, others that want to do so wait; a new file is not kept."""
  while True:
    try:
      file = path.open("rb")
    except OSError:
      break
    with file:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
      if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        yield
        return
  yield


# --- Pieces -----------------------------------------------------------------------------------


def _record(facts: Mapping[str, Any], cases: Mapping[str, Entry]) -> str:
  """JSON in which each case has a line."""
  lines = [f"  {json.dumps(n)}: {json.dumps(e._asdict())}" for n, e in sorted(cases.items())]
  head = json.dumps(dict(facts), indent=1).removesuffix("\n}")
  return head + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"


def _self() -> str:
  return f"{socket.gethostname()}-{os.getpid()}"


def _writer(journal: Path) -> str:
  match = _JOURNAL.match(journal.name)
  assert match is not None, "only journals have a writer"
  return match["writer"]


def _journals(folder: Path) -> list[Path]:
  """The oldest first."""
  found = []
  for path in folder.glob(".predict.*.jsonl"):
    with contextlib.suppress(OSError):  # removed just now: predict.json has its notes
      found.append((path.stat().st_mtime_ns, path))
  return [path for _, path in sorted(found) if _JOURNAL.match(path.name)]


def _noted(journal: Path) -> dict[str, Entry]:
  found = {}
  try:
    lines = read_text(journal).splitlines()
  except (OSError, ValueError):
    return {}
  for line in lines:
    try:
      content = json.loads(line)
      found[str(content["case"])] = _entry(content)
    except (
      ValueError,
      LookupError,
      AttributeError,
      TypeError,
    ):  # torn where its process was killed
      continue
  return found


def _entry(content: Any) -> Entry:
  outputs = {str(name): str(digest) for name, digest in content["outputs"].items()}
  inputs = {str(m): dict(facts) for m, facts in content["inputs"].items()}
  return Entry(inputs, outputs, dict(content.get("facts", {})))  # earlier versions have none
