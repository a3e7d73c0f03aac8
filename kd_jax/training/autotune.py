"""Measures which form of each convolution is fastest on this device (train.autotune).

Every form that is promising for a shape is compiled and timed in each direction: about a minute on
a GPU. The times stay in the cache folder, by kind of device and version of jaxlib.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from kd_jax.models import conv_choice, conv_forms
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolution, Convolutions, Times
from kd_jax.models.framework import Framework, compute_dtype
from kd_jax.runs.layout import CONVOLUTIONS_FILE
from kd_jax.runtime import compiler_options, files, processes, startup
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.errors import UserError
from kd_jax.settings.run import Settings

_LEAST_SHARE = 0.01  # of the operations, below which a convolution takes the forms of its nearest
_CALLS = 10  # a turn
_TURNS = 3
_WIDE = 128  # channels: where there are as many outputs, more slices at once bring nothing
_SLICES = {1: "", 2: "_2", 4: "_4"}  # of output at once: what a form's name ends in
_FEW = 4  # input channels, for a product over patches


def convolutions_of(settings: Settings) -> dict[Convolution, int]:
  """Every convolution of a run's networks -> how often it is computed, from one sample's shapes."""
  seen: dict[Convolution, int] = {}

  class Recorder(Convolutions):
    def choose(self, convolution: Convolution) -> Forms:
      seen[convolution] = seen.get(convolution, 0) + 1
      return Forms("native")

  framework = Framework(settings.model, convolutions=Recorder("cpu"))
  batch = settings.data.batch // settings.train.accumulate
  images = jax.ShapeDtypeStruct((batch, 4, *settings.data.patch), jnp.float32)
  jax.eval_shape(framework, jax.eval_shape(framework.init, jax.random.key(0)), images)
  return {c: count for c, count in seen.items() if math.prod(c.window) > 1}


def worth_measuring(counts: dict[Convolution, int]) -> list[Convolution]:
  """Those that a step's time depends on, the largest first.

  Stems are among them: with an image's one channel they have few operations, and take the time of
  a convolution with many (0.4 ms of an H200's, with 32 outputs of 128^3).
  """
  work = {c: count * _operations(c) for c, count in counts.items()}
  least = _LEAST_SHARE * sum(work.values())
  wanted = (c for c in work if work[c] >= least or c.channels <= _FEW)
  return sorted(wanted, key=lambda c: -work[c])


def _operations(convolution: Convolution) -> float:
  outputs = math.prod(convolution.sides) / convolution.stride**3 * convolution.features
  return 2.0 * convolution.batch * outputs * math.prod(convolution.window) * convolution.channels


def candidates(convolution: Convolution, direction: str, platform: str) -> list[str]:
  """The forms that may be fastest for a convolution."""
  # What a direction writes: a convolution's outputs, or (its gradient) its inputs.
  outputs = convolution.channels if direction == "to_input" else convolution.features
  slices = [1] + [2] * (outputs < _WIDE) + [4] * (2 * outputs < _WIDE)
  kinds = (
    ["depth_stack"] if platform == "cpu" else ["native", "depth_stack"]
  )  # native is slow there
  wanted = [kind + _SLICES[n] for n in slices for kind in kinds]
  if platform == "cpu":
    wanted += ["depth_taps"] + ["winograd"] * (jnp.finfo(convolution.dtype).bits >= 32)
  wanted += ["patches"] * (convolution.channels <= _FEW)
  stride, window = convolution.stride, convolution.window
  if direction == "to_input":
    if stride == 1 and platform != "cpu":
      wanted.remove("native")  # cuDNN's call is that of transposed_native
    derived = [*kinds, "winograd"] if "winograd" in wanted else kinds
    wanted = [*(f"transposed_{kind}" for kind in derived), "cubes", *wanted]
  return [form for form in wanted if conv_forms.possible(form, direction, window, stride)]


def measure(
  convolution: Convolution, direction: str, forms: Iterable[str], options: Options = ()
) -> Times:
  """Milliseconds of each form in one direction, on the first device; forms that fail are left out.

  The forms take turns; a form's time is the median of its turns. options: of the compiler.
  """
  arguments = _arguments(convolution)
  runs = {}
  for form in forms:
    run = _program(form, direction, convolution)
    program = jax.jit(run, compiler_options=dict(options))
    try:
      jax.block_until_ready(program(*arguments))
    except jax.errors.JaxRuntimeError:  # such as too little memory for what it stacks
      continue
    runs[form] = program
  seconds: dict[str, list[float]] = {form: [] for form in runs}
  for _ in range(_TURNS):
    for form, program in runs.items():
      began = time.perf_counter()
      for _ in range(_CALLS):
        result = program(*arguments)
      jax.block_until_ready(result)
      seconds[form].append((time.perf_counter() - began) / _CALLS)
  ms = tuple((form, 1e3 * statistics.median(took)) for form, took in seconds.items())
  return Times(convolution, direction, ms)


def _arguments(convolution: Convolution) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Image, kernel, and the gradient to the output: noise."""
  batch, sides, channels, window, features, stride, dtype = convolution
  outs = [-(-side // stride) for side in sides]
  shapes = (
    (batch, *sides, channels),
    (*window, channels, features),
    (batch, *outs, features),
  )
  keys = jax.random.split(jax.random.key(0), len(shapes))
  x, kernel, pull = (jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))
  return x, kernel, pull


def _program(form: str, direction: str, convolution: Convolution) -> Callable[..., jax.Array]:
  stride = convolution.stride

  def run(x: jax.Array, kernel: jax.Array, pull: jax.Array) -> jax.Array:
    if direction == "forward":
      return conv_forms.forward(form, x, kernel, stride)
    if direction == "to_input":
      return conv_forms.to_input(form, pull, kernel, stride, x.shape)
    return conv_forms.to_kernel(form, x, pull, stride, kernel.shape)

  return run


def for_run(
  settings: Settings,
  workdir: Path,
  tell: Callable[[str], None],
  progress: Callable[[str], Callable[[int, int, str], None]],
) -> Convolutions:
  """How a run computes its convolutions; with train.autotune by times that stay with the run.

  A run that goes on uses the times that it began with: other forms would round differently. All
  processes use those of the first.

  Args:
    workdir: of the run.
    tell: called with what is done.
    progress: see Terminal.progress.
  """
  usual = conv_choice.of_device(jax.devices()[0])
  if not settings.train.autotune:
    return usual
  record = None
  if processes.first():
    path = workdir / CONVOLUTIONS_FILE
    if not path.exists():
      wanted = worth_measuring(convolutions_of(settings))
      dtype = compute_dtype(settings.model, usual.platform).name
      options = compiler_options.choose(settings.train.compiler_options, dtype).options
      times = tuned(
        wanted, options, startup.cache_folder() / "convolutions", tell, progress("measuring")
      )
      files.write_text(path, json.dumps(as_record(times), indent=1) + "\n")
    record = files.read_json(path)
  record = processes.gather(record)[0]
  return Convolutions(usual.platform, conv_choice.times_of(record))


def tuned(
  wanted: Sequence[Convolution],
  options: Options,
  cache: Path,
  tell: Callable[[str], None],
  progress: Callable[[int, int, str], None],
) -> tuple[Times, ...]:
  """Times of these convolutions on this machine's first device: from the cache, or measured now.

  Args:
    options: of the compiler; each has times of its own.
    cache: folder of the times; a file that cannot be read or written there is passed over.
    tell: called with what is done.
    progress: called with how many are measured, of how many, and the name of the last.
  """
  device = jax.devices()[0]
  named = "-".join([device.device_kind, jaxlib.__version__, *(name for name, _ in options)])
  path = cache / f"{files.slug(named)}.json"
  known = _read(path)
  missing = [
    (convolution, direction)
    for convolution in wanted
    for direction in directions(convolution)
    if (convolution, direction) not in known
  ]
  if missing:
    tell(f"measuring {len(missing)} convolutions on {device.device_kind} (train.autotune)")
    began = time.monotonic()
    for number, (convolution, direction) in enumerate(missing, start=1):
      forms = candidates(convolution, direction, device.platform)
      known[convolution, direction] = measure(convolution, direction, forms, options)
      progress(
        number, len(missing), f"{convolution.channels} to {convolution.features}, {direction}"
      )
    tell(f"measured in {time.monotonic() - began:.0f} s; the times are kept in {path}")
    _write(path, known.values(), tell)
  return tuple(
    known[convolution, direction] for convolution in wanted for direction in directions(convolution)
  )


def directions(convolution: Convolution) -> tuple[str, ...]:
  """An image needs no gradient, and a network's first convolutions read images."""
  few = convolution.channels <= _FEW
  return tuple(d for d in conv_forms.DIRECTIONS if not few or d != "to_input")


def _read(path: Path) -> dict[tuple[Convolution, str], Times]:
  try:
    times = conv_choice.times_of(files.read_json(path))
  except (UserError, OSError, KeyError, TypeError, AttributeError):  # none yet, or spoilt
    return {}
  return {(t.convolution, t.direction): t for t in times}


def _write(path: Path, times: Iterable[Times], tell: Callable[[str], None]) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(as_record(times), indent=1) + "\n")
  except (UserError, OSError) as e:
    tell(f"the times of the convolutions could not be kept in {path}: {e}")


def as_record(times: Iterable[Times]) -> dict[str, Any]:
  """Times that were measured on the first device, as models/conv_times has them."""
  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "platform": device.platform,
    "compute_capability": getattr(device, "compute_capability", None),
    "date": time.strftime("%Y-%m-%d"),
    "jax": jax.__version__,
    "rows": [conv_choice.row_of(t) for t in times],
  }
