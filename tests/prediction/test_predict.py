"""Masks of new scans: in the scan's own space, whole or not at all, each once."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from students import make_student
from synthetic import AFFINE, make_case

from kd_jax.data import nifti
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict
from kd_jax.prediction.predictor import Predictor, Prepared, overlapped
from kd_jax.runtime.errors import CaseError, ConfigError, UserError
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels
from kd_jax.tasks.names import parse_patterns

SHAPE = (60, 72, 54)  # at 2.5 mm, a small head


def head(shape=SHAPE, seed=0) -> np.ndarray:
  """(D, H, W) int16: a brain with one bright ball off its middle, on all axes."""
  axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
  brain = sum(x**2 for x in axes) < 0.8
  ball = sum((x - c) ** 2 for x, c in zip(axes, (0.4, -0.3, 0.2), strict=True)) < 0.06
  noise = np.random.default_rng(seed).normal(0, 20, shape)
  return np.where(brain, 400 + 900 * ball + noise, 0).astype(np.int16)


def save(path: Path, data: np.ndarray, affine=None, **codes) -> Path:
  affine = np.diag([-2.5, -2.5, 2.5, 1]) if affine is None else affine
  image = nib.Nifti1Image(data, affine)
  image.set_sform(affine, codes.get("sform", 1))
  image.set_qform(affine, codes.get("qform", 1))
  image.header.set_xyzt_units("mm", "sec")
  path.parent.mkdir(parents=True, exist_ok=True)
  nib.save(image, path)
  return path


class Bright(Predictor):
  """Calls everything ET that is brighter than the brain: what comes out can be predicted."""

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    et = 1 / (1 + np.exp(-8 * (prepared.images[0].astype(np.float32) - 1.5)))
    return np.stack([1 - et, 0 * et, 0 * et, et])


def said(terminal: Terminal) -> str:
  return terminal.console.file.getvalue()


def bright(**settings) -> Predictor:
  return Bright([make_student(**settings)])


def dice(a: np.ndarray, b: np.ndarray) -> float:
  return 2 * (a & b).sum() / (a.sum() + b.sum())


def rotation(degrees: float) -> np.ndarray:
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation(8) @ np.diag([-2.5, -2.5, 2.5])
OBLIQUE[:3, 3] = 70, 80, -60
HEADERS = {
  "LPS": (np.diag([-2.5, -2.5, 2.5, 1]), SHAPE),
  "RAS": (np.diag([2.5, 2.5, 2.5, 1]), SHAPE),
  "oblique": (OBLIQUE, SHAPE),
  "anisotropic": (np.diag([-1.0, -1.0, 5.0, 1]), (150, 180, 27)),
  "PIR": (np.array([[0, 0, 2.5, 0], [-2.5, 0, 0, 0], [0, -2.5, 0, 0], [0, 0, 0, 1.0]]), SHAPE),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (0, 1), (2, 0), (4, 3)])
def test_the_mask_lies_on_the_scan(tmp_path, terminal, header, sform, qform):
  affine, shape = HEADERS[header]
  scan = save(tmp_path / "scan.nii.gz", head(shape), affine, sform=sform, qform=qform)
  predict(bright(), scan, Output(tmp_path / "out", "brats2018"), terminal)
  image, mask = nib.load(scan), nib.load(tmp_path / "out" / "scan.nii.gz")
  assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
  np.testing.assert_array_equal(mask.affine, image.affine)
  for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "quatern_b", "srow_x"):
    np.testing.assert_array_equal(mask.header[field], image.header[field], err_msg=field)
  found = np.asarray(mask.dataobj)
  assert set(np.unique(found)) == {0, 4}
  assert dice(found > 0, np.asarray(image.dataobj) > 900) > 0.9


def test_how_a_scan_is_stored_does_not_matter(tmp_path, terminal):
  """The real network, on the same scan in four storage orders: one mask."""
  image = nib.Nifti1Image(head(), np.diag([-2.5, -2.5, 2.5, 1]))
  for codes in ("LPS", "RAS", "PIR", "SAL"):
    turn = orientations.ornt_transform(
      nib.io_orientation(image.affine), orientations.axcodes2ornt(codes)
    )
    (tmp_path / "in").mkdir(exist_ok=True)
    nib.save(image.as_reoriented(turn), tmp_path / "in" / f"{codes}.nii.gz")
  predictor = Predictor([make_student(spacing=2.5)])
  predict(predictor, tmp_path / "in", Output(tmp_path / "out", "brats2018"), terminal)
  masks = [nifti.read(path).data for path in sorted((tmp_path / "out").glob("*.nii.gz"))]
  assert len(masks) == 4 and len(np.unique(masks[0])) > 1
  for mask in masks[1:]:
    np.testing.assert_array_equal(mask, masks[0])


def test_resampled_in_and_back(tmp_path, terminal):
  """A student of another spacing than the scan's."""
  scan = save(tmp_path / "scan.nii.gz", head())
  predict(bright(spacing=1.5), scan, Output(tmp_path / "out", "brats2023"), terminal)
  found = np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj)
  assert set(np.unique(found)) == {0, 3}
  assert dice(found > 0, head() > 900) > 0.9


