"""Files that appear complete or not at all."""

import contextlib
import glob
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from kd_jax.errors import UserError

_STALE_SECONDS = 3600


def write_bytes(path: Path, content: bytes) -> None:
  """Writes under a temporary name beside the target, then renames. UserError if it cannot.

  What processes that were killed have left of the same file is removed.
  """
  temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
      if is_abandoned(left, left.name.removesuffix(".tmp").removeprefix(f".{path.name}.")):
        left.unlink(missing_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, path)
  except OSError as e:
    raise UserError(f"cannot write {path}: {e.strerror or e}") from e
  finally:
    with contextlib.suppress(OSError):  # what went wrong above is what is told
      temporary.unlink(missing_ok=True)


def is_abandoned(path: Path, writer: str) -> bool:
  """Whether whoever wrote a temporary file or folder is gone.

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


def write_text(path: Path, content: str) -> None:
  write_bytes(path, content.encode())


def read_json(path: Path) -> dict[str, Any]:
  """A JSON file that holds an object. UserError if it cannot be read."""
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
      raise ValueError("no JSON object")
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {path}: {e}") from e
  return content
