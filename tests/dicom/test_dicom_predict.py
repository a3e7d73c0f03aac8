"""From DICOM files to masks: a tumour's voxels lie where they lie in the patient, in any plane."""

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rich.console

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
pytest.importorskip("dcm2niix", reason="the extra [dicom] is not installed")

from dicom_series import FLIP, PLANES, SECRETS, generated, leaks, write_series  # noqa: E402
from scipy.spatial import KDTree  # noqa: E402
from students import make_student  # noqa: E402

from kd_jax.dicom.packages import unheard  # noqa: E402
from kd_jax.dicom.predict import Request, predict  # noqa: E402
from kd_jax.prediction.output import Output  # noqa: E402
from kd_jax.prediction.predictor import Predictor, Prepared  # noqa: E402
from kd_jax.prediction.student_directory import export  # noqa: E402
from kd_jax.runtime.errors import UserError  # noqa: E402
from kd_jax.runtime.terminal import Terminal  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
CODES = {
  1: ("6574001", "SCT", "Necrosis"),
  2: ("79654002", "SCT", "Edema"),
  3: ("C113842", "NCIt", "Enhancing Lesion"),
}


class Truth(Predictor):
  """Says of a generated case what is true; its network is not asked."""

  truth = None

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    # The truth has the axes of the case, the scan those of LPS: the same.
    classes = (generated().classes if self.truth is None else self.truth)[prepared.grid.box]
    return np.stack([classes == cls for cls in range(4)]).astype(np.float32)


def truth(classes: np.ndarray | None = None) -> Predictor:
  predictor = Truth([make_student(spacing=3.0)])
  predictor.truth = classes
  return predictor


def run(folder: Path, out: Path, terminal, predictor=None, silent=True, **request) -> str:
  predict(predictor or truth(), Request(folder, **request), Output(out, "brats2018"), terminal)
  return "" if not silent else terminal.console.file.getvalue()


def points(mask: np.ndarray, to_lps: np.ndarray) -> np.ndarray:
  """(N, 3), where a mask's voxels are in the patient: mm towards left, back and head."""
  return np.argwhere(mask) @ to_lps[:3, :3].T + to_lps[:3, 3]