@pytest.mark.parametrize("said", ["msd", '{"NCR": 7, "ED": 5, "ET": [9, 3]}'])
def test_masks_in_another_order(tmp_path, terminal, said):
  """With their record, by which an evaluation knows it."""
  scan = save(tmp_path / "scan.nii.gz", head())
  convention, predictor = labels.canonical(said), Predictor([make_student(spacing=2.5)])
  classes = {}
  for name in ("brats2023", convention):
    output = Output(tmp_path / f"out{len(classes)}", name)
    predict(predictor, scan, output, terminal)
    raw = np.asarray(nib.load(output.mask("scan")).dataobj)
    classes[name] = labels.to_classes(raw, name)
    assert json.loads((output.folder / "predict.json").read_text())["labels"] == name
  assert len(np.unique(classes[convention])) > 2
  np.testing.assert_array_equal(*classes.values())


def test_probability_maps(tmp_path, terminal):
  scan = save(tmp_path / "scan.nii.gz", head())
  output = Output(tmp_path / "out", "brats2018", probabilities=True)
  predict(Predictor([make_student(spacing=2.5)]), scan, output, terminal)
  maps = {r: np.asarray(nib.load(output.map("scan", r)).dataobj) for r in labels.REGIONS}
  for region, x in maps.items():
    assert x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1 + 1e-5, region
  assert (maps["WT"] >= maps["TC"] - 1e-6).all() and (maps["TC"] >= maps["ET"] - 1e-6).all()
  assert maps["WT"].std() > 0


def test_several_students_are_averaged(tmp_path):
  students = [make_student(seed, spacing=2.5) for seed in (0, 1)]
  volumes = {"t1ce": nifti.read(save(tmp_path / "scan.nii.gz", head()))}
  both = Predictor(students)
  prepared = both.prepare(volumes)
  single = [Predictor([student]).probabilities(prepared) for student in students]
  np.testing.assert_allclose(both.probabilities(prepared), np.mean(single, axis=0), atol=1e-5)
  assert np.abs(single[0] - single[1]).max() > 0.01


