"""What a run tells people: the terminal, a text file, TensorBoard, and the same numbers as JSON."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from kd_jax.runs.layout import LOG_FILE, NUMBERS_FILE, TENSORBOARD
from kd_jax.runs.tensorboard import TensorBoardWriter
from kd_jax.runtime.errors import UserError, printable
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import Terminal


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
      self._text = (workdir / LOG_FILE).open("a")
      # The suffix: two starts in one second must not share a file.
      self._tensorboard = TensorBoardWriter(
        workdir / TENSORBOARD, step + 1 if step else None, f".{step:09}"
      )

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
        self._tensorboard.scalar(step, name, value)
      self._tensorboard.flush()
      print(json.dumps({"step": step, **values}), file=self._numbers, flush=True)

  def text(self, name: str, text: str) -> None:
    """Preformatted text, to TensorBoard."""
    with self._writing():
      self._tensorboard.text(name, "\n".join(f"    {line}" for line in text.splitlines()))

  def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
    """(height, width, 3) uint8, to TensorBoard."""
    with self._writing():
      self._tensorboard.picture(step, name, pixels)

  def close(self) -> None:
    for file in (self._tensorboard, self._numbers, self._text):
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


Log = RunLog | NoLog


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
