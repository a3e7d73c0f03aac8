"""Which series is read: chosen with a reason, or refused with one message that has the list."""

import re
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

from dicom_series import leaks, write_series  # noqa: E402
from synthetic import AFFINE  # noqa: E402

from kd_jax.dicom.choose import choose  # noqa: E402
from kd_jax.dicom.geometry import stack  # noqa: E402
from kd_jax.dicom.series import read_folder  # noqa: E402
from kd_jax.runtime.errors import UserError  # noqa: E402

IMAGE = np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8)


def add(folder: Path, number: int, description: str, affine=AFFINE, plane="axial", **fields) -> str:
  """Writes a series; returns its UID."""
  uid = fields.pop("uid", f"1.2.3.{number}")
  words = {"SeriesNumber": number, "SeriesDescription": description}
  write_series(folder / f"s{number}-{uid}", IMAGE, affine, plane, uid=uid, **(words | fields))
  return uid


def chosen(folder: Path, modality: str = "t1ce", asked: str = ""):
  """(number of the series, all lines that were said)."""
  choice = choose(read_folder(folder), modality, asked, folder)
  said = "\n".join(choice.said)
  assert not leaks(said)
  return choice.series.number, said


def refused(folder: Path, modality: str = "t1ce", asked: str = "") -> str:
  with pytest.raises(UserError) as error:
    chosen(folder, modality, asked)
  said = str(error.value)
  assert not leaks(said)
  return said


@pytest.fixture
def examination(tmp_path) -> Path:
  """What a scanner leaves of one tumour protocol."""
  add(tmp_path, 1, "3-plane loc")
  add(tmp_path, 2, "SAG T1 PRE")
  add(tmp_path, 3, "AX T2 FLAIR")
  add(tmp_path, 4, "AX T2 TSE")
  add(tmp_path, 5, "ep2d_diff ADC")
  add(tmp_path, 6, "MPRAGE +C", ContrastBolusAgent="Gadovist")
  return tmp_path


@pytest.mark.parametrize(
  ("modality", "number"), [("t1ce", "6"), ("t1", "2"), ("flair", "3"), ("t2", "4")]
)
def test_each_student_s_series_is_found(examination, modality, number):
  found, said = chosen(examination, modality)
  assert found == number
  assert f"is read as {modality}: " in said and said.count("\n  series ") == 5
  if modality == "t1ce":
    first = said.splitlines()[0]
    assert 'series 6 "MPRAGE +C", 8 images' in first
    assert "'mprage'" in first and "'+c'" in first and "names a contrast agent" in first
    assert "a localizer" in said


def test_fine_and_original_images_are_preferred(tmp_path):
  add(tmp_path, 1, "AX T1 POST", SliceThickness=5.0)
  add(tmp_path, 2, "T1 MPRAGE POST")
  add(tmp_path, 3, "T1 MPRAGE POST COR", ImageType=["DERIVED", "SECONDARY", "MPR"])
  number, said = chosen(tmp_path)
  assert number == "2"
  assert 'preferred to series 3 "T1 MPRAGE POST COR" for original images' in said
  assert 'preferred to series 1 "AX T1 POST" for the finer voxels' in said


def test_equal_ones_are_refused_and_can_be_asked_for(tmp_path):
  add(tmp_path, 4, "AX T1 POST")
  uid = add(tmp_path, 5, "SAG T1 POST")
  add(tmp_path, 6, "AX T2")
  said = refused(tmp_path)
  assert "holds 2 series that may be the t1ce: say which with --series=4" in said
  assert 'series 4 "AX T1 POST"' in said and 'series 5 "SAG T1 POST"' in said
  assert said.index("other series:") < said.index("AX T2")
  for asked in ("5", uid):
    number, lines = chosen(tmp_path, asked=asked)
    assert number == "5" and "--series says so" in lines and "warning" not in lines


def test_a_series_that_is_asked_for_may_be_of_another_kind(examination):
  number, said = chosen(examination, asked="2")
  assert number == "2" and "warning" in said and "may be no t1ce: t1 (" in said
  said = refused(examination, asked="99")
  assert "--series=99" in said and "no series of that number or UID" in said and "MPRAGE" in said


def test_a_number_that_two_series_have_needs_the_uid(tmp_path):
  add(tmp_path, 4, "AX T1 POST", uid="1.2.3.40", study="1.2.9.1")
  add(tmp_path, 4, "AX T1 POST", uid="1.2.3.41", study="1.2.9.2")
  said = refused(tmp_path)
  assert "--series=1.2.3.40" in said and "--series=1.2.3.41" in said
  assert "of study 1" in said and "of study 2" in said
  assert "2 series" in refused(tmp_path, asked="4") and "give the UID" in refused(
    tmp_path, asked="4"
  )
  assert choose(read_folder(tmp_path), "t1ce", "1.2.3.41", tmp_path).series.uid == "1.2.3.41"


def test_a_t1_that_nothing_is_said_of_is_no_t1ce(tmp_path):
  add(tmp_path, 3, "AX T1")
  said = refused(tmp_path)
  assert "no series that can be told to be t1ce; if one is, say which with --series=3" in said
  assert "nothing says that there was contrast medium" in said
  assert chosen(tmp_path, "t1")[0] == "3"
  add(tmp_path, 4, "SAG T1 PRE")
  assert chosen(tmp_path, "t1")[0] == "4"  # series 3 may be with contrast medium


