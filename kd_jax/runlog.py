"""What a run tells people: the terminal, a text file, TensorBoard, and the same numbers as JSON."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from kd_jax.board import Board
from kd_jax.errors import UserError, one_line, printable
from kd_jax.storage import write_text

NUMBERS_FILE = "metrics.jsonl"
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


class RunLog:
  """The records of one work directory.

  Its methods raise UserError where the files cannot be written.

  On a resumed run, what earlier processes recorded beyond `step` is removed: those steps are done
  again.
  """

  def __init__(self, workdir: Path, terminal: Terminal, step: int):
    self._terminal = terminal
    self._workdir = workdir
    with self._writing():
      workdir.mkdir(parents=True, exist_ok=True)
      _truncate(workdir, step)
      self._numbers = (workdir / NUMBERS_FILE).open("a")
      self._text = (workdir / "train.log").open("a")
      # The suffix: two starts in one second must not share a file.
      self._board = Board(workdir / "tensorboard", step + 1 if step else None, f".{step:09}")

  def line(self, text: str, terminal: bool = True) -> None:
    """A line for people, on the terminal and in train.log."""
    if terminal:
      self._terminal.line(text)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    with self._writing():
      lines = [f"{stamp} {part}" for part in printable(text).splitlines()]
      print("\n".join(lines), file=self._text, flush=True)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers at a step, to TensorBoard and metrics.jsonl."""
    with self._writing():
      for name, value in values.items():
        self._board.scalar(step, name, value)
      self._board.flush()
      print(json.dumps({"step": step, **values}), file=self._numbers, flush=True)

  def text(self, name: str, text: str) -> None:
    """Preformatted text, to TensorBoard."""
    with self._writing():
      self._board.text(name, "\n".join(f"    {line}" for line in text.splitlines()))

  def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
    """(height, width, 3) uint8, to TensorBoard."""
    with self._writing():
      self._board.picture(step, name, pixels)

  def close(self) -> None:
    for file in (self._board, self._numbers, self._text):
      with contextlib.suppress(OSError):  # what a flush could not write was told then
        file.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      raise UserError(
        f"cannot write the logs in {self._workdir}: {e.strerror or e}. The checkpoints are as they "
        "were; make room and start again"
      ) from e


class NoLog:
  """In place of a RunLog where another process keeps the records."""

  def line(self, text: str, terminal: bool = True) -> None: ...

  def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

  def text(self, name: str, text: str) -> None: ...

  def picture(self, step: int, name: str, pixels: np.ndarray) -> None: ...

  def close(self) -> None: ...


def read_numbers(workdir: Path) -> list[dict]:
  """The lines of a run's metrics.jsonl; [] where there is none. A torn last line is left out."""
  path = workdir / NUMBERS_FILE
  lines = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(line))
    except ValueError:
      continue
  return lines


def _truncate(workdir: Path, step: int) -> None:
  """Drops lines beyond step, and a last line that a killed process left unfinished."""
  if (workdir / NUMBERS_FILE).exists():
    kept = [json.dumps(line) + "\n" for line in read_numbers(workdir) if line["step"] <= step]
    write_text(workdir / NUMBERS_FILE, "".join(kept))


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
