"""How much device memory does the training step take, and what makes it less?

  python benchmarks/memory.py                        # the paper's networks; no data, nothing runs
  python benchmarks/memory.py --small

Compared are a batch of two, its two samples one after the other (train.accumulate), less kept for
the backward pass (train.remat), a volume shared by devices (train.spatial_shards), and a whole
scan, padded to 256x240x160, on one device and on four. Two accounts, of each device:

  kept         what the networks' forward pass hands to their backward pass, as JAX traces it,
               divided by the devices
  XLA          the temporary buffers of the whole step, compiled for fake CPU devices

XLA for CPU drops the barriers that keep recomputation until it is needed: rows of remat show
nothing there, and "kept" is what they can save on a GPU or TPU. Convolutions are in the form that
accelerators use; float32, with bfloat16 activations are half. What all this costs in time is for
train_step.py --remat and --accumulate to say.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing, train_step
from benchmarks.scaling import QUICK  # and its fake CPU devices, before JAX looks for any
from kd_jax.models.conv_choice import of_platform
from kd_jax.runtime.terminal import table
from kd_jax.training.memory import kept_bytes
from kd_jax.training.mesh import make_mesh

WHOLE = (256, 240, 160)  # 240x240x155 where four devices share the first side


class Case(NamedTuple):
  """One row: the sides of the patch (or of the whole scan), the batch, and the settings."""

  name: str
  patch: tuple[int, int, int]
  batch: int
  train: dict[str, Any]


def cases(patch: tuple[int, int, int], whole: tuple[int, int, int]) -> list[Case]:
  """The rows; each group begins with what the others of it are compared with."""
  return [
    Case("batch of two", patch, 2, {}),
    Case("in two parts", patch, 2, {"accumulate": 2}),
    Case("remat: norms", patch, 2, {"remat": "norms"}),
    Case("remat: stages", patch, 2, {"remat": "stages"}),
    Case("in two parts, stages", patch, 2, {"accumulate": 2, "remat": "stages"}),
    Case("4 spatial shards", patch, 2, {"spatial_shards": 4}),
    Case("whole scan", whole, 1, {}),
    Case("whole scan, 4 shards", whole, 1, {"spatial_shards": 4}),
    Case("whole scan, 4 shards, stages", whole, 1, {"spatial_shards": 4, "remat": "stages"}),
  ]


def measure(case: Case, filters: tuple[int, int, int, int]) -> dict[str, Any]:
  """Bytes on each device, by XLA's account of the compiled step."""
  settings = train_step.settings(filters, case.patch, case.batch, "float32", **case.train)
  devices = settings.train.spatial_shards
  lowered, _ = train_step.lower_step(settings, make_mesh(1, devices), of_platform("tpu"))
  memory = lowered.compile(compiler_options=QUICK).memory_analysis()
  kept = kept_bytes(settings, settings.train.remat, of_platform("gpu")) / devices
  return {
    "case": case.name,
    "patch": case.patch,
    "batch": case.batch,
    "devices": devices,
    "state": memory.alias_size_in_bytes,
    "batch_bytes": memory.argument_size_in_bytes - memory.alias_size_in_bytes,
    "kept": kept,
    "temporary": memory.temp_size_in_bytes,
  }


def main() -> None:
  parser = common.parser(__doc__, "memory", "an eighth of the filters, small sides")
  parser.add_argument("--only", nargs="+", type=int, help="rows, from 0")
  arguments = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)
  filters = (4, 4, 8, 8) if arguments.small else train_step.PAPER["filters"]
  chosen = cases((32,) * 3, (64, 56, 40)) if arguments.small else cases((128,) * 3, WHOLE)
  if arguments.only:
    chosen = [chosen[number] for number in arguments.only]
  rows = []
  for number, case in enumerate(chosen, start=1):
    began = time.monotonic()
    rows.append(measure(case, filters))
    seconds = time.monotonic() - began
    common.tell(f"{number}/{len(chosen)} {case.name}: {seconds:.0f} s")
  timing.report(arguments.json, {"filters": filters}, rows)
  print(f"filters {filters}, float32; GB on each device; {arguments.json}")
  head = ["step", "patch", "batch", "devices", "state", "kept", "of first", "XLA", "of first"]
  print(table(head, [_cells(row, rows) for row in rows]))


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
  first = next(other for other in rows if other["patch"] == row["patch"])
  return [
    row["case"],
    common.by(row["patch"]),
    str(row["batch"]),
    str(row["devices"]),
    f"{row['state'] / 1e9:.2f}",
    *(
      text
      for account in ("kept", "temporary")
      for text in (f"{row[account] / 1e9:.2f}", f"{row[account] / first[account]:.0%}")
    ),
  ]


if __name__ == "__main__":
  common.command(main)
