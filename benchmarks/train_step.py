"""How fast is the training step, how much of the machine does it use, and what would PyTorch need?

  python benchmarks/train_step.py                        # four networks at the paper's size
  python benchmarks/train_step.py --small --against=torch
  python benchmarks/train_step.py --small --variants default student_only kd_net

Times the whole compiled step of `mtcm_kd` (--variants: of others): four networks forward and
backward, losses, confidence, clipping, AdamW, the student's average; no augmentation, no reading of
data.
Programs that are compared take turns in one process. FLOPs are counted from the kernels' shapes.
The ceiling is a large square matrix product of the same dtype, taking its turns among the steps:
the highest of its rates, where the step has its median. On a machine that others use, trust no
time on the clock; the processor's time (all cores of this process) is what they disturb least.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch's idle threads would spin on cores that the next program or a neighbour needs (with two
# busy cores that made PyTorch itself four times slower). It reads this when it is imported, and
# tensorboardX imports it where it is installed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing
from benchmarks.flops import step_flops
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework
from kd_jax.models.remat import REMATS
from kd_jax.runtime import compiler_options
from kd_jax.runtime.memory import free_memory, memory, program_bytes
from kd_jax.runtime.terminal import table
from kd_jax.settings import presets
from kd_jax.settings.run import Settings
from kd_jax.training import step as step_lib
from kd_jax.training.mesh import make_mesh
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import TrainState, init_state

PAPER = {"filters": (32, 64, 128, 256), "side": 128, "batches": (1, 2), "rounds": 4, "block": 5}
SMALL = {"filters": (8, 16, 32, 64), "side": 32, "batches": (1,), "rounds": 3, "block": 2}
_HEAD = [
  *("recipe", "program", "dtype", "batch", "compile/s"),
  *("ms/step", "min", "max", "cpu-ms", "samples/s"),
  *("TFLOP/s", "ceiling", "share", "XLA/counted", "program/GB", "peak/GB"),
  *("time/kd_jax", "cpu/kd_jax"),
]


def main() -> None:
  arguments = _arguments()
  jax.config.update("jax_enable_compilation_cache", False)  # or compile times mean nothing
  if arguments.against:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch room
  sizes = SMALL if arguments.small else PAPER
  on_cpu = jax.default_backend() == "cpu"
  dtypes = arguments.dtype or (["float32"] if on_cpu else ["bfloat16", "float32"])
  rows = []
  saving = {"remat": arguments.remat, "accumulate": arguments.accumulate}
  counted = {}
  for variants, dtype, batch in itertools.product(
    arguments.variants, dtypes, arguments.batch or sizes["batches"]
  ):
    patch = (sizes["side"],) * 3
    run = settings(sizes["filters"], patch, batch, dtype, variants, **saving)
    counted[variants] = step_flops(run.model, patch)
    common.tell(f"{variants}, {dtype}, batch {batch}: compiling")
    block = arguments.steps or sizes["block"]
    measured = measure(run, sizes["rounds"], block, arguments.against)
    rows += [{"variants": variants, **row} for row in measured]
  known = {**sizes, **saving, "flops_per_sample": counted}
  timing.report(arguments.json, known, rows)
  print(
    f"filters {sizes['filters']}, patch {sizes['side']}^3, remat {arguments.remat}, in "
    f"{arguments.accumulate} part{'s' * (arguments.accumulate > 1)}; {arguments.json}"
  )
  samples = ", ".join(f"{name} {flops / 1e12:.4g}" for name, flops in counted.items())
  print(f"TFLOP a sample (forward + 2 x backward, by shapes): {samples}")
  print(table(_HEAD, [_cells(row) for row in rows]))


def _arguments() -> argparse.Namespace:
  parser = common.parser(__doc__, "train_step", common.SMALL_STEP)
  parser.add_argument("--against", choices=["torch"], help="time a PyTorch mirror beside it")
  parser.add_argument("--batch", type=int, nargs="+", help="default: 1 and 2, small: 1")
  parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"])
  parser.add_argument("--remat", default="none", choices=REMATS, help="train.remat")
  parser.add_argument("--accumulate", type=int, default=1, help="train.accumulate")
  parser.add_argument("--steps", type=int, help="counted steps a turn")
  parser.add_argument(
    "--variants",
    nargs="+",
    default=["mtcm_kd"],
    help="of kd_jax/settings/presets.py, each with commas; `default` is the recipe without any",
  )
  arguments = parser.parse_args()
  if arguments.against and arguments.variants != ["mtcm_kd"]:
    parser.error("the PyTorch mirror has mtcm_kd alone: --against=torch goes with no --variants")
  return arguments


def settings(
  filters: Sequence[int],
  patch: Sequence[int],
  batch: int,
  dtype: str,
  variants: str = "mtcm_kd",
  **train: Any,
) -> Settings:
  """A recipe at some size: the published networks and terms, or `default`, or other variants.

  Args:
    train: settings of that name, such as remat.

  Raises:
    ConfigError: unknown variants, or a value that is not allowed.
  """
  variants = "" if variants == "default" else variants
  overrides = {
    "model.filters": tuple(filters),
    "model.dtype": dtype,
    "data.patch": tuple(patch),
    "data.batch": batch,
    "train.remat": "none",  # unless asked for below: `auto` depends on the machine
    **{f"train.{name}": value for name, value in train.items()},
  }
  return presets.settings(f"brats21:{variants}", overrides)


# --- Programs ---------------------------------------------------------------------------------


class Program(NamedTuple):
  """A step that waits for its end, and what is known of it before it runs.

  Attributes:
    run: one step.
    compile_seconds: tracing and compiling, without any cache.
    bytes: of device memory, by XLA's own account.
    flops: a step, by XLA's own count.
  """

  run: Callable[[], Any]
  compile_seconds: float
  bytes: int | None
  flops: float | None


def lower_step(
  settings: Settings, mesh: Mesh, convolutions: Convolutions | None = None
) -> tuple[jax.stages.Lowered, Callable[[], TrainState]]:
  """The step of a run on a mesh, to be compiled, and what makes its first state.

  Args:
    settings: of the run.
    mesh: its devices.
    convolutions: how they are computed; None for the first device's way.
  """
  framework = Framework(settings.model, settings.train.remat, convolutions)
  optimizers = {name: optimizer(own, 10**5) for name, own in settings.optim.groups.items()}
  step = step_lib.make_train_step(
    framework,
    optimizers,
    settings.loss,
    settings.confidence,
    steps_per_epoch=1,  # so that the second step distils
    ema_decay=settings.optim.ema_decay,
    accumulate=settings.train.accumulate,
  )

  def new_state() -> TrainState:
    key = jax.random.key(settings.seed)
    return init_state(framework, optimizers, settings.confidence, key, ema=True)

  sides = (settings.data.batch, *settings.data.patch)
  batch = {
    "image": jax.ShapeDtypeStruct((sides[0], 4, *sides[1:]), jnp.float16),
    "label": jax.ShapeDtypeStruct(sides, jnp.uint8),
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  return step_lib.compile_step(step, mesh).lower(jax.eval_shape(new_state), batch, key), new_state


def compile_as_a_run(lowered: jax.stages.Lowered, settings: Settings) -> jax.stages.Compiled:
  """A step of `lower_step`, with the options that XLA is given by default."""
  options = compiler_options.choose(compiler_options.AUTO, settings.model.dtype).options
  return lowered.compile(compiler_options=dict(options))


def random_batch(settings: Settings) -> dict[str, np.ndarray]:
  """Noise and random classes: a step's time does not depend on the numbers."""
  rng, sides = np.random.default_rng(0), (settings.data.batch, *settings.data.patch)
  image = rng.standard_normal((sides[0], 4, *sides[1:]), np.float32).astype(np.float16)
  return {"image": image, "label": rng.integers(0, 4, sides, np.uint8)}


