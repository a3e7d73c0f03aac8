"""One case in the cache: its images and classes on the networks' grid, ready to memory-map.

An entry is one folder, named by a hash of what went into it (the bytes of the case's files, the
settings, the format), so an entry is never out of date and never overwritten:

  images.npy      (4, D, H, W) in MODALITIES order, float16 (zscore) or float32 (paper); 0 where
                  the case lacks a sequence
  labels.npy      (D, H, W) uint8 classes                      } not in an entry of a case
  foreground.npy  (3, 4096, 3) int16 coordinates of classes 1..3 } without a label map
  meta.json       everything else: names, grid, settings, counts, warnings, checksums
"""

import hashlib
import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kd_jax.data import grid as grids
from kd_jax.data.case_checks import check_labels, missing_files, read_volumes, source_files
from kd_jax.data.cases import Case
from kd_jax.data.preprocess import FOREGROUND_VOXELS, foreground_voxels, to_arrays
from kd_jax.data.subjects import content_hashes
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.settings.data import CacheSettings
from kd_jax.tasks import labels
from kd_jax.tasks.names import MODALITIES

FORMAT = 3
# NumPy reads a file's header with Python's parser, which in Python 3.11 now and then raises
# SystemError where two threads use it at once ("AST constructor recursion depth mismatch").
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Entry:
  """One case of the cache, memory-mapped.

  Attributes:
    path: the entry's folder.
    images: (4, D, H, W) in MODALITIES order; 0 where the case lacks a sequence.
    labels: (D, H, W) uint8 classes, or None.
    foreground: for classes 1, 2, 3 an (n, 3) int16 array of voxels of that class, drawn at
      random; n is 0 where the class is absent. Empty if labels is None.
    meta: the content of meta.json.
  """

  path: Path
  images: np.ndarray
  labels: np.ndarray | None
  foreground: tuple[np.ndarray, ...]
  meta: dict

  @property
  def grid(self) -> grids.Grid:
    return grids.Grid.from_json(self.meta["grid"])


def open_entry(path: str | os.PathLike) -> Entry:
  """Maps an entry's arrays into memory. UserError if it is not (or no longer) a whole entry."""
  path = Path(path)
  try:
    meta = json.loads((path / "meta.json").read_text())
    arrays = {name: _map(path, name) for name in meta["crc32"]}
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f"{path} is no usable cache entry ({e}); delete it and prepare again") from e
  if meta.get("format") != FORMAT:
    raise UserError(f"{path} has format {meta.get('format')}, not {FORMAT}; prepare again")
  foreground = ()
  if "foreground" in arrays:
    kept = np.minimum(meta["class_voxels"][1:], FOREGROUND_VOXELS)
    foreground = tuple(c[:n] for c, n in zip(arrays["foreground"], kept, strict=True))
  return Entry(path, arrays["images"], arrays.get("labels"), foreground, meta)


def _map(path: Path, name: str) -> np.memmap:
  with _OPENING:
    return np.load(path / f"{name}.npy", mmap_mode="r")


def verify_entry(path: str | os.PathLike) -> None:
  """Reads an entry's arrays in full and compares their checksums. UserError if one differs."""
  path = Path(path)
  for name, crc in open_entry(path).meta["crc32"].items():
    start = _map(path, name).offset
    try:  # read, not mapped: what a failing disk cannot give would end the process
      found = zlib.crc32(memoryview((path / f"{name}.npy").read_bytes())[start:])
    except OSError as e:
      raise UserError(f"{path / name}.npy cannot be read: {e.strerror or e}") from e
    if found != crc:
      raise UserError(f"{path / name}.npy is damaged; delete {path} and prepare again")


