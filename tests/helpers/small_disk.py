"""A disk that is soon full: a file system in memory, where the system lets tests mount one."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
  """Mounts one on the folder; skips the test where that is not allowed."""
  folder.mkdir(parents=True, exist_ok=True)
  options = f"size={kilobytes}k"
  try:
    subprocess.run(
      ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True
    )
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("no right to mount a file system (run as root in a container)")
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", str(folder)], check=True)


def read_only(folder: Path) -> None:
  """From now on nothing can be written there, whoever asks."""
  command = ["mount", "-o", "remount,ro", str(folder)]
  subprocess.run(command, check=True, capture_output=True)


def fill(folder: Path, leave: int = 0) -> None:
  """Writes until no more than `leave` bytes are free."""
  with (folder / "filling").open("wb", buffering=0) as f, contextlib.suppress(OSError):
    while True:
      f.write(b"x" * 4096)
  if leave:
    filling = folder / "filling"
    with filling.open("r+b") as f:
      f.truncate(max(filling.stat().st_size - leave, 0))
