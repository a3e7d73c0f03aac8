"""How long does a scan take from its .nii.gz to its mask's .nii.gz, and where does the time go?

  python benchmarks/inference.py                     # 240x240x155 at 1 mm, the paper's networks
  python benchmarks/inference.py --scan=T1CE.nii.gz --networks 1 --modes whole --against=torch
  python benchmarks/inference.py --small             # a quarter of the filters, at 2 mm

Times kd_jax's own predict on several scans, so that the next one is read and the last one written
while the network works: the first case in a call of its own (it compiles), then `--cases` others in
one call; the times at which their masks appear give the seconds a case. The pieces are timed one
after another too: "hidden" is how much of their sum the overlap saves. Rows run from the cheapest
to the dearest (seconds to hours on a CPU; --rows ends early); each is in the JSON once it is done.

Scans are ellipsoids of a brain's extent with noise, of slightly different sizes, unless --scan
gives a real one, which is copied. Parameters are random, and the last layer calls everything
background: the network's time does not depend on numbers, but that of compressing a mask does, and
noise takes longer than a tumour. Whatever XLA compiles after the first case is an error.

--against=torch times the forward pass on one window beside the same network in PyTorch.
"""

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

# PyTorch's idle threads would spin on cores that JAX needs. It reads this when it is imported, and
# tensorboardX imports it where it is installed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common, timing
from benchmarks.inference_forward import forward_table, measure_forward
from benchmarks.inference_inputs import (
  FIRST,
  MODALITY,
  OTHERS,
  OVERLAP,
  scans_in,
  students,
  write_scans,
)
from kd_jax.data.cases import Case
from kd_jax.data.grid import Triple
from kd_jax.data.own_masks import Journal
from kd_jax.prediction import predict as predict_lib
from kd_jax.prediction import sliding_window
from kd_jax.prediction.assessment import assess
from kd_jax.prediction.finished import Known
from kd_jax.prediction.output import Output
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.memory import memory
from kd_jax.runtime.terminal import table

FULL = {"filters": (32, 64, 128, 256), "spacing": 1.0, "patch": 128, "cases": 4, "rows": None}
SMALL = {"filters": (8, 16, 32, 64), "spacing": 2.0, "patch": 64, "cases": 3, "rows": 3}
FLIPS = 8
_HEAD = [
  *("networks", "windows", "first/s", "compile/s", "s/case", "min", "max"),
  *("read/s", "network/s", "write/s", "sum/s", "hidden", "recompiled", "host/GB", "device/GB"),
]


class Setup(NamedTuple):
  """How scans are predicted in one row; mode: the inference setting `window`."""

  networks: int
  mode: str
  mirror: bool

  def __str__(self) -> str:
    return f"{self.networks} {self.mode}{', mirrored' if self.mirror else ''}"


def main() -> None:
  arguments = _arguments()
  jax.config.update("jax_enable_compilation_cache", False)  # or first cases mean nothing
  if arguments.against:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch room
  run(arguments)


