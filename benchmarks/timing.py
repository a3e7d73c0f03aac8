"""What every benchmark needs: fair timing, the machine's name, and a place for the numbers."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jaxlib

from benchmarks import common
from kd_jax import __version__
from kd_jax.runtime.files import write_text


class Spread(NamedTuple):
  """Seconds of one call, over many.

  Attributes:
    median, least, most: on the clock.
    count: of calls.
    processor: the median of this process's seconds on all cores, which other programs hardly
      change; on an accelerator it says little.
  """

  median: float
  least: float
  most: float
  count: int
  processor: float


def alternate(
  programs: Mapping[str, Callable[[], Any]], rounds: int, block: int, warm_up: int = 1
) -> dict[str, Spread]:
  """Times programs in turns, so that a machine that slows down slows all of them.

  Each round runs every program `block` times; every other round goes through them backwards. The
  first `warm_up` calls of a block are not counted: they wait for the threads and the caches that
  the program before has left behind.

  Args:
    programs: name -> a function that returns when its work is done, not when it is enqueued.
    rounds: how often each has its turn.
    block: counted calls a turn.
    warm_up: calls before them.
  """
  seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
  for number in range(rounds):
    order = list(programs) if number % 2 == 0 else list(programs)[::-1]
    for name in order:
      for call in range(-warm_up, block):
        began, began_processor = time.perf_counter(), time.process_time()
        programs[name]()
        if call >= 0:
          took = time.perf_counter() - began, time.process_time() - began_processor
          seconds[name].append(took)
  return {name: _spread(*zip(*took, strict=True)) for name, took in seconds.items()}


def _spread(clock: Sequence[float], processor: Sequence[float]) -> Spread:
  middle = statistics.median
  return Spread(middle(clock), min(clock), max(clock), len(clock), middle(processor))


def machine() -> dict[str, str]:
  """Hardware and versions, as they stand in every result."""
  device = jax.devices()[0]
  found = {
    "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    "processor": f"{_processor()}, {common.cores()} cores",
    "python": platform.python_version(),
    "kd_jax": __version__,
    "jax": jax.__version__,
    "jaxlib": jaxlib.__version__,
    "flax": flax.__version__,
  }
  if torch := sys.modules.get("torch"):
    found["torch"] = torch.__version__
  return found


def describe(found: Mapping[str, str]) -> str:
  """`machine()` as one line."""
  return "; ".join(
    x if name in ("device", "processor") else f"{name} {x}" for name, x in found.items()
  )


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, settings: Mapping[str, Any], rows: Any) -> None:
  """Settings, machine and rows of one benchmark. UserError if the file cannot be written."""
  result = {"settings": settings, "machine": machine(), "rows": rows}
  write_text(path, json.dumps(result, indent=1, default=str) + "\n")


def report(path: Path, settings: Mapping[str, Any], rows: Any) -> None:
  """Writes the JSON and prints the machine, the first line of every benchmark's report."""
  write_json(path, settings, rows)
  print(describe(machine()))
