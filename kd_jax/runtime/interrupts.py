"""SIGTERM and Ctrl-C end a run after the step that is under way, so that it can save first."""

import signal
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
  """A context in which the first signal is noted and a second one of the same kind ends at once.

  Attributes:
    number: of the signal that came, or 0.
    name: "SIGTERM", "SIGINT", or "another process".
  """

  def __init__(self):
    self.number, self.name = 0, ""
    self._before = {}

  def __enter__(self) -> "Interrupts":
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        before = signal.signal(number, self._note)
        self._before[number] = signal.SIG_DFL if before is None else before  # None: not Python's
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, _) -> None:
    self.number, self.name = number, signal.Signals(number).name
    signal.signal(number, self._before[number])

  def agreed(self, ask: bool) -> bool:
    """Whether to stop now. Several processes agree on it, at the steps where all of them `ask`."""
    if jax.process_count() == 1:
      return self.number > 0
    if not ask:
      return False
    anywhere = int(np.max(multihost_utils.process_allgather(np.int32(self.number))))
    if anywhere and not self.number:
      self.number, self.name = anywhere, "another process"
    return anywhere > 0
