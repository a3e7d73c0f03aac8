"""NIfTI files in and out, always seen in the axes of the BraTS files.

BraTS arrays run right to left, front to back, feet to head ("LPS": index increases towards the
patient's left, posterior, superior). Everything in the project works on arrays in these axes; a
file that is stored otherwise is turned on reading and turned back on writing.

A file is not trusted: its header is judged before a voxel is read, and no more is read (or
decompressed) than the header promises. Reading takes at most the bytes that a voxel has in the file
and four more a voxel (for scaled and double ones), and MAX_VOXELS bounds the voxels: 3 GiB.
"""

import gzip
import io
import logging
import math
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
from nibabel import orientations

from kd_jax.data.walk import dead_link
from kd_jax.runtime.files import write_bytes

MAX_VOXELS = 2**28  # 645 a side: thirty times a BraTS scan
VOXEL_MM = (1e-3, 1e3)  # edges beyond these are no measurement of anything
# Two headers of one space may differ by this much: affines written with 4 decimals or as float32
# quaternions are off by up to 0.02 mm at a brain's far corner. The networks' voxels have 1 mm.
SAME_SPACE_MM = 0.1
_MAX_EXTENSIONS = 1 << 24  # bytes between header and voxels
_SLACK = 1 << 20  # bytes after the voxels that are borne: padding, some tool's appendix
_PIECE = 1 << 20  # bytes read in one go
_SLAB = 1 << 17  # voxels scaled in one go

# How files begin that stand for content which was not fetched.
_POINTERS = {
  b"vers": "a Git LFS pointer: run git lfs pull",
  b"/ann": "a git-annex pointer: run git annex get",
}
# What nibabel mends in a header goes to standard error otherwise, in every process.
_UNHEARD = logging.Logger("nibabel", logging.CRITICAL + 1)
_LPS = orientations.axcodes2ornt(("L", "P", "S"))
_Part = TypeVar("_Part")  # what is taken of a file


@dataclass(frozen=True)
class Volume:
  """A scan in LPS axes, with what is needed to write another one like it.

  Attributes:
    data: (D, H, W), increasing towards left, posterior, superior; the file's own type where it
      has no scaling, else float32.
    affine: (4, 4) float64, from data's indices to mm (RAS+, as NIfTI has it).
    header: the file's own header.
    file_shape: the shape in the file, with its trailing 1s.
    file_orientation: (3, 2), the orientation of the file's array (nibabel.orientations).
  """

  data: np.ndarray
  affine: np.ndarray
  header: nib.Nifti1Header
  file_shape: tuple[int, ...]
  file_orientation: np.ndarray

  @property
  def voxel_mm(self) -> tuple[float, float, float]:
    """Edge lengths of a voxel in mm, along data's axes."""
    d, h, w = (float(mm) for mm in np.linalg.norm(self.affine[:3, :3], axis=0))
    return d, h, w

  @property
  def step(self) -> float:
    """The least difference of two voxels where the file scales integers to less than 1; else 0."""
    slope = abs(self.header.get_slope_inter()[0] or 0.0)
    return slope if slope < 1 and self.header.get_data_dtype().kind in "iu" else 0.0


def apart_mm(shape: Sequence[int], one: np.ndarray, other: np.ndarray) -> float:
  """How far apart two affines (4, 4) place a corner of a volume, at most, in mm.

  Voxel sizes and angles that differ count by what they move; SAME_SPACE_MM is rounding.
  """
  corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)  # (8, 3)
  difference = one - other
  apart = corners @ difference[:3, :3].T + difference[:3, 3]
  return float(np.linalg.norm(apart, axis=1).max())


def read(path: str | os.PathLike) -> Volume:
  """Reads a .nii or .nii.gz file. ValueError, in plain words, if it cannot be used."""
  return _opened(path, _volume)


def read_place(path: str | os.PathLike) -> tuple[tuple[int, ...], np.ndarray]:
  """(shape, affine (4, 4)) as a file's header has them, not turned. ValueError as `read`."""
  header, affine = _opened(path, _header)
  return header.get_data_shape(), affine


