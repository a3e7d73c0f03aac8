"""The numbers between two lines of the log: means, speed, and whether any has gone bad."""

import time
from typing import NamedTuple

import jax
import numpy as np


class Values(NamedTuple):
  """A closed window.

  Attributes:
    means: each metric's mean over the window's steps, with seconds_per_step and
      samples_per_second; without the steps that were skipped, unless all of them were.
    non_finite: (step, metric, value) of each step with a number that is NaN or infinite.
  """

  means: dict[str, float]
  non_finite: list[tuple[int, str, float]]


class MetricAverages:
  """Collects the metrics of steps as they lie on the device; nothing waits until `close`."""

  def __init__(self):
    self._metrics: list[tuple[int, dict[str, jax.Array]]] = []
    self._began = time.monotonic()

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    self._metrics.append((step, metrics))

  def close(self, batch: int) -> Values:
    """Waits for the window's steps and checks every number; batch: samples a step."""
    fetched = [(step, jax.device_get(metrics)) for step, metrics in self._metrics]
    seconds = (time.monotonic() - self._began) / len(fetched)
    non_finite = [
      (step, *bad) for step, metrics in fetched if (bad := _first_non_finite(metrics)) is not None
    ]
    sound = [metrics for _, metrics in fetched if not metrics.get("skipped")]
    counted = sound or [metrics for _, metrics in fetched]
    means = {name: float(np.mean([x[name] for x in counted])) for name in counted[0]}
    means |= {"seconds_per_step": seconds, "samples_per_second": batch / seconds}
    return Values(means, non_finite)


def _first_non_finite(metrics: dict[str, np.ndarray]) -> tuple[str, float] | None:
  # Losses first: a gradient goes bad with them, and they name the culprit.
  by_blame = sorted(metrics.items(), key=lambda item: _blame(item[0]))
  return next(((name, float(x)) for name, x in by_blame if not np.isfinite(x)), None)


def _blame(name: str) -> tuple[bool, bool, str]:
  """Single terms before the sums that they spoil, losses before the rest."""
  return not name.startswith("loss/"), name in ("loss/student", "loss/teachers"), name
