"""Folders of DICOM files are known by what the files hold, not by their names."""

import os

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

from dicom_series import write_series  # noqa: E402
from pydicom.fileset import FileSet  # noqa: E402
from synthetic import AFFINE, write  # noqa: E402

from kd_jax.dicom.files import holds_dicom, is_dicom  # noqa: E402
from kd_jax.dicom.series import read_folder  # noqa: E402
from kd_jax.runtime.errors import UserError  # noqa: E402

IMAGE = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


@pytest.mark.parametrize("name", ["IM0", "1.2.840.113", "scan.dcm", "x.ima", "no suffix, spaces"])
def test_any_name_at_any_depth(tmp_path, name):
  write_series(tmp_path / "a" / "b" / "c", IMAGE, AFFINE, prefix=name)
  assert holds_dicom(tmp_path)
  (series,) = read_folder(tmp_path)
  assert len(series.files) == 6 and series.number == "7"


def test_other_files_do_not_matter(tmp_path):
  write_series(tmp_path / "in", IMAGE, AFFINE)
  (tmp_path / "in" / "readme.txt").write_text("a" * 500)
  (tmp_path / "in" / ".hidden").write_text("DICM")
  (tmp_path / "in" / "empty").touch()
  os.mkfifo(tmp_path / "in" / "pipe")  # reading it would never end
  (tmp_path / "in" / "loop").symlink_to(tmp_path)
  assert holds_dicom(tmp_path)
  assert len(read_folder(tmp_path)[0].files) == 6


def test_a_folder_with_nifti_files_means_those(tmp_path):
  write_series(tmp_path / "dicom", IMAGE, AFFINE)
  write(tmp_path / "t1ce.nii.gz", IMAGE)
  assert not holds_dicom(tmp_path)
  assert not holds_dicom(tmp_path / "t1ce.nii.gz") and not holds_dicom(tmp_path / "nothing")


def test_files_without_a_preamble(tmp_path):
  """As scanners of old wrote them, in both forms of elements."""
  for name, explicit in (("implicit", False), ("explicit", True)):
    folder = tmp_path / name
    for file in write_series(folder, IMAGE, AFFINE):
      header = pydicom.dcmread(file)
      header.preamble, header.file_meta = None, pydicom.dataset.FileMetaDataset()
      header.save_as(file, implicit_vr=not explicit, little_endian=True, enforce_file_format=False)
      assert file.read_bytes()[:1] == b"\x08" and is_dicom(file)
    assert len(read_folder(folder)[0].files) == 6


def test_a_dicomdir_is_a_list_and_no_image(tmp_path):
  files = write_series(tmp_path / "cd" / "DICOM", IMAGE, AFFINE, prefix="IM")
  file_set = FileSet()
  for file in files:
    file_set.add(file)
  file_set.write(tmp_path / "set")
  assert (tmp_path / "set" / "DICOMDIR").is_file()
  assert [len(series.files) for series in read_folder(tmp_path / "set")] == [6]
  alone = tmp_path / "alone"
  alone.mkdir()
  (tmp_path / "set" / "DICOMDIR").rename(alone / "DICOMDIR")
  with pytest.raises(UserError, match="holds a DICOMDIR and no image"):
    read_folder(alone)


def test_an_image_that_is_there_twice_counts_once(tmp_path):
  for copy in ("one", "two"):
    write_series(tmp_path / copy, IMAGE, AFFINE, uid="1.2.3.4")
  assert [len(series.files) for series in read_folder(tmp_path)] == [6]


def test_a_file_that_ends_in_its_header_is_named(tmp_path):
  files = write_series(tmp_path, IMAGE, AFFINE)
  files[2].write_bytes(files[2].read_bytes()[:500])
  with pytest.raises(UserError, match=r"1 of 6 DICOM files cannot be read.* IM0002\. Copy"):
    read_folder(tmp_path)


def test_a_folder_without_dicom_says_so(tmp_path):
  with pytest.raises(UserError, match="holds no DICOM file"):
    read_folder(tmp_path)