def _opened(path: str | os.PathLike, take: Callable[[io.BufferedIOBase], _Part]) -> _Part:
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device may never end
      raise ValueError("it is no regular file")
    with open(path, "rb") as file:
      return _decode(file, take)
  except OSError as e:
    dead = dead_link(path)  # unfetched content, a disk that is not mounted
    why = f"it is {dead[0]}" if dead else e.strerror or e
    raise ValueError(f"cannot be read: {why}") from e


def decode(blob: bytes) -> Volume:
  """The volume in a file's bytes, gzipped or not. ValueError if it cannot be used."""
  return _decode(io.BytesIO(blob), _volume)


def _decode(file: io.BufferedIOBase, take: Callable[[io.BufferedIOBase], _Part]) -> _Part:
  start = file.read(2)
  if not start:
    raise ValueError("the file is empty")
  file.seek(0)
  try:
    return take(gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file)
  except (EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise ValueError(f"truncated or damaged gzip data ({e})") from e
  except MemoryError as e:
    raise ValueError("it needs more memory than there is") from e


def _volume(file: io.BufferedIOBase) -> Volume:
  header, affine = _header(file)
  shape = header.get_data_shape()
  stored = np.empty(math.prod(shape), header.get_data_dtype())
  found = _fill(file, stored)
  if found < stored.nbytes:
    raise ValueError(f"truncated: the header promises {shape} voxels, {found} bytes of them follow")
  # Only reading to the end checks gzip's checksum; a stream that goes on is not followed there.
  if _fill(file, np.empty(_SLACK + 1, np.uint8)) > _SLACK:
    raise ValueError(f"it goes on beyond the {shape} voxels that its header promises")
  data = _scaled(stored, header).reshape(shape[:3], order="F")  # (i, j, k), without trailing 1s

  orientation = orientations.io_orientation(affine)
  turn = orientations.ornt_transform(orientation, _LPS)
  return Volume(
    data=orientations.apply_orientation(data, turn),  # (D, H, W), a view
    affine=affine @ orientations.inv_ornt_aff(turn, shape[:3]),
    header=header,
    file_shape=shape,
    file_orientation=orientation,
  )


def write_like(path: str | os.PathLike, data: np.ndarray, reference: Volume) -> None:
  """Writes data beside the scan it belongs to; the file appears complete or not at all.

  Args and errors: as `encode_like`. UserError if it cannot be written.
  """
  path = Path(path)
  write_bytes(path, encode_like(path.name, data, reference))


def encode_like(file_name: str, data: np.ndarray, reference: Volume) -> bytes:
  """A file like the scan's: same orientation, shape, affine, codes and units.

  Args:
    file_name: of the file to be: .nii.gz (the same data gives the same bytes) or .nii.
    data: (D, H, W) in LPS axes, of reference.data's shape; integers 0..255 or booleans are
      written as uint8, floats as float32.
    reference: the scan.

  Raises:
    ValueError: another shape, or integers that do not fit uint8.
  """
  if data.shape != reference.data.shape:
    raise ValueError(f"data has shape {data.shape}, the reference {reference.data.shape}")
  if np.issubdtype(data.dtype, np.floating):
    data = data.astype(np.float32)
  elif data.dtype != np.uint8:
    if data.min() < 0 or data.max() > 255:
      raise ValueError(f"integers {data.min()}..{data.max()} do not fit uint8")
    data = data.astype(np.uint8)
  back = orientations.ornt_transform(_LPS, reference.file_orientation)
  data = orientations.apply_orientation(data, back).reshape(reference.file_shape)

  header = reference.header.copy()
  header.set_data_dtype(data.dtype)
  header.set_slope_inter(1, 0)
  header["cal_min"] = header["cal_max"] = 0  # the display range was the scan's, not this data's
  kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
  raw = kind(data, None, header).to_bytes()  # affine None: qform, sform and codes stay untouched
  return gzip.compress(raw, compresslevel=6, mtime=0) if file_name.endswith(".gz") else raw


def _header(file: io.BufferedIOBase) -> tuple[nib.Nifti1Header, np.ndarray]:
  """The header and the affine of a volume that can be read; the file is left at its voxels."""
  size = file.read(4)
  if size in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):  # 348, either byte order
    kind = nib.Nifti1Header
  elif size in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):  # 540
    kind = nib.Nifti2Header
  else:
    pointer = _POINTERS.get(size)
    raise ValueError(f"not a NIfTI file, but {pointer}" if pointer else "not a NIfTI file")
  try:
    fixed = size + file.read(kind.template_dtype.itemsize - 4)
    as_stored = kind(fixed, check=False)
    offset = int(as_stored["vox_offset"])
    if offset > _MAX_EXTENSIONS:
      raise ValueError(f"its voxels are said to begin at byte {offset}")
    start = fixed + file.read(max(offset - len(fixed), 0))
    header = kind.from_fileobj(io.BytesIO(start), check=False)
    header.check_fix(logger=_UNHEARD)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    affine = header.get_best_affine()
    header.get_slope_inter()
  except (EOFError, zlib.error, gzip.BadGzipFile):
    raise
  except Exception as e:  # nibabel has no common base for what a broken header can raise
    raise ValueError(f"not a readable NIfTI header ({e})") from e

  if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
    raise ValueError(f"expected a 3-D volume, found shape {shape}")
  if math.prod(shape) > MAX_VOXELS:
    raise ValueError(f"its shape {shape} is more than the {MAX_VOXELS:,} voxels that are read")
  if dtype.kind not in "iuf" or dtype.itemsize > 8:
    raise ValueError(f"expected numbers, found voxels of type {dtype}")
  if np.isinf(as_stored["scl_slope"]):
    raise ValueError("the header's scale (scl_slope) is infinite")
  _check_affine(affine)
  # What nibabel mends in silence would be a guess here: no voxel size is taken for 1 mm, and no
  # form of a position that is not known is passed over for the next one.
  for field in ("qform_code", "sform_code"):
    if as_stored[field] != header[field]:
      raise ValueError(f"the header's {field} is {as_stored[field]}, which NIfTI does not define")
  edges = as_stored["pixdim"][1:4]
  if header["sform_code"] == 0 and not (np.isfinite(edges) & (edges > 0)).all():
    raise ValueError(f"the header's voxel size (pixdim) is {' x '.join(map(str, edges))} mm")
  return header, affine


