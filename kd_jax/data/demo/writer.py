"""A demonstration data set in true BraTS form, written from simulated subjects (phantom.py)."""

import contextlib
import gzip
import multiprocessing
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np

from kd_jax.data.demo.phantom import SEQUENCES, load_atlas, make_subject
from kd_jax.runtime import child_processes
from kd_jax.runtime.errors import UserError

LICENSE = """\
The images in this folder are synthetic. They are derived from the SRI24 atlas and are licensed, as
the atlas is, under Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0),
https://creativecommons.org/licenses/by-sa/3.0/

T. Rohlfing, N. M. Zahr, E. V. Sullivan, A. Pfefferbaum, "The SRI24 multichannel atlas of normal
adult human brain structure", Human Brain Mapping 31(5):798-819, 2010.

Changes: deformation, simulated tumours and simulated acquisition. Keep this notice with the images.
"""


def _name(index: int) -> str:
  return f"Demo_{index:05d}"


def _description(seed: int, index: int) -> bytes:
  return f"kd_jax demo 2, seed {seed}, index {index}".encode()  # 2: the generator's version


def _write(path: Path, volume: np.ndarray, seed: int, index: int) -> None:
  image = nib.Nifti1Image(volume, load_atlas().affine)
  image.header.set_xyzt_units("mm")
  image.set_qform(load_atlas().affine, 1)
  image.set_sform(load_atlas().affine, 1)
  image.header["descrip"] = _description(seed, index)
  # No name and no time in the gzip header: the same subject gives the same bytes.
  with open(path, "wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
    file.write(image.to_bytes())


def _complete(folder: Path, seed: int, index: int) -> bool:
  """Whether the case lies there with all its files; an error where it is that of another seed."""
  voxels = int(np.prod(load_atlas().grid))
  try:
    for name in (*SEQUENCES, "seg"):
      with open(folder / f"{folder.name}_{name}.nii.gz", "rb") as file:
        file.seek(-4, os.SEEK_END)  # a gzip file ends with its content's size
        if int.from_bytes(file.read(4), "little") != 352 + voxels * (1 if name == "seg" else 2):
          return False
    with gzip.open(folder / f"{folder.name}_seg.nii.gz") as file:
      found = nib.Nifti1Header.from_fileobj(file)["descrip"].item()
  except (OSError, EOFError, ValueError, zlib.error, nib.spatialimages.HeaderDataError):
    return False
  if found != _description(seed, index):
    raise UserError(
      f"{folder} holds another demonstration case ({found.decode(errors='replace')}); "
      "choose another folder or delete this one"
    )
  return True


def write_case(root: Path, seed: int, index: int) -> Path:
  """Writes one case and returns its folder; leaves a complete one as it is.

  The files are written beside the folder under a hidden name and moved into place when complete.

  Args:
    root: the data set's folder; made where missing.
    seed, index: as for `make_subject`.
  """
  folder = Path(root) / _name(index)
  if _complete(folder, seed, index):
    return folder
  partial = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
  try:
    partial.mkdir(parents=True)
    subject = make_subject(seed, index)
    for name, volume in (*subject.images.items(), ("seg", subject.labels)):
      _write(partial / f"{folder.name}_{name}.nii.gz", volume, seed, index)
    if folder.exists() and not _complete(folder, seed, index):
      shutil.rmtree(folder)
    partial.rename(folder)
  except OSError as error:
    if _complete(folder, seed, index):
      return folder  # another process was quicker
    raise UserError(f"cannot write the demonstration case {folder}: {error}") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return folder


def write_dataset(
  root: Path,
  cases: int,
  seed: int = 0,
  workers: int | None = None,
  progress: Callable[[int, int], None] | None = None,
  *,
  first: int = 0,
) -> list[Path]:
  """Writes cases first .. first + cases - 1 and LICENSE.txt; complete cases are left as they are.

  Args:
    root: the data set's folder; made where missing.
    cases: how many, at least 1.
    seed: at least 0.
    workers: processes; None takes one for each processor.
    progress: called as progress(done, total) after each case that is written.
    first: index of the first case, at least 0; other cases of the same seed for another purpose.
  Returns:
    the case folders in order.
  """
  root = Path(root)
  for what, value, least in (
    ("cases", cases, 1),
    ("seed", seed, 0),
    ("workers", workers, 1),
    ("first", first, 0),
  ):
    if value is not None and value < least:
      raise UserError(f"{what} must be at least {least}, got {value}")
  try:
    root.mkdir(parents=True, exist_ok=True)
    (root / "LICENSE.txt").write_text(LICENSE, encoding="utf-8")
    for left in root.glob(".Demo_*.tmp"):  # of runs that were killed
      if time.time() - left.stat().st_mtime > 3600:
        shutil.rmtree(left, ignore_errors=True)
  except OSError as error:
    raise UserError(f"cannot write the demonstration data set in {root}: {error}") from error
  indices = range(first, first + cases)
  folders = [root / _name(index) for index in indices]
  missing = [
    i for i, folder in zip(indices, folders, strict=True) if not _complete(folder, seed, i)
  ]
  processors = os.cpu_count() or 1
  if hasattr(os, "sched_getaffinity"):  # a container or a batch system may grant fewer
    processors = len(os.sched_getaffinity(0))
  workers = min(len(missing), workers or processors)
  children: set[multiprocessing.process.BaseProcess] = set()
  with contextlib.ExitStack() as stack:
    if workers > 1:
      child_processes.refuse_second_run()
      others = set(multiprocessing.active_children())
      # Spawned, not forked: a fork of a process that runs JAX's threads can deadlock.
      context = multiprocessing.get_context("spawn")
      pool = stack.enter_context(
        ProcessPoolExecutor(workers, context, initializer=child_processes.end_with_parent)
      )
      stack.callback(pool.shutdown, cancel_futures=True)
      with child_processes.importable_main(), child_processes.without_ctrl_c():
        jobs = [pool.submit(write_case, root, seed, index) for index in missing]
      children = set(multiprocessing.active_children()) - others
      results = (job.result() for job in as_completed(jobs))
    else:
      results = (write_case(root, seed, index) for index in missing)
    try:
      for done, _ in enumerate(results, cases - len(missing) + 1):
        if progress:
          progress(done, cases)
    except BrokenProcessPool as error:
      stack.close()  # until then not all have a status
      if any(child.exitcode == child_processes.STARTED_AGAIN for child in children):
        one = "write the cases with one process (data.prepare_workers=1)"
        raise UserError(child_processes.unguarded(one)) from error
      raise UserError(
        f"a process that writes demonstration cases died ({error}), most often for lack of memory; "
        "use fewer workers and run again: complete cases are kept"
      ) from error
  return folders