def same(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two sets of places are one, to 0.02 mm."""
  if len(one) != len(other) or not len(one):
    return len(one) == len(other)
  distance, nearest = KDTree(one).query(other)
  return bool(distance.max() < 0.02) and len(set(nearest)) == len(one)


def frames_of(file: Path) -> dict[int, np.ndarray]:
  """Segment -> where its voxels are, as the standard defines it (PS3.3, C.7.6.2.1.1)."""
  seg = pydicom.dcmread(file)
  shared = seg.SharedFunctionalGroupsSequence[0]
  cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient).reshape(2, 3)
  row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
  found: dict[int, list[np.ndarray]] = {}
  for pixels, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
    number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    start = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
    rows, columns = np.nonzero(pixels)
    places = start + np.outer(columns * column_mm, cosines[0]) + np.outer(rows * row_mm, cosines[1])
    found.setdefault(number, []).append(places)
  return {number: np.concatenate(places) for number, places in found.items()}


def turned(affine: np.ndarray) -> np.ndarray:
  """A head that lies 7 degrees askew in the scanner."""
  from scipy.spatial.transform import Rotation

  turn, centre = np.eye(4), np.array([-119.0, 120.0, 77.0])
  turn[:3, :3] = Rotation.from_euler("xyz", (7, -4, 5), degrees=True).as_matrix()
  turn[:3, 3] = centre - turn[:3, :3] @ centre
  return turn @ affine


POSES = ("upright", "askew", "slices the other way")
QUICK = {("upright", plane) for plane in PLANES} | {("askew", "axial"), (POSES[2], "sagittal")}


@pytest.mark.parametrize(
  ("pose", "plane"),
  [
    pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow)
    for one in itertools.product(POSES, PLANES)
  ],
)
def test_the_mask_lies_where_the_tumour_is(tmp_path, terminal, pose, plane):
  case = generated()
  image, affine = case.image, turned(case.affine) if pose == "askew" else case.affine
  expected = {cls: points(case.classes == cls, FLIP @ affine) for cls in CODES}
  assert min(map(len, expected.values())) > 100
  if pose == "slices the other way":  # images are numbered from the head or from the left
    axis = PLANES[plane][2][0]
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, image.shape[axis] - 1
    image, affine = np.flip(image, axis), affine @ flip
  write_series(tmp_path / "P1", image, affine, plane)
  said = run(tmp_path / "P1", tmp_path / "out", terminal)

  mask = nib.load(tmp_path / "out" / "P1.nii.gz")
  for cls, label in ((1, 1), (2, 2), (3, 4)):
    assert same(points(np.asarray(mask.dataobj) == label, FLIP @ mask.affine), expected[cls])
  found = frames_of(tmp_path / "out" / "P1.dcm")
  assert all(same(found[cls], expected[cls]) for cls in CODES)
  seg = highdicom.seg.segread(tmp_path / "out" / "P1.dcm")
  for cls in CODES:
    volume = seg.get_volume(segment_numbers=[cls], combine_segments=False)
    assert same(points(np.asarray(volume.array)[..., 0] > 0, volume.affine), expected[cls])
  assert "P1" in said and not leaks(said)


def test_what_is_elsewhere_is_noticed():
  """The check of places that the tests above rely on."""
  case = generated()
  here = points(case.classes == 3, FLIP @ case.affine)
  assert same(here, here[::-1]) and not same(here, here[1:]) and not same(here, here + 0.1)
  assert not same(here, points(case.classes[::-1] == 3, FLIP @ case.affine))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[Path], str]:
  """(a folder of results, the files of the series, what was said and what reached the console)."""
  folder, case, terminal = tmp_path_factory.mktemp("done"), generated(), Terminal()
  terminal.console = rich.console.Console(file=io.StringIO(), width=300)
  files = write_series(folder / "P1", case.image, case.affine)
  with contextlib.redirect_stdout(io.StringIO()) as loud, contextlib.redirect_stderr(loud):
    said = run(folder / "P1", folder / "out", terminal)
  return folder / "out", files, said + loud.getvalue()


def test_the_segmentation_says_what_it_is(done):
  out, files, _ = done
  assert (out / "P1.dcm").stat().st_size < 500_000  # no pixels of the scan
  seg = highdicom.seg.segread(out / "P1.dcm")
  source = pydicom.dcmread(files[0])
  for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
    assert seg[name].value == source[name].value, name
  assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
  assert seg.SeriesInstanceUID != source.SeriesInstanceUID and seg.Modality == "SEG"
  assert seg.segmentation_type.value == "BINARY" and seg.number_of_segments == 3
  for number, (value, scheme, meaning) in CODES.items():
    one = seg.get_segment_description(number)
    kind, category = one.segmented_property_type, one.segmented_property_category
    assert (kind.value, kind.scheme_designator, kind.meaning) == (value, scheme, meaning)
    assert (category.value, category.scheme_designator) == ("49755003", "SCT")
    assert one.anatomic_regions[0].value == "12738006" and one.algorithm_type.value == "AUTOMATIC"
    made_by = one.algorithm_identification
    assert made_by.name == "kd_jax" and made_by.family.meaning == "Artificial Intelligence"
    assert list(made_by.parameters.values()) == [make_student(spacing=3.0).digest()]
  referenced = {uid for _, series, uid in seg.get_source_image_uids()}
  assert referenced == {pydicom.dcmread(file).SOPInstanceUID for file in files}
  assert "research" in seg.SeriesDescription and "research" in seg.ContentDescription


def test_nothing_of_the_patient_is_left_but_in_the_segmentation(done):
  out, _, said = done
  assert not leaks(said)
  for path in out.rglob("*"):
    assert not leaks(path.name)
    if path.suffix == ".gz":
      assert not leaks(bytes(nib.load(path).to_bytes()))
    elif path.is_file() and path.suffix != ".dcm":
      assert not leaks(path.read_bytes())
  assert leaks((out / "P1.dcm").read_bytes())  # the standard needs it there


def test_a_second_start_does_nothing_again(tmp_path, terminal):
  case = generated()
  write_series(tmp_path / "P1", case.image, case.affine)
  run(tmp_path / "P1", tmp_path / "out", terminal)
  before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
  said = run(tmp_path / "P1", tmp_path / "out", terminal)
  assert "1 of 1 cases are finished already" in said
  after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
  assert {p: t for p, t in after.items() if p.name != "predict.json"} == {
    p: t for p, t in before.items() if p.name != "predict.json"
  }
  record = json.loads((tmp_path / "out" / "predict.json").read_text())
  assert set(record["cases"]["P1"]["outputs"]) == {"P1.nii.gz", "P1.dcm"}
  shutil.rmtree(tmp_path / "P1")
  write_series(tmp_path / "P1", case.image, case.affine)  # another examination, of that name
  with pytest.raises(UserError, match="holds the steps of another series"):
    run(tmp_path / "P1", tmp_path / "out", terminal)


def test_no_tumour(tmp_path, terminal):
  """Segments are named all the same."""
  case = generated()
  write_series(tmp_path / "P1", case.image, case.affine)
  run(tmp_path / "P1", tmp_path / "out", terminal, truth(np.zeros_like(case.classes)))
  assert not np.asarray(nib.load(tmp_path / "out" / "P1.nii.gz").dataobj).any()
  seg = highdicom.seg.segread(tmp_path / "out" / "P1.dcm")
  assert seg.number_of_segments == 3 and not seg.pixel_array.any()


ANONYMOUS = dict.fromkeys((*SECRETS, "Manufacturer", "AcquisitionNumber", "SequenceVariant"))


def test_anonymised_series(tmp_path, terminal):
  """What the standard demands is often gone; what a segmentation cannot do without is said."""
  case = generated()
  write_series(tmp_path / "P1", case.image, case.affine, **ANONYMOUS)
  run(tmp_path / "P1", tmp_path / "out", terminal)
  assert highdicom.seg.segread(tmp_path / "out" / "P1.dcm").PatientName == ""
  write_series(tmp_path / "P2", case.image, case.affine, FrameOfReferenceUID=None)
  said = run(tmp_path / "P2", tmp_path / "out", terminal)
  assert "no DICOM segmentation will be written" in said and "no frame of reference" in said
  assert {p.name for p in (tmp_path / "out").glob("P2.*")} == {"P2.nii.gz"}


GARBLED = {
  **{"PatientBirthDate": "1951-04-17", "StudyTime": "8:15", "AccessionNumber": "ACC99812" * 5},
  **{"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Zuckerfeld^Jörg", "StudyDate": "[gone]"},
}


def test_garbled_headers(tmp_path, capfd):
  """Values that the standard does not allow cost nothing but themselves, and are not quoted."""
  case, terminal = generated(), Terminal()
  with warnings.catch_warnings(), unheard():
    write_series(tmp_path / "P1", case.image, case.affine, **GARBLED)
  capfd.readouterr()
  run(tmp_path / "P1", tmp_path / "out", terminal, silent=False)
  said = "".join(capfd.readouterr())
  assert "written: 1 masks" in said and not leaks(said) and "1951" not in said
  seg = highdicom.seg.segread(tmp_path / "out" / "P1.dcm")
  assert seg.PatientName == "Zuckerfeld^Jörg" and not seg.PatientBirthDate and not seg.StudyDate


def test_headers_that_highdicom_refuses_cost_only_the_segmentation(tmp_path, terminal, monkeypatch):
  """Known before the prediction, not after it."""

  def refuse(*_, **__):
    raise ValueError("Zuckerfeld is no value")

  case = generated()
  write_series(tmp_path / "P1", case.image, case.affine)
  monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
  said = run(tmp_path / "P1", tmp_path / "out", terminal)
  assert "highdicom does not accept the headers of the series (ValueError)" in said
  assert not leaks(said) and {p.name for p in (tmp_path / "out").glob("P1.*")} == {"P1.nii.gz"}


def test_files_that_are_cut(tmp_path, terminal):
  case = generated()
  files = write_series(tmp_path / "P1", case.image, case.affine)
  files[9].write_bytes(files[9].read_bytes()[:-500])
  with pytest.raises(UserError, match="IM0009 is truncated or damaged; copy it again") as error:
    run(tmp_path / "P1", tmp_path / "out", terminal)
  assert not (tmp_path / "out").exists() and not leaks(str(error.value))


@pytest.mark.parametrize("cut", [0, 300])
def test_compressed_files(tmp_path, terminal, cut):
  case = generated()
  files = write_series(tmp_path / "P1", case.image, case.affine)
  for file in files:
    image = pydicom.dcmread(file)
    image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    image.save_as(file)
  files[20].write_bytes(files[20].read_bytes()[: files[20].stat().st_size - cut])
  if cut:
    with pytest.raises(UserError, match="IM0020 is truncated or damaged"):
      run(tmp_path / "P1", tmp_path / "out", terminal)
  else:
    run(tmp_path / "P1", tmp_path / "out", terminal)
    found = frames_of(tmp_path / "out" / "P1.dcm")
    assert all(same(found[c], points(case.classes == c, FLIP @ case.affine)) for c in CODES)


def test_what_cannot_be_done_with_any_folder(tmp_path, terminal):
  case = generated()
  file = write_series(tmp_path / "P1", case.image[:, :, :3], case.affine)[0]
  with pytest.raises(UserError, match="is a DICOM file; give the folder"):
    run(file, tmp_path / "out", terminal)
  (tmp_path / "note.txt").write_text("a note")
  with pytest.raises(UserError, match=r"are for a folder of DICOM files, and .*note.txt is none"):
    run(tmp_path / "note.txt", tmp_path / "out", terminal, series="7")
  with pytest.raises(UserError, match="lies in the DICOM folder"):
    run(tmp_path / "P1", tmp_path / "P1" / "out", terminal)
  two = Predictor([make_student(modalities=("t1", "t1ce"))])
  with pytest.raises(UserError, match="reads t1 and t1ce, which must lie on one grid"):
    run(tmp_path / "P1", tmp_path / "out", terminal, two)
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no DICOM file"):
    run(tmp_path / "empty", tmp_path / "out", terminal)
  assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path, terminal, monkeypatch):
  case = generated()
  write_series(tmp_path / "P1", case.image[:, :, :3], case.affine)
  monkeypatch.setitem(sys.modules, "highdicom", None)
  with pytest.raises(UserError, match=r"need highdicom.*pip install 'kd_jax\[dicom\]'"):
    run(tmp_path / "P1", tmp_path / "out", terminal)


def main(*flags: str) -> tuple[int, str]:
  command = [sys.executable, str(REPOSITORY / "main.py"), "--mode=predict", *flags]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
  return done.returncode, done.stdout + done.stderr


def test_the_command(tmp_path):
  case = generated()
  write_series(tmp_path / "disc" / "DICOM" / "S1", case.image, case.affine)
  write_series(
    tmp_path / "disc" / "DICOM", case.image, case.affine, SeriesNumber=2, SeriesDescription="AX T1"
  )
  export(make_student(spacing=3.0), tmp_path / "student")
  flags = (f"--checkpoint={tmp_path / 'student'}", f"--output={tmp_path / 'out'}")
  status, said = main(*flags, f"--input={tmp_path / 'disc'}", "--probabilities")
  assert status == 0, said
  assert 'series 7 "AX T1 POST", 52 images, is read as t1ce' in said and "Traceback" not in said
  assert not leaks(said)
  names = {path.name for path in (tmp_path / "out").glob("disc*.*")}
  assert names == {"disc.nii.gz", "disc.dcm", *(f"disc_{r}.nii.gz" for r in ("WT", "TC", "ET"))}
  mask = nib.load(tmp_path / "out" / "disc.nii.gz")
  labels = np.asarray(mask.dataobj)
  assert len(np.unique(labels)) > 2
  found = frames_of(tmp_path / "out" / "disc.dcm")
  for cls, label in ((1, 1), (2, 2), (3, 4)):
    assert same(found.get(cls, np.empty((0, 3))), points(labels == label, FLIP @ mask.affine))
