"""Where does the training step's time go, and does the host ever wait for it?

  python benchmarks/step_profile.py [--small] [--steps 5] [--trace DIR]

Enqueues steps as the training loop does between two lines of its log, and reads no result:
"host" is how long the host takes to enqueue one, "device" how long one takes until all are done.
Where host is far below device, nothing in between waits. Then the same steps under jax.profiler:
the busiest operations, with what part of the model they come from, as shares of all operations'
time. --trace keeps the trace, for TensorBoard's profile plugin or ui.perfetto.dev.
"""

import collections
import gzip
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing, train_step
from kd_jax.runtime.terminal import table
from kd_jax.training.mesh import make_mesh

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = .*op_name=\"(?P<origin>[^\"]*)\"")
_SHOWN = 12


def main() -> None:
  parser = common.parser(__doc__, "step_profile", common.SMALL_STEP)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--dtype", choices=["float32", "bfloat16"])
  parser.add_argument("--trace", type=Path, help="folder to keep the trace in")
  arguments = parser.parse_args()
  sizes = train_step.SMALL if arguments.small else train_step.PAPER
  dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
  settings = train_step.settings(sizes["filters"], (sizes["side"],) * 3, 1, dtype)
  mesh = make_mesh(1, 1)
  lowered, new_state = train_step.lower_step(settings, mesh)
  common.tell("compiling")
  compiled = train_step.compile_as_a_run(lowered, settings)
  state, batch, key = train_step.first_inputs(settings, mesh, new_state)

  def steps(count: int) -> tuple[float, float]:
    """Seconds of the host for one step, and until one is done."""
    nonlocal state
    began = time.perf_counter()
    for _ in range(count):
      state, metrics = compiled(state, batch, key)
    enqueued = time.perf_counter() - began
    jax.block_until_ready((state, metrics))
    return enqueued / count, (time.perf_counter() - began) / count

  steps(2)
  host, device = steps(arguments.steps)
  with tempfile.TemporaryDirectory() as scratch:
    folder = arguments.trace or Path(scratch)
    with jax.profiler.trace(folder, create_perfetto_trace=False):
      steps(arguments.steps)
    found = operations(folder, origins(compiled.as_text()))
  rows = [
    {"operation": name, "share": seconds / sum(found.values())}
    for name, seconds in found.most_common(_SHOWN)
  ]
  result = {"host_seconds": host, "device_seconds": device, "operations": rows}
  timing.report(arguments.json, {**sizes, "dtype": dtype, "steps": arguments.steps}, result)
  print(f"filters {sizes['filters']}, patch {sizes['side']}^3, {dtype}; {arguments.json}")
  print(f"host {1e3 * host:.1f} ms a step to enqueue, device {1e3 * device:.1f} ms a step\n")
  print(table(["share", "operation"], [[f"{r['share']:.1%}", r["operation"]] for r in rows]))


def origins(program: str) -> dict[str, str]:
  """Instruction of a compiled program -> kind of operation and the pass that it belongs to."""
  found = {}
  for line in program.splitlines():
    if match := _INSTRUCTION.search(line):
      origin = match["origin"]
      way = "backward" if "transpose(" in origin else "forward"
      found[match["name"]] = f"{way}: {origin.rsplit('/', 1)[-1]}"
  return found


def operations(folder: Path, origin: Mapping[str, str]) -> collections.Counter[str]:
  """Seconds of each kind of operation, of all threads together, in a trace of jax.profiler."""
  total: collections.Counter[str] = collections.Counter()
  for path in folder.rglob("*.trace.json.gz"):
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    for event in events:
      name = event.get("args", {}).get("hlo_op") or event.get("name", "")
      if event.get("ph") == "X" and name in origin:
        total[f"{origin[name]} ({re.sub(r'[.0-9]+$', '', name)})"] += event["dur"] / 1e6
  return total


if __name__ == "__main__":
  common.command(main)
