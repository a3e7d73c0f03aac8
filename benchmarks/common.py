"""What the benchmarks' commands share. Imported without JAX: processes that read data need none."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from kd_jax.runtime.errors import UserError

SMALL_STEP = "a quarter of the filters, 32^3"  # --small of all that take the training step


def parser(doc: str, name: str, small: str) -> argparse.ArgumentParser:
  """A command's flags --small and --json, to which it adds its own.

  Args:
    doc: of the command's module; its first line is the command's description.
    name: of the JSON file in runs/benchmarks.
    small: what --small stands for.
  """
  found = argparse.ArgumentParser(description=doc.splitlines()[0])
  found.add_argument("--small", action="store_true", help=small)
  found.add_argument("--json", type=Path, default=Path(f"runs/benchmarks/{name}.json"))
  return found


def command(main: Callable[[], None]) -> None:
  """Runs main; a UserError ends the process with its message."""
  try:
    main()
  except UserError as error:
    sys.exit(f"error: {error}")


def tell(text: str) -> None:
  """Progress, apart from the table on stdout."""
  print(text, file=sys.stderr, flush=True)


def cell(value: float | None, form: str, scale: float = 1) -> str:
  """A number of a table; "-" for what is not known or not asked."""
  return "-" if value is None else format(value * scale, form)


def by(sides: Iterable[int]) -> str:
  """Such as 240x240x155."""
  return "x".join(map(str, sides))


def cores() -> int:
  """How many processor cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
