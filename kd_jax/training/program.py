"""The compiled training step: with the first `train.remat` whose program fits into the device."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kd_jax.runtime import processes
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.memory import program_bytes
from kd_jax.training.memory import SAVES_MORE, Choice


class Program(NamedTuple):
  """A compiled step.

  Attributes:
    run: the step.
    remat: what it was compiled with.
    bytes: what it takes of each device, by XLA's account; None where XLA does not tell.
    seconds: for compiling, those that did not fit included.
    limit: bytes of the device; None where it does not tell.
  """

  run: Callable[..., Any]
  remat: str
  bytes: int | None
  seconds: float
  limit: int | None

  def __str__(self) -> str:
    text = f"compiled in {self.seconds:.0f} s, remat {self.remat}"
    if self.bytes is None:
      return text
    text += f"; the step takes {self.bytes / 1e9:.2f} GB"
    if self.limit is None:
      return text
    text += f" of the device's {self.limit / 1e9:.1f}"
    return text if self.bytes <= self.limit else f"{text}, which may be too much: {SAVES_MORE}"


def compile_step(
  make: Callable[[str], Any],
  arguments: tuple[Any, ...],
  choice: Choice,
  options: Options,
  tell: Callable[[str], None],
) -> Program:
  """Compiles ahead of time: a change of shapes later is an error.

  Args:
    make: remat -> the step under jit.
    arguments: of the step.
    choice: which remats to try, in this order. The last is taken even if it may not fit.
    options: for the compiler.
    tell: where to say that one does not fit.

  Raises:
    UserError: the compiler finds that the last one cannot fit.
  """
  began, limit = time.monotonic(), choice.limit
  for remat in choice.remats[:-1]:
    try:
      compiled = _compile(make(remat), arguments, options)
      needed = program_bytes(compiled)
      fits = limit is None or needed is None or needed <= limit
      why = f"takes {(needed or 0) / 1e9:.2f} of {(limit or 0) / 1e9:.2f} GB"
    except UserError:
      fits, why = False, "does not fit into the device"
    if all(processes.gather(fits)):
      return Program(compiled, remat, needed, time.monotonic() - began, limit)
    tell(f"the step with remat {remat} {why}: compiling it once more, with less kept")
  remat = choice.remats[-1]
  compiled = _compile(make(remat), arguments, options)
  seconds = time.monotonic() - began
  return Program(compiled, remat, program_bytes(compiled), seconds, limit)


def _compile(step: Any, arguments: tuple[Any, ...], options: Options) -> Any:
  """UserError if the compiler finds that the device is too small, as XLA for TPU does."""
  try:
    return step.lower(*arguments).compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UserError(f"the training step does not fit into the device. {SAVES_MORE}") from e
