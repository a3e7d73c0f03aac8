"""Child processes of one run: they start wherever the run was started from, and end with it.

Children are spawned: a fork of a process with threads (JAX has many) can hang. A spawned child
imports the script that started the run once more, under another name.
"""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker

STARTED_AGAIN = 78  # exit status of a child that would have done its parent's work once more
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OPEN_FILES, _SHARED_MEMORY = "/proc/self/fd", "/dev/shm"
_OPENING_S = 0.05  # in which a thread that was opening a file has done so


def end_with_parent() -> None:
  """Ends this child when its parent is killed; it would wait for work for ever."""

  def watch():
    _parent().join()
    _end(1)

  threading.Thread(target=watch, daemon=True).start()


def _parent() -> multiprocessing.process.BaseProcess:
  parent = multiprocessing.parent_process()
  assert parent is not None, "only child processes ask for their parent"
  return parent


def _end(status: int) -> None:
  """Ends this child at once, from any of its threads, without shared memory that nobody removes.

  Python's resource tracker removes the blocks that it knows of when all of a run's processes are
  gone. Another thread may have made a block that the tracker has not been told of yet. macOS has no
  list of open files; there such a block stays.
  """
  try:
    highest = max(map(int, os.listdir(_OPEN_FILES)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # from now on no thread can make one
    time.sleep(_OPENING_S)
    # What was opened meanwhile has the lowest numbers that were free.
    for number in range(highest + 1 + threading.active_count()):
      with contextlib.suppress(OSError):
        block = os.path.relpath(os.readlink(f"{_OPEN_FILES}/{number}"), _SHARED_MEMORY)
        if block.startswith("psm_"):
          resource_tracker.register(f"/{block}", "shared_memory")
  finally:
    os._exit(status)


# --- The script that starts a run -------------------------------------------------------------


def refuse_second_run() -> None:
  """Ends a child that calls this while it imports the parent's script; does nothing elsewhere.

  The parent learns by the status, STARTED_AGAIN, and says what to do (`unguarded`).
  """
  # Python's own check, in multiprocessing.spawn, asks the same.
  if getattr(multiprocessing.current_process(), "_inheriting", False):
    raise SystemExit(STARTED_AGAIN)


def unguarded(remedy: str) -> str:
  """What to say where a child ended with STARTED_AGAIN; remedy: what else helps."""
  return (
    f'{_script()} calls kd_jax outside `if __name__ == "__main__":`. Each child process imports '
    "this script again and would start the same work once more. Put the call under that line, or "
    f"{remedy}"
  )


def _script() -> str:
  return getattr(sys.modules["__main__"], "__file__", None) or "the script"


@contextlib.contextmanager
def importable_main() -> Iterator[None]:
  """While children start: they do not search for a script that does not exist.

  A program that Python reads from standard input has the file name "<stdin>", which a child cannot
  open.
  """
  main = sys.modules["__main__"]
  name = getattr(main, "__file__", None)
  if name is None or not (name.startswith("<") and name.endswith(">")):
    yield
    return
  del main.__file__
  try:
    yield
  finally:
    main.__file__ = name


# --- Signals ----------------------------------------------------------------------------------


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
  """Children that start meanwhile leave Ctrl-C, which reaches them too, to their parent."""
  resource_tracker.ensure_running()  # it unblocks signals when it starts
  before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def keep_signals_from_children() -> None:
  """Children that this thread, or a thread that it starts, starts from now on get no signals.

  Ctrl-C and a scheduler's SIGTERM reach all processes of a run. The parent alone decides when its
  children end: it may need them until it has saved. Blocked signals are inherited, so not even a
  child that still starts can be hit. For a thread of its own: this one gets no signals either.
  """
  resource_tracker.ensure_running()  # it unblocks them when it starts
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def obey_parent_alone() -> None:
  """In a child whose signals are blocked: SIGTERM from its parent ends it, all others are ignored.

  Python ends what is left of its children with SIGTERM when it exits, and waits for them.
  """
  parent = _parent().pid
  if not hasattr(signal, "sigwaitinfo"):  # macOS: nobody says who sent it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return

  def watch():
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
      pass
    _end(128 + signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()
