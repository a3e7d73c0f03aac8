"""Child processes of one run: they start wherever the run was started from, and end with it.

Children are spawned: a fork of a process with threads (JAX has many) can hang. A spawned child
imports the script that started the run once more, under another name.
"""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

STARTED_AGAIN = 78  # exit status of a child that would have done its parent's work once more
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_with_parent() -> None:
  """Ends this child when its parent is killed; it would wait for work for ever."""

  def watch():
    _parent().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _parent() -> multiprocessing.process.BaseProcess:
  parent = multiprocessing.parent_process()
  assert parent is not None, "only child processes ask for their parent"
  return parent


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
    os._exit(128 + signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()
