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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kd_jax.runtime.errors import UserError

LOCK_FILE = ".lock"
# What a file system without locks answers (some network and cluster file systems).
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def held(workdir: Path, tell: Callable[[str], None]) -> Iterator[None]:
  """Holds the work directory for the body.

  Where the body raises before it has written anything, nothing is left: neither the lock's file nor
  the directory, if this call made them.

  Args:
    workdir: made if need be.
    tell: called with a warning where the file system has no locks; the body runs all the same.

  Raises:
    UserError: another run holds it (named), or the directory cannot be written.
  """
  path = workdir / LOCK_FILE
  made = [folder for folder in (workdir, *workdir.parents) if not os.path.exists(folder)]
  new = not os.path.exists(path)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
  except OSError as e:
    raise UserError(
      f"cannot write in the work directory {workdir}: {e.strerror or e}. Give another --workdir"
    ) from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if not os.fstat(file.fileno()).st_nlink:  # its run removes it at this moment
        raise BlockingIOError
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
    try:
      yield
    except BaseException:
      if new:
        _remove_if_empty(workdir, made)
      raise


def _remove_if_empty(workdir: Path, made: Sequence[Path]) -> None:
  """Removes the lock's file where nothing lies beside it, and the folders that were made for it."""
  with contextlib.suppress(OSError):
    if os.listdir(workdir) == [LOCK_FILE]:
      (workdir / LOCK_FILE).unlink()
      for folder in made:
        folder.rmdir()


def _self() -> dict[str, object]:
  since = time.strftime("%Y-%m-%d %H:%M:%S")
  return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(content: str) -> str:
  """What the lock file says of the process that wrote it."""
  try:
    return "process {pid} on {host}, since {since}".format_map(json.loads(content))
  except (ValueError, KeyError, TypeError):
    return "it has not said which"
