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
import copy
import itertools
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

# PyTorch's idle threads would spin on cores that JAX needs. It reads this when it is imported, and
# tensorboardX imports it where it is installed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from kd_jax.data import nifti
from kd_jax.data.grid import Triple
from kd_jax.data.scans import Scan, find_scans
from kd_jax.models import torch_names
from kd_jax.prediction import predict as predict_lib
from kd_jax.prediction import sliding_window as inference
from kd_jax.prediction.predict import Output
from kd_jax.prediction.predictor import Ensemble, Prepared, load_scan
from kd_jax.prediction.sliding_window import PredictSettings
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.terminal import table
from kd_jax.training import metric_averages as monitor

FULL = {"filters": (32, 64, 128, 256), "spacing": 1.0, "patch": 128, "cases": 4, "rows": None}
SMALL = {"filters": (8, 16, 32, 64), "spacing": 2.0, "patch": 64, "cases": 3, "rows": 3}
MODALITY, OVERLAP, FLIPS = "t1ce", 0.5, 8
GRID_MM = (240, 240, 155)
BRAIN_MM = (140.0, 175.0, 140.0)  # left to right, front to back, feet to head
_FIRST, _OTHERS = "first", "others"  # folders of scans
_HEAD = [
  *("networks", "windows", "first/s", "compile/s", "s/case", "min", "max"),
  *("read/s", "network/s", "write/s", "sum/s", "hidden", "recompiled", "host/GB", "device/GB"),
]
_FORWARD_HEAD = ["forward", "window", "ms", "min", "max", "cpu-ms", "time/kd_jax", "cpu/kd_jax"]


class Look(NamedTuple):
  """How scans are predicted in one row."""

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
  looks = set(map(Look._make, itertools.product(arguments.networks, arguments.modes, mirror)))
  rows, forward = [], []

  def save() -> None:
    results = {"cases": rows, "forward": forward}
    timing.write_json(arguments.json, vars(arguments) | sizes, results)

  with tempfile.TemporaryDirectory(prefix="kd_jax-inference-") as folder:
    scans = Path(folder) / "scans"
    scan = write_scans(scans, sizes["cases"], arguments.scan)
    scan_mb = scan.images[MODALITY].stat().st_size / 1e6
    for look in in_order_of_cost(looks, networks, scan)[: sizes["rows"]]:
      _tell(f"{look}: compiling")
      output = Output(Path(folder) / f"masks{len(rows)}", "brats2018")
      rows.append(measure(look, networks, scans, output, arguments.repeat))
      _tell(f"{look}: {rows[-1]['seconds']['median']:.2f} s a case")
      save()
  if arguments.against:
    for window in sorted({row["window"] for row in rows}, key=math.prod):
      _tell(f"forward passes of {window}")
      forward += measure_forward(architecture, window, arguments.rounds)
      save()
  print(timing.describe(timing.machine()))
  print(
    f"{arguments.scan or 'generated scans'}, {scan_mb:.1f} MB, {_by(rows[0]['shape'])} voxels at "
    f"{sizes['spacing']:g} mm; filters {sizes['filters']}; {sizes['cases']} cases after the first; "
    f"{arguments.json}\n"
  )
  if forward:
    print(table(_FORWARD_HEAD, [_forward_cells(row) for row in forward]), end="\n\n")
  print(table(_HEAD, [_cells(row) for row in rows]), flush=True)
  if any(row["recompiled"] for row in rows):
    sys.exit("error: programs were compiled after the first case (column recompiled)")


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--small", action="store_true", help="filters 8..64, 2 mm, the first 3 rows")
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
  parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/inference.json"))
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


# --- What is predicted, and with what ---------------------------------------------------------


def students(count: int, architecture: Architecture, preparation: Preparation) -> list[Student]:
  """Students with random parameters that call everything background."""
  abstract = jax.eval_shape(architecture.framework().init, jax.random.key(0))["student"]
  del abstract["side_heads"]
  settings = PredictSettings("sliding", OVERLAP)

  def student(seed: int) -> Student:
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: _draw(rng, x.shape), abstract)
    params["head"]["kernel"][:] = 0
    params["head"]["bias"][:] = [10, 0, 0, 0]
    own = (f"random{seed}", "none", architecture, preparation, settings, params)
    return Student(*own, training={}, scores=None, train=[], val=[], settings={})

  return [student(seed) for seed in range(count)]


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """As large as keeps activations near 1."""
  return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[:-1])))


