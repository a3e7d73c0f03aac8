"""A series of a whole head: what it needs is said, or done with tools of others, and undone after.

HD-BET is a program on the path and antspyx a package: here both are stand-ins that are called as
the real ones are, and that do the right thing for the head of this test. The real antspyx is asked
where it is installed (test_the_real_antspyx).
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")
pytest.importorskip("dcm2niix", reason="the extra [dicom] is not installed")

from dicom_series import FLIP, generated, leaks, write_series  # noqa: E402
from scipy import ndimage  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402
from students import make_student  # noqa: E402

from kd_jax.data import nifti  # noqa: E402
from kd_jax.dicom import atlas, transform  # noqa: E402
from kd_jax.dicom.predict import Request, predict  # noqa: E402
from kd_jax.dicom.prepare import Steps, needs  # noqa: E402
from kd_jax.prediction.output import Output  # noqa: E402
from kd_jax.prediction.predictor import Predictor, Prepared  # noqa: E402
from kd_jax.runtime.errors import UserError  # noqa: E402

SCALP, FAINT = 1000, 60  # a head's intensities: brain lies between
# Points of the atlas to those of the scanner (RAS): 8 degrees askew, its origin inside the head.
POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_euler("xyz", (8, -5, 10), degrees=True).as_matrix()
POSE[:3, 3] = -POSE[:3, :3] @ np.array([-119.0, 120.0, 77.0]) + (3.0, -2.0, 5.0)

HD_BET = """#!{python}
import sys
import nibabel as nib
import numpy as np
arguments = sys.argv[1:]
assert arguments[0] == "-i" and arguments[2] == "-o", arguments
assert arguments[4:] == ["--save_bet_mask", "-device", "cpu", "--disable_tta"], arguments
image = nib.load(arguments[1])
assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
data = np.asarray(image.dataobj)
brain = (data > {faint}) & (data < {scalp})
nib.save(nib.Nifti1Image(np.where(brain, data, 0), image.affine), arguments[3])
mask = arguments[3].removesuffix(".nii.gz") + "_bet.nii.gz"
nib.save(nib.Nifti1Image(brain.astype(np.uint8), image.affine), mask)
print("If you are using hd-bet, please cite the following papers")
"""
ANTS = """
import nibabel as nib
import numpy as np
import scipy.io
from scipy import ndimage

POSE = np.array({pose})  # atlas to scan, RAS
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])

def image_read(path):
  return nib.load(path)

def registration(fixed, moving, type_of_transform):
  assert type_of_transform == "Rigid"
  whole = np.linalg.inv(moving.affine) @ POSE @ fixed.affine
  data = np.asarray(moving.dataobj, np.float32)
  warped = ndimage.affine_transform(data, whole[:3, :3], whole[:3, 3], fixed.shape, order=1)
  matrix, centre = FLIP @ POSE @ FLIP, np.array([100.0, -90.0, 70.0])
  shift = matrix[:3, 3] - centre + matrix[:3, :3] @ centre  # ITK turns about a centre
  content = {{
    "AffineTransform_float_3_3": np.float32([*matrix[:3, :3].ravel(), *shift])[:, None],
    "fixed": np.float32(centre)[:, None],
  }}
  return {{"warpedmovout": nib.Nifti1Image(warped, fixed.affine), "fwdtransforms": [content]}}

def read_transform(content):
  return content

def write_transform(content, path):
  scipy.io.savemat(path, content, format="4")

def image_write(image, path):
  nib.save(image, path)
