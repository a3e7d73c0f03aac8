"""--mode=doctor: what on this machine will be slow or fail, in plain words."""

import importlib.util
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kd_jax.runtime import lock, machine, startup
from kd_jax.runtime.errors import UserError, printable
from kd_jax.runtime.files import check_folder

OK, NOTE, SLOW, FAIL = "ok", "note", "slow", "FAIL"
_GB = 1e9

# What is too little. Measured with this program: a small run with two readers ended with 64 open
# files and not with 128; a full-size student took 4.5 GB for a scan of 240 x 240 x 155 on CPU;
# a cached case has 27 MB. Docker gives 64 MB of shared memory, and a batch of the default recipe
# has 0.1 GB.
_FEWEST_FILES = 128
_LEAST_MEMORY = 5 * _GB
_LEAST_DEVICE = 12 * _GB
_LEAST_SHARED = 0.5 * _GB
_LEAST_DISK, _LARGE_DATA = 1 * _GB, 40 * _GB
_SHARED = Path("/dev/shm")

# Extra -> a module that comes with it, and what it is for.
EXTRAS = {
  "report": ("nilearn", "the 3-D page of a case"),
  "dicom": ("highdicom", "DICOM series as input and output"),
  "onnx": ("onnx", "students as ONNX"),
  "hub": ("huggingface_hub", "students from the Hugging Face Hub"),
}


class Finding(NamedTuple):
  """What was found.

  Attributes:
    level: OK, NOTE (good to know), SLOW or FAIL.
    words: one line: what was found and, if need be, what to do.
  """

  level: str
  words: str


def report(folder: Path) -> None:
  """Prints all findings.

  Args:
    folder: where a run will lie.

  Raises:
    UserError: something will fail.
  """
  levels = []
  for what, check in CHECKS.items():
    for finding in _findings(check, folder):
      print(f"{finding.level:4}  {what:9}  {printable(finding.words)}", flush=True)
      levels.append(finding.level)
  if failing := levels.count(FAIL):
    raise UserError(f"{failing} of these will fail; see {FAIL}")
  print(f"\nnothing will fail{'; some will be slow' if SLOW in levels else ''}")


