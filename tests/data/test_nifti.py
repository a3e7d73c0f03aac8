"""Reading in LPS axes, and writing back as the file was."""

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from synthetic import AFFINE, SHAPE, brats_root, images, write

from kd_jax.data import nifti
from kd_jax.data.cases import find_cases

ORIENTATIONS = [
  "".join(codes)
  for axes in itertools.permutations(("LR", "PA", "SI"))
  for codes in itertools.product(*axes)
]


def stored_as(orientation: str, data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
  """The image of an LPS array, stored in another orientation."""
  turn = nib.orientations.ornt_transform(
    nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt(orientation)
  )
  return nib.Nifti1Image(data, affine).as_reoriented(turn)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_orientation_reads_alike_and_goes_back(tmp_path, orientation):
  data = images()["t1"]
  affine = np.diag([1.0, 0.9, 1.3, 1.0]) @ AFFINE
  image = stored_as(orientation, data, affine)
  nib.save(image, tmp_path / "a.nii.gz")
  volume = nifti.read(tmp_path / "a.nii.gz")
  np.testing.assert_array_equal(volume.data, data)
  np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
  np.testing.assert_allclose(volume.voxel_mm, (1, 0.9, 1.3), atol=1e-6)

  nifti.write_like(tmp_path / "b.nii.gz", volume.data.astype(np.float32), volume)
  again = nib.load(tmp_path / "b.nii.gz")
  assert "".join(nib.aff2axcodes(again.affine)) == orientation
  np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(image.dataobj))
  np.testing.assert_array_equal(again.affine, nib.load(tmp_path / "a.nii.gz").affine)


def test_brats_arrays_are_not_touched(tmp_path):
  data = images()["t1"]
  volume = nifti.read(write(tmp_path / "a.nii", data))
  assert volume.data.dtype == np.int16
  np.testing.assert_array_equal(volume.data, data)
  np.testing.assert_array_equal(volume.affine, AFFINE)


def test_oblique_keeps_the_nearest_axes(tmp_path):
  c, s = np.cos(0.3), np.sin(0.3)
  oblique = np.eye(4)
  oblique[:2, :2] = [[c, -s], [s, c]]
  data = images()["t1"]
  volume = nifti.read(write(tmp_path / "a.nii.gz", data, oblique @ AFFINE))
  np.testing.assert_array_equal(volume.data, data)
  np.testing.assert_allclose(volume.affine, oblique @ AFFINE, atol=1e-5)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 1), (0, 0)])
def test_header_survives_writing(tmp_path, codes):
  image = nib.Nifti1Image(images()["t1"], AFFINE)
  image.set_qform(AFFINE, codes[0])
  image.set_sform(AFFINE, codes[1])
  image.header.set_xyzt_units("mm", "sec")
  image.header["cal_min"], image.header["cal_max"] = 5, 900  # how to show the scan, not the mask
  nib.save(image, tmp_path / "a.nii.gz")
  volume = nifti.read(tmp_path / "a.nii.gz")
  nifti.write_like(tmp_path / "b.nii.gz", np.ones(SHAPE, bool), volume)
  a, b = (nib.load(tmp_path / f"{n}.nii.gz").header for n in "ab")
  names = "qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z "
  for field in (names + "srow_x srow_y srow_z pixdim xyzt_units dim").split():
    np.testing.assert_array_equal(a[field], b[field], err_msg=field)
  assert b.get_data_dtype() == np.uint8
  assert b["cal_min"] == b["cal_max"] == 0


@pytest.mark.parametrize(
  ("data", "stored", "back"),
  [
    (np.full(SHAPE, True), np.uint8, 1),
    (np.full(SHAPE, 4, np.int64), np.uint8, 4),
    (np.resize([0, 255], SHAPE).astype(np.int16), np.uint8, np.resize([0, 255], SHAPE)),
    (np.full(SHAPE, 0.25, np.float64), np.float32, 0.25),
    (np.full(SHAPE, 0.5, np.float16), np.float32, 0.5),
  ],
)
def test_written_types(tmp_path, data, stored, back):
  scaled = nib.Nifti1Image(np.full(SHAPE, 3.7), AFFINE)
  scaled.set_data_dtype(np.int16)  # with a scl_slope, which must not stay in the header
  nib.save(scaled, tmp_path / "a.nii")
  nifti.write_like(tmp_path / "b.nii", data, nifti.read(tmp_path / "a.nii"))
  image = nib.load(tmp_path / "b.nii")
  assert image.get_data_dtype() == stored
  np.testing.assert_array_equal(image.get_fdata(), back)


