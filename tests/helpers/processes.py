"""Processes of a run and their shared memory, as Linux has them in /proc and /dev/shm."""

import contextlib
from pathlib import Path


def family_of(pid: int) -> list[int]:
  """The children of a process, theirs, and so on."""
  found: list[int] = []
  for path in Path(f"/proc/{pid}/task").glob("*/children"):
    with contextlib.suppress(OSError):  # it has just ended
      for child in map(int, path.read_text().split()):
        found += [child, *family_of(child)]
  return found


def running(pids: list[int]) -> list[int]:
  """Those of the processes that run; what nobody has waited for yet has ended too."""
  states = {}
  for pid in pids:
    with contextlib.suppress(OSError):
      states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  return [pid for pid in pids if states.get(pid, "Z") != "Z"]


def shared_memory() -> set[Path]:
  """All blocks of shared memory and all semaphores that there are."""
  return set(Path("/dev/shm").glob("*"))


def is_mapped(block: Path) -> bool:
  """Whether a process that runs has the block in its memory."""
  for maps in Path("/proc").glob("[0-9]*/maps"):
    with contextlib.suppress(OSError):
      if f"{block}\n" in maps.read_text():
        return True
  return False
