"""What a section's process says to the runner: its results, and when it must be alone.

A section prepares (imports, compiles) beside others, and measures in its turn, while the runner
keeps the others stopped. Started by hand, without a runner, it is alone anyway.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

READY, DONE, RESULT, SKIP, GO = "@ready", "@done", "@result ", "@skip ", "go"


class Turns:
  """One section's side of the talk.

  What the section prints otherwise, from any library, goes to stderr.
  """

  def __init__(self, runner: bool):
    """runner: whether one listens; else results are just printed, and no turn is waited for."""
    self._runner = runner
    self._out = os.fdopen(os.dup(1), "w") if runner else sys.stdout
    if runner:
      os.dup2(2, 1)

  def result(self, text: str, **values: Any) -> None:
    """One result, kept whatever comes after it; text: a line for who watches."""
    row = {"text": text, **values}
    self._say(RESULT + json.dumps(row, default=str) if self._runner else text)

  def skip(self, why: str) -> NoReturn:
    """Ends the section, which this machine cannot do."""
    self._say(SKIP + why if self._runner else why)
    sys.exit()

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Nothing else runs or compiles meanwhile."""
    if not self._runner:
      yield
      return
    self._say(READY)
    if sys.stdin.readline().strip() != GO:
      sys.exit("the runner has ended")
    yield
    self._say(DONE)

  def _say(self, line: str) -> None:
    print(line, file=self._out, flush=True)
