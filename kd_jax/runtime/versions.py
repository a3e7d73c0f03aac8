"""Versions and devices: the one record of what a number can depend on beside the settings."""

import importlib.metadata
from typing import Any

import jax

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