# --- Hostile folders ----------------------------------------------------------------------------


def test_two_patients(tmp_path):
  add(tmp_path, 1, "AX T1 POST")
  other = add(tmp_path, 2, "AX T1 PRE", PatientID="PAT-2", PatientName="Else^Somebody")
  said = refused(tmp_path)
  assert "holds series of 2 patients" in said and len(said.splitlines()) == 1
  assert "PAT-2" not in said and "Else" not in said
  assert chosen(tmp_path, asked="1.2.3.1")[0] == "1"
  add(tmp_path, 3, "AX T1 POST", uid=other)  # the same series, of both
  assert "images of 2 patients" in refused(tmp_path, asked=other)


def test_patients_without_ids_are_told_apart_by_name(tmp_path):
  add(tmp_path, 1, "AX T1 POST", PatientID=None)
  add(tmp_path, 2, "AX T1 PRE", PatientID="", PatientName="ZUCKERFELD^EULALIA")
  assert chosen(tmp_path)[0] == "1"
  add(tmp_path, 3, "AX T2", PatientID="", PatientName="Else^Somebody")
  assert "holds series of 2 patients" in refused(tmp_path)


@pytest.mark.parametrize("given", ["its words", "its image type", "its orientations"])
def test_a_localizer_only(tmp_path, given):
  if given == "its words":
    add(tmp_path, 1, "T1 LOCALIZER")
  elif given == "its image type":
    add(tmp_path, 1, "T1 +C", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
  else:
    for i, plane in enumerate(("axial", "sagittal", "coronal")):
      add(tmp_path / str(i), 1, "T1 POST", plane=plane, uid="1.2.3.1")
      rename(tmp_path / str(i), i)
  said = refused(tmp_path)
  assert "holds no series that can be told to be t1ce" in said and "localizer" in said
  assert "--series" not in said and len(said.splitlines()) == 2


def rename(folder: Path, number: int) -> None:
  """Gives each image in a folder a UID of its own."""
  for i, file in enumerate(sorted(folder.rglob("IM*"))):
    header = pydicom.dcmread(file, force=True)
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.7.{number}.{i}"
    header.save_as(file)


OTHERS = {
  "secondary capture": (
    {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    "secondary",
  ),
  "screen": ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a picture of a screen"),
  "CT": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"}, r"no MR images \(CT\)"),
  "enhanced": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}, "an enhanced"),
  "multi-frame": ({"NumberOfFrames": 8}, "an enhanced"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_holds_no_plain_mr_images(tmp_path, other):
  fields, words = OTHERS[other]
  add(tmp_path, 1, "T1 POST", **fields)
  said = refused(tmp_path)
  assert re.search(words, said) and len(said.splitlines()) == 2
  asked = refused(tmp_path, asked="1")
  assert re.search(words, asked) and "convert it to NIfTI" in asked
  if words == "an enhanced":
    assert "convert it to NIfTI" in said


@pytest.mark.parametrize(
  ("skip", "words"),
  [
    ((3,), r"lacks 1 slice: after slice 3 of 7 there is a gap of 2 mm, and the others are 1 mm"),
    ((3, 4), r"lacks 2 slices: after slice 3 of 6"),
    ((1, 2, 3, 4, 5, 6), r"has 2 images, too few"),
  ],
)
def test_missing_slices(tmp_path, skip, words):
  write_series(tmp_path, IMAGE, AFFINE, skip=skip)
  series = choose(read_folder(tmp_path), "t1ce", "", tmp_path).series
  with pytest.raises(UserError, match=words):
    stack(series)


def test_slices_that_are_missing_at_the_end_are_warned_of(tmp_path):
  write_series(tmp_path, IMAGE, AFFINE, skip=(7,), ImagesInAcquisition=8)
  assert "speaks of 8 images, and 7 are here" in chosen(tmp_path)[1]


def test_images_that_are_no_one_volume(tmp_path):
  def problem(change) -> str:
    """What is said of a series whose fourth image is changed."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    file = write_series(folder, IMAGE, AFFINE, uid="1.2.3")[3]
    header = pydicom.dcmread(file)
    change(header)
    header.save_as(file)
    with pytest.raises(UserError) as error:
      stack(choose(read_folder(folder), "t1ce", "1.2.3", folder).series)
    return str(error.value)

  def place(x, y, z):
    def move(header):
      header.ImagePositionPatient = [a + b for a, b in zip(header.ImagePositionPatient, (x, y, z))]  # noqa: B905

    return move

  def turn(header):
    header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

  def resize(header):
    header.PixelSpacing = [2, 2]

  def lose(header):
    del header.ImagePositionPatient

  assert "2 orientations" in problem(turn)
  assert "differ in size or pixel spacing" in problem(resize)
  assert "do not say where" in problem(lose)
  assert "several images at one place (1 of 8)" in problem(place(0, 0, 1))
  assert "0.6 to 1.4 mm apart" in problem(place(0, 0, 0.4))
  assert "shifted sideways, by 5 mm" in problem(place(5, 0, 0))
