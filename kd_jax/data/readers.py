"""Batches from Grain's reader processes, watched: readers that end are an error, never a hang.

Grain waits for ever for a reader that ended with status 0, and knows no reasons. Here one thread
asks Grain for batches, and the caller waits for this thread and looks after the readers meanwhile.
"""

import contextlib
import errno
import itertools
import multiprocessing
import multiprocessing.process
import os
import queue
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from kd_jax.runtime import child_processes
from kd_jax.runtime.errors import UserError

HostBatch = dict[str, np.ndarray]
Process = multiprocessing.process.BaseProcess

TELL_AFTER = 60.0  # seconds of waiting for one batch
_LOOK_EVERY = 0.5  # seconds, while a batch is waited for
_START_LOOK_EVERY = 0.02  # seconds, while readers start
# Seconds until status 0 counts: a reader that cannot start sends its error, and ends with it.
_GRACE = 3.0
_CLOSING_S = 10.0  # in which a reader that is told to stop has done so
_NAME = "grain-process-prefetch"  # how the names of Grain's readers begin
_SHARED_MEMORY = "/dev/shm"
_STARTING = threading.Lock()  # so that two streams do not take each other's readers for theirs


class _Answer(NamedTuple):
  """What the thread that asks Grain got: a batch or an error."""

  batch: HostBatch | None
  error: BaseException | None


def read(
  batches: grain.IterDataset, workers: int, tell: Callable[[str], None] | None = None
) -> Generator[HostBatch, None, None]:
  """The batches of a data set, made by reader processes.

  Args:
    batches: without an end, and without mp_prefetch.
    workers: reader processes, 1 at least.
    tell: called once with a line if a batch is waited for longer than TELL_AFTER.

  Raises:
    UserError: a reader ended, or there is no shared memory for what it sends.
  """
  options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
  stream = iter(batches.mp_prefetch(options, worker_init_fn=_start_reader))
  wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
  answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
  threading.Thread(target=_ask, args=(stream, wanted, answers), daemon=True).start()
  readers: list[Process] = []
  try:
    readers = _first_request(wanted, answers, workers)
    for taken in itertools.count():
      # Not held here: a batch lies in shared memory until nobody holds it.
      yield _next(answers, readers, taken, workers, tell)
      wanted.put(True)
  finally:
    wanted.put(False)
    _let_grain_see(readers)
    late = threading.Timer(_CLOSING_S, _kill, [readers])
    late.start()
    stream.close()
    late.cancel()


def _start_reader(index: int, count: int) -> None:
  """First in each reader process."""
  del index, count
  child_processes.end_with_parent()
  child_processes.obey_parent_alone()


def _ask(
  stream: grain.DatasetIterator,
  wanted: "queue.SimpleQueue[bool]",
  answers: "queue.SimpleQueue[_Answer]",
) -> None:
  """The thread that asks Grain: a batch for each True in wanted, until there is a False."""
  child_processes.keep_signals_from_children()
  while wanted.get():
    try:
      answers.put(_Answer(next(stream), None))
    except BaseException as error:  # for the thread that waits
      answers.put(_Answer(None, error))
      return


def _first_request(
  wanted: "queue.SimpleQueue[bool]", answers: "queue.SimpleQueue[_Answer]", workers: int
) -> list[Process]:
  """Asks for the first batch, which starts the readers; gives the readers."""
  readers: dict[int | None, Process] = {}
  with _STARTING, child_processes.importable_main():
    _accept_unparsed_flags()
    others = set(multiprocessing.active_children())
    wanted.put(True)
    while len(readers) < workers and answers.empty():
      started = set(multiprocessing.active_children()) - others
      readers |= {p.pid: p for p in started if p.name.startswith(_NAME)}
      time.sleep(_START_LOOK_EVERY)
  return list(readers.values())


def _accept_unparsed_flags() -> None:
  """Lets Grain read its absl flags in programs that do not parse flags.

  As Grain does it in its readers: only its own flags count as given, with the values that they
  have. Those of the caller stay unparsed, and the caller can still parse all of them later.
  """
  if not flags.FLAGS.is_parsed():
    for name in flags.FLAGS:
      if name.startswith("grain_") and not flags.FLAGS[name].present:
        flags.FLAGS[name].present = 1