def _findings(check: Callable[[Path], Iterator[Finding]], folder: Path) -> Iterator[Finding]:
  """Of one check. What the check itself cannot bear is a finding, too."""
  try:
    yield from check(folder)
  except UserError as error:
    yield Finding(FAIL, str(error))
  except Exception as error:
    yield Finding(FAIL, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


# --- Programs -----------------------------------------------------------------------------------


def _packages(_: Path) -> Iterator[Finding]:
  from kd_jax import __version__

  yield Finding(OK, f"kd_jax {__version__}, Python {platform.python_version()}")
  for finding in machine.unmet_requirements():
    yield Finding(FAIL, f"{finding}; install kd_jax again")


def _extras(_: Path) -> Iterator[Finding]:
  for extra, (module, purpose) in EXTRAS.items():
    if importlib.util.find_spec(module) is None:
      yield Finding(NOTE, f"for {purpose}: pip install 'kd_jax[{extra}]'")


# --- Devices ------------------------------------------------------------------------------------


def _devices(_: Path) -> Iterator[Finding]:
  import jax

  startup.check_devices()
  devices = jax.local_devices()
  if devices[0].platform != "cpu":
    yield Finding(OK, f"{len(devices)} x {devices[0].device_kind}")
  else:
    yield Finding(
      SLOW,
      f"the CPU alone ({machine.cores()} cores may be used). Enough to predict and for "
      "--config=quickstart; training networks of full size needs a GPU or a TPU",
    )
    yield from _unused_accelerators()
  for device in devices:
    if wrong := machine.wrong_convolution(device):
      yield Finding(FAIL, f"{device}: {wrong}")


def _unused_accelerators() -> Iterator[Finding]:
  """Where JAX computes on the CPU: what it could compute on."""
  asked = os.environ.get("JAX_PLATFORMS")
  for name, present, module, extra in (
    ("NVIDIA GPU", machine.has_nvidia(), "jax_cuda13_plugin", "gpu"),
    ("TPU", machine.has_tpu(), "libtpu", "tpu"),
  ):
    if not present:
      continue
    if asked:
      remedy = f"JAX_PLATFORMS={asked} says so"
    elif importlib.util.find_spec(module):
      remedy = f"{module} is installed and does not work; is the driver new enough?"
    else:
      remedy = f"pip install 'kd_jax[{extra}]'"
    yield Finding(SLOW, f"{name} present, and JAX does not use it: {remedy}")


def _cudnn(_: Path) -> Iterator[Finding]:
  import jax

  from kd_jax.runtime import cuda

  device = jax.local_devices()[0]
  if not cuda.capability(device):
    return
  version = cuda.cudnn()
  doubts = cuda.doubts(device, "bfloat16")
  if version is None:
    yield Finding(FAIL, "not found; pip install 'kd_jax[gpu]' brings it")
  elif doubts:
    yield Finding(FAIL, doubts[0].removeprefix("warning: "))
  else:
    yield Finding(OK, cuda.text(version))


# --- Memory -------------------------------------------------------------------------------------


def _memory(_: Path) -> Iterator[Finding]:
  import jax

  free = machine.available_memory()
  if free is not None:
    low = free < _LEAST_MEMORY
    words = f"{free / _GB:.1f} GB free"
    yield Finding(SLOW if low else OK, words + "; a scan needs up to 4.5 GB" * low)
  stats = jax.local_devices()[0].memory_stats() or {}
  if limit := stats.get("bytes_limit"):
    low = limit < _LEAST_DEVICE
    hint = "; for the default recipe set --config.train.accumulate=2 or a smaller data.patch"
    yield Finding(SLOW if low else OK, f"{limit / _GB:.1f} GB of the device" + hint * low)


def _shared_memory(_: Path) -> Iterator[Finding]:
  if not _SHARED.is_dir():
    return
  free = shutil.disk_usage(_SHARED).free
  if free >= _LEAST_SHARED:
    yield Finding(OK, f"{free / _GB:.1f} GB free")
  else:
    yield Finding(
      FAIL,
      f"{free / _GB:.2f} GB free in {_SHARED}: too little for training with reading processes. "
      "Give it more (a container: --shm-size=8g) or set --config.data.workers=0",
    )


def _open_files(_: Path) -> Iterator[Finding]:
  limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  if limit == resource.RLIM_INFINITY or limit >= _FEWEST_FILES:
    yield Finding(OK, "enough")
  else:
    yield Finding(FAIL, f"{limit} are allowed at once, training needs more: ulimit -n 1024")


# --- Places -------------------------------------------------------------------------------------


def _run_folder(folder: Path) -> Iterator[Finding]:
  try:
    check_folder(folder)
  except UserError as error:
    words = str(error).partition("; give")[0]
    yield Finding(FAIL, f"{words}; start elsewhere, or give --workdir and --output")
    return
  place = _existing(folder)
  free = shutil.disk_usage(place).free
  words = f"{free / _GB:.1f} GB free where {folder.absolute()} will lie"
  if free < _LEAST_DISK:
    yield Finding(FAIL, f"{words}: too little for a run")
  elif free < _LARGE_DATA:
    yield Finding(NOTE, f"{words}; the cache of BraTS 2021 alone takes 34 GB (data.cache)")
  else:
    yield Finding(OK, words)
  told: list[str] = []
  with tempfile.TemporaryDirectory(dir=place) as trial, lock.held(Path(trial), told.append):
    pass
  for line in told:
    yield Finding(NOTE, line.removeprefix("warning: "))


def _existing(folder: Path) -> Path:
  """The folder, or the first above it that exists."""
  return next(place for place in (folder, *folder.absolute().parents) if os.path.isdir(place))


def _cache_folder(_: Path) -> Iterator[Finding]:
  folder = startup.cache_folder()
  if told := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    yield Finding(OK, f"compiled programs are kept in {told}, by JAX_COMPILATION_CACHE_DIR")
  elif startup.writable(folder / "compiled"):
    yield Finding(OK, f"compiled programs are kept in {folder / 'compiled'}")
  else:
    nowhere = "this user has no home folder" if os.devnull in str(folder) else ""
    yield Finding(
      SLOW,
      f"{nowhere or f'cannot write in {folder}'}: every start compiles anew, for up to a minute. "
      "Set XDG_CACHE_HOME to a folder that can be written",
    )


def _temporary(_: Path) -> Iterator[Finding]:
  try:
    free = shutil.disk_usage(tempfile.gettempdir()).free
  except FileNotFoundError:  # there is none that can be written
    yield Finding(FAIL, "no folder for temporary files can be written; set TMPDIR")
    return
  if free < 0.1 * _GB:
    yield Finding(FAIL, f"{tempfile.gettempdir()} is full; set TMPDIR to another folder")


CHECKS = {
  "packages": _packages,
  "devices": _devices,
  "cuDNN": _cudnn,
  "memory": _memory,
  "shared": _shared_memory,
  "files": _open_files,
  "run": _run_folder,
  "cache": _cache_folder,
  "temporary": _temporary,
  "extras": _extras,
}
