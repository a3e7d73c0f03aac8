"""How fast are the forms of the 3-D convolution?

  python benchmarks/convolution.py [--small] [--passes forward gradients]

A row is the forward pass, or forward and backward, of one 3x3x3 convolution of the networks in
float32, in GFLOP/s (to image and kernel; to the kernel alone for a stem, whose image needs no
gradient). The forms take turns and the fastest turn counts, so compare within a row: other work on
the machine changes whole rows. The operations are those of the plain algorithm, 54 a voxel and pair
of channels, whatever a form really does. "-" is a form that the convolution does not have; the last
column is PyTorch, if it is installed.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

# PyTorch's idle threads would spin on cores that JAX needs. It reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing
from kd_jax.models.conv import IMPLS, conv3d
from kd_jax.runtime.terminal import table

FORMS = (*IMPLS, "auto")
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
Run = Callable[[], None]


def main() -> None:
  parser = common.parser(__doc__, "convolution", "tiny convolutions, seconds in all")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
  arguments = parser.parse_args()
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
    def forward(x, kernel, pull):
      return conv3d(x, kernel, stride, impl=form)

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
