"""TensorBoard's event file, written by the caller: tensorboardX without its thread.

The thread of its SummaryWriter dies when the disk is full, and the writer then waits for it for
ever. Here such an error comes out where it happens.
"""

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class TensorBoardWriter:
  """One event file.

  Every method raises OSError where the file cannot be written.
  """

  def __init__(self, folder: Path, purge_from: int | None, suffix: str):
    """
    Args:
      folder: made if need be.
      purge_from: the step from which on TensorBoard forgets what earlier files of the folder hold.
      suffix: of the file's name, which else is a time in seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    self._file = EventsWriter(str(folder / "events"), suffix)
    self._path = Path(self._file._file_name)
    if purge_from is not None:
      self._write(purge_from, file_version="brain.Event:2")
      self._write(purge_from, session_log=SessionLog(status=SessionLog.START))

  def gone(self) -> bool:
    """Whether the file was removed: what is written to it then, nobody reads."""
    return not self._path.exists()

  def scalar(self, step: int, name: str, value: float) -> None:
    self._write(step, summary=summary.scalar(name, value))

  def text(self, name: str, text: str) -> None:
    """Markdown."""
    self._write(0, summary=summary.text(name, text))

  def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
    """(height, width, 3) uint8."""
    self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, **content) -> None:
    self._file.write_event(Event(wall_time=time.time(), step=step, **content))
