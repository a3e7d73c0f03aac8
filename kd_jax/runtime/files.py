"""Files that appear complete or not at all."""

import contextlib
import glob
import json
import os
import re
import socket
import stat
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from kd_jax.runtime.errors import UserError

MOST_BYTES = 1 << 26  # of a settings file, a list, a table: 64 MiB
_STALE_SECONDS = 3600


def at_home(path: str | os.PathLike) -> Path:
  """The path with ~ as the home folder. UserError if there is none: no folder is called ~."""
  expanded = os.path.expanduser(path)
  if os.fspath(expanded).startswith("~"):
    raise UserError(
      f"{path}: no home folder is known for {Path(expanded).parts[0]}; give the path in full, or "
      f"./{expanded} for a folder of that name"
    )
  return Path(expanded)


def slug(name: str) -> str:
  """A name as file names have it: "NVIDIA H200" -> "nvidia-h200"."""
  return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_bytes(path: Path, content: bytes) -> None:
  """Writes under a temporary name beside the target, then renames. UserError if it cannot.

  What processes that were killed have left of the same file is removed.
  """
  temporary = path.with_name(f"{_prefix(path)}{socket.gethostname()}-{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    temporary.write_bytes(content)
    os.replace(temporary, path)
  except OSError as e:
    raise UserError(f"cannot write {path}: {e.strerror or e}") from e
  finally:
    with contextlib.suppress(OSError):  # the error above is the one to report
      temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
  """Removes what processes that were killed have left of a file; the file itself stays."""
  prefix = _prefix(path)
  for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
    if is_abandoned(left, left.name.removesuffix(".tmp").removeprefix(prefix)):
      left.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
  """What the temporary names of a file begin with."""
  name = os.fsencode(path.name)
  own = path.name if len(name) < 150 else f"{zlib.crc32(name):08x}"  # 255 bytes may be the most
  return f".{own}."


def is_abandoned(path: Path, writer: str) -> bool:
  """Whether the process that wrote a temporary file or folder is gone.

  Args:
    path: the file.
    writer: HOST-PID. A process of this machine is asked for; of others, an hour is enough.
  """
  host, _, pid = writer.rpartition("-")
  try:
    if host == socket.gethostname():  # whatever the clock says
      return not _alive(int(pid))
    return time.time() - path.stat().st_mtime > _STALE_SECONDS
  except (ValueError, OSError):  # not one of ours, or just renamed
    return False


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def check_folder(folder: Path) -> None:
  """UserError if files cannot be written in a folder, or if it cannot be made; nothing is left."""
  place = folder
  while not os.path.exists(place) and place != place.parent:
    place = place.parent
  try:
    with tempfile.TemporaryFile(dir=place) as file:
      file.write(b" ")
  except OSError as e:
    reason = f"{e.strerror or e}" if place == folder else f"{place}: {e.strerror or e}"
    raise UserError(
      f"cannot write in {folder} ({reason}); give another place with --output, or mend this one"
    ) from e


def write_text(path: Path, content: str) -> None:
  # A name that is no UTF-8 (a surrogate, for Python) is written with an escape instead.
  write_bytes(path, content.encode("utf-8", "backslashreplace"))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
  """A file's content. OSError if it cannot be read; ValueError if it has no (sane) end."""
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
    raise ValueError("it is no regular file")
  if status.st_size > most:
    raise ValueError(f"it has {status.st_size:,} bytes, and at most {most:,} are read")
  with open(path, "rb") as file:
    return file.read(most)


def read_text(path: Path) -> str:
  """A UTF-8 file, with or without a byte order mark. OSError or ValueError, as read_bytes."""
  return read_bytes(path).decode("utf-8-sig")


def read_user_text(path: Path, what: str = "", advice: str = "") -> str:
  """As read_text, of a file that a user gives. UserError if it cannot be read.

  Args:
    what: the file is called so, for the message.
    advice: what to do where it is no text.
  """
  try:
    return read_text(path)
  except OSError as e:
    raise UserError(f"cannot read {what and f'the {what} '}{path}: {e.strerror or e}") from e
  except ValueError as e:
    raise UserError(f"{path} is not a text file ({e}){advice and f'; {advice}'}") from e


def load_json(path: Path) -> Any:
  """What a JSON file holds. OSError or ValueError if it cannot be read."""
  try:
    return json.loads(read_text(path))
  except RecursionError as e:
    raise ValueError("it is nested too deeply") from e


def read_json(path: Path) -> dict[str, Any]:
  """A JSON file that holds an object. UserError if it cannot be read."""
  try:
    content = load_json(path)
    if not isinstance(content, dict):
      raise ValueError("no JSON object")
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {path}: {e}") from e
  return content