def run(arguments: argparse.Namespace) -> None:
  """Measures, writes the JSON and prints. SystemExit if something was compiled a second time."""
  sizes = dict(SMALL if arguments.small else FULL)
  sizes |= {name: given for name in ("cases", "rows") if (given := getattr(arguments, name))}
  architecture = Architecture((MODALITY,), sizes["filters"], "channel")
  preparation = Preparation("brain", "zscore", sizes["spacing"], (sizes["patch"],) * 3)
  networks = students(max(arguments.networks), architecture, preparation)
  mirror = [choice == "yes" for choice in arguments.mirror]
  setups = set(map(Setup._make, itertools.product(arguments.networks, arguments.modes, mirror)))
  rows, forward = [], []

  def save() -> None:
    results = {"cases": rows, "forward": forward}
    timing.write_json(arguments.json, vars(arguments) | sizes, results)

  with tempfile.TemporaryDirectory(prefix="kd_jax-inference-") as folder:
    scans = Path(folder) / "scans"
    scan = write_scans(scans, sizes["cases"], arguments.scan)
    scan_mb = scan.images[MODALITY].stat().st_size / 1e6
    for setup in in_order_of_cost(setups, networks, scan)[: sizes["rows"]]:
      common.tell(f"{setup}: compiling")
      output = Output(Path(folder) / f"masks{len(rows)}", "brats2018")
      rows.append(measure(setup, networks, scans, output, arguments.repeat))
      common.tell(f"{setup}: {rows[-1]['seconds']['median']:.2f} s a case")
      save()
  if arguments.against:
    for window in sorted({row["window"] for row in rows}, key=math.prod):
      common.tell(f"forward passes of {window}")
      forward += measure_forward(architecture, window, arguments.rounds)
      save()
  print(timing.describe(timing.machine()))
  shape = common.by(rows[0]["shape"])
  print(
    f"{arguments.scan or 'generated scans'}, {scan_mb:.1f} MB, {shape} voxels at "
    f"{sizes['spacing']:g} mm; filters {sizes['filters']}; {sizes['cases']} cases after the first; "
    f"{arguments.json}\n"
  )
  if forward:
    print(forward_table(forward), end="\n\n")
  print(table(_HEAD, [_cells(row) for row in rows]), flush=True)
  if any(row["recompiled"] for row in rows):
    sys.exit("error: programs were compiled after the first case (column recompiled)")


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = common.parser(__doc__, "inference", "filters 8..64, 2 mm, the first 3 rows")
  parser.add_argument("--scan", type=Path, help=f"a {MODALITY} image (.nii.gz); default: generated")
  parser.add_argument("--networks", type=int, nargs="+", default=[1, 5])
  modes = ["whole", "sliding"]
  parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
  parser.add_argument("--mirror", nargs="+", choices=["no", "yes"], default=["no", "yes"])
  parser.add_argument("--rows", type=int, help="the cheapest so many")
  parser.add_argument("--cases", type=int, help="after the first, at least 2; default 4, small: 3")
  parser.add_argument("--repeat", type=int, default=2, help="how often the pieces are timed")
  parser.add_argument("--against", choices=["torch"], help="time PyTorch's forward pass too")
  parser.add_argument("--rounds", type=int, default=3, help="turns of each forward pass")
  arguments = parser.parse_args(argv)
  for name, least in (("rows", 1), ("cases", 2), ("repeat", 1), ("rounds", 1)):
    value = getattr(arguments, name)
    if value is not None and value < least:
      raise ConfigError(f"--{name}={value} must be at least {least}")
  if min(arguments.networks) < 1:
    raise ConfigError(f"--networks {arguments.networks}: 1 is the least")
  if arguments.scan and not arguments.scan.name.endswith(".nii.gz"):
    raise ConfigError(f"--scan={arguments.scan}: expected a .nii.gz file")
  return arguments


# --- Rows -------------------------------------------------------------------------------------


def in_order_of_cost(
  setups: Iterable[Setup], networks: Sequence[Student], scan: Case
) -> list[Setup]:
  """The cheapest first, by the voxels that networks see in all."""
  prepared = Predictor(networks[:1]).load(scan, _ignore)

  def cost(setup: Setup) -> int:
    window, count = windows(_ensemble(setup, networks), prepared)
    return setup.networks * count * math.prod(window) * (FLIPS if setup.mirror else 1)

  return sorted(setups, key=lambda setup: (cost(setup), setup))


def _ensemble(setup: Setup, networks: Sequence[Student]) -> Predictor:
  chosen = networks[: setup.networks]
  return Predictor(chosen, window=setup.mode, overlap=OVERLAP, mirror=setup.mirror)


def windows(predictor: Predictor, prepared: Prepared) -> tuple[Triple, int]:
  """The window that passes over a case, and at how many places."""
  window = predictor.window(prepared)
  starts = sliding_window.window_starts(
    prepared.images.shape[1:], window, predictor.settings.overlap
  )
  return window, len(starts)