def first_inputs(
  settings: Settings, mesh: Mesh, new_state: Callable[[], TrainState]
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
  """State, batch and key of the first step, on the devices."""
  batch = jax.device_put(random_batch(settings), step_lib.batch_sharding(mesh))
  replicated = NamedSharding(mesh, PartitionSpec())
  state, key = jax.device_put((new_state(), jax.random.key(0)), replicated)
  return state, batch, key


def jax_program(settings: Settings) -> Program:
  """Our step on one device; state and batch are put there by its first call."""
  mesh = make_mesh(1, 1)
  began = time.perf_counter()
  lowered, new_state = lower_step(settings, mesh)
  compiled = compile_as_a_run(lowered, settings)
  seconds = time.perf_counter() - began
  held: dict[str, Any] = {}

  def run() -> None:
    if not held:
      held["state"], *held["others"] = first_inputs(settings, mesh, new_state)
    held["state"], metrics = compiled(held["state"], *held["others"])
    jax.block_until_ready((held["state"], metrics))

  flops = (compiled.cost_analysis() or {}).get("flops")
  return Program(run, seconds, program_bytes(compiled), flops)


def matmul(dtype: str, side: int, chain: int) -> tuple[Callable[[], Any], float]:
  """A chain of square matrix products, and its FLOPs: what this device can do at most."""
  x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side)) / side**0.5, dtype)

  @jax.jit
  def product(y: jax.Array) -> jax.Array:
    for _ in range(chain):
      y = y @ x
    return y

  return lambda: product(x).block_until_ready(), 2.0 * side**3 * chain


