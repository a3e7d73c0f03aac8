"""How fast are the forms of the 3-D convolution?

  python benchmarks/convolution.py [--small] [--passes forward gradients]
  python benchmarks/convolution.py --device [--small] [--variants default] [--dtype bfloat16]

A row is the forward pass, or forward and backward, of one 3x3x3 convolution of the networks in
float32, in GFLOP/s (to image and kernel; to the kernel alone for a stem, whose image needs no
gradient). The forms take turns and the fastest turn counts, so compare within a row: other work on
the machine changes whole rows. The operations are those of the plain algorithm, 54 a voxel and pair
of channels, whatever a form really does. "-" is a form that the convolution does not have; the last
column is PyTorch, if it is installed.

--device measures what `auto` goes by on this device: every convolution of a recipe at the paper's
size, in each direction, in each form that may be fastest, in milliseconds. The record that it
writes has its place in kd_jax/models/conv_times, named after the device.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# PyTorch's idle threads would spin on cores that JAX needs. It reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing, train_step
from kd_jax.models.conv import Forms, conv3d
from kd_jax.models.conv_choice import Convolution, Convolutions, Times
from kd_jax.runtime import compiler_options
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import table
from kd_jax.settings.run import Settings
from kd_jax.training import autotune

FORMS = ("native", "depth_taps", "depth_stack", "winograd", "auto")
PASSES = ("forward", "gradients")  # gradients: forward and backward
SMALL = ((1, 8, 1, 8, 1), (1, 8, 8, 8, 1), (1, 8, 8, 16, 2))  # batch, side, C, F, stride
QUICKSTART = (
  (2, 32, 1, 8, 1),
  (2, 32, 8, 8, 1),
  (2, 32, 24, 8, 1),
  (2, 32, 8, 16, 2),
  (2, 16, 16, 16, 1),
  (2, 16, 48, 16, 1),
  (2, 8, 32, 32, 1),
  (2, 4, 64, 64, 1),
)
PAPER = (  # a quarter of its patch
  (1, 64, 1, 32, 1),
  (1, 64, 32, 32, 1),
  (1, 64, 96, 32, 1),
  (1, 64, 32, 64, 2),
  (1, 32, 64, 64, 1),
  (1, 16, 128, 128, 1),
)
_SHOWN = 3  # forms of --device beside the fastest; the record has all
Run = Callable[[], None]


def main() -> None:
  parser = common.parser(__doc__, "convolution", "tiny convolutions, seconds in all")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
  parser.add_argument("--device", action="store_true", help="measure what `auto` goes by here")
  parser.add_argument("--variants", default="mtcm_kd", help="of the recipe, with --device")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="with --device")
  arguments = parser.parse_args()
  if arguments.device:
    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    sizes = train_step.SMALL if arguments.small else train_step.PAPER
    patch = (sizes["side"],) * 3
    run = train_step.settings(sizes["filters"], patch, 1, dtype, arguments.variants)
    rows = []
    for times in device_table(run, compiler_options.choose(compiler_options.AUTO, dtype).options):
      common.tell(" ".join(line(times)))
      rows.append(times)
    write_record(arguments.json, rows)
    print(f"milliseconds on {jax.devices()[0].device_kind}, {dtype}; {arguments.json}")
    return print(as_table(rows))
  columns = (*FORMS, "torch") if _torch() else FORMS
  rows = []
  for batch, side, channels, features, stride in SMALL if arguments.small else QUICKSTART + PAPER:
    name = f"{batch}x{side}^3 {channels}->{features} /{stride}"
    flop = 54 * batch * (side // stride) ** 3 * channels * features
    for which in arguments.passes:
      runs = _runs(which, batch, side, channels, features, stride)
      spreads = timing.alternate(runs, arguments.rounds, 1)
      whole = flop * (1 if which == "forward" else 2 if channels == 1 else 3)
      rates = {form: whole / spread.least / 1e9 for form, spread in spreads.items()}
      rows.append({"convolution": name, "pass": which, **rates})
      common.tell(f"{name} {which}")
  timing.report(arguments.json, {"rounds": arguments.rounds}, rows)
  print(f"GFLOP/s; {arguments.json}")
  cells = [
    [row["convolution"], row["pass"], *(common.cell(row.get(c), ".1f") for c in columns)]
    for row in rows
  ]
  print(table(["convolution", "pass", *columns], cells))


# --- What `auto` goes by -----------------------------------------------------------------------


def device_table(run: Settings, options: Options) -> Iterator[Times]:
  """Times of a run's convolutions on this device, the largest first; options: of the compiler."""
  platform = jax.default_backend()
  for convolution in autotune.worth_measuring(autotune.convolutions_of(run)):
    for direction in autotune.directions(convolution):
      forms = autotune.candidates(convolution, direction, platform)
      yield autotune.measure(convolution, direction, forms, options)


