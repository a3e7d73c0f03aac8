"""Hostile scans: whatever a file's bytes say, a volume or a ValueError, within a memory bound."""

import gzip
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import AFFINE

from kd_jax.data import nifti

# KD_JAX_FUZZ=20 tries twenty times as many, other ones each time.
MORE = int(os.environ.get("KD_JAX_FUZZ", "0"))
SHAPE = (6, 5, 4)

pytestmark = pytest.mark.filterwarnings("error")  # numpy's warnings are what nobody reads


def tries(examples: int):
  return settings(
    max_examples=examples * max(MORE, 1), derandomize=not MORE, deadline=None, database=None
  )


def image_bytes(kind=nib.Nifti1Image, dtype="i2", shape=SHAPE) -> bytes:
  data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
  image = kind(data, AFFINE, dtype=dtype)
  image.set_qform(AFFINE, 1)
  image.set_sform(AFFINE, 1)
  return image.to_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
  return tmp_path_factory.mktemp("masks")


def field(raw: bytes, name: str, value, kind=nib.Nifti1Header) -> bytes:
  """A file with one header field set, whatever that does to it."""
  size = kind.template_dtype.itemsize
  header = np.frombuffer(raw[:size], kind.template_dtype).copy()
  with np.errstate(all="ignore"):
    header[0][name] = value
  return header.tobytes() + raw[size:]


def outcome(blob: bytes, folder: Path) -> nifti.Volume | None:
  """The volume, checked to be one that masks can be written for; None for a ValueError."""
  try:
    volume = nifti.decode(blob)
  except ValueError as e:
    assert str(e).strip()
    return None
  assert volume.data.ndim == 3 and volume.data.size > 0
  assert volume.data.dtype.kind in "iuf" and volume.data.dtype.isnative
  assert volume.affine.shape == (4, 4) and np.isfinite(volume.affine).all()
  assert all(0 < mm < np.inf for mm in volume.voxel_mm)
  nifti.write_like(folder / "mask.nii", np.ones(volume.data.shape, np.uint8), volume)
  again = nifti.read(folder / "mask.nii")
  assert (again.data == 1).all()
  np.testing.assert_array_equal(again.affine, volume.affine)
  return volume


def integers(dtype: np.dtype) -> st.SearchStrategy[int]:
  low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
  numbers = [-32768, -1, 0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 1792, 32767, 2**62]
  return st.sampled_from([min(max(number, low), high) for number in numbers])


FLOATS = st.sampled_from(
  [0.0, -1.0, 1.0, 1e-40, -1e-9, 1e30, 3e38, np.inf, -np.inf, np.nan, 351.0, 353.0, 2.0**31]
)


@st.composite
def mutated_headers(draw) -> bytes:
  kind = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
  header = kind.header_class
  raw = image_bytes(kind, draw(st.sampled_from(["u1", "i2", "f4", "f8"])))
  names = [name for name in header.template_dtype.names if name != "sizeof_hdr"]
  for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
    of = header.template_dtype[name]
    value = np.frombuffer(raw[: header.template_dtype.itemsize], header.template_dtype)[0][name]
    if of.base.kind == "S":
      value = draw(st.binary(max_size=of.itemsize))
    else:
      pick = FLOATS if of.base.kind == "f" else integers(of.base)
      value = np.array(value)  # of shape () or (n,): all of it or one number of several
      where = draw(st.sampled_from([..., *range(value.size)])) if value.ndim else ...
      with np.errstate(all="ignore"):
        value[where] = draw(pick)
    raw = field(raw, name, value, header)
  return gzip.compress(raw, 1, mtime=0) if draw(st.booleans()) else raw


@given(mutated_headers())
@tries(150)
def test_mutated_headers(folder, blob):
  outcome(blob, folder)


