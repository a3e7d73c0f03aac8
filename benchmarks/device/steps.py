"""The compiled training step, by recipe, form of its convolutions and options of the compiler."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import convolution, forms, step_profile, train_step
from benchmarks.device.turns import Turns
from benchmarks.flops import step_flops
from kd_jax.models import conv_choice
from kd_jax.models.conv_choice import Convolutions, Times
from kd_jax.runtime import compiler_options
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.memory import memory, program_bytes
from kd_jax.settings.run import Settings
from kd_jax.training.mesh import make_mesh

SMALL = {"filters": (4, 4, 8, 8), "side": 16}
TUNED = "tuned"  # a form: the fastest of each convolution, measured before
_WARM_UP, _STEPS, _PROFILED = 3, 8, 3
_TABLE_SECONDS = 120.0
_SHOWN = 20  # operations of a profile


def settings(variants: str, small: bool, batch: int = 1, **train: Any) -> Settings:
  """A recipe at the paper's size, or tiny; bfloat16 but on a CPU."""
  sizes = SMALL if small else train_step.PAPER
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return train_step.settings(
    sizes["filters"], (sizes["side"],) * 3, batch, dtype, variants, **train
  )


def step(
  turns: Turns,
  small: bool,
  *,
  variants: str,
  form: str = "auto",
  options: str = compiler_options.AUTO,
  batch: int = 1,
  remat: str = "none",
  profile: bool = False,
) -> None:
  """One step's time, rate and memory.

  Args:
    form: of benchmarks/forms.py, or TUNED.
    options: as train.compiler_options.
    profile: its busiest operations too.
  """
  jax.config.update("jax_enable_compilation_cache", False)
  run, mesh = settings(variants, small, batch, remat=remat), make_mesh(1, 1)
  told = compiler_options.choose(options, run.model.dtype).options
  if form == TUNED:
    how = tuned(turns, run, told)
  else:
    how = None if form == "auto" else forms.convolutions(form, jax.default_backend())
  began = time.process_time()
  lowered, new_state = train_step.lower_step(run, mesh, how)
  compiled = lowered.compile(compiler_options=dict(told))
  known = {
    "program": "kd_jax",
    "form": form,
    "options": compiler_options.text(told),
    "batch": batch,
    "remat": remat,
    "dtype": run.model.dtype,
    # Of all its threads: on the clock it may have been stopped meanwhile.
    "compile_processor_seconds": time.process_time() - began,
    "program_bytes": program_bytes(compiled),
  }
  turns.result(f"compiled in {known['compile_processor_seconds']:.0f} s of processors", **known)
  state, *others = train_step.first_inputs(run, mesh, new_state)
  before = memory().get("memory/device_gb", 0.0)  # compiling tries kernels, which take memory, too

  def one() -> None:
    nonlocal state
    state, metrics = compiled(state, *others)
    jax.block_until_ready((state, metrics))

  with turns.alone():
    seconds = timed(one)
    peak = memory().get("memory/device_gb", 0.0)
    found = known | measured(seconds, run, peak if peak > before else None)
    turns.result(described(found), **found)
    if profile:
      operations = profiled(one, compiled.as_text())
      lines = [f"  {row['milliseconds']:7.2f} ms  {row['operation']}" for row in operations]
      turns.result("\n".join(["operations, ms a step:", *lines]), operations=operations)


def tuned(turns: Turns, run: Settings, options: Options) -> Convolutions:
  """Measures forms of the run's convolutions, as train.autotune does; each row is a result.

  The largest first, for as long as _TABLE_SECONDS; the others go by their nearest. Nothing else
  runs while they are compiled either: XLA chooses the kernel of each by timing it.
  """
  found: list[Times] = []
  with turns.alone():
    began = time.monotonic()
    for times in convolution.device_table(run, options):
      found.append(times)
      turns.result(" ".join(convolution.line(times)), **conv_choice.row_of(times))
      if time.monotonic() - began > _TABLE_SECONDS:
        break
  return Convolutions(jax.default_backend(), tuple(found))


def timed(one: Callable[[], Any]) -> list[float]:
  """Seconds of each of some calls, after others that warm up."""
  for _ in range(_WARM_UP):
    one()
  stamps = [time.perf_counter()]
  for _ in range(_STEPS):
    one()
    stamps.append(time.perf_counter())
  return [late - early for early, late in itertools.pairwise(stamps)]


def measured(seconds: Sequence[float], run: Settings, peak_gb: float | None) -> dict[str, Any]:
  """What is known of a step once it ran."""
  median = statistics.median(seconds)
  counted = step_flops(run.model, run.data.patch) * run.data.batch
  spread = {"median": median, "least": min(seconds), "most": max(seconds)}
  return {
    "milliseconds": {name: 1e3 * value for name, value in spread.items()},
    "flops_per_second": counted / median,
    "samples_per_second": run.data.batch / median,
    "peak_gb": peak_gb,
  }


def described(found: Mapping[str, Any]) -> str:
  """One line, with what XLA accounts for where the device does not tell its peak."""
  times, size = found["milliseconds"], found.get("program_bytes")
  parts = [f"{times['median']:.1f} ms ({times['least']:.1f} to {times['most']:.1f})"]
  parts += [f"{found['flops_per_second'] / 1e12:.3g} TFLOP/s"]
  parts += [f"peak {found['peak_gb']:.2f} GB"] if found["peak_gb"] else []
  parts += [f"program {size / 1e9:.2f} GB"] if size else []
  return ", ".join(parts)


def profiled(one: Callable[[], Any], program: str) -> list[dict[str, Any]]:
  """The busiest operations of a step, in ms of all its threads or streams."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, create_perfetto_trace=False):
      for _ in range(_PROFILED):
        one()
    found = step_profile.operations(Path(folder), step_profile.origins(program))
  return [
    {"operation": name, "milliseconds": 1e3 * seconds / _PROFILED}
    for name, seconds in found.most_common(_SHOWN)
  ]
