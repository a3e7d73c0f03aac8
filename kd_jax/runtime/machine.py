"""Facts of this machine: what is installed, what it has, whether it computes rightly."""

import glob
import importlib.metadata
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from packaging.requirements import Requirement

if TYPE_CHECKING:  # a broken JAX is for the doctor to find
  import jax

_CHECKOUT = Path(__file__).parents[2] / "requirements.txt"
_CGROUP = Path("/sys/fs/cgroup")
_CLOSE = 0.03  # of the largest value; bfloat16 keeps 8 bits


def unmet_requirements() -> list[str]:
  """What kd_jax needs and does not find, each as "jax>=0.10 is needed, 0.9 is installed"."""
  try:
    needed = importlib.metadata.requires("kd_jax") or []
  except importlib.metadata.PackageNotFoundError:  # run from a checkout
    lines = _CHECKOUT.read_text().splitlines() if _CHECKOUT.is_file() else []
    needed = [text for line in lines if (text := line.partition("#")[0].strip())]
  return [finding for text in needed if (finding := _unmet(Requirement(text)))]


def _unmet(needed: Requirement) -> str:
  if needed.marker and not needed.marker.evaluate({"extra": ""}):
    return ""
  wanted = f"{needed.name}{needed.specifier}"
  try:
    version = importlib.metadata.version(needed.name)
  except importlib.metadata.PackageNotFoundError:
    return f"{wanted} is needed and not installed"
  if needed.specifier.contains(version, prereleases=True):
    return ""
  return f"{wanted} is needed, {version} is installed"


def cores() -> int:
  """Processor cores that this process may use; a container may be given fewer than there are."""
  allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  quota, _, period = _cgroup("cpu.max").partition(" ")
  if quota.isdigit() and period.isdigit():
    allowed = min(allowed or 1, math.ceil(int(quota) / int(period)))
  return allowed or 1


def available_memory() -> int | None:
  """Bytes that programs may still take; None where the system does not tell."""
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return None
  free = int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
  limit, used = _cgroup("memory.max"), _cgroup("memory.current")
  return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def _cgroup(name: str) -> str:
  """A limit of the container; "" without one."""
  try:
    return (_CGROUP / name).read_text().strip()
  except OSError:
    return ""


def has_nvidia() -> bool:
  """Whether the driver of an NVIDIA GPU is loaded, or WSL's."""
  wsl = os.path.exists("/dev/dxg") and shutil.which("nvidia-smi") is not None
  return wsl or bool(glob.glob("/dev/nvidia[0-9]*"))


def has_tpu() -> bool:
  return bool(glob.glob("/dev/accel[0-9]*"))


def wrong_convolution(device: "jax.Device") -> str:
  """What is wrong with a bfloat16 3-D convolution and its kernel's gradient there; "" if nothing.

  Compared with NumPy, for image (1, 16, 16, 16, 16) and kernel (3, 3, 3, 16, 16).
  """
  import jax
  import jax.numpy as jnp

  random = np.random.default_rng(0)
  image, weights = (random.standard_normal((16, 16, 16, 16)) for _ in range(2))  # (D, H, W, C)
  kernel = random.standard_normal((3, 3, 3, 16, 16)) / 20

  def convolved(image: "jax.Array", kernel: "jax.Array") -> "jax.Array":
    return jax.lax.conv_general_dilated(
      image.astype(jnp.bfloat16)[None],
      kernel.astype(jnp.bfloat16),
      (1, 1, 1),
      "SAME",
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )[0].astype(jnp.float32)

  # Everything is an argument: XLA computes on the host what depends on constants alone.
  def both(image: "jax.Array", kernel: "jax.Array", weights: "jax.Array"):
    gradients = jax.grad(lambda k: jnp.sum(convolved(image, k) * weights))(kernel)
    return convolved(image, kernel), gradients

  try:
    with jax.default_device(device):
      arguments = (jnp.asarray(x, jnp.float32) for x in (image, kernel, weights))
      found = jax.device_get(jax.jit(both)(*arguments))
  except Exception as error:  # of XLA, CUDA or cuDNN
    return f"cannot compute: {(str(error).splitlines() or [''])[0]}"
  windows = np.lib.stride_tricks.sliding_window_view(
    np.pad(image, ((1, 1), (1, 1), (1, 1), (0, 0))), (3, 3, 3), axis=(0, 1, 2)
  )  # (D, H, W, C, 3, 3, 3)
  expected = (
    np.einsum("dhwcxyz,xyzcf->dhwf", windows, kernel, optimize=True),
    np.einsum("dhwcxyz,dhwf->xyzcf", windows, weights, optimize=True),
  )
  for name, is_now, wanted in zip(("values", "gradients"), found, expected, strict=True):
    off = np.abs(is_now - wanted).max() / np.abs(wanted).max()
    if not off < _CLOSE:  # NaN is wrong, too
      return f"a bfloat16 3-D convolution gives wrong {name} (off by {off:.0%} of the largest)"
  return ""