@given(st.data())
@tries(150)
def test_mutated_bytes(folder, data):
  raw = bytearray(image_bytes(dtype=data.draw(st.sampled_from(["i2", "f4"]))))
  packed = data.draw(st.booleans())
  blob = bytearray(gzip.compress(bytes(raw), 1, mtime=0)) if packed else raw
  for _ in range(data.draw(st.integers(1, 4))):
    end = len(blob) if packed else 360
    at = data.draw(st.integers(0, max(end - 1, 0)))
    what = data.draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
    if what == "set":
      blob[at : at + 1] = data.draw(st.binary(min_size=1, max_size=4))
    elif what == "cut":
      del blob[at:]
    elif what == "insert":
      blob[at:at] = data.draw(st.binary(max_size=40))
    else:
      blob += blob[: data.draw(st.integers(0, 64))]
  outcome(bytes(blob), folder)


@given(
  st.binary(max_size=800), st.sampled_from([b"", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1f\x8b"])
)
@tries(100)
def test_noise(folder, noise, start):
  outcome(start + noise, folder)


@given(st.integers(1, 3), st.booleans(), st.sampled_from(["u1", "i2", ">i2", "i4", "f4", "f8"]))
@tries(30)
def test_scaling_is_nibabel_s(slope, negative, dtype):
  """Slab by slab, in float64, as nibabel does it all at once."""
  header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
  data = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
  header.set_data_dtype(dtype)
  raw = bytearray(nib.Nifti1Image(data, AFFINE, header).to_bytes())
  scale = np.array([slope / 7, -3.3 if negative else 0])
  raw[112:120] = scale.astype(">f4" if dtype[0] == ">" else "<f4").tobytes()
  expected = nib.Nifti1Image.from_bytes(bytes(raw)).get_fdata().astype(np.float32)
  np.testing.assert_array_equal(nifti.decode(bytes(raw)).data, expected)


# One by one: what is said


def cases():
  raw = image_bytes()

  def qform_only(*edges):
    return field(field(raw, "sform_code", 0), "pixdim", [1, *edges, 0, 0, 0, 0])

  large = [3, 32767, 32767, 32767, 1, 1, 1, 1]
  return [
    (field(raw, "dim", large), r"32767.* is more than the 268,435,456 voxels"),
    (gzip.compress(field(raw, "dim", large)), "more than the"),
    (field(raw, "dim", [3, 640, 640, 640, 1, 1, 1, 1]), "truncated: the header promises"),
    (field(raw, "dim", [3, 1024, 1024, 256, 1, 1, 1, 1]), "truncated: the header promises"),
    (field(raw, "dim", [3, 1024, 1024, 257, 1, 1, 1, 1]), "more than the 268,435,456 voxels"),
    (field(raw, "dim", [3, -6, -5, 4, 1, 1, 1, 1]), "3-D volume"),
    (field(raw, "dim", [3, 0, 5, 4, 1, 1, 1, 1]), "3-D volume"),
    (field(raw, "dim", [0] * 8), "3-D volume"),
    (field(raw, "dim", [7, 6, 5, 4, 1, 1, 2, 1]), "3-D volume"),
    (field(raw, "datatype", 32), "expected numbers, found voxels of type complex"),
    (field(raw, "datatype", 1536), "expected numbers|not supported"),
    (field(raw, "datatype", 77), "not a readable NIfTI header"),
    (field(raw, "scl_slope", np.inf), "scl_slope"),
    (field(field(raw, "scl_slope", 2), "scl_inter", np.nan), "not a readable NIfTI header"),
    (field(raw, "srow_x", [np.nan, 0, 0, 0]), "no usable affine"),
    (field(raw, "srow_x", [np.inf, 0, 0, 0]), "no usable affine"),
    (field(raw, "srow_y", [-1, 0, 0, 0]), "no usable affine"),  # two axes are one
    (field(raw, "srow_z", [0, 0, 1e30, 0]), r"voxels are 1 x 1 x 1e\+30 mm"),
    (field(raw, "srow_z", [0, 0, 1e-4, 0]), r"voxels are 1 x 1 x 0.0001 mm"),
    (field(raw, "vox_offset", 2**25), "begin at byte 33554432"),
    (field(raw, "vox_offset", 1e30), "not a readable NIfTI header"),
    (field(raw, "vox_offset", np.nan), "not a readable NIfTI header"),
    (field(raw, "vox_offset", 10), "not a readable NIfTI header"),
    (qform_only(0, 1, 1), r"pixdim\) is 0.0 x 1.0 x 1.0 mm"),
    (qform_only(1, -1, 1), "pixdim"),
    (qform_only(1, 1, np.nan), "no usable affine"),
    (gzip.compress(raw + bytes(1 << 21)), "goes on beyond"),
    (raw + bytes((1 << 20) + 1), "goes on beyond"),
    (gzip.compress(raw)[:-9], "truncated or damaged gzip"),
    (gzip.compress(raw) + b"and more", "truncated or damaged gzip"),
    (gzip.compress(gzip.compress(raw)), "not a NIfTI file"),
  ]


@pytest.mark.parametrize(("content", "message"), cases())
def test_what_is_wrong_is_said(content, message):
  with pytest.raises(ValueError, match=message):
    nifti.decode(content)


def test_what_is_odd_and_still_right():
  """A pixdim of 0 beside an sform, no scale (NaN), several gzip members, zeros at the end."""
  raw = image_bytes()
  plain = nifti.decode(raw)
  members = b"".join(gzip.compress(raw[i : i + 100]) for i in range(0, len(raw), 100))
  no_size = field(field(raw, "pixdim", [0] * 8), "qform_code", 0)
  padded = (gzip.compress(raw) + bytes(512), raw + bytes(1 << 20))  # 1 MiB, and not a byte more
  for odd in (field(raw, "scl_slope", np.nan), members, no_size, *padded):
    np.testing.assert_array_equal(nifti.decode(odd).data, plain.data)
    np.testing.assert_array_equal(nifti.decode(odd).affine, plain.affine)


def odd_places(tmp_path: Path):
  (tmp_path / "folder.nii.gz").mkdir()
  os.mkfifo(tmp_path / "pipe.nii.gz")
  (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
  (tmp_path / "nowhere.nii.gz").symlink_to("absent")
  (tmp_path / "endless.nii.gz").symlink_to("/dev/zero")
  (tmp_path / "empty.nii.gz").touch()
  places = [path.name for path in tmp_path.iterdir()]
  return [*places, "x" * 300 + ".nii.gz", "a\0b.nii.gz", "empty.nii.gz/x.nii.gz"]


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
  for name in odd_places(tmp_path):
    with pytest.raises(ValueError) as e:
      nifti.read(tmp_path / name)
    assert str(e.value)


BOMBS = """
  import gzip, re, resource
  from pathlib import Path
  import test_nifti_fuzz as t
  from kd_jax.data import nifti

  def mib(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", status)[1]) / 1024

  def read(label, blob, message, most):
    Path("bomb").write_bytes(blob)
    del blob
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = mib("VmRSS")
    try:
      nifti.read("bomb")
      said = "read"
    except ValueError as e:
      said = str(e)
    took = mib("VmHWM") - before
    print(f"{label}: {took:.1f} MiB, {said}")
    assert message in said, said
    assert took <= most, took

  raw, zeros = t.image_bytes(), gzip.compress(bytes(1 << 24))
  largest = t.field(t.field(raw, "dim", [3, 1024, 1024, 256, 1, 1, 1, 1]), "datatype", 64)
  fits = t.field(t.field(raw, "dim", [3, 256, 256, 256, 1, 1, 1, 1]), "scl_slope", 2)
  read("small", raw, "read", 8)
  read("2 GiB of zeros", gzip.compress(raw) + 128 * zeros, "goes on", 4)
  read("a huge promise", gzip.compress(t.field(raw, "dim", [3] + 7 * [32767])), "more than", 4)
  read("a promise of 2 GiB not kept", gzip.compress(largest), "truncated", 4)
  read("extensions", gzip.compress(t.field(raw, "vox_offset", 2**30)) + 64 * zeros, "begin", 4)
  read("96 MiB, as promised", gzip.compress(fits) + 2 * zeros, "read", 96 + 12)
  resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
  read("more than there is", largest, "more memory than there is", 4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells the peak")
def test_a_bomb_takes_no_more_memory_than_its_header_promises(tmp_path):
  places = os.pathsep.join(map(os.path.abspath, sys.path))
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(BOMBS)],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": places},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("MiB") >= 7