def _next(
  answers: "queue.SimpleQueue[_Answer]",
  readers: Sequence[Process],
  taken: int,
  workers: int,
  tell: Callable[[str], None] | None,
) -> HostBatch:
  """The batch that was asked for; what Grain raised, in words that help where there are some."""
  answer = _wait(answers, readers, taken, workers, tell)
  if answer.batch is not None:
    return answer.batch
  error = answer.error
  if isinstance(error, OSError) and error.errno == errno.ENOSPC:
    failed = f"a process that reads training patches failed: {error}"
    raise UserError(f"{failed}. {_no_room()}") from error
  # Grain has no type of its own for it.
  found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
  if isinstance(error, RuntimeError) and found:
    raise _ended(int(found[1]), taken < workers) from error
  assert error is not None  # an answer without a batch has one
  raise error


def _wait(
  answers: "queue.SimpleQueue[_Answer]",
  readers: Sequence[Process],
  taken: int,
  workers: int,
  tell: Callable[[str], None] | None,
) -> _Answer:
  """The next answer. UserError if a reader ends meanwhile; taken: batches before this one."""
  began, gone_since = time.monotonic(), None
  while True:
    with contextlib.suppress(queue.Empty):
      return answers.get(timeout=_LOOK_EVERY)
    now = time.monotonic()
    gone = [reader for reader in readers if reader.exitcode is not None]
    if gone:
      gone_since = gone_since or now
      # One that ended with an error of the system's first: others may have ended because of it.
      status = next((r.exitcode for r in gone if r.exitcode), 0)
      if status or now - gone_since > _GRACE:
        raise _ended(status, taken < workers)
    if tell and now - began > TELL_AFTER:
      ids = ", ".join(str(reader.pid) for reader in readers)
      tell(
        f"waiting for a batch from reader {taken % workers + 1} of {workers} for "
        f"{now - began:.0f} s (process ids of the readers: {ids}). Perhaps the disk with the cache "
        "is slow, or the cores are busy; data.workers=0 reads in this process"
      )
      tell = None


def _let_grain_see(readers: Sequence[Process]) -> None:
  """Ends the threads of Grain that wait for a reader which ended with status 0.

  They wait for a batch or for another status, and closing the stream waits for them. The status is
  what Python's own handle of the process remembers; the process itself is over.
  """
  for reader in readers:
    if reader.exitcode == 0:
      reader._popen.returncode = 1  # type: ignore[attr-defined]  # CPython's own handle


def _kill(readers: Sequence[Process]) -> None:
  """Ends readers that do not stop, such as suspended ones: closing a stream waits for them."""
  for reader in readers:
    if reader.exitcode is None and reader.pid is not None:
      with contextlib.suppress(ProcessLookupError):
        os.kill(reader.pid, signal.SIGKILL)


def _ended(status: int, at_start: bool) -> UserError:
  """The error for a reader that ended.

  Args:
    status: as Process.exitcode: of the process, or minus the signal that ended it.
    at_start: before it sent anything.
  """
  name = f" ({signal.Signals(-status).name})" if -status in set(signal.Signals) else ""
  head = f"a process that reads training patches died: exit code {status}{name}."
  here = "set data.workers=0 to read in this process"
  if status == child_processes.STARTED_AGAIN:
    return UserError(f"{head} {child_processes.unguarded(here)}")
  if status == -signal.SIGKILL:
    cause = (
      "The system may have run out of memory; set data.workers lower (0 reads in this process)"
    )
  elif status == -signal.SIGBUS:
    cause = _no_room()
  elif at_start and status >= 0:
    cause = (
      "It ended while it started, and its own message stands above if it had one. Perhaps an "
      "import fails there, or ends the process; or the script that started this run has no "
      f'`if __name__ == "__main__":` around its calls. Repair that, or {here}'
    )
  else:
    cause = f"Its own message stands above if it had one; {here}, where the error shows"
  return UserError(
    f"{head} {cause}." + ("" if at_start else " The run goes on from its last checkpoint")
  )


def _no_room() -> str:
  """That the shared memory is too small, and what to do."""
  size = ""
  with contextlib.suppress(OSError):
    usage = shutil.disk_usage(_SHARED_MEMORY)
    size = f" ({usage.total / 1e6:.0f} MB, {usage.free / 1e6:.0f} MB of them free)"
  return (
    f"Readers hand batches over in shared memory, and {_SHARED_MEMORY}{size} is probably full. "
    "Give it more room (a container: --shm-size=8g), set data.workers or data.batch lower, or set "
    "data.workers=0 to read in this process"
  )
