"""What does the training step hold and send on many devices? Compiled only: nothing is timed.

  python benchmarks/scaling.py                       # the paper's size on 1 to 8 devices
  python benchmarks/scaling.py --small --chip-tflops=989 --link-gb=450

XLA compiles the step for a mesh of fake CPU devices, `data` of them sharing the batch and `space`
the depth of each volume; memory and collectives are read from the program. From them an estimate on
paper, for `chips` = data x space:

  compute = batch x FLOPs a sample / (space x chip-tflops x share)
  traffic = bytes sent a chip / link-gb + collectives x latency-us
  efficiency = compute / (compute + traffic)

with `batch` samples on each row of the mesh and nothing overlapping: a lower bound of efficiency.
All-reduces over `data` are taken to more chips as rings, 2 (n - 1) / n of their bytes each. Numbers
are float32 throughout: with bfloat16 halos and most of the memory are half. About a
minute of processor time a mesh, whatever the size; a quarter of an hour in all on two free cores.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  ).strip()

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing, train_step
from benchmarks.flops import step_flops
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolutions
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.memory import program_bytes
from kd_jax.runtime.terminal import table
from kd_jax.settings.model import multiple
from kd_jax.training.mesh import make_mesh

MESHES = ("1x1", "2x1", "1x2", "4x1", "2x2", "1x4", "8x1", "4x2", "2x4", "1x8")
SMALL_MESHES = ("1x1", "2x1", "1x2", "2x2")
CHIPS = (8, 32, 64, 128, 256)
# LLVM alone is told to hurry: what XLA partitions and where it puts its buffers stays the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def main() -> None:
  arguments = _arguments()
  sizes = train_step.SMALL if arguments.small else train_step.PAPER
  meshes = arguments.mesh or (SMALL_MESHES if arguments.small else MESHES)
  convolutions = Convolutions("tpu", forms=Forms(arguments.conv))
  jax.config.update("jax_enable_compilation_cache", False)
  programs, flops = [], 0
  for number, text in enumerate(meshes, start=1):
    data, space = _mesh_shape(text, sizes["side"], multiple(sizes["filters"]))
    began, patch = time.monotonic(), (sizes["side"],) * 3
    settings = train_step.settings(sizes["filters"], patch, data * arguments.batch, "float32")
    flops = step_flops(settings.model, patch)
    lowered, _ = train_step.lower_step(settings, make_mesh(data, space), convolutions)
    compiled = lowered.compile(compiler_options=QUICK)
    found = collectives(compiled.as_text(), space)
    programs.append(Sharded(data, space, program_bytes(compiled) or 0, found))
    seconds = time.monotonic() - began
    common.tell(f"{number}/{len(meshes)} {text}: {seconds:.0f} s")

  rows = [_row(program, arguments.batch) for program in programs]
  estimates = [
    estimate(base, chips, arguments.batch, flops, arguments)
    for base in widest(programs)
    for chips in arguments.chips
    if chips % base.space == 0
  ]
  timing.report(arguments.json, vars(arguments) | sizes, {"meshes": rows, "paper": estimates})
  print(
    f"filters {sizes['filters']}, patch {sizes['side']}^3, float32, {arguments.conv} convolutions; "
    f"{arguments.json}\nestimate on paper: {arguments.chip_tflops:g} TFLOP/s a chip x "
    f"{arguments.share:g}, {arguments.link_gb:g} GB/s a chip, {arguments.latency_us:g} us a "
    "collective, nothing overlapping\n"
  )
  print(_table(estimates), end="\n\n")
  print("MB on each device (number of collectives), by data x space")
  print(_table(rows))


def _arguments() -> argparse.Namespace:
  parser = common.parser(__doc__, "scaling", common.SMALL_STEP)
  parser.add_argument("--mesh", nargs="+", help=f"data x space, such as 4x2; default {MESHES}")
  parser.add_argument("--batch", type=int, default=1, help="samples on each row of the mesh")
  parser.add_argument("--conv", choices=["native", "depth_taps"], default="native")
  parser.add_argument("--chips", type=int, nargs="+", default=CHIPS)
  # A TPU v5e: 197 TFLOP/s in bfloat16, 45 GB/s one way on a link; share and latency are guesses.
  parser.add_argument("--chip-tflops", type=float, default=197.0, help="peak of one chip")
  parser.add_argument("--share", type=float, default=0.3, help="of the peak that the step reaches")
  parser.add_argument("--link-gb", type=float, default=45.0, help="GB/s that one chip sends")
  parser.add_argument("--latency-us", type=float, default=20.0, help="us that a collective costs")
  return parser.parse_args()


def _mesh_shape(text: str, side: int, least: int) -> tuple[int, int]:
  if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
    raise ConfigError(f"--mesh {text}: expected data x space, such as 4x2")
  data, space = int(match[1]), int(match[2])
  if not 1 <= data * space <= jax.device_count():
    raise ConfigError(f"--mesh {text}: there are {jax.device_count()} fake devices")
  if side % (least * space):
    raise ConfigError(f"--mesh {text}: {side} is no multiple of {least} x {space}")
  return data, space


# --- Collectives ------------------------------------------------------------------------------


class Collective(NamedTuple):
  """One operation by which devices talk.

  Attributes:
    kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
    bytes: of its result on one device.
    group: devices that take part together; 2 for a collective-permute.
    over_data: whether they hold different samples.
  """

  kind: str
  bytes: int
  group: int
  over_data: bool

  def sent(self, growth: float = 1.0) -> float:
    """Bytes that a device sends, in a ring; growth: of the mesh's data axis."""
    growth = growth if self.over_data else 1.0
    n = self.group * growth
    match self.kind:
      case "all-reduce":
        return 2 * (n - 1) / n * self.bytes
      case "all-gather":
        return (n - 1) / n * self.bytes * growth
      case "reduce-scatter":
        return (n - 1) * self.bytes / growth
      case "all-to-all":
        return (n - 1) / n * self.bytes
    return self.bytes


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
# The result's shape, then the operation; of an asynchronous pair the end, which has the result.
_OPERATION = re.compile(rf"= (?P<shape>\(?[a-z].*?) (?P<kind>{_KINDS})(?P<done>-done)?\(")
_STARTED = re.compile(rf"%(?P<name>\S+) = .*? (?:{_KINDS})-start\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def collectives(text: str, space: int) -> list[Collective]:
  """The collectives of a compiled program, each counted once (the step has no loops).

  Args:
    text: as compiled.as_text() has it.
    space: devices that share a volume: device number = data index * space + space index.

  Raises:
    ValueError: device groups in a notation that is not known here.
  """
  starts = {match["name"]: line for line in text.splitlines() if (match := _STARTED.search(line))}
  found = []
  for line in text.splitlines():
    if not (match := _OPERATION.search(line)):
      continue
    if match["done"]:  # the groups stand with the start
      operand = re.search(r"-done\(.*?%([^\s,)]+)", line)
      line = starts[operand[1]]
    group = _pair(line) if match["kind"] == "collective-permute" else _group(line)
    over_data = len({device // space for device in group}) > 1
    found.append(Collective(match["kind"], _bytes(match["shape"]), len(group), over_data))
  return [one for one in found if one.group > 1]


def _bytes(shapes: str) -> int:
  """All of a shape's arrays, such as `(f32[3,8]{1,0}, u8[])`."""
  total = 0
  for kind, dims in _SHAPE.findall(shapes):
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
  return total


def _pair(line: str) -> list[int]:
  match = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
  return [int(match[1]), int(match[2])] if match else []


def _group(line: str) -> list[int]:
  """The first group of devices, from any of XLA's three notations."""
  if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
    return [int(device) for device in match[1].split(",")]
  if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    groups, dims, order = (
      [int(x) for x in (part or "").split(",") if x] for part in match.groups()
    )
    devices = np.arange(math.prod(dims)).reshape(dims)
    return devices.transpose(order or range(len(dims))).reshape(groups)[0].tolist()
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
    axes = re.findall(r"'(\w+)'=(\d+)", match[1])
    chosen = re.findall(r"'(\w+)'(?=,|$)", match[2])
    if len(chosen) == len(match[2].split(",")):
      devices = np.arange(math.prod(int(size) for _, size in axes))
      devices = devices.reshape([int(size) for _, size in axes])
      return devices[tuple(slice(None) if a in chosen else 0 for a, _ in axes)].ravel().tolist()
  raise ValueError(f"device groups in an unknown notation: {line.strip()[:300]}")


# --- Tables -----------------------------------------------------------------------------------


class Sharded(NamedTuple):
  """A step compiled for a mesh; bytes on one device."""

  data: int
  space: int
  bytes: int
  collectives: Sequence[Collective]


def widest(programs: Sequence[Sharded]) -> list[Sharded]:
  """For each way of sharing volumes, the mesh with most rows: what the estimate starts from."""
  best: dict[int, Sharded] = {}
  for program in programs:
    if program.space not in best or program.data > best[program.space].data:
      best[program.space] = program
  return [program for program in best.values() if program.data > 1]


def estimate(base: Sharded, chips: int, batch: int, flops: float, assumed: Any) -> dict[str, Any]:
  """The step on more chips, on paper: see the module.

  Args:
    base: a compiled step on the same `space`.
    chips: in all.
    batch: samples on each row of the mesh.
    flops: a sample.
    assumed: chip_tflops, share, link_gb and latency_us.
  """
  data = chips // base.space
  compute = batch * flops / (base.space * assumed.chip_tflops * 1e12 * assumed.share)
  sent = sum(one.sent(data / base.data) for one in base.collectives)
  traffic = sent / (assumed.link_gb * 1e9) + len(base.collectives) * assumed.latency_us * 1e-6
  return {
    "chips": chips,
    "mesh": f"{data}x{base.space}",
    "batch": data * batch,
    "compute/ms": f"{1e3 * compute:.1f}",
    "traffic/ms": f"{1e3 * traffic:.1f}",
    "efficiency": f"{compute / (compute + traffic):.0%}",
    "samples/s": f"{data * batch / (compute + traffic):.0f}",
  }


def _row(program: Sharded, batch: int) -> dict[str, Any]:
  def cell(kinds: Sequence[str]) -> str:
    own = [one for one in program.collectives if one.kind in kinds]
    return f"{sum(one.bytes for one in own) / 1e6:.2f} ({len(own)})" if own else "-"

  return {
    "mesh": f"{program.data}x{program.space}",
    "devices": program.data * program.space,
    "batch": program.data * batch,
    "memory": f"{program.bytes / 1e6:.1f}",
    "all-reduce": cell(["all-reduce"]),
    "permute": cell(["collective-permute"]),
    "others": cell(["all-gather", "reduce-scatter", "all-to-all"]),
    "sent": f"{sum(one.sent() for one in program.collectives) / 1e6:.2f}",
  }


def _table(rows: Sequence[dict[str, Any]]) -> str:
  return table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "(no such mesh)"


if __name__ == "__main__":
  common.command(main)
