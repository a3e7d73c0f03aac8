"""NIfTI files in and out, always seen in the axes of the BraTS files.

BraTS arrays run right to left, front to back, feet to head ("LPS": index increases towards the
patient's left, posterior, superior). Everything in the project works on arrays in these axes; a
file that is stored otherwise is turned on reading and turned back on writing.
"""

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from kd_jax.storage import write_bytes

_LPS = orientations.axcodes2ornt(("L", "P", "S"))


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
    return tuple(float(mm) for mm in np.linalg.norm(self.affine[:3, :3], axis=0))


def read(path: str | os.PathLike) -> Volume:
  """Reads a .nii or .nii.gz file. ValueError, in plain words, if it cannot be used."""
  try:
    blob = Path(path).read_bytes()
  except OSError as e:
    raise ValueError(f"cannot be read: {e.strerror or e}") from e
  return decode(blob)


def decode(blob: bytes) -> Volume:
  """The volume in a file's bytes, gzipped or not. ValueError if it cannot be used."""
  # All bytes at once: only reading to the end checks gzip's checksum, and nothing is faster.
  if not blob:
    raise ValueError("the file is empty")
  try:
    raw = gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob
  except (EOFError, zlib.error, gzip.BadGzipFile) as e:
    raise ValueError(f"truncated or damaged gzip data ({e})") from e
  image = _parse(raw)

  shape = image.shape
  if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
    raise ValueError(f"expected a 3-D volume, found shape {shape}")
  if image.get_data_dtype().kind not in "iuf":
    raise ValueError(f"expected numbers, found voxels of type {image.get_data_dtype()}")
  if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
    raise ValueError("the header has no usable affine (zero or not finite)")
  data = _voxels(image).reshape(shape[:3], order="F")  # (i, j, k), without trailing 1s

  orientation = orientations.io_orientation(image.affine)
  turn = orientations.ornt_transform(orientation, _LPS)
  return Volume(
    data=orientations.apply_orientation(data, turn),  # (D, H, W), a view
    affine=image.affine @ orientations.inv_ornt_aff(turn, shape[:3]),
    header=image.header,
    file_shape=shape,
    file_orientation=orientation,
  )


def write_like(path: str | os.PathLike, data: np.ndarray, reference: Volume) -> None:
  """Writes data beside the scan it belongs to: same orientation, shape, affine, codes and units.

  Args:
    path: .nii.gz (the same data gives the same bytes) or .nii. Appears complete or not at all.
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

  path = Path(path)
  if path.name.endswith(".gz"):
    raw = gzip.compress(raw, compresslevel=6, mtime=0)
  write_bytes(path, raw)


def _parse(raw: bytes) -> nib.Nifti1Image:
  size = raw[:4]
  if size in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c"):  # 348, either byte order
    kind = nib.Nifti1Image
  elif size in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):  # 540
    kind = nib.Nifti2Image
  else:
    raise ValueError("not a NIfTI file")
  try:
    return kind.from_bytes(raw)
  except Exception as e:  # nibabel has no common base for what a broken header can raise
    raise ValueError(f"not a readable NIfTI header ({e})") from e


def _voxels(image: nib.Nifti1Image) -> np.ndarray:
  """The voxels, scaled if the header says so: unscaled ones keep their type (no float64 detour)."""
  try:
    data = np.asanyarray(image.dataobj)
  except Exception as e:  # fewer bytes than the header promises
    raise ValueError(f"truncated: the header promises {image.shape} voxels ({e})") from e
  if data.dtype.kind == "f":
    return data.astype(np.float32, copy=False)
  return data.astype(data.dtype.newbyteorder("="), copy=False)
