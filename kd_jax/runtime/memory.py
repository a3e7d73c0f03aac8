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


def memory_limit() -> int | None:
  """Bytes that programs of this process may take of a device in all; None where it does not tell.

  Not what is free now: a run that starts again on the same machine finds the same.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return min(int(own["bytes_limit"]) if "bytes_limit" in own else 0 for own in stats) or None


def program_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Device memory that a compiled program takes on each device; None where XLA does not tell.

  Arguments, results and temporary buffers; what is donated is counted once.
  """
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
