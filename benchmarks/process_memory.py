"""The memory of a process and of all that it has started, as Linux accounts for it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SETTLE_SECONDS, _SETTLE_MB = 10.0, 2.0


class Memory(NamedTuple):
  """Of this process and all that it has started, in MB.

  Attributes:
    own_mb: anonymous and shared memory.
    mapped_mb: pages of files.
    processes: how many they are.
  """

  own_mb: float
  mapped_mb: float
  processes: int


def settled() -> Memory | None:
  """The memory once workers have filled their buffers; None where the system has no /proc."""
  deadline, last = time.monotonic() + _SETTLE_SECONDS, family_memory()
  while last and time.monotonic() < deadline:
    time.sleep(0.5)
    last, before = family_memory(), last
    if last and abs(last.own_mb - before.own_mb) < _SETTLE_MB:
      break
  return last


def family_memory() -> Memory | None:
  found = [memory for pid in family(os.getpid()) if (memory := _memory(pid))]
  own, mapped = (sum(each) for each in zip(*found, strict=True)) if found else (0.0, 0.0)
  return Memory(own, mapped, len(found)) if found else None


def family(pid: int) -> list[int]:
  """A process and all its descendants; [] where there is no /proc."""
  children: dict[int, list[int]] = {}
  for path in Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):  # it has ended
      # PID (NAME) STATE PARENT ...; a name may hold anything.
      parent = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
      children.setdefault(parent, []).append(int(path.parent.name))
  found = [pid] if children else []
  for one in found:
    found += children.get(one, [])
  return found


def _memory(pid: int) -> tuple[float, float] | None:
  """(own, mapped) MB: a page that n processes share is 1/n each, where Linux tells; else whole."""
  for name, own, mapped in (
    ("smaps_rollup", ("Pss_Anon", "Pss_Shmem"), ("Pss_File",)),
    ("status", ("RssAnon", "RssShmem"), ("RssFile",)),
  ):
    with contextlib.suppress(OSError, KeyError):
      kb = dict(_kilobytes(Path(f"/proc/{pid}/{name}").read_text(errors="replace")))
      own_kb, mapped_kb = (sum(kb[field] for field in fields) for fields in (own, mapped))
      return own_kb * 1024 / 1e6, mapped_kb * 1024 / 1e6
  return None


def _kilobytes(text: str) -> Iterator[tuple[str, int]]:
  for line in text.splitlines():
    name, _, value = line.partition(":")
    if value.endswith(" kB"):
      yield name, int(value.split()[0])
