"""Versions and devices: the one record of what a number can depend on beside the settings."""

import importlib.metadata
import platform
from typing import Any

from kd_jax import __version__
from kd_jax.runtime import cuda

PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
  *("numpy", "scipy", "nibabel"),
)


def packages() -> dict[str, str]:
  """Name -> version, of the packages that are installed."""
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return versions


def devices() -> dict[str, Any]:
  """The devices that JAX computes on."""
  import jax

  device = jax.devices()[0]
  capability = cuda.capability(device)
  cudnn = cuda.cudnn() if capability else None
  return {
    "platform": device.platform,
    "kind": device.device_kind,
    "count": jax.device_count(),
    "processes": jax.process_count(),
    "runtime": getattr(device.client, "platform_version", ""),
    "compute_capability": cuda.text(capability) if capability else None,
    "cudnn": cuda.text(cudnn) if cudnn else None,
  }


def report() -> str:
  """What `kd-jax --version` prints: a line for each package, and one for the devices."""
  lines = [f"kd_jax {__version__}", f"Python {platform.python_version()}"]
  lines += [f"{name} {version}" for name, version in packages().items()]
  try:
    found = devices()
  except Exception as error:  # a broken installation has versions, too
    return "\n".join([*lines, f"devices: none ({str(error).partition(chr(10))[0]})"])
  lines.append(f"devices: {found['count']} x {found['kind']} ({found['platform']})")
  if found["cudnn"]:
    lines.append(f"cuDNN {found['cudnn']}")
  return "\n".join(lines)
