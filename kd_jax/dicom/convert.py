"""A series as a NIfTI volume: dcm2niix converts, and its result is held against the headers."""

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from kd_jax.data import nifti
from kd_jax.dicom.geometry import Stack
from kd_jax.dicom.packages import needed, unheard
from kd_jax.dicom.series import Header, Series
from kd_jax.runtime.errors import UserError, one_line
from kd_jax.runtime.files import write_bytes

_PIXELS = "PixelData"
_ENCAPSULATED_END = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"  # the sequence delimiter, with its length
_LAST_BYTES = 1 << 16


def read_images(series: Series) -> list[Header]:
  """The whole files of a series, pixels too, in its order.

  Raises:
    UserError: a file that is truncated, or without pixels.
  """
  pydicom = needed("pydicom")
  images = []
  for file in series.files:
    try:
      with unheard():
        image = pydicom.dcmread(file, force=True)
        found = len(image[_PIXELS].value)
        bits = image.BitsAllocated * image.get("SamplesPerPixel", 1)
        expected = image.Rows * image.Columns * bits // 8
        compressed = image.file_meta.TransferSyntaxUID.is_compressed
    except Exception as e:  # pydicom has no common base for what a broken file can raise
      raise UserError(_truncated(series, file)) from e
    if (compressed and not _ends(file)) or (not compressed and found < expected):
      raise UserError(_truncated(series, file))
    images.append(image)
  return images


def _truncated(series: Series, file: Path) -> str:
  return f"{series.name}: {file} is truncated or damaged; copy it again"


def _ends(file: Path) -> bool:
  """Whether compressed pixels, which have no length of their own, come to their end."""
  with file.open("rb") as stream:
    stream.seek(max(0, file.stat().st_size - _LAST_BYTES))
    return _ENCAPSULATED_END in stream.read()


def to_nifti(series: Series, where: Stack, target: Path) -> None:
  """Writes a series as NIfTI, upright (right to left, back to front, feet to head), or nothing.

  Texts of the header are left out: dcm2niix writes times there.

  Args:
    where: of `geometry.stack`; the voxels must lie there.

  Raises:
    UserError: dcm2niix fails, or gives something else than that one volume.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".dicom-", dir=target.parent) as folder:
    images, made = Path(folder, "in"), Path(folder, "out")
    for place in (images, made):
      place.mkdir()
    for i, file in enumerate(series.files):  # under names that say nothing
      _link(file, images / f"{i:06}.dcm")
    _run(series, images, made)
    volumes = sorted(made.glob("*.nii"))
    if len(volumes) != 1:
      raise UserError(
        f"{series.name}: dcm2niix makes {len(volumes)} volumes of it, and one is expected; convert "
        "it yourself and give the NIfTI file that shows the scan"
      )
    image = nib.load(volumes[0])
    _check(series, where, image)
    upright = nib.as_closest_canonical(image)
    header = upright.header
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
      header[field] = b""
    header.extensions.clear()
    upright.set_qform(upright.affine, 1)
    upright.set_sform(upright.affine, 1)
    write_bytes(target, gzip.compress(upright.to_bytes(), 1, mtime=0))


def _link(file: Path, link: Path) -> None:
  try:
    link.symlink_to(file.resolve())
  except OSError:  # a file system without links
    shutil.copyfile(file, link)


def _run(series: Series, images: Path, made: Path) -> None:
  program = needed("dcm2niix").bin
  # No sidecar, no gzip, neither cropped nor turned, the scanner's integers as they are.
  options = ("-g", "i", "-b", "n", "-z", "n", "-x", "i", "-l", "o", "-m", "y", "-f", "scan")
  command = [program, *options, "-o", str(made), str(images)]
  try:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
  except OSError as e:
    raise UserError(f"cannot start dcm2niix ({program}): {e.strerror or e}") from e
  if done.returncode:
    said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
    # Its words name files by the links above, which say nothing of a patient.
    why = one_line(said[-1].replace(str(images), "")) if said else f"status {done.returncode}"
    raise UserError(f"{series.name}: dcm2niix cannot convert it: {why}")


def _check(series: Series, where: Stack, image: Any) -> None:
  """UserError if the volume does not lie where the headers say that the images lie."""
  if sorted(image.shape) != sorted(where.shape):
    raise UserError(
      f"{series.name}: dcm2niix makes a volume of {image.shape} voxels of it, and the headers "
      f"speak of {where.shape}"
    )
  there = _canonical(where.affine, where.shape)
  here = _canonical(image.affine, image.shape)
  if nifti.apart_mm(there[1], there[0], here[0]) > nifti.SAME_SPACE_MM or there[1] != here[1]:
    raise UserError(f"{series.name}: dcm2niix places it elsewhere than its headers do")


def _canonical(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
  """(affine, shape) of the same voxels in RAS order."""
  turn = orientations.io_orientation(affine)
  order = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
  return affine @ orientations.inv_ornt_aff(turn, shape), tuple(shape[axis] for axis in order)