def test_writing_refuses_what_does_not_fit(tmp_path):
  volume = nifti.read(write(tmp_path / "a.nii", images()["t1"]))
  with pytest.raises(ValueError, match="shape"):
    nifti.write_like(tmp_path / "b.nii", np.zeros((2, 2, 2)), volume)
  for low, high in ((-1, -1), (-1, 7), (0, 256)):
    with pytest.raises(ValueError, match=rf"{low}\.\.{high}"):
      nifti.write_like(tmp_path / "b.nii", np.resize([low, high], SHAPE), volume)
  assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]


def test_writing_is_deterministic_and_leaves_no_other_file(tmp_path):
  volume = nifti.read(write(tmp_path / "in.nii.gz", images()["t1"]))
  for name in ("a", "b"):
    nifti.write_like(tmp_path / f"{name}.nii.gz", volume.data.astype(np.float32), volume)
  assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "in.nii.gz"]


def test_scaled_integers(tmp_path):
  image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
  raw = bytearray(image.to_bytes())
  raw[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
  (tmp_path / "a.nii").write_bytes(raw)
  volume = nifti.read(tmp_path / "a.nii")
  assert volume.data.dtype == np.float32
  np.testing.assert_array_equal(volume.data.ravel(), np.arange(24) * 0.5 - 3)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_volume_of_several_pieces_and_slabs(kind, order):
  """It is read by 1 MiB and scaled by 2^17 voxels."""
  shape = (130, 70, 60)
  data = np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)
  header = kind.header_class(endianness=order)
  header.set_data_dtype(f"{order}i2")
  raw = kind(data, AFFINE, header).to_bytes()
  assert data.nbytes > 2**20 and data.size > 4 * 2**17
  np.testing.assert_array_equal(nifti.decode(raw).data, data)
  fixed = kind.header_class.template_dtype.newbyteorder(order)
  changed = np.frombuffer(raw[: fixed.itemsize], fixed).copy()
  changed["scl_slope"], changed["scl_inter"] = 0.25, -3
  scaled = nifti.decode(changed.tobytes() + raw[fixed.itemsize :])
  np.testing.assert_array_equal(scaled.data, data * np.float32(0.25) - 3)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_stored_types(tmp_path, dtype):
  data = images()["t1"].astype(np.uint8).astype(dtype)
  header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
  header.set_data_dtype(dtype)
  nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / "a.nii.gz")
  volume = nifti.read(tmp_path / "a.nii.gz")
  np.testing.assert_array_equal(volume.data, data)
  assert volume.data.dtype.isnative
  assert volume.data.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_trailing_singletons_and_nifti2(tmp_path, kind):
  data = images()["t1"]
  nib.save(kind(data[..., None], AFFINE), tmp_path / "a.nii.gz")
  volume = nifti.read(tmp_path / "a.nii.gz")
  np.testing.assert_array_equal(volume.data, data)
  nifti.write_like(tmp_path / "b.nii.gz", np.zeros(SHAPE, np.uint8), volume)
  again = nib.load(tmp_path / "b.nii.gz")
  assert again.shape == (*SHAPE, 1)
  assert isinstance(again, kind)


def test_a_wrong_extension_does_not_matter(tmp_path):
  path = write(tmp_path / "a.nii", images()["t1"])
  (tmp_path / "b.nii.gz").write_bytes(path.read_bytes())  # not gzipped
  (tmp_path / "c.nii").write_bytes(gzip.compress(path.read_bytes()))
  for name in ("b.nii.gz", "c.nii"):
    np.testing.assert_array_equal(nifti.read(tmp_path / name).data, images()["t1"])


