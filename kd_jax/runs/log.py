"""What a run tells people: the terminal, a text file, TensorBoard, and the same numbers as JSON."""

import contextlib
import json
import os
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
    self._place: os.stat_result | None = None  # of the folder, once it is there
    with self._writing():
      workdir.mkdir(parents=True, exist_ok=True)
      _truncate(workdir, step)
      self._numbers = _Lines(workdir / NUMBERS_FILE)
      self._text = _Lines(workdir / LOG_FILE)
      # The suffix: two starts in one second must not share a file.
      self._tensorboard = TensorBoardWriter(
        workdir / TENSORBOARD, step + 1 if step else None, f".{step:09}"
      )
      self._place = workdir.stat()

  def line(self, text: str, terminal: bool = True) -> None:
    """A line for people, on the terminal and in train.log."""
    if terminal:
      self._terminal.line(text)
    with self._writing():
      self._text.add(_stamped(text))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers at a step, to TensorBoard and metrics.jsonl."""
    with self._writing():
      for name, value in values.items():
        self._tensorboard.scalar(step, name, value)
      self._tensorboard.flush()
      self._numbers.add(json.dumps({"step": step, **values}))

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
      if self._place is not None:
        self._check_place(self._place)
      yield
    except OSError as e:
      raise UserError(
        f"cannot write the logs in {self._workdir}: {e.strerror or e}. The checkpoints are as they "
        "were; make room and start again"
      ) from e

  def _check_place(self, place: os.stat_result) -> None:
    """Makes files anew that were removed, and says so. UserError if the folder itself is away."""
    try:
      same = os.path.samestat(place, self._workdir.stat())
    except FileNotFoundError:
      same = False
    if not same:
      raise UserError(
        f"the work directory {self._workdir} was moved, renamed or removed while the run worked "
        "there. What was saved went with it: start again with --workdir=, and its new place"
      )
    lost = [file.path.name for file in (self._numbers, self._text) if file.follow()]
    if self._tensorboard.gone():
      lost.append(TENSORBOARD)
      self._tensorboard = TensorBoardWriter(self._workdir / TENSORBOARD, None, ".again")
      for line in read_numbers(self._workdir):
        for name in line.keys() - {"step"}:
          self._tensorboard.scalar(line["step"], name, line[name])
    if lost:
      text = (
        f"warning: {', '.join(lost)} in {self._workdir} was removed while the run works there, and "
        f"is begun anew; TensorBoard has again what {NUMBERS_FILE} holds"
      )
      self._terminal.line(text)
      self._text.add(_stamped(text))


class _Lines:
  """A text file that lines are added to."""

  def __init__(self, path: Path):
    self.path = path
    self._file = path.open("a")

  def add(self, line: str) -> None:
    print(line, file=self._file, flush=True)

  def follow(self) -> bool:
    """Whether the file was removed; then it is begun anew."""
    try:
      if os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
        return False
    except FileNotFoundError:
      pass
    self._file.close()
    self._file = self.path.open("a")
    return True

  def close(self) -> None:
    self._file.close()


def _stamped(text: str) -> str:
  """Each line with the time."""
  stamp = time.strftime("%Y-%m-%d %H:%M:%S")
  return "\n".join(f"{stamp} {part}" for part in printable(text).splitlines())


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
