"""The numbers between two lines of the log: means, speed, and whether any has gone bad."""

import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np


class Values(NamedTuple):
  """A closed window.

  Attributes:
    means: each metric's mean over the window's steps, with seconds_per_step and
      samples_per_second.
    non_finite: (step, metric, value) of the first number that is NaN or infinite, or None.
  """

  means: dict[str, float]
  non_finite: tuple[int, str, float] | None


class Window:
  """Collects the metrics of steps as they lie on the device; nothing waits until `close`."""

  def __init__(self):
    self._metrics: list[tuple[int, dict[str, jax.Array]]] = []
    self._began = time.monotonic()

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    self._metrics.append((step, metrics))

  def close(self, batch: int) -> Values:
    """Waits for the window's steps and looks at every number; batch: samples a step."""
    fetched = [(step, jax.device_get(metrics)) for step, metrics in self._metrics]
    seconds = (time.monotonic() - self._began) / len(fetched)
    non_finite = next(
      (
        (step, name, float(value))
        for step, metrics in fetched
        # Losses first: a gradient goes bad with them, and they name the culprit.
        for name, value in sorted(metrics.items(), key=lambda item: _blame(item[0]))
        if not np.isfinite(value)
      ),
      None,
    )
    names = fetched[0][1]
    means = {name: float(np.mean([metrics[name] for _, metrics in fetched])) for name in names}
    means |= {"seconds_per_step": seconds, "samples_per_second": batch / seconds}
    return Values(means, non_finite)


def _blame(name: str) -> tuple[bool, bool, str]:
  """Single terms before the sums that they spoil, losses before the rest."""
  return not name.startswith("loss/"), name in ("loss/student", "loss/cohort"), name


def memory() -> dict[str, float]:
  """The highest use so far, in GB: of the process, and of the first device where it tells."""
  unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
  used = {"memory/process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    used["memory/device_gb"] = stats["peak_bytes_in_use"] / 1e9
  return used


def free_memory() -> float | None:
  """Bytes that a program may take: of the first device, or half of what the host has available."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return None
  fields = dict(line.split(":", 1) for line in lines)
  return float(fields["MemAvailable"].split()[0]) * 1024 / 2
