"""What do training step and prediction need on a device that is not at hand?

  python benchmarks/compiled_for.py --device h200                     # the paper's size
  python benchmarks/compiled_for.py --device v5e --variants student_only
  python benchmarks/compiled_for.py --device cpu --small

Compiles, without running anything, the training step and the prediction of a whole brain in one
window by one network, with XLA for that device: nothing but its plugin is needed. Told are the
memory, and of all kernels, by kind, by resolution and of the largest ones: how many they are, the
bytes that they read and write, and the multiply-adds of their convolutions and products.

The times are estimates on paper and not measured. "at least" is the sum, over the kernels, of the
longer of bytes / the memory's published bandwidth and FLOPs / the published peak: real kernels take
longer (on an H200 the whole step of student_only took about 4 times as long). In "prediction" a
loop over windows counts once. XLA for TPU writes products of matrices as convolutions, keeps small
volumes in fast memory, and tells how many cycles it expects of each kernel: that knows of channels
which the device fills up to 128, and is the number to compare programs by. It compiles for minutes.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, forms, timing, train_step
from benchmarks.flops import forward_flops, step_flops
from benchmarks.kernels import KINDS, Kernel, estimated_cycles, kernels
from benchmarks.targets import TARGETS, Target, mesh_of
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework
from kd_jax.models.remat import REMATS
from kd_jax.prediction import sliding_window
from kd_jax.runtime.memory import program_bytes
from kd_jax.runtime.terminal import table
from kd_jax.settings.inference import InferenceSettings
from kd_jax.settings.run import Settings

PAPER = {"filters": train_step.PAPER["filters"], "side": 128, "spacing": 1.0}
SMALL = {"filters": (4, 4, 8, 8), "side": 16, "spacing": 4.0}
PROGRAMS = ("step", "prediction")
_SHOWN = 20
_HEAD = ["kernels", "GB", "TFLOP", "FLOP/byte", "ms at least"]


def main() -> None:
  arguments = _arguments()
  jax.config.update("jax_enable_compilation_cache", False)
  target, sizes = TARGETS[arguments.device], SMALL if arguments.small else PAPER
  mesh, rows = mesh_of(target), []
  form, how = arguments.form, forms.convolutions(arguments.form, target.platform)
  batches = arguments.batch or [1]
  for program, variants, batch in itertools.product(
    arguments.programs, arguments.variants, batches
  ):
    if program == "prediction" and (variants, batch) != (arguments.variants[0], batches[0]):
      continue  # one network predicts, whatever it was trained with
    patch = (sizes["side"],) * 3
    saving = {"remat": arguments.remat} if program == "step" else {}
    run = train_step.settings(sizes["filters"], patch, batch, arguments.dtype, variants, **saving)
    common.tell(f"{program} {variants}, batch {batch}: compiling for {target.name}")
    row = measure(program, run, mesh, target, how, sizes["spacing"])
    named = {"variants": variants, "batch": batch} if program == "step" else {}
    rows.append({"program": program, **named, **row})
  known = vars(arguments) | sizes | {"form": form, "target": target.name}
  timing.report(arguments.json, known, rows)
  print(f"compiled for {target.name}; filters {sizes['filters']}, {arguments.dtype}, {form}")
  print(f"nothing was run: times are estimates from published peaks; {arguments.json}")
  for row in rows:
    print(_told(row))


def _arguments() -> argparse.Namespace:
  parser = common.parser(__doc__, "compiled_for", "tiny networks, 16^3, a brain at 4 mm")
  parser.add_argument("--device", choices=TARGETS, required=True)
  parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
  parser.add_argument("--variants", nargs="+", default=["mtcm_kd"], help="as of train_step.py")
  parser.add_argument("--batch", type=int, nargs="+", help="default: 1")
  parser.add_argument("--remat", default="none", choices=REMATS, help="train.remat")
  parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
  parser.add_argument("--form", choices=forms.NAMES, default="auto", help="of convolutions")
  return parser.parse_args()


# --- Programs ---------------------------------------------------------------------------------


def measure(
  program: str,
  run: Settings,
  mesh: Mesh,
  target: Target,
  how: Convolutions,
  spacing: float,
) -> dict[str, Any]:
  """One program's memory, kernels and estimates.

  Args:
    how: convolutions are computed.
    spacing: of the brain that is predicted, in mm.
  """
  began = time.perf_counter()
  if program == "step":
    lowered, _ = train_step.lower_step(run, mesh, how)
    window = run.data.patch
    counted = run.data.batch * step_flops(run.model, window)
  else:
    lowered, window = lower_prediction(run, mesh, how, spacing)
    alone = train_step.settings(run.model.filters, window, 1, run.model.dtype, "student_only")
    counted = forward_flops(alone.model, window)
  compiled = lowered.compile(compiler_options=dict(target.options))
  seconds = time.perf_counter() - began
  text = compiled.as_text()
  found = kernels(text)
  sides = [min(window) >> halvings for halvings in range(4)]

  account = compiled.cost_analysis() or {}
  return {
    "compile_seconds": seconds,
    "memory": _memory(compiled),
    "counted_flops": counted,
    "xla_flops": account.get("flops"),
    "xla_bytes": account.get("bytes accessed"),
    "xla_cycles": estimated_cycles(text),
    "dtype": run.model.dtype,
    "all": _sums(found, target, run.model.dtype),
    "by_kind": _by(found, lambda one: one.kind, KINDS, target, run.model.dtype),
    "by_side": _by(
      found, lambda one: level(one.side, sides), (*sides, "other"), target, run.model.dtype
    ),
    "largest": [
      one._asdict() | {"seconds": _seconds([one], target, run.model.dtype)}
      for one in sorted(found, key=lambda one: -one.bytes * one.times)[:_SHOWN]
    ],
  }


def lower_prediction(
  run: Settings, mesh: Mesh, how: Convolutions, spacing: float
) -> tuple[jax.stages.Lowered, tuple[int, int, int]]:
  """A usual brain in one window through the student's network, and that window."""
  framework = Framework(run.model, convolutions=how)
  shapes = sliding_window.shapes(
    run.data.patch, spacing, run.data.grid, multiple=run.model.multiple
  )
  settings = InferenceSettings(window="whole")
  plan = sliding_window.plan(shapes.buckets[0], shapes, settings)
  params = jax.eval_shape(framework.init, jax.random.key(0))["student"]
  everywhere = NamedSharding(mesh, PartitionSpec())

  def there(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

  inputs = (
    {name: value for name, value in params.items() if name != "side_heads"},
    jax.ShapeDtypeStruct((*plan.padded, len(run.model.student)), jnp.float32),
    jax.ShapeDtypeStruct((1, 3), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.int32),
  )
  lowered = sliding_window.compiled_with(()).lower(
    *jax.tree.map(there, inputs), network=framework.network, plan=plan, mirror=False
  )
  return lowered, plan.window


def _memory(compiled: jax.stages.Compiled) -> dict[str, int | None]:
  """Bytes; peak: arguments, results and temporary buffers, what is donated once."""
  memory = compiled.memory_analysis()
  if memory is None:
    return {}
  return {
    "arguments": memory.argument_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "peak": program_bytes(compiled),
  }


# --- Sums -------------------------------------------------------------------------------------


def level(side: int, sides: Sequence[int]) -> int | str:
  """The nearest of the sides that volumes have at the networks' levels, or "other"."""
  near = [one for one in sides if one / 1.4 < side < one * 1.4]
  return near[0] if near else "other"


def _by(
  found: Sequence[Kernel],
  key: Callable[[Kernel], Any],
  keys: Iterable[Any],
  target: Target,
  dtype: str,
) -> dict[str, dict[str, Any]]:
  """Sums of the kernels of each key."""
  groups = {name: [one for one in found if key(one) == name] for name in keys}
  return {str(name): _sums(group, target, dtype) for name, group in groups.items() if group}


def _sums(found: Sequence[Kernel], target: Target, dtype: str) -> dict[str, Any]:
  return {
    "kernels": sum(one.times for one in found),
    "bytes": sum(one.bytes * one.times for one in found),
    "flops": sum(one.flops * one.times for one in found),
    "seconds_at_least": _seconds(found, target, dtype),
  }


def _seconds(found: Sequence[Kernel], target: Target, dtype: str) -> float | None:
  """On paper: each kernel takes as long as its bytes or its FLOPs need at the published peaks."""
  if not target.bytes_per_second:
    return None
  bandwidth, peak = target.bytes_per_second, target.flops[dtype]
  return sum(max(one.bytes / bandwidth, one.flops / peak) * one.times for one in found)


# --- Tables -----------------------------------------------------------------------------------


def _told(row: Mapping[str, Any]) -> str:
  """One program's tables."""
  what = " ".join(str(row[name]) for name in ("program", "variants") if name in row)
  memory = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in row["memory"].items())
  xla = f", {row['xla_flops'] / 1e12:.4g} by XLA" if row["xla_flops"] else ""
  lines = [
    f"\n{what}, batch {row.get('batch', 1)}: GB: {memory}",
    f"TFLOP: {row['counted_flops'] / 1e12:.4g} by the networks' shapes{xla}",
  ]
  if cycles := row["xla_cycles"]:
    lines.append(f"million cycles: {cycles / 1e6:.1f}, as XLA estimates its kernels")
  for name, head in (("by_kind", "kind"), ("by_side", "voxels a side")):
    groups = {**row[name], "all": row["all"]}
    lines.append("\n" + table([head, *_HEAD], [[key, *_cells(one)] for key, one in groups.items()]))
  largest = [
    [
      f"{one['bytes'] * one['times'] / 1e9:.3f}",
      f"{one['flops'] * one['times'] / 1e12:.3f}",
      common.cell(one["seconds"], ".3f", 1e3),
      one["kind"],
      str(one["side"]),
      "backward" if one["backward"] else "forward",
      one["part"],
    ]
    for one in row["largest"]
  ]
  head = ["GB", "TFLOP", "ms at least", "kind", "side", "pass", "part of the code"]
  return "\n".join([*lines, "\n" + table(head, largest)])


def _cells(sums: Mapping[str, Any]) -> list[str]:
  return [
    str(sums["kernels"]),
    f"{sums['bytes'] / 1e9:.3f}",
    f"{sums['flops'] / 1e12:.4f}",
    common.cell(sums["flops"] / sums["bytes"] if sums["bytes"] else None, ".1f"),
    common.cell(sums["seconds_at_least"], ".2f", 1e3),
  ]


if __name__ == "__main__":
  common.command(main)
