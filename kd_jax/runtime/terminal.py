"""What people see while something works: lines, one live progress line, tables, time left."""

import contextlib
import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import rich.console
import rich.progress

from kd_jax.runtime.errors import CaseError, one_line, printable

_PLAIN_EVERY_SECONDS = 10  # between lines of progress where there is no terminal


class Terminal:
  """Lines, and one live progress line below them; plain lines where the output is no terminal.

  Of several processes, number 0 shows progress; the others' lines begin with their number.
  `quiet`: nothing is shown.
  """

  def __init__(self, process: int = 0, quiet: bool = False):
    self._process = process
    self.console = rich.console.Console(
      file=sys.stderr,
      highlight=False,
      soft_wrap=True,
      quiet=quiet,
      # A live line takes over the caller's own output, which must be shown if ours is not.
      force_terminal=False if quiet or _in_notebook() else None,
      force_jupyter=False,
    )

  def line(self, text: str) -> None:
    if self._process:
      text = "\n".join(f"[process {self._process}] {part}" for part in text.splitlines())
    self.console.print(printable(text), markup=False)

  @contextlib.contextmanager
  def live(self, label: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A progress line with time left; gives a function (done, what to show beside it)."""
    columns = (
      rich.progress.TextColumn("{task.description}", markup=False),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn("{task.fields[note]}", markup=False),
      rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(
      *columns, console=self.console, transient=True, speed_estimate_period=120
    ) as bar:
      task = bar.add_task(label, total=total, completed=done, note="")
      yield lambda done, note: bar.update(task, completed=done, note=one_line(note))

  def progress(self, label: str) -> Callable[..., None]:
    """A function (done, total, name of the latest) for work that reports as it goes."""
    if self._process:
      return lambda done, total, name="": None
    state: dict = {}

    def report(done: int, total: int, name: str = "") -> None:
      now = time.monotonic()
      if not state:
        state.update(start=now, first=done - 1, said=now, stack=contextlib.ExitStack())
        if self.console.is_terminal:
          state["update"] = state["stack"].enter_context(self.live(label, total, done))
      if self.console.is_terminal:
        state["update"](done, name)
      elif done == total or now - state["said"] > _PLAIN_EVERY_SECONDS:
        state["said"] = now
        rate = (done - state["first"]) / max(now - state["start"], 1e-3)
        left = (total - done) / rate if rate else math.inf
        self.line(
          f"{label}: {done}/{total} {one_line(name)}{f', {duration(left)} left' if left else ''}"
        )
      if done == total:
        state["stack"].close()

    return report


def _in_notebook() -> bool:
  """Whether output goes to a notebook: its kernel says it is a terminal, and shows every redrawing
  of a live line below the last one."""
  return type(sys.stderr).__module__.startswith("ipykernel")


def duration(seconds: float) -> str:
  """3725 -> "1:02:05"."""
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def table(
  head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1, separator: str = "  "
) -> str:
  """Aligned columns: the first `left` to the left, the others to the right.

  Floats have 4 places; None is a dash.
  """

  def shown(cell: object) -> str:
    return f"{cell:.4f}" if isinstance(cell, float) else "-" if cell is None else str(cell)

  cells = [head] + [[shown(cell) for cell in row] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
  lines = []
  for row in cells:
    columns = enumerate(zip(row, widths, strict=True))
    aligned = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in columns]
    lines.append(separator.join(aligned).rstrip())
  lines.insert(1, separator.join("-" * width for width in widths))
  return "\n".join(lines)


def error_table(errors: Sequence[CaseError]) -> str:
  """Findings, one a line: case | file | finding | remedy."""
  rows = [
    tuple(map(one_line, (e.case, os.path.basename(e.file), e.finding, e.remedy))) for e in errors
  ]
  return table(("case", "file", "finding", "remedy"), rows, left=4, separator=" | ")


# The loggers of libraries, and from which level on they are heard. Orbax logs to absl's: of one
# error it gives the tracebacks of all its threads, and then it raises the error.
_LOUDEST = {"absl": logging.CRITICAL} | dict.fromkeys(("jax", "matplotlib", "orbax"), logging.ERROR)


def quiet_libraries(unless_set: bool = False) -> None:
  """Their notes of every save, restore and missing backend would bury ours.

  Args:
    unless_set: what the caller's own code gave a library's logger, and Python, stays.
  """
  for name, level in _LOUDEST.items():
    logger = logging.getLogger(name)
    if not (unless_set and logger.level):
      logger.setLevel(level)
  if not unless_set:
    sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)


def _without_closed_loops(tell: Callable[..., object], what: "sys.UnraisableHookArgs") -> None:
  """Tells what Python cannot raise, but for TensorStore's threads after a failed save.

  Args:
    tell: what was called before: the one of `startup.interruptible` must see a lost Ctrl-C.
  """
  if str(what.exc_value) != "Event loop is closed":
    tell(what)
