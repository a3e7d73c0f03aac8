"""How much memory is in use, and how much a program may still take."""

import resource
import sys
from pathlib import Path

import jax


def memory() -> dict[str, float]:
  """The highest use so far, in GB: of the process, and of the first device where it tells."""
  unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
  used = {"memory/process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    used["memory/device_gb"] = stats["peak_bytes_in_use"] / 1e9
  return used


def free_memory() -> float | None:
  """Bytes that a program may take: of the first device, or half of what the host has available."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return None
  fields = dict(line.split(":", 1) for line in lines)
  return float(fields["MemAvailable"].split()[0]) * 1024 / 2