def write_record(path: Path, rows: Sequence[Times]) -> None:
  """As kd_jax/models/conv_times has them."""
  record = autotune.as_record(rows) | {"machine": timing.machine()}
  write_text(path, json.dumps(record, indent=1) + "\n")


def as_table(rows: Sequence[Times]) -> str:
  return table(["convolution", "direction", "fastest", "ms", "next"], [line(r) for r in rows])


def line(times: Times) -> list[str]:
  """Of the table: what was measured, the fastest form, its milliseconds, the next ones."""
  c = times.convolution
  name = f"{c.batch}x{common.by(c.sides)} {c.channels}->{c.features} /{c.stride} ({c.window[0]}^3)"
  (form, least), *others = sorted(times.ms, key=lambda pair: pair[1])
  rest = ", ".join(f"{other} {ms:.3f}" for other, ms in others[:_SHOWN])
  return [name, times.direction, form, f"{least:.3f}", rest]


# --- The forms side by side --------------------------------------------------------------------


def _runs(
  which: str, batch: int, side: int, channels: int, features: int, stride: int
) -> dict[str, Run]:
  """name -> a function that does the work and waits for it."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, side, side, side, channels), np.float32)
  kernel = rng.standard_normal((3, 3, 3, channels, features), np.float32)
  pull = rng.standard_normal((batch, *(side // stride,) * 3, features), np.float32)
  args = jax.device_put((x, kernel, pull))

  def program(form: str) -> Run:
    auto = Convolutions(jax.default_backend()).choose(Convolution.of(x, kernel, stride))
    forms = auto if form == "auto" else Forms(form)

    def forward(x, kernel, pull):
      return conv3d(x, kernel, stride, forms)

    def gradients(x, kernel, pull):
      if channels == 1:
        y, back = jax.vjp(lambda kernel: forward(x, kernel, pull), kernel)
      else:
        y, back = jax.vjp(lambda x, kernel: forward(x, kernel, pull), x, kernel)
      return y, back(pull)

    compiled = jax.jit(forward if which == "forward" else gradients)
    return lambda: jax.block_until_ready(compiled(*args))

  runs = {form: program(form) for form in FORMS if form != "winograd" or stride == 1}
  if _torch():
    runs["torch"] = _torch_run(which, x, kernel, pull, stride)
  return runs


def _torch():
  try:
    import torch
  except ImportError:
    return None
  return torch


def _torch_run(which: str, x, kernel, pull, stride: int) -> Run:
  torch = _torch()
  x, pull = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (x, pull))
  kernel = torch.from_numpy(kernel.transpose(4, 3, 0, 1, 2).copy())
  wanted = [kernel] if x.shape[1] == 1 else [x, kernel]
  if which == "gradients":
    for tensor in wanted:
      tensor.requires_grad_()

  def run() -> None:
    y = torch.nn.functional.conv3d(x, kernel, stride=stride, padding=1)
    if which == "gradients":
      torch.autograd.grad(y, wanted, pull)

  return run


if __name__ == "__main__":
  common.command(main)
