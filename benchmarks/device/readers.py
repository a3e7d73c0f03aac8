"""Does the training step wait for the processes that read its batches?"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from benchmarks import common, input_pipeline, train_step
from benchmarks.device import steps
from benchmarks.device.turns import Turns
from kd_jax.data import pipeline
from kd_jax.training import step as step_lib
from kd_jax.training.mesh import make_mesh

_EVERY = 10  # steps between two lines of the log, where the host waits for the device
_ROUNDS = 6
_BATCH = 2  # the recipes' own


def readers(turns: Turns, small: bool) -> None:
  """The student's step, the fastest of all recipes, fed as training feeds it, and by one batch.

  The batches come as in training: reading processes, patches from cached cases, to the device while
  the step before still runs. The step itself is the bare one, without augmentation: it takes more
  batches a second than any real run.
  """
  run, mesh = steps.settings("student_only", small, _BATCH), make_mesh(1, 1)
  lowered, new_state = train_step.lower_step(run, mesh)
  compiled = train_step.compile_as_a_run(lowered, run)
  state, batch, key = train_step.first_inputs(run, mesh, new_state)

  def steps_with(next_batch: Callable[[], Mapping[str, jax.Array]], count: int) -> dict[str, float]:
    """Samples a second, and the share of the time in which the host waited for a batch."""
    nonlocal state
    waited, began = 0.0, time.perf_counter()
    for number in range(count):
      asked = time.perf_counter()
      inputs = next_batch()
      waited += time.perf_counter() - asked
      state, metrics = compiled(state, inputs, key)
      if (number + 1) % _EVERY == 0:
        jax.block_until_ready(metrics)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    return {"samples_per_second": _BATCH * count / seconds, "waited": waited / seconds}

  count = _EVERY * (1 if small else _ROUNDS)
  with tempfile.TemporaryDirectory(prefix="kd_jax-readers-") as folder:
    cases = input_pipeline.find(None, 2 if small else 8, Path(folder) / "data")
    data = run.data
    _, entries = input_pipeline.measure_prepare(
      cases, Path(folder) / "cache", data.cache_settings(), min(8, common.cores())
    )
    with turns.alone():
      steps_with(lambda: batch, 2)
      bare = steps_with(lambda: batch, count)["samples_per_second"]
    for workers in (1, 2) if small else (4, 8, 16):
      sampling = dataclasses.replace(data.sampling, workers=workers)
      with turns.alone(), _batches(entries, sampling, mesh) as next_batch:
        steps_with(next_batch, count)  # else what was read before would count
        found = steps_with(next_batch, count)
      share = found["samples_per_second"] / bare
      turns.result(
        f"{workers} processes: {found['samples_per_second']:.1f} samples/s, {share:.0%} of the "
        f"step's own {bare:.1f}; {found['waited']:.0%} of the time waiting for batches",
        workers=workers,
        bare_samples_per_second=bare,
        share_of_bare_step=share,
        **found,
      )


@contextlib.contextmanager
def _batches(entries: list[Path], sampling: Any, mesh: Any) -> Iterator[Callable[[], Any]]:
  """A function that gives the next batch on the device, as training has it."""
  shardings = step_lib.batch_sharding(mesh)
  rows = pipeline.rows_here(shardings["label"], _BATCH)
  stream = pipeline.training_batches(entries, sampling, batch=_BATCH, seed=0, rows=rows)
  with contextlib.closing(stream):
    yield lambda: pipeline.to_devices(next(stream), rows, shardings, _BATCH)