def measure(
  setup: Setup, networks: Sequence[Student], scans: Path, output: Output, repeat: int
) -> dict[str, Any]:
  """One row: the first case, the others, the pieces.

  Args:
    networks: at least as many as the setup asks for.
    scans: the folder of write_scans.
    output: an empty folder.
    repeat: how often each piece is timed.
  """
  sliding_window.compiled_with.cache_clear()  # rows share programs, and each is to compile its own
  _forget_peak()
  device_before = memory().get("memory/device_gb", 0.0)
  predictor = _ensemble(setup, networks)
  with compilations() as compiled:
    first = _seconds_of_predict(predictor, scans / FIRST, output)
  with compilations() as recompiled:
    together = _seconds_of_predict(predictor, scans / OTHERS, output)
  used = memory()
  device = used.get("memory/device_gb", 0.0)
  seconds = between([output.mask(one.name).stat().st_mtime for one in scans_in(scans / OTHERS)])
  scan = scans_in(scans / FIRST)[0]
  alone = pieces(predictor, scan, output, repeat)
  prepared = predictor.load(scan, _ignore)
  window, count = windows(predictor, prepared)
  return {
    **setup._asdict(),
    "shape": prepared.images.shape[1:],
    "window": window,
    "windows": count,
    "first_seconds": first,
    "compile_seconds": sum(compiled),
    "seconds": seconds,
    "together_seconds": together,
    **{f"{name}_seconds": value for name, value in alone.items()},
    "alone_seconds": sum(alone.values()),
    "hidden": 1 - seconds["median"] / sum(alone.values()),
    "recompiled": len(recompiled),
    "host_gb": used["memory/process_gb"],
    # A device's peak is of the process: it is this row's only where it has risen.
    "device_gb": device if device > device_before else None,
  }


def _seconds_of_predict(predictor: Predictor, scans: Path, output: Output) -> float:
  silent = SimpleNamespace(line=_ignore, progress=lambda label: _ignore)
  began = time.perf_counter()
  predict_lib.predict(predictor, scans, output, silent)
  return time.perf_counter() - began


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
  """The seconds of each program that XLA compiles meanwhile."""
  found: list[float] = []

  def listen(event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      found.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def between(stamps: Iterable[float]) -> dict[str, float]:
  """Seconds from each case's end to the next one's; of two cases or more."""
  seconds = [late - early for early, late in itertools.pairwise(sorted(stamps))]
  median = statistics.median(seconds)
  return {"median": median, "least": min(seconds), "most": max(seconds), "count": len(seconds)}


def pieces(predictor: Predictor, scan: Case, output: Output, repeat: int) -> dict[str, float]:
  """Median seconds of what predict overlaps, each with the machine to itself."""
  seconds: dict[str, list[float]] = {"read": [], "network": [], "write": []}
  journal = Journal(output.folder)
  for _ in range(repeat):
    stamps = [time.perf_counter()]
    prepared = predictor.load(scan, _ignore)
    stamps.append(time.perf_counter())
    prediction = predictor.predict(prepared)
    stamps.append(time.perf_counter())
    classes, known = prediction.classes(), Known.of({}, False)
    facts = assess(prediction, classes, predictor.volumes)
    predict_lib._write(scan.name, prediction, classes, {}, facts, output, known, journal)
    stamps.append(time.perf_counter())
    for name, (early, late) in zip(seconds, itertools.pairwise(stamps), strict=True):
      seconds[name].append(late - early)
  return {name: statistics.median(values) for name, values in seconds.items()}


def _forget_peak() -> None:
  """Linux then tells this row's highest memory; elsewhere it is that of all rows so far."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


# --- Tables -----------------------------------------------------------------------------------


def _cells(row: Mapping[str, Any]) -> list[str]:
  seconds = [row[f"{name}_seconds"] for name in ("read", "network", "write", "alone")]
  spread = [row["seconds"][name] for name in ("median", "least", "most")]
  return [
    str(Setup(row["networks"], row["mode"], row["mirror"])),
    f"{row['windows']} x {common.by(row['window'])}",
    *(f"{x:.2f}" for x in (row["first_seconds"], row["compile_seconds"], *spread, *seconds)),
    f"{row['hidden']:.0%}",
    str(row["recompiled"]),
    f"{row['host_gb']:.2f}",
    common.cell(row["device_gb"], ".2f"),
  ]


def _ignore(*_: Any) -> None:
  """For reports that nobody reads."""


if __name__ == "__main__":
  common.command(main)
