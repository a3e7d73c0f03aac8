"""What people see while something works: lines, one live progress line, tables, time left."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

from kd_jax.runtime.errors import one_line, printable

_PLAIN_EVERY_SECONDS = 10  # between lines of progress where there is no terminal


class Terminal:
  """Lines, and one live progress line below them; plain lines where the output is no terminal.

  Of several processes, number 0 shows progress; the others' lines begin with their number.
  """

  def __init__(self, process: int = 0):
    self._process = process
    self.console = rich.console.Console(file=sys.stderr, highlight=False, soft_wrap=True)

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


def duration(seconds: float) -> str:
  """3725 -> "1:02:05"."""
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def table(head: list[str], rows: list[list[object]]) -> str:
  """Columns that align: the first to the left, the others to the right; floats to four places."""
  cells = [head] + [[f"{c:.4f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

  def right(row: list[str]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(row, widths[1:], strict=True)]

  lines = ["  ".join([row[0].ljust(widths[0]), *right(row[1:])]) for row in cells]
  return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def quiet_libraries() -> None:
  """Their notes of every save, restore and missing backend would bury ours; errors stay."""
  for name in ("absl", "jax", "matplotlib", "orbax"):
    logging.getLogger(name).setLevel(logging.ERROR)