# --- Measuring --------------------------------------------------------------------------------


def measure(
  settings: Settings, rounds: int, block: int, against: str | None
) -> list[dict[str, Any]]:
  """The rows of one dtype and batch: ours, and those it is compared with."""
  dtype, batch = settings.model.dtype, settings.data.batch
  counted = step_flops(settings.model, settings.data.patch) * batch
  ours = jax_program(settings)
  row = {
    "program": "kd_jax",
    "dtype": dtype,
    "batch": batch,
    "compile_seconds": ours.compile_seconds,
    "program_bytes": ours.bytes,
    "xla_over_counted": ours.flops / counted if ours.flops and ours.flops > 0 else None,
  }
  free = free_memory()
  if free and ours.bytes and ours.bytes > free:
    return [row | {"note": f"does not fit into the {free / 1e9:.1f} GB that are free"}]
  side, chain = (2048, 1) if jax.default_backend() == "cpu" else (8192, 8)
  product, product_flops = matmul(dtype, side, chain)
  programs = {"kd_jax": ours.run, **(_torch_programs(settings) if against else {})}
  peak_before = memory().get("memory/device_gb", 0.0)
  spreads = timing.alternate({**programs, "matmul": product}, rounds, block)
  peak = memory().get("memory/device_gb", 0.0)
  ceiling = product_flops / spreads.pop("matmul").least
  rows = []
  for name, spread in spreads.items():
    rate = counted / spread.median
    rows.append(
      {
        **(row if name == "kd_jax" else {"program": name, "dtype": dtype, "batch": batch}),
        "seconds": spread._asdict(),
        "samples_per_second": batch / spread.median,
        "flops_per_second": rate,
        "ceiling_flops_per_second": ceiling,
        "share_of_ceiling": rate / ceiling,
        "time_over_kd_jax": spread.median / spreads["kd_jax"].median,
        "cpu_over_kd_jax": spread.processor / spreads["kd_jax"].processor,
        # A peak is of the process: it is this row's only where it has risen.
        "peak_gb": peak if name == "kd_jax" and peak > peak_before else None,
      }
    )
  return rows


def _torch_programs(settings: Settings) -> Mapping[str, Callable[[], None]]:
  """The mirror as written, in PyTorch's faster layout and, where there is CUDA, compiled too."""
  import torch

  from benchmarks import torch_mirror

  device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
  dtype, batch = getattr(torch, settings.model.dtype), random_batch(settings)
  return {
    name: torch_mirror.make_step(settings, batch, device, dtype=dtype, **kind)
    for name, kind in torch_mirror.kinds(device).items()
  }


def _cells(row: Mapping[str, Any]) -> list[str]:
  """One line of the table."""
  seconds = row.get("seconds", {})
  return [
    row["variants"],
    row["program"] + (f" ({row['note']})" if "note" in row else ""),
    row["dtype"],
    str(row["batch"]),
    common.cell(row.get("compile_seconds"), ".1f"),
    *(
      common.cell(seconds.get(name), ".1f", 1e3)
      for name in ("median", "least", "most", "processor")
    ),
    common.cell(row.get("samples_per_second"), ".2f"),
    common.cell(row.get("flops_per_second"), ".3f", 1e-12),
    common.cell(row.get("ceiling_flops_per_second"), ".3f", 1e-12),
    common.cell(row.get("share_of_ceiling"), ".0%"),
    common.cell(row.get("xla_over_counted"), ".2f"),
    common.cell(row.get("program_bytes"), ".2f", 1e-9),
    common.cell(row.get("peak_gb"), ".2f"),
    common.cell(row.get("time_over_kd_jax"), ".2f"),
    common.cell(row.get("cpu_over_kd_jax"), ".2f"),
  ]


if __name__ == "__main__":
  common.command(main)