def _check_affine(affine: np.ndarray) -> None:
  unusable = ValueError("the header has no usable affine (zero or not finite)")
  if not np.isfinite(affine).all():
    raise unusable
  edges = np.linalg.norm(affine[:3, :3], axis=0)
  if not edges.all():
    raise unusable
  if edges.min() < VOXEL_MM[0] or edges.max() > VOXEL_MM[1]:
    raise ValueError(f"the header's voxels are {' x '.join(f'{mm:.3g}' for mm in edges)} mm")
  # Of unit columns, the determinant is the volume that they span: 0 where they lie in a plane.
  if abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-3:
    raise unusable


def _fill(file: io.BufferedIOBase, array: np.ndarray) -> int:
  """Reads into an array until it is full or the file ends; returns the bytes read."""
  view, done = array.data.cast("B"), 0
  # Piece by piece: zlib inflates as much of its input as the piece can take, a thousandfold.
  while done < len(view) and (count := file.readinto(view[done : done + _PIECE])):
    done += count
  return done


def _scaled(stored: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
  """(n,) voxels, in native byte order, scaled if the header says so: if not, integers keep their
  type, else float32."""
  if not stored.dtype.isnative:
    stored = stored.byteswap(inplace=True).view(stored.dtype.newbyteorder("="))
  slope, inter = (1, 0) if (both := header.get_slope_inter())[0] is None else both
  if (slope, inter) == (1, 0):
    with np.errstate(over="ignore"):  # becomes infinite; the checks of values report it
      return stored.astype(np.float32, copy=False) if stored.dtype.kind == "f" else stored
  scaled = np.empty(stored.shape, np.float32)
  with np.errstate(all="ignore"):
    for i in range(0, len(stored), _SLAB):
      scaled[i : i + _SLAB] = stored[i : i + _SLAB].astype(np.float64) * slope + inter
  return scaled