def entry_key(case: Case, hashes: Mapping[str, str], settings: CacheSettings) -> str:
  """The name of a case's entry: a hash of all that its content depends on."""
  content = {
    "format": FORMAT,
    "case": [case.name, case.patient, case.convention],
    "files": {kind: hashes[kind] for kind in source_files(case)},
    "settings": _content_settings(settings),
  }
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _content_settings(settings: CacheSettings) -> dict:
  """The settings that an entry's content depends on."""
  return {k: v for k, v in asdict(settings).items() if k not in ("require_seg", "sequences")}


def file_hash(path: Path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def build_entry(
  case: Case, cache_dir: Path, settings: CacheSettings, hashes: Mapping[str, str]
) -> tuple[Path | None, list[CaseError]]:
  """The entry of one case, made if it is not there yet; or the findings that prevent it."""
  errors = missing_files(case, settings.sequences, settings.require_seg)
  path = cache_dir / entry_key(case, hashes, settings)
  if not errors and path.exists():
    return path, []
  volumes, found, warnings = read_volumes(case)
  errors += found
  seg = volumes.pop("seg", None)
  arrays, voxels = {}, None
  if seg is not None:
    try:
      classes = labels.to_classes(seg.data, case.label_map[1], seg.step)
    except ValueError as e:
      remedy = "Correct the file, or set data.labels to what this data set's labels mean."
      errors.append(CaseError(case.name, case.seg, str(e), remedy))
  if errors:
    return None, errors
  images = {m: volumes[m] for m in MODALITIES if m in volumes}
  if seg is not None and (odd := check_labels(classes, [x.data for x in images.values()])):
    told = CaseError(case.name, case.seg, odd.text, odd.remedy)
    if odd.severity == "error":
      return None, [told]
    warnings.append(told)
  try:
    own, grid = to_arrays(images, settings.grid, settings.normalise, settings.spacing)
  except ValueError as e:
    return None, [CaseError(case.name, case.folder, str(e), "Correct or replace the files.")]
  arrays["images"] = np.zeros((len(MODALITIES), *grid.shape), own.dtype)
  arrays["images"][[MODALITIES.index(m) for m in images]] = own
  if seg is not None:
    arrays["labels"] = np.ascontiguousarray(grids.to_grid_labels(classes, grid))
    arrays["foreground"] = foreground_voxels(arrays["labels"])
    voxels = np.bincount(arrays["labels"].ravel(), minlength=4).tolist()
  reference = next(iter(images.values()))
  meta = {
    "format": FORMAT,
    "case": case.name,
    "patient": case.patient,
    "convention": case.convention,
    "modalities": MODALITIES,
    "settings": _content_settings(settings),
    "grid": grid.to_json(),
    "spacing_mm": [
      mm * n / m for mm, n, m in zip(reference.voxel_mm, grid.size, grid.shape, strict=True)
    ],
    "native_voxel_mm": reference.voxel_mm,
    "native_affine": reference.affine.tolist(),
    "class_voxels": voxels,
    "content": content_hashes(images),
    "warnings": [[Path(w.file).name, w.finding, w.remedy] for w in warnings],
    "sources": {k: {"name": p.name, "sha256": hashes[k]} for k, p in source_files(case).items()},
    "crc32": {name: zlib.crc32(array.data) for name, array in arrays.items()},
  }
  _write_entry(path, arrays, meta)
  return path, []


def _write_entry(path: Path, arrays: Mapping[str, np.ndarray], meta: dict) -> None:
  """Writes under a temporary name, then renames: an entry is whole or not there."""
  temporary = path.with_name(f"tmp-{socket.gethostname()}-{os.getpid()}-{path.name}")
  try:
    temporary.mkdir()
    for name, array in arrays.items():
      np.save(temporary / f"{name}.npy", array)
    (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
    try:
      os.rename(temporary, path)
    except OSError:
      if not path.exists():  # else another process was faster, with the same content
        raise
  except OSError as e:
    why = e.strerror or f"the disk is full: {e}"  # NumPy's error has no number
    raise UserError(f"cannot write the cache in {path.parent}: {why}") from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
