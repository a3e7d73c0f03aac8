"""What device it is, with which versions, and whether it computes what it should."""

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import jax

from benchmarks import timing
from benchmarks.device.turns import Turns
from kd_jax.runtime.memory import free_memory

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("jaxlib", "optax", "grain", "orbax-checkpoint", "numpy", "torch")


def facts(turns: Turns, small: bool) -> None:
  """Hardware, driver, versions."""
  machine = timing.machine() | {
    "platform": jax.default_backend(),
    "kind": jax.devices()[0].device_kind,
    "platform_version": jax.devices()[0].client.platform_version,
    "cudnn": _cudnn(),
    "driver": _driver(),
    "compute_capability": getattr(jax.devices()[0], "compute_capability", None),
    "source": _source(),
    "free_gb": (free_memory() or 0) / 1e9,
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    **{name: _version(name) for name in _PACKAGES},
  }
  known = ("device", "processor", "driver", "cudnn", "python", "jax", "flax", "torch")
  turns.result("; ".join(f"{name} {machine[name]}" for name in known), machine=machine)


def golden(turns: Turns, small: bool) -> None:
  """The golden cases of tests/method, on this device."""
  platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
  command += [str(_ROOT / "tests" / "method" / "test_golden.py")]
  done = subprocess.run(
    [*command, *(("-k", "losses") if small else ())],
    cwd=_ROOT,
    env={**os.environ, "JAX_PLATFORMS": f"{platform},cpu" if platform != "cpu" else "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  summary = re.findall(r"^.*\b(?:passed|failed|error)\b.*$", done.stdout, re.MULTILINE)
  text = summary[-1].strip("= ") if summary else (done.stdout + done.stderr)[-300:]
  turns.result(text, passed=done.returncode == 0)
  if done.returncode:
    sys.exit(done.stdout[-1500:])


def _source() -> str:
  """SHA-256 of the program and its benchmarks: a copy of the files may lack the commit."""
  digest = hashlib.sha256()
  for path in sorted(p for part in ("kd_jax", "benchmarks") for p in (_ROOT / part).rglob("*.py")):
    digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
  return digest.hexdigest()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _cudnn() -> str | None:
  """Of the library that XLA has loaded, such as 91300; None without CUDA."""
  try:
    from jax._src.lib import cuda_versions

    return str(cuda_versions.cudnn_get_version())
  except (ImportError, AttributeError):
    return None


def _driver() -> str | None:
  command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
