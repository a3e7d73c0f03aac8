"""Runs sections, each in a process of its own, within a budget, and one measuring at a time.

Several sections prepare (import, compile) at once. When one is ready to measure, all others are
stopped (SIGSTOP) until it has done so. So no time on the clock is disturbed
by a compiler, and no compiler waits for long. A crash, or memory that is not enough, ends one
section; every result is reported as soon as it is there.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.device.turns import DONE, GO, READY, RESULT, SKIP
from benchmarks.process_memory import family

Record = dict[str, Any]
_LAST_WORDS = 1500  # characters of what a failed section said


class Section(NamedTuple):
  """One process of work.

  Attributes:
    name: of the section.
    command: starts it; it talks as turns.py says.
    estimate: seconds that it will take: not begun when less are left.
    limit: seconds after which it is ended, without those in which it was stopped.
    env: variables beside those of this process.
    beside: it begins as soon as it may, and does not count among those that prepare at once.
    quiet: it begins before all others, and nothing else does until it has ended: its compiler
      chooses kernels by timing them.
  """

  name: str
  command: Sequence[str]
  estimate: float
  limit: float
  env: Mapping[str, str] = MappingProxyType({})
  beside: bool = False
  quiet: bool = False


class _Worker:
  """A section at work.

  Attributes:
    order: of its section in the list.
    record: what is reported of it.
    stopped: seconds so far in which others had their turn.
    skipped: why it says that it cannot be done here; "" if it does not.
  """

  def __init__(self, section: Section, order: int, record: Record, events: queue.Queue):
    self.section, self.order, self.record = section, order, record
    self.began, self.stopped, self.skipped = time.monotonic(), 0.0, ""
    self._stopped_since: float | None = None
    self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
    self._process = subprocess.Popen(
      section.command,
      env={**os.environ, **section.env},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._words,
      text=True,
      errors="replace",
    )
    threading.Thread(target=self._listen, args=(events,), daemon=True).start()

  def _listen(self, events: queue.Queue) -> None:
    assert self._process.stdout
    for line in self._process.stdout:
      events.put((self, line.rstrip("\n")))
    self._process.wait()
    events.put((self, None))

  def seconds(self) -> float:
    """At work, so far."""
    since = self._stopped_since
    stopped = self.stopped + (time.monotonic() - since if since is not None else 0.0)
    return time.monotonic() - self.began - stopped

  def go(self) -> None:
    assert self._process.stdin
    with contextlib.suppress(OSError):  # its end is told apart
      self._process.stdin.write(f"{GO}\n")
      self._process.stdin.flush()

  def stop(self) -> None:
    if self._stopped_since is None:
      self._stopped_since = time.monotonic()
      self._signal(signal.SIGSTOP)

  def resume(self) -> None:
    if self._stopped_since is not None:
      self.stopped += time.monotonic() - self._stopped_since
      self._stopped_since = None
      self._signal(signal.SIGCONT)

  def end(self) -> None:
    """Ends it and all that it has started."""
    self._signal(signal.SIGKILL)
    self._process.wait()

  def _signal(self, number: signal.Signals) -> None:
    for pid in family(self._process.pid) or [self._process.pid]:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)

  def outcome(self) -> tuple[str, str]:
    """Of one that ended by itself: the status, and why it is not done."""
    code = self._process.wait()
    if code == 0:
      return ("skipped", self.skipped) if self.skipped else ("done", "")
    self._words.seek(0)
    words = self._words.read()[-_LAST_WORDS:]
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return "failed", f"{how}\n{words}".rstrip()


class Runner:
  """See the module."""

  def __init__(
    self,
    sections: Sequence[Section],
    end: float,
    ahead: int,
    report: Callable[[list[Record]], None],
    tell: Callable[[str], None],
  ):
    """
    Args:
      sections: the most valuable first.
      end: when all must have ended, by time.monotonic().
      ahead: how many sections prepare at once, beside those that are `beside`.
      report: called with all records after each change.
      tell: called with a line for each result.
    """
    self._sections, self._end, self._ahead = sections, end, ahead
    self._report, self._tell = report, tell
    self.records: list[Record] = [
      {"section": one.name, "status": "waiting", "rows": []} for one in sections
    ]
    self._events: queue.Queue = queue.Queue()
    urgent = [(not one.quiet, not one.beside) for one in sections]
    self._pending = sorted(range(len(sections)), key=lambda i: (*urgent[i], i))
    self._workers: list[_Worker] = []
    self._ready: list[_Worker] = []  # wait for their turn
    self._holder: _Worker | None = None

  def run(self) -> list[Record]:
    """All sections that the time allows; their records."""
    try:
      while self._pending or self._workers:
        self._start()
        if not self._workers:
          continue  # all that were left do not fit
        self._listen()
        self._cut()
    finally:
      for worker in self._workers:
        worker.end()
    self._report(self.records)
    return self.records

  def _start(self) -> None:
    """What may begin now; not while another measures."""
    while self._pending and self._holder is None:
      order = self._pending[0]
      section, left = self._sections[order], self._end - time.monotonic()
      if any(worker.section.quiet for worker in self._workers):
        return
      busy = sum(not worker.section.beside for worker in self._workers)
      if section.estimate > left:
        self._pending.pop(0)
        why = f"about {section.estimate:.0f} s, {max(0, left):.0f} s are left"
        self._settle(self.records[order], "skipped", why)
      elif section.beside or busy < self._ahead:
        self._pending.pop(0)
        self.records[order]["status"] = "running"
        self._workers.append(_Worker(section, order, self.records[order], self._events))
      else:
        return

  def _listen(self) -> None:
    """One thing that a section says, or a second."""
    try:
      worker, line = self._events.get(timeout=max(0.01, min(1.0, self._end - time.monotonic())))
    except queue.Empty:
      return
    if worker not in self._workers:
      return  # it was ended
    if line is None:
      self._leave(worker, *worker.outcome())
    elif line == READY:
      worker.record.setdefault("prepared_seconds", worker.seconds())
      self._ready.append(worker)
    elif line == DONE:
      self._release(worker)
    elif line.startswith(SKIP):
      worker.skipped = line.removeprefix(SKIP)
    elif line.startswith(RESULT):
      self._note(worker, line.removeprefix(RESULT))
    self._grant()

  def _note(self, worker: _Worker, text: str) -> None:
    row = json.loads(text)
    worker.record["rows"].append(row)
    self._tell(f"{worker.section.name}: {row['text']}")
    self._report(self.records)

  def _grant(self) -> None:
    """A turn for the most valuable of those that are ready."""
    if self._holder or not self._ready:
      return
    self._holder = min(self._ready, key=lambda worker: worker.order)
    self._ready.remove(self._holder)
    for worker in self._workers:
      if worker is not self._holder:
        worker.stop()
    self._holder.go()

  def _release(self, worker: _Worker) -> None:
    if worker is self._holder:
      self._holder = None
      for other in self._workers:
        other.resume()

  def _cut(self) -> None:
    """Ends what has taken too long, and everything when time is up."""
    for worker in list(self._workers):
      if time.monotonic() >= self._end:
        worker.end()
        self._leave(worker, "cut off", "the time was up")
      elif worker.seconds() > worker.section.limit:
        worker.end()
        self._leave(worker, "cut off", f"after {worker.section.limit:.0f} s")
    self._grant()

  def _leave(self, worker: _Worker, status: str, why: str) -> None:
    self._workers.remove(worker)
    if worker in self._ready:
      self._ready.remove(worker)
    worker.record["seconds"] = worker.seconds()
    self._release(worker)
    self._settle(worker.record, status, why)

  def _settle(self, record: Record, status: str, why: str) -> None:
    record["status"] = status
    if why:
      record["why"] = why
    self._tell(f"{record['section']}: {status}" + (f" ({why})" if why else ""))
    self._report(self.records)
