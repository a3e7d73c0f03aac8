"""What each of a set's label maps holds: read once, in threads, and remembered."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.runtime import processes
from kd_jax.runtime.arrays import bounding_box
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import load_json, write_text
from kd_jax.tasks import labels

MEMORY_FILE = "labels.json"  # in a cache folder
_MOST_LABELS = 12  # a file with more is an image
_THREADS = 8  # each holds a volume


class Contents(NamedTuple):
  """What a label map holds, but for background.

  Attributes:
    voxels: label -> how many.
    borders: label -> other label, or 0 -> share of its surface (voxel faces) that borders on it.
  """

  voxels: dict[int, int]
  borders: dict[int, dict[int, float]]


def contents_of(
  files: Mapping[str, Path], progress: Callable[..., None], memory: Path | None = None
) -> dict[str, Contents]:
  """What each label map holds, by name; several processes share the reading out.

  Args:
    files: name -> file.
    progress: called with (done, total, name) where files have to be read.
    memory: a file that keeps what is found, by size and time of the files, so that the next call
      reads none of them; None to keep nothing.

  Returns:
    A file that cannot be read, or that is no label map, is missing: who reads it in full tells why.
  """
  remembered = _read_memory(memory)
  there = {name: remembered[_key(path)] for name, path in files.items() if _key(path) in remembered}
  known = processes.gather(there)[0]  # the first one's, so that all share out the same rest
  own = processes.share([name for name in files if name not in known])
  found: dict[str, Any] = {}
  with futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
    looked = pool.map(_look, (files[name] for name in own))
    for done, (name, contents) in enumerate(zip(own, looked, strict=True), 1):
      if contents:
        voxels, borders = contents
        found[name] = [
          list(voxels.items()),
          [[label, list(shares.items())] for label, shares in borders.items()],
        ]
      progress(done, len(own), name)
  everyone = processes.union(found)
  if memory and everyone and processes.first():
    _write_memory(memory, {_key(files[name]): value for name, value in everyone.items()})
  return {name: _contents(value) for name, value in (known | everyone).items()}


def _look(path: Path) -> Contents | None:
  try:
    volume = nifti.read(path)
    y = labels.rounded(volume.data, volume.step)
  except ValueError:
    return None
  box = bounding_box(y)
  if box is None:
    return Contents({}, {})
  y = np.pad(y[box], 1)
  voxels = np.bincount(y.ravel(), minlength=256)
  if np.count_nonzero(voxels) > _MOST_LABELS:
    return None
  faces = np.zeros((256, 256), np.int64)  # of one label's voxels with another one's
  for axis in range(y.ndim):
    turned = np.moveaxis(y, axis, 0)
    a, b = turned[:-1], turned[1:]
    edge = a != b
    pairs = a[edge].astype(np.int64) * 256 + b[edge]
    faces += np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
  faces += faces.T
  there = [int(label) for label in np.flatnonzero(voxels)]
  inner = [label for label in there if label]
  borders = {
    one: {other: round(float(faces[one, other] / faces[one].sum()), 4) for other in there}
    for one in inner
  }
  return Contents({label: int(voxels[label]) for label in inner}, borders)


# --- What is remembered -----------------------------------------------------------------------


def existing_memory(cache_dir: Path) -> Path | None:
  """The memory of a cache folder; None where there is no such folder, as it need not be made."""
  return cache_dir / MEMORY_FILE if cache_dir.is_dir() else None


def _key(path: Path) -> str:
  """A file's place, size and time; "" where it cannot be looked at."""
  try:
    stat = os.stat(path)
  except OSError:
    return ""
  return f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}"


def _contents(value: Any) -> Contents:
  """Of the form that JSON can hold, which has no numbers as keys."""
  voxels, borders = value
  return Contents(
    {int(label): int(n) for label, n in voxels},
    {int(one): {int(other): float(x) for other, x in shares} for one, shares in borders},
  )


def _read_memory(memory: Path | None) -> dict[str, Any]:
  try:
    content = load_json(memory) if memory else {}
    for value in content.values():
      _contents(value)
    return content
  except (OSError, ValueError, TypeError, AttributeError):
    return {}  # it only saves reading


def _write_memory(memory: Path, found: Mapping[str, Any]) -> None:
  with contextlib.suppress(UserError):  # without it, the next call reads the files again
    write_text(memory, json.dumps(_read_memory(memory) | dict(found)))