def test_bad_cases_are_told_and_the_others_done(tmp_path, terminal):
  for i in range(3):
    save(tmp_path / "in" / f"scan{i}.nii.gz", head(seed=i))
  good = (tmp_path / "in" / "scan1.nii.gz").read_bytes()
  (tmp_path / "in" / "scan1.nii.gz").write_bytes(good[: len(good) // 2])
  save(tmp_path / "in" / "flat.nii.gz", head()[:, :, 20])
  save(tmp_path / "in" / "black.nii.gz", np.zeros(SHAPE, np.int16))
  output = Output(tmp_path / "out", "brats2018")
  with pytest.raises(UserError, match="3 of 5 cases could not be done") as error:
    predict(bright(), tmp_path / "in", output, terminal)
  for name, why in [("scan1", "truncated"), ("flat", "3-D"), ("black", "every voxel is 0")]:
    line = next(line for line in str(error.value).splitlines() if name in line)
    assert why in line
  assert sorted(p.name for p in output.folder.glob("*.nii.gz")) == ["scan0.nii.gz", "scan2.nii.gz"]


@pytest.mark.parametrize(
  "other",
  [
    lambda folder: (bright(seed=1), Output(folder, "brats2018")),
    lambda folder: (bright(), Output(folder, "brats2023")),
    lambda folder: (Bright([make_student()], mirror=True), Output(folder, "brats2018")),
  ],
)
def test_masks_of_one_folder_come_from_one_student(tmp_path, terminal, other):
  scan = save(tmp_path / "scan.nii.gz", head())
  predict(bright(), scan, Output(tmp_path / "out", "brats2018"), terminal)
  with pytest.raises(UserError, match="holds masks by another student"):
    predictor, output = other(tmp_path / "out")
    predict(predictor, scan, output, terminal)


def test_an_input_is_never_overwritten(tmp_path, terminal):
  scan = save(tmp_path / "scan.nii.gz", head())
  before = scan.read_bytes()
  with pytest.raises(UserError, match="is a file of a scan and would be overwritten"):
    predict(bright(), scan, Output(tmp_path, "brats2018"), terminal)
  assert scan.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_label_map_is_never_overwritten(tmp_path, terminal):
  case = make_case(tmp_path / "P1")
  other = (case / "P1_seg.nii.gz").rename(case / "P1.nii.gz")  # as the mask is called
  before = other.read_bytes()
  with pytest.raises(UserError, match="is a file of a scan and would be overwritten"):
    output = Output(case, "brats2018", overwrite=True)
    predict(bright(), case, output, terminal, parse_patterns('{"seg": "P1.nii*"}'))
  assert other.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path, terminal):
  scan = save(tmp_path / "scan.nii.gz", head())
  (tmp_path / "out").write_text("a file")
  with pytest.raises(UserError, match="cannot write"):
    predict(bright(), scan, Output(tmp_path / "out", "brats2018"), terminal)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, terminal, monkeypatch):
  for i in range(3):
    save(tmp_path / "in" / f"scan{i}.nii.gz", head(seed=i))
  write_bytes = Path.write_bytes

  def full(self, content):
    if "scan1" not in self.name:
      return write_bytes(self, content)
    write_bytes(self, content[: len(content) // 2])
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(Path, "write_bytes", full)
  with pytest.raises(UserError, match=r"cannot write .*scan1.nii.gz: No space left"):
    predict(bright(), tmp_path / "in", Output(tmp_path / "out", "brats2018"), terminal)
  left = {p.name for p in (tmp_path / "out").iterdir()}
  assert "scan0.nii.gz" in left and not any("scan1" in name or "tmp" in name for name in left)


def test_brats_cases_of_any_year(tmp_path, terminal):
  make_case(tmp_path / "in" / "BraTS20_Training_001", affine=AFFINE)
  output = Output(tmp_path / "out", "brats2018")
  # The synthetic cases are far too small to be heads.
  with pytest.raises(UserError, match="BraTS20_Training_001"):
    predict(bright(), tmp_path / "in", output, terminal)
  record = json.loads((output.folder / "predict.json").read_text())
  assert record["labels"] == "brats2018" and record["students"][0]["sha256"]


def test_settings_that_cannot_be():
  with pytest.raises(ConfigError, match=r"inference\.window: unknown value 'half'"):
    Predictor([make_student()], window="half")
  with pytest.raises(ConfigError, match=r"inference\.overlap = 1\.0 is not between 0 and 0.95"):
    Predictor([make_student()], overlap=1.0)


# --- The pipeline -----------------------------------------------------------------------------


class Job:
  def __init__(self, name):
    self.name = name


def test_the_pipeline_keeps_order_and_drops_only_what_fails():
  finished, progress = [], []

  def fails_at(*names):
    def stage(job, *more):
      if job.name in names:
        raise CaseError(job.name, "", "bad", "")
      return job

    return stage

  def finish(job, result):
    fails_at("e")(job)
    finished.append(job.name)

  jobs = [Job(name) for name in "abcdef"]
  failed = overlapped(
    jobs, fails_at("b"), fails_at("a"), finish, lambda done, n, name: progress.append((done, name))
  )
  assert finished == ["c", "d", "f"]
  assert [error.case for error in failed] == ["a", "b", "e"]
  assert progress == list(enumerate("abcdef", 1))
  assert overlapped([], None, None, None, None) == []


@pytest.mark.parametrize("stage", ["load", "compute", "finish"])
def test_any_other_error_ends_the_pipeline(stage):
  def run(name):
    def f(*args):
      if stage == name:
        raise UserError("disk full")
      return args[0]

    return f

  with pytest.raises(UserError, match="disk full"):
    overlapped([Job("a"), Job("b"), Job("c")], run("load"), run("compute"), run("finish"), print)