def broken_files():
  image = nib.Nifti1Image(images()["t1"], AFFINE)
  raw = image.to_bytes()
  packed = gzip.compress(raw, mtime=0)
  flipped = bytearray(packed)
  flipped[-6] ^= 0xFF  # in the checksum: only reading to the end notices
  no_affine = bytearray(raw)
  no_affine[296:312] = bytes(16)  # srow_y
  colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
  return [
    (b"", "empty"),
    (packed[: len(packed) // 2], "truncated or damaged gzip"),
    (bytes(flipped), "truncated or damaged gzip"),
    (raw[:-100], "truncated: the header promises"),
    (raw[:200], "not a readable NIfTI header"),
    (b"<html>404 not found</html>" * 50, "not a NIfTI file"),
    (gzip.compress(b"hello" * 100, mtime=0), "not a NIfTI file"),
    (nib.Nifti1Image(np.zeros((4, 4, 4, 2), "i2"), AFFINE).to_bytes(), r"3-D volume.*4, 4, 4, 2"),
    (nib.Nifti1Image(np.zeros((4, 4), "i2"), AFFINE).to_bytes(), r"3-D volume.*\(4, 4\)"),
    (nib.Nifti1Image(colour, AFFINE).to_bytes(), "expected numbers"),
    (bytes(no_affine), "no usable affine"),
  ]


@pytest.mark.parametrize(("content", "message"), broken_files())
def test_broken_files_are_described(tmp_path, content, message):
  path = tmp_path / "a.nii.gz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    nifti.read(path)


def test_absent_file(tmp_path):
  with pytest.raises(ValueError, match="No such file"):
    nifti.read(tmp_path / "absent.nii.gz")


def test_real_files_round_trip(tmp_path):
  """Through LPS and back, the file's array and header fields are exactly as they were."""
  for case in find_cases(brats_root()):
    source = nib.load(case.seg)
    volume = nifti.read(case.seg)
    np.testing.assert_array_equal(volume.data, np.asarray(source.dataobj))  # is LPS already
    nifti.write_like(tmp_path / "seg.nii.gz", volume.data.astype(np.uint8), volume)
    written = nib.load(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(source.dataobj))
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
      np.testing.assert_array_equal(written.header[field], source.header[field])


@pytest.mark.parametrize(
  ("change", "mm"),
  [
    (lambda a: a, 0.0),
    (lambda a: a + np.outer([0.002, 0, 0, 0], [0, 0, 0, 1]), 0.002),
    (lambda a: a + np.outer([0, 0, 1, 0], [0, 0, 0, 1]), 1.0),
    (lambda a: a @ np.diag([1, 1, 1.001, 1]), 0.154),  # of 155 slices
    (lambda a: a + np.array([[0, 1e-3, 0, 0]] + [[0] * 4] * 3), 0.239),  # a turned axis
  ],
)
def test_how_far_apart_two_affines_are(change, mm):
  apart = nifti.apart_mm((240, 240, 155), AFFINE, change(AFFINE))
  assert apart == pytest.approx(mm, abs=1e-9)
  assert (apart > nifti.SAME_SPACE_MM) == (mm > 0.1)


@pytest.mark.parametrize("edge", [0, -1])
def test_what_nibabel_mends_is_not_logged(tmp_path, caplog, edge):
  """Its logger writes to standard error, in worker processes too."""
  image = nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.eye(4))
  image.set_sform(np.eye(4), 1)
  image.header["pixdim"] = (1, edge, 1, 1, 0, 0, 0, 0)
  header = image.header.binaryblock
  (tmp_path / "a.nii").write_bytes(header + bytes(4) + bytes(image.get_fdata().size * 2))
  nib.Nifti1Header(header, check=False).check_fix()
  assert caplog.records  # what it would say
  caplog.clear()
  assert nifti.read(tmp_path / "a.nii").data.shape == (8, 8, 8)
  assert not caplog.records


@pytest.mark.parametrize("field", ["qform_code", "sform_code"])
@pytest.mark.parametrize("code", [-1, 9, 1024])
def test_a_position_code_that_nifti_does_not_define_is_no_reason_to_take_the_next_one(
  tmp_path, field, code
):
  image = nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.diag([2.0, 2, 2, 1]))
  nib.save(image, tmp_path / "a.nii")
  blob = bytearray((tmp_path / "a.nii").read_bytes())
  at = {"qform_code": 252, "sform_code": 254}[field]
  blob[at : at + 2] = np.int16(code).tobytes()
  (tmp_path / "a.nii").write_bytes(blob)
  with pytest.raises(ValueError, match=f"{field} is {code}, which NIfTI does not define"):
    nifti.read(tmp_path / "a.nii")
