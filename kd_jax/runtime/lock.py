"""One run at a time in a work directory.

The first process of a run holds a lock on a file there for as long as it lives: the kernel drops it
with the process, however that ends, so no lock is ever left behind.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kd_jax.runtime.errors import UserError

LOCK_FILE = ".lock"
# What a file system without locks answers (some network and cluster file systems).
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def held(workdir: Path, tell: Callable[[str], None]) -> Iterator[None]:
  """Holds the work directory for the body.

  Args:
    workdir: made if need be.
    tell: called with a warning where the file system has no locks; the body runs all the same.

  Raises:
    UserError: another run holds it (named), or the directory cannot be written.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / LOCK_FILE).open("a+")
  except OSError as e:
    raise UserError(f"cannot write in the work directory {workdir}: {e.strerror or e}") from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise UserError(
        f"another run works in {workdir} ({_holder(file.read())}). Wait for it, stop it, or give "
        "another --workdir"
      ) from e
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise UserError(f"cannot lock {workdir}: {e.strerror or e}") from e
      tell(
        f"warning: the file system of {workdir} has no locks ({e.strerror}); nothing keeps a "
        "second run from working there at the same time"
      )
    else:
      with contextlib.suppress(OSError):  # a full disk: the lock holds, only its holder is unnamed
        file.truncate(0)
        file.write(json.dumps(_self()))
        file.flush()
    yield


def _self() -> dict[str, object]:
  since = time.strftime("%Y-%m-%d %H:%M:%S")
  return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(content: str) -> str:
  """What the lock file says of the process that wrote it."""
  try:
    return "process {pid} on {host}, since {since}".format_map(json.loads(content))
  except (ValueError, KeyError, TypeError):
    return "it has not said which"