def write_scans(folder: Path, cases: int, source: Path | None, voxel_mm: int = 1) -> Scan:
  """One scan, which is returned, in folder/first, and so many in folder/others.

  Generated with brains of slightly different sizes and voxels of voxel_mm, or copies of one file.
  UserError if that cannot be used.
  """
  try:
    _ = source and nifti.read(source)
  except ValueError as e:
    raise UserError(f"{source}: {e}") from e
  for number, scale in enumerate((1.0, *np.linspace(0.95, 1.0, cases))):
    path = folder / (_OTHERS if number else _FIRST) / f"case{number}_{MODALITY}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if source:
      shutil.copyfile(source, path)
    else:
      affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1]).astype(float)  # LPS, as BraTS has it
      nib.save(nib.Nifti1Image(brain(scale, voxel_mm, seed=number), affine), path)
  return _scans(folder / _FIRST)[0]


def _scans(folder: Path) -> list[Scan]:
  return find_scans(folder, (MODALITY,))[0]


def brain(scale: float, voxel_mm: int, seed: int) -> np.ndarray:
  """(D, H, W) int16: an ellipsoid with a bias field and noise; 0 around it.

  Args:
    scale: of the brain's extent, BRAIN_MM.
    voxel_mm: edge of a voxel; the grid is that of BraTS in mm.
    seed: of the noise, whose size makes the file about as large as a real one.
  """
  shape = tuple(mm // voxel_mm for mm in GRID_MM)
  sides = zip(shape, BRAIN_MM, strict=True)
  axes = np.ix_(*((np.arange(n) - (n - 1) / 2) * 2 * voxel_mm / (scale * mm) for n, mm in sides))
  noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
  bias = 0.1 * np.cos(2 * axes[0]) * np.sin(3 * axes[1]) * np.cos(axes[2])
  signal = 500 * (1 + bias + 0.04 * ndimage.gaussian_filter(noise, 0.5))
  return np.where(sum(x**2 for x in axes) < 1, np.rint(signal), 0).astype(np.int16)


# --- Rows -------------------------------------------------------------------------------------


def in_order_of_cost(looks: Iterable[Look], networks: Sequence[Student], scan: Scan) -> list[Look]:
  """The cheapest first, by the voxels that networks see in all."""
  prepared = load_scan(Ensemble(networks[:1]), scan, _ignore)

  def cost(look: Look) -> int:
    window, count = windows(_ensemble(look, networks), prepared)
    return look.networks * count * math.prod(window) * (FLIPS if look.mirror else 1)

  return sorted(looks, key=lambda look: (cost(look), look))


def _ensemble(look: Look, networks: Sequence[Student]) -> Ensemble:
  return Ensemble(networks[: look.networks], look.mode, OVERLAP, look.mirror)


def windows(ensemble: Ensemble, prepared: Prepared) -> tuple[Triple, int]:
  """The window that passes over a case, and at how many places."""
  window = ensemble.window(prepared)
  starts = inference.window_starts(prepared.images.shape[1:], window, ensemble.settings.overlap)
  return window, len(starts)


def measure(
  look: Look, networks: Sequence[Student], scans: Path, output: Output, repeat: int
) -> dict[str, Any]:
  """One row: the first case, the others, the pieces.

  Args:
    networks: at least as many as the look asks for.
    scans: the folder of write_scans.
    output: an empty folder.
    repeat: how often each piece is timed.
  """
  inference._predict.clear_cache()  # rows share programs, and each is to compile its own
  _forget_peak()
  device_before = monitor.memory().get("memory/device_gb", 0.0)
  ensemble = _ensemble(look, networks)
  with compilations() as compiled:
    first = _seconds_of_predict(ensemble, scans / _FIRST, output)
  with compilations() as recompiled:
    together = _seconds_of_predict(ensemble, scans / _OTHERS, output)
  memory = monitor.memory()
  device = memory.get("memory/device_gb", 0.0)
  seconds = between([output.mask(one.name).stat().st_mtime for one in _scans(scans / _OTHERS)])
  scan = _scans(scans / _FIRST)[0]
  alone = pieces(ensemble, scan, output, repeat)
  prepared = load_scan(ensemble, scan, _ignore)
  window, count = windows(ensemble, prepared)
  return {
    **look._asdict(),
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
    "host_gb": memory["memory/process_gb"],
    # A device's peak is of the process: it is this row's only where it has risen.
    "device_gb": device if device > device_before else None,
  }


def _seconds_of_predict(ensemble: Ensemble, scans: Path, output: Output) -> float:
  silent = SimpleNamespace(line=_ignore, progress=lambda label: _ignore)
  began = time.perf_counter()
  predict_lib.predict(ensemble, scans, output, silent)
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


def pieces(ensemble: Ensemble, scan: Scan, output: Output, repeat: int) -> dict[str, float]:
  """Median seconds of what predict overlaps, each with the machine to itself."""
  seconds: dict[str, list[float]] = {"read": [], "network": [], "write": []}
  for _ in range(repeat):
    stamps = [time.perf_counter()]
    prepared = load_scan(ensemble, scan, _ignore)
    stamps.append(time.perf_counter())
    probabilities = ensemble.predict(prepared)
    stamps.append(time.perf_counter())
    predict_lib._write(scan.name, prepared, probabilities, ensemble.settings.smallest, output)
    stamps.append(time.perf_counter())
    for name, (early, late) in zip(seconds, itertools.pairwise(stamps), strict=True):
      seconds[name].append(late - early)
  return {name: statistics.median(values) for name, values in seconds.items()}


def _forget_peak() -> None:
  """Linux then tells this row's highest memory; elsewhere it is that of all rows so far."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


# --- PyTorch ----------------------------------------------------------------------------------


def measure_forward(
  architecture: Architecture, window: Triple, rounds: int
) -> list[dict[str, Any]]:
  """One window through the network, ours and PyTorch's in turns; our row first."""
  mirror, params = mirrored_network(architecture)
  image = np.random.default_rng(0).standard_normal((1, *window, 1), np.float32)
  framework = architecture.framework()
  network = jax.jit(framework.network)
  params, on_device = jax.device_put((params, image))
  programs = {
    "kd_jax": lambda: network(params, on_device).block_until_ready(),
    **_torch_programs(mirror, image, framework.spec.compute_dtype == jnp.bfloat16),
  }
  spreads = timing.alternate(programs, rounds, block=1)
  ours = spreads["kd_jax"]
  return [
    {
      "program": name,
      "window": window,
      "seconds": spread._asdict(),
      "time_over_kd_jax": spread.median / ours.median,
      "cpu_over_kd_jax": spread.processor / ours.processor,
    }
    for name, spread in spreads.items()
  ]


def mirrored_network(architecture: Architecture) -> tuple[Any, dict[str, Any]]:
  """A PyTorch module of the student's network without side heads, and its parameters as ours."""
  from benchmarks import torch_mirror

  modalities, filters = len(architecture.modalities), architecture.filters
  mirror = torch_mirror.ResUNet(modalities, filters, side_heads=False).eval()
  arrays = {name: x.detach().numpy() for name, x in mirror.state_dict().items()}
  return mirror, torch_names.convert(arrays, torch_names.network_table())


def _torch_programs(
  mirror: Any, image: np.ndarray, bfloat16: bool
) -> dict[str, Callable[[], None]]:
  """The mirror on the kind of device that JAX uses: channels first, last, and on a GPU compiled."""
  import torch

  device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
  torch.backends.cuda.matmul.allow_tf32 = True  # as JAX's default has it, and cuDNN's
  torch.backends.cudnn.benchmark = True
  x = torch.from_numpy(np.moveaxis(image, -1, 1).copy()).to(device)

  def program(layout: Any, compiled: bool = False) -> Callable[[], None]:
    net = copy.deepcopy(mirror).to(device, memory_format=layout)
    net = torch.compile(net) if compiled else net
    own = x.to(memory_format=layout)

    def run() -> None:
      with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        net(own)
      if device == "cuda":
        torch.cuda.synchronize()

    return run

  last = torch.channels_last_3d
  programs = {"torch": program(torch.contiguous_format), "torch, channels last": program(last)}
  return programs | ({"torch compile": program(last, True)} if device == "cuda" else {})


# --- Tables -----------------------------------------------------------------------------------


def _cells(row: Mapping[str, Any]) -> list[str]:
  seconds = [row[f"{name}_seconds"] for name in ("read", "network", "write", "alone")]
  spread = [row["seconds"][name] for name in ("median", "least", "most")]
  return [
    str(Look(row["networks"], row["mode"], row["mirror"])),
    f"{row['windows']} x {_by(row['window'])}",
    *(f"{x:.2f}" for x in (row["first_seconds"], row["compile_seconds"], *spread, *seconds)),
    f"{row['hidden']:.0%}",
    str(row["recompiled"]),
    f"{row['host_gb']:.2f}",
    "-" if row["device_gb"] is None else f"{row['device_gb']:.2f}",
  ]


def _forward_cells(row: Mapping[str, Any]) -> list[str]:
  times = [row["seconds"][name] for name in ("median", "least", "most", "processor")]
  ratios = [row["time_over_kd_jax"], row["cpu_over_kd_jax"]]
  milliseconds = [f"{1e3 * x:.1f}" for x in times]
  return [row["program"], _by(row["window"]), *milliseconds, *(f"{x:.2f}" for x in ratios)]


def _by(sides: Iterable[int]) -> str:
  return "x".join(map(str, sides))


def _ignore(*_: Any) -> None:
  """For reports that nobody reads."""


def _tell(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    sys.exit(f"error: {error}")