"""


class Truth(Predictor):
  """Says of the generated case in the atlas' space (1 mm) what is true."""

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    fine = np.kron(generated().classes, np.ones((3, 3, 3), np.uint8))[:, :, :155]
    whole = ndimage.shift(fine, (-1, -1, -1), order=0)  # the coarse voxels' centres
    classes = whole[prepared.grid.box]
    return np.stack([classes == cls for cls in range(4)]).astype(np.float32)


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(image (D, H, W) of a head with a scalp, its affine, true classes), as a scanner has it."""
  case = generated()
  fine = np.array([[-3.0, 0, 0, 110], [0, -3.0, 0, 120], [0, 0, 3.0, -95], [0, 0, 0, 1]])
  shape = (74, 82, 66)
  whole = np.linalg.inv(case.affine) @ np.linalg.inv(POSE) @ fine
  image = ndimage.affine_transform(
    case.image.astype(np.float32), whole[:3, :3], whole[:3, 3], shape, order=1
  )
  truth = ndimage.affine_transform(case.classes, whole[:3, :3], whole[:3, 3], shape, order=0)
  image = np.clip(image, 0, SCALP - 1) * (image > FAINT)
  brain = ndimage.binary_closing(image > 0, iterations=2)
  scalp = ndimage.binary_dilation(brain, iterations=5) & ~brain
  noise = np.random.default_rng(0).integers(0, FAINT, shape)  # around a head there is no 0
  head = np.where(scalp, SCALP + noise, np.where(image > 0, image, noise))
  return head.astype(np.int16), fine, truth


def stripped(image: np.ndarray) -> np.ndarray:
  return np.where((image > FAINT) & (image < SCALP), image, 0)


@pytest.fixture
def tools(tmp_path, monkeypatch):
  """A function that puts stand-ins where programs and packages are looked for."""
  programs, packages = tmp_path / "programs", tmp_path / "packages"
  programs.mkdir()
  monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

  def install(hd_bet=HD_BET, ants=ANTS):
    if hd_bet:
      program = programs / "hd-bet"
      program.write_text(hd_bet.format(python=sys.executable, scalp=SCALP, faint=FAINT))
      program.chmod(0o755)
    if ants:
      (packages / "ants").mkdir(parents=True, exist_ok=True)
      (packages / "ants" / "__init__.py").write_text(ants.format(pose=POSE.tolist()))
      monkeypatch.syspath_prepend(str(packages))
      monkeypatch.setenv("PYTHONPATH", str(packages))

  return install


def run(folder: Path, terminal, prepare=True) -> str:
  predictor = Truth([make_student()])
  output = Output(folder / "out", "brats2018")
  predict(predictor, Request(folder / "P1", prepare=prepare), output, terminal)
  return terminal.console.file.getvalue()


def check_result(folder: Path, truth: np.ndarray, affine: np.ndarray) -> None:
  """The mask and the segmentation lie on the series, where the tumour is."""
  mask = nifti.read(folder / "out" / "P1.nii.gz")
  assert mask.data.shape == truth.shape
  np.testing.assert_allclose(mask.affine, affine, atol=1e-3)
  for cls, label, least in ((1, 1, 0.75), (2, 2, 0.85), (3, 4, 0.75)):
    found, true = mask.data == label, truth == cls
    dice = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert dice > least, (cls, dice)
    centres = [np.argwhere(x).mean(axis=0) for x in (found, true)]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.3, centres  # voxels of 3 mm
  seg = highdicom.seg.segread(folder / "out" / "P1.dcm")
  for cls, label in ((1, 1), (2, 2), (3, 4)):
    volume = seg.get_volume(segment_numbers=[cls], combine_segments=False)
    there = np.argwhere(np.asarray(volume.array)[..., 0]) @ volume.affine[:3, :3].T
    there = np.unique(np.round(there + volume.affine[:3, 3], 2), axis=0)
    to_lps = FLIP @ mask.affine
    here = np.argwhere(mask.data == label) @ to_lps[:3, :3].T + to_lps[:3, 3]
    np.testing.assert_allclose(there, np.unique(np.round(here, 2), axis=0), atol=0.02)


@pytest.mark.parametrize("plane", ["sagittal", pytest.param("axial", marks=pytest.mark.slow)])
def test_prepared_predicted_and_brought_back(tmp_path, terminal, tools, head, plane):
  image, affine, truth = head
  write_series(tmp_path / "P1", image, affine, plane)
  tools()
  said = run(tmp_path, terminal)
  check_result(tmp_path, truth, affine)
  assert "HD-BET (may take minutes)" in said and "antspyx (may take minutes)" in said
  assert not leaks(said)
  steps = tmp_path / "out" / "P1_steps"
  names = {path.name for path in steps.iterdir()}
  assert {"scan.nii.gz", "brain.nii.gz", "brain_bet.nii.gz", "brain_in_atlas.nii.gz"} <= names
  aligned = nib.load(steps / "brain_in_atlas.nii.gz")
  assert aligned.shape == (240, 240, 155)
  assert atlas.overlap(nifti.read(steps / "brain_in_atlas.nii.gz")) > 0.85


@pytest.mark.slow
def test_what_was_corrected_by_hand_is_taken_up(tmp_path, terminal, tools, head):
  """All that was made of it is made anew, and nothing else."""
  image, affine, _ = head
  write_series(tmp_path / "P1", image, affine)
  tools()
  first = run(tmp_path, terminal)
  second = run(tmp_path, terminal)[len(first) :]
  assert "finished already" in second and "may take minutes" not in second
  steps = tmp_path / "out" / "P1_steps"
  brain = nib.load(steps / "brain.nii.gz")
  data = np.asarray(brain.dataobj).copy()
  data[:, :, np.flatnonzero(data.any(axis=(0, 1))).max() - 2 :] = 0
  nib.save(nib.Nifti1Image(data, brain.affine), steps / "brain.nii.gz")
  third = run(tmp_path, terminal)[len(first) + len(second) :]
  assert "antspyx (may take" in third and "HD-BET" not in third and "written: 1 masks" in third


def test_commands_are_shown(tmp_path, terminal, head):
  """Without --prepare, or without the tools, nothing runs."""
  image, affine, _ = head
  write_series(tmp_path / "P1", image, affine)
  with pytest.raises(UserError) as error:
    run(tmp_path, terminal, prepare=False)
  said = str(error.value)
  assert "is not yet a scan that a student can read" in said and not leaks(said)
  assert "not installed here. Install them and add --prepare" in said
  assert f"-i {tmp_path}/out/P1_steps/scan.nii.gz" in said
  assert "pip install hd-bet" in said and "pip install antspyx" in said
  with pytest.raises(UserError, match="Install them and start again"):
    run(tmp_path, terminal)
  assert not (tmp_path / "out" / "P1.nii.gz").exists()


@pytest.mark.slow
def test_commands_do_it(tmp_path, terminal, tools, head):
  """What the user runs by hand is taken up."""
  image, affine, truth = head
  write_series(tmp_path / "P1", image, affine)
  tools()
  with pytest.raises(UserError, match=r"Add --prepare to have them run") as error:
    run(tmp_path, terminal, prepare=False)
  commands = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
  assert len(commands) == 2
  for command in commands:
    assert subprocess.run(shlex.split(command, comments=True), check=False).returncode == 0
  run(tmp_path, terminal, prepare=False)
  check_result(tmp_path, truth, affine)


FAILS = "#!/bin/sh\necho half > \"$4\"\necho 'CUDA is not here' >&2\nexit 3\n"


def test_a_tool_that_fails(tmp_path, terminal, tools, head):
  image, affine, _ = head
  write_series(tmp_path / "P1", image, affine)
  tools(hd_bet=FAILS)
  with pytest.raises(UserError, match=r"HD-BET failed \(status 3\): CUDA is not here\. Run it"):
    run(tmp_path, terminal)
  assert not (tmp_path / "out" / "P1_steps" / "brain.nii.gz").exists()
  tools(hd_bet=HD_BET.replace("(data < {scalp})", "(data < 9000)"))  # keeps all
  with pytest.raises(UserError, match=r"brain\.nii\.gz, made by HD-BET: .*Look at it"):
    run(tmp_path, terminal)


@pytest.mark.slow
def test_a_transform_that_stretches(tmp_path, terminal, tools, head):
  image, affine, _ = head
  write_series(tmp_path / "P1", image, affine)
  tools(
    ants=ANTS.replace(
      "scipy.io.savemat(", "content['AffineTransform_float_3_3'] *= 1.1; scipy.io.savemat("
    )
  )
  with pytest.raises(UserError, match=r"atlas_to_scan\.mat stretches"):
    run(tmp_path, terminal)


@pytest.mark.slow
def test_a_brain_that_is_only_not_aligned_is_only_aligned(tmp_path, terminal, tools, head):
  image, affine, truth = head
  write_series(tmp_path / "P1", stripped(image), affine)
  tools(hd_bet=None)
  said = run(tmp_path, terminal)
  assert "HD-BET" not in said and "antspyx (may take minutes)" in said
  check_result(tmp_path, truth, affine)


def test_what_lies_in_the_atlas_needs_nothing(tmp_path):
  case = generated()
  nib.save(nib.Nifti1Image(case.image, case.affine), tmp_path / "scan.nii.gz")
  scan = nifti.read(tmp_path / "scan.nii.gz")
  assert needs(scan, "t1ce") == ("", "")
  assert atlas.overlap(scan) > 0.85
  moved = case.affine.copy()
  moved[1, 3] += 40
  nib.save(nib.Nifti1Image(case.image, moved), tmp_path / "moved.nii.gz")
  found = needs(nifti.read(tmp_path / "moved.nii.gz"), "t1ce")
  assert not found.extraction and "of its brain lies where the atlas' brain does" in found.alignment


@pytest.mark.parametrize("content", [b"", b"no matrix", b"\0" * 400])
def test_transforms_that_cannot_be_read(tmp_path, content):
  (tmp_path / "x.mat").write_bytes(content)
  with pytest.raises(UserError, match="is no transform as antspyx writes it"):
    transform.read(tmp_path / "x.mat")


@pytest.mark.slow
def test_the_real_antspyx(tmp_path, head):
  """The command that is shown, run by the real package: its transform leads where it should."""
  pytest.importorskip("ants", reason="antspyx is not installed")
  from kd_jax.dicom.prepare import ants

  steps = Steps(tmp_path)
  image, affine, _ = head
  nib.save(nib.Nifti1Image(stripped(image), affine), steps.brain)
  atlas.write(steps.atlas)
  subprocess.run(ants(steps, steps.brain).command, check=True)
  found = transform.read(steps.transform)
  middle = np.array([-119.0, 120.0, 77.0, 1.0])
  assert np.linalg.norm((found @ middle - POSE @ middle)[:3]) < 6  # another brain than the atlas'
  turned = Rotation.from_matrix(found[:3, :3].T @ POSE[:3, :3]).magnitude()
  assert np.degrees(turned) < 10
  assert atlas.overlap(nifti.read(steps.aligned)) > 0.85
