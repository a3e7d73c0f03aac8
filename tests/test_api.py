"""The Python interface: what docs/api.md shows, and what it says of arrays, files and errors."""

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from quick import FLAGS
from runs import make_run
from students import make_student
from synthetic import LARGE, make_case

import kd_jax
import kd_jax.training.train as training
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.prediction.student_directory import export
from kd_jax.runtime import startup
from kd_jax.runtime.terminal import Terminal, quiet_libraries

ROOT = Path(__file__).parents[1]
SHAPE = (60, 72, 54)
MM = (2.5, 2.5, 2.5)  # with SHAPE, a small head
AFFINE = np.diag([-2.5, -2.5, 2.5, 1])  # LPS


def head(seed: int = 0) -> np.ndarray:
  """(D, H, W) int16: a brain with one bright ball off its middle, on all axes."""
  axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
  brain = sum(x**2 for x in axes) < 0.95
  ball = sum((x - c) ** 2 for x, c in zip(axes, (0.4, -0.3, 0.2), strict=True)) < 0.06
  noise = np.random.default_rng(seed).normal(0, 20, SHAPE)
  return np.where(brain, 400 + 900 * ball + noise, 0).astype(np.int16)


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
  image = nib.Nifti1Image(data, affine)
  image.set_sform(affine, 1)
  image.set_qform(affine, 1)
  nib.save(image, path)
  return path


def run(arguments: list, folder: Path) -> subprocess.CompletedProcess:
  """Python in a folder, on one device, as users have it."""
  return subprocess.run(
    [sys.executable, *arguments],
    **{"capture_output": True, "text": True, "check": False, "timeout": 300, "cwd": folder},
    env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS},
  )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with what the examples of docs/api.md use."""
  folder = tmp_path_factory.mktemp("place")
  export(make_student(spacing=2.5), folder / "my_student")
  np.save(folder / "t1ce.npy", head())
  save(folder / "scan.nii.gz", head())
  for i in range(3):
    make_case(folder / "data" / "BraTS2021" / f"case{i}", seed=i, affine=LARGE)
  return folder


@pytest.fixture(scope="module")
def student(place):
  return kd_jax.load(place / "my_student")


@pytest.fixture(scope="module")
def classes(student):
  return student.segment(head(), MM)


# --- The package ------------------------------------------------------------------------------


def test_importing_the_package_is_light():
  script = """
import sys, kd_jax
assert kd_jax.__version__ and set(kd_jax.__all__) <= set(dir(kd_jax))
heavy = {"jax", "numpy", "kd_jax.api", "absl"} & set(sys.modules)
assert not heavy, heavy
assert kd_jax.UserError.__name__ == "UserError" and "jax" not in sys.modules
"""
  subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_all_public_names_are_there_documented_and_typed():
  tree = ast.parse((ROOT / "kd_jax" / "__init__.py").read_text())
  (seen,) = (node for node in tree.body if isinstance(node, ast.If))
  typed = {alias.name for node in seen.body for alias in node.names}
  assert typed | {"__version__"} == set(kd_jax.__all__)
  for name in typed:
    assert getattr(kd_jax, name).__doc__, name
  text = (ROOT / "docs" / "api.md").read_text()
  assert not [name for name in typed if f"`{name}" not in text and f"kd_jax.{name}" not in text]
  assert (ROOT / "kd_jax" / "py.typed").exists()
  with pytest.raises(AttributeError, match="has no attribute 'lode'"):
    _ = kd_jax.lode


def test_signatures_in_the_documentation_are_the_code_s():
  text = re.sub(r"\s+", " ", (ROOT / "docs" / "api.md").read_text())
  functions = {
    "kd_jax.load": kd_jax.load,
    "student.segment": kd_jax.Student.segment,
    "student.segment_file": kd_jax.Student.segment_file,
    "kd_jax.train": kd_jax.train,
    "kd_jax.preset": kd_jax.preset,
    "kd_jax.evaluate": kd_jax.evaluate,
  }
  for name, function in functions.items():
    (said,) = re.findall(rf"`{re.escape(name)}\(([^`]*)\)`", text)
    node = ast.parse(f"def f({said}): ...").body[0].args
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    names = [name for name in code.co_varnames[:count] if name != "self"]
    assert [a.arg for a in (*node.args, *node.kwonlyargs)] == names, name
    defaults = [ast.literal_eval(d) for d in (*node.defaults, *node.kw_defaults)]
    assert defaults == [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def test_the_examples_of_the_documentation(place, monkeypatch, capfd):
  """In order, in one program, as a reader tries them.

  Only the training takes no time: it leaves a run that nobody trained. Real training through this
  interface: integration/test_run.py.
  """
  asked = []

  def untrained(settings, workdir, terminal):
    asked.append(settings)
    make_run(workdir, Path("data/BraTS2021"), folds=2)

  monkeypatch.chdir(place)
  monkeypatch.setattr(training, "train", untrained)
  blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.M | re.S)
  names = {"__name__": "__main__"}
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", kd_jax.ScanWarning)  # the cases are too small for brains
    for i, block in enumerate(blocks):
      exec(compile(block, f"docs/api.md, example {i + 1}", "exec"), names)
  assert len(blocks) >= 10
  assert names["workdir"] == Path("runs/first") and names["student"].modalities == ("t1ce",)
  (settings,) = asked
  assert (settings.name, settings.model.teachers) == ("quickstart-student_only", {})
  assert (settings.seed, settings.train.epochs) == (1, 2)
  assert names["settings"].data.fold == 1
  assert names["summary"] == json.loads((place / "scores" / "summary.json").read_text())
  assert names["summary"]["data"]["cases"] == 3
  assert set(np.unique(nib.load("mask.nii.gz").dataobj)) <= {0, 1, 2, 4}
  assert set(np.unique(nib.load("mask_2023.nii.gz").dataobj)) <= {0, 1, 2, 3}
  assert "expected (D, H, W), found shape (72, 54)" in capfd.readouterr().out


# --- Arrays and files -------------------------------------------------------------------------


def test_an_array_gives_classes_and_probabilities_in_its_own_grid(student, classes):
  assert classes.shape == SHAPE and classes.dtype == np.uint8
  assert len(np.unique(classes)) > 1 and classes.max() <= 3
  both = student.segment(head().astype(np.float64), MM, probabilities=True)
  np.testing.assert_array_equal(both.classes, classes)  # whatever the type
  assert list(both.regions) == ["WT", "TC", "ET"]
  for x in both.regions.values():
    assert x.shape == SHAPE and x.dtype == np.float32 and x.min() >= 0 and x.max() <= 1 + 1e-5
  # Not postprocessed, and the student has no postprocessing: the same regions.
  chosen = both.regions["WT"] > 0.75
  assert chosen.any() and (classes[chosen] > 0).all()


def test_a_file_gives_what_its_array_gives_however_it_is_stored(student, classes, tmp_path):
  turned = nib.as_closest_canonical(nib.Nifti1Image(head(), AFFINE))  # RAS
  path = save(tmp_path / "scan.nii.gz", np.asarray(turned.dataobj), turned.affine)
  np.testing.assert_array_equal(student.segment(path), classes)
  np.testing.assert_array_equal(student.segment({"t1ce": str(path)}), classes)
  mask = student.segment_file(path, tmp_path / "new" / "mask.nii")
  written = nib.load(mask)
  np.testing.assert_array_equal(written.affine, turned.affine)
  expected = np.array([0, 1, 2, 4], np.uint8)[classes][::-1, ::-1]  # 4: the student is of 2018
  np.testing.assert_array_equal(np.asarray(written.dataobj), expected)


def test_voxels_of_another_size_are_resampled(student):
  """Half the slices, twice as thick: about the same tumour."""
  fine, coarse = head(), head()[:, :, ::2]
  a = (student.segment(fine, MM) > 0).mean()
  b = (student.segment(coarse, (2.5, 2.5, 5.0), warn=lambda line: None) > 0).mean()
  assert abs(a - b) < 0.1


class Channels(Predictor):
  """ET where the first channel is brighter than the brain, oedema where the second is."""

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    first, second = (prepared.images.astype(np.float32) > 3).astype(np.float32)
    return np.stack([0.5 * (1 - first) * (1 - second), 0 * first, second, first])


def test_a_student_of_two_sequences():
  both = kd_jax.Student(Channels([make_student(modalities=("t1", "flair"), spacing=2.5)]))
  assert both.modalities == ("t1", "flair")
  plain = np.where(head() > 0, head() % 400, 0)  # no ball
  arrays = {"flair": plain, "t1": head(), "t2": head()}
  found = both.segment(arrays, MM, warn=lambda line: None)
  assert set(np.unique(found)) == {0, 3} and (head()[found == 3] > 800).all()
  with pytest.raises(kd_jax.UserError, match="reads t1 and flair: give a dictionary"):
    both.segment(head(), MM)
  with pytest.raises(kd_jax.CaseError, match=r"no flair image.*given is t1, t2"):
    both.segment({"t1": head(), "t2": head()}, MM)
  with pytest.raises(kd_jax.CaseError, match=r"flair array.*\(60, 72, 53\) differs from"):
    both.segment(arrays | {"flair": head()[:, :, 1:]}, MM)


@pytest.mark.parametrize("at", [(0, 0, 0), np.s_[:4, :3, -2:]])
def test_specks_change_no_mask(student, classes, at):
  x = head()
  x[at] = 700
  with pytest.warns(kd_jax.ScanWarning, match=r"t1ce array: .* outside the brain, in 1 place"):
    np.testing.assert_array_equal(student.segment(x, MM), classes)


@pytest.mark.parametrize(
  ("change", "finding"),
  [
    (lambda x: x + 7, "background is 7 "),
    (lambda x: np.where(x > 0, x, -1), "background is -1 "),
    (lambda x: (x > 0) * 7 + (x % 2), "3 different values"),
  ],
)
def test_arrays_that_are_no_brain_scans(student, change, finding):
  with pytest.raises(kd_jax.CaseError, match=finding):
    student.segment(change(head()), MM)


def with_nan() -> np.ndarray:
  x = head().astype(np.float32)
  x[30, 30, 30:33] = np.nan
  return x


@pytest.mark.parametrize(
  ("image", "voxel_mm", "error", "message"),
  [
    (lambda: head()[0], MM, "CaseError", r"t1ce array: expected \(D, H, W\), found shape \(72, 54"),
    (lambda: head()[None], MM, "CaseError", r"found shape \(1, 60, 72, 54\)"),
    (lambda: np.zeros((0, 3, 3)), MM, "CaseError", r"found shape \(0, 3, 3\)"),
    (lambda: [[1, 2], [3]], MM, "CaseError", "it is no array"),
    (lambda: head() > 0, MM, "CaseError", "expected numbers, found type bool"),
    (with_nan, MM, "CaseError", "3 of its voxels are NaN or infinite"),
    (lambda: head() * 1e300, MM, "CaseError", "of its voxels are NaN or infinite"),
    (lambda: head() * 0, MM, "CaseError", "every voxel is 0"),
    (lambda: (head() > 0).astype(int), MM, "CaseError", "like a mask or a label map"),
    (head, None, "CaseError", None),
    (head, (25, 25, 25), "CaseError", "which is no brain scan's"),
    (head, (1, 1), "ConfigError", r"voxel_mm = \(1, 1\): expected three edges"),
    (head, 1.0, "ConfigError", "expected three edges"),
    (head, (1, -1, 1), "ConfigError", "three positive numbers"),
    (head, (1, float("nan"), 1), "ConfigError", "three positive numbers"),
    (lambda: {}, MM, "CaseError", "no t1ce image"),
  ],
)
def test_what_no_student_can_read(student, image, voxel_mm, error, message):
  if message is None:  # at 1 mm, the head is too small, which is worth a warning and no error
    with pytest.warns(kd_jax.ScanWarning, match=r"t1ce array: .* less than an adult's brain"):
      student.segment(image(), voxel_mm)
    return
  with pytest.raises(getattr(kd_jax, error), match=message):
    student.segment(image(), voxel_mm)


def test_warnings_point_at_the_caller_and_can_be_taken(student, tmp_path):
  coarse, lines = head()[:, :, ::2], []
  with pytest.warns(kd_jax.ScanWarning, match="coarser than the networks' grid") as seen:
    student.segment(coarse, (2.5, 2.5, 5.0))
  assert seen[0].filename == __file__
  path = save(tmp_path / "scan.nii.gz", coarse, np.diag([-2.5, -2.5, 5.0, 1]))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    student.segment_file(path, tmp_path / "mask.nii.gz", warn=lines.append)
  assert len(lines) == 1 and "coarser" in lines[0]


def test_files_that_cannot_be(student, place, tmp_path):
  scan = save(tmp_path / "scan.nii.gz", head())
  before = scan.read_bytes()
  (tmp_path / "link.nii.gz").symlink_to(scan)
  for target in (scan, tmp_path / "link.nii.gz"):
    with pytest.raises(kd_jax.UserError, match="is a file of the scan and would be overwritten"):
      student.segment_file(scan, target)
  assert scan.read_bytes() == before
  with pytest.raises(kd_jax.UserError, match=r"mask.png is no name for a mask"):
    student.segment_file(scan, tmp_path / "mask.png")
  with pytest.raises(kd_jax.ConfigError, match="label convention"):
    student.segment_file(scan, tmp_path / "mask.nii.gz", labels="brats1999")
  with pytest.raises(kd_jax.ConfigError, match="have no ED"):
    student.segment_file(scan, tmp_path / "mask.nii.gz", labels={"NCR": 1, "ET": 2})
  with pytest.raises(kd_jax.ConfigError, match="a file has its own voxel size"):
    student.segment(scan, MM)
  with pytest.raises(kd_jax.UserError, match=r"holds 3 scans \(case0, case1.*one is expected"):
    student.segment(place / "data")
  with pytest.raises(kd_jax.UserError, match=r"there is no .*gone.nii.gz"):
    student.segment(tmp_path / "gone.nii.gz")
  with pytest.raises(kd_jax.CaseError, match="no t1ce image"):
    student.segment({"t1": scan})


@pytest.mark.parametrize("given", ["", "case_t1ce.nii.gz"])
def test_what_lies_beside_a_scan_of_its_case_is_not_overwritten(student, tmp_path, given):
  """The student reads T1ce alone."""
  case = make_case(tmp_path / "case", affine=LARGE)
  before = {path: path.read_bytes() for path in case.iterdir()}
  for kind in ("flair", "t1", "t1ce", "seg"):
    with pytest.raises(kd_jax.UserError, match=f"case_{kind}.nii.gz is a file of the scan"):
      student.segment_file(case / given, case / f"case_{kind}.nii.gz", warn=print)
  assert {path: path.read_bytes() for path in case.iterdir()} == before
  for _ in range(2):  # an older mask is replaced
    student.segment_file(case / given, case / "mask.nii.gz", warn=print)


def test_a_sequence_in_another_folder_is_not_overwritten(student, tmp_path):
  case = make_case(tmp_path / "case", affine=LARGE)
  for kind in ("t1ce", "flair"):
    (tmp_path / "data" / kind).mkdir(parents=True)
    (case / f"case_{kind}.nii.gz").rename(tmp_path / "data" / kind / f"case_{kind}.nii.gz")
  with pytest.raises(kd_jax.UserError, match=r"flair.nii.gz is a file of the scan"):
    student.segment_file(
      tmp_path / "data", tmp_path / "data" / "flair" / "case_flair.nii.gz", warn=print
    )


def test_another_channel_of_a_scan_is_not_overwritten(student, tmp_path):
  content = {"channel_names": {"0": "T1ce", "1": "FLAIR"}}
  (tmp_path / "dataset.json").write_text(json.dumps(content))
  scan, other = (save(tmp_path / f"P1_000{i}.nii.gz", head()) for i in range(2))
  with pytest.raises(kd_jax.UserError, match=r"P1_0001.nii.gz is a file of the scan"):
    student.segment_file(scan, other)


# --- Loading, training, evaluation ------------------------------------------------------------


def test_inference_settings_of_a_student(place, student, tmp_path):
  folder = place / "my_student"
  export(make_student(1, spacing=2.5), tmp_path / "second")
  other = kd_jax.load(f"{folder},{tmp_path / 'second'}", mirror=True, min_et_mm3=50)
  described = other.describe()
  assert len(described["students"]) == 2 and described["labels"] == "brats2018"
  assert described["inference"]["mirror"] and described["inference"]["min_et_mm3"] == 50
  assert student.describe()["inference"]["mirror"] is False
  json.dumps(described)
  assert repr(student) == "<kd_jax.Student small: reads t1ce>"
  with pytest.raises(kd_jax.ConfigError, match=r"inference.overlap = 2"):
    kd_jax.load(folder, overlap=2.0)
  with pytest.raises(kd_jax.UserError, match="no such checkpoint"):
    kd_jax.load(place / "nothing")


def test_settings_by_name_and_by_hand():
  settings = kd_jax.preset("brats21:t1", {"data.fold": 2})
  assert isinstance(settings, kd_jax.Settings) and settings.data.fold == 2
  with pytest.raises(kd_jax.ConfigError, match="unknown preset 'brats22'; did you mean 'brats2"):
    kd_jax.train("brats22")
  with pytest.raises(kd_jax.ConfigError, match="did you mean 'fold'"):
    kd_jax.train(settings, overrides={"data.fld": 1})
  with pytest.raises(kd_jax.ConfigError, match="config is a dict"):
    kd_jax.train({"name": "x"})


def test_training_says_nothing_if_asked_and_ctrl_c_is_python_s(tmp_path, monkeypatch, capfd):
  def interrupted(settings, workdir, terminal):
    terminal.line("a line")
    with terminal.live("training", 2) as show:
      show(1, "note")
      print("the caller's own")
    raise SystemExit(130 if "ctrl" in workdir.name else 143)

  monkeypatch.setattr(training, "train", interrupted)
  with pytest.raises(KeyboardInterrupt, match="the same call goes on from"):
    kd_jax.train("quickstart", tmp_path / "ctrl-c", quiet=True)
  assert capfd.readouterr() == ("the caller's own\n", "")
  with pytest.raises(SystemExit):
    kd_jax.train("quickstart", tmp_path / "term")
  assert "a line" in capfd.readouterr().err


def test_a_notebook_gets_lines_and_no_live_line(monkeypatch):
  """Jupyter's kernel sets FORCE_COLOR; each redrawing would stay below the last one."""

  class OutStream(io.StringIO):
    __module__ = "ipykernel.iostream"

  monkeypatch.setattr(sys, "stderr", OutStream())
  monkeypatch.setenv("FORCE_COLOR", "1")
  terminal = Terminal()
  with terminal.live("training", 2) as show:
    show(1, "note")
    terminal.line("step 1")
  assert sys.stderr.getvalue().replace("\n", "") == "step 1"
  monkeypatch.setattr(sys, "stderr", io.StringIO())
  assert Terminal().console.is_terminal  # elsewhere, FORCE_COLOR counts


def test_training_subjects_are_refused(place, tmp_path):
  for i in range(2):
    make_case(tmp_path / "data" / ("Clinic_7" if i else "Clinic_8"), seed=i, affine=LARGE)
  with pytest.raises(kd_jax.UserError, match=r"(?s)REFUSED.*Clinic_7"):
    kd_jax.evaluate(place / "my_student", tmp_path / "data", output=tmp_path / "a", quiet=True)
  with pytest.raises(kd_jax.ConfigError, match="label convention"):
    kd_jax.evaluate(place / "my_student", tmp_path / "data", labels="brats1999", quiet=True)


UNGUARDED = """
import kd_jax
kd_jax.train("quickstart", "run", {"data.root": "demo", "data.prepare_workers": 2})
"""


def test_a_script_without_a_guard_is_named(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(UNGUARDED)
  done = run([script], tmp_path)
  assert done.returncode == 1
  (last,) = (line for line in done.stderr.splitlines() if "UserError:" in line)
  assert "script.py calls kd_jax outside `if __name__" in last


def test_what_the_caller_set_stays(monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  startup.keep_compiled()
  assert jax.config.jax_compilation_cache_dir == before  # tests have one of their own
  logger = logging.getLogger("orbax")
  level = logger.level
  try:
    logger.setLevel(logging.DEBUG)
    quiet_libraries(unless_set=True)
    assert logger.level == logging.DEBUG
    quiet_libraries()
    assert logger.level == logging.ERROR
  finally:
    logger.setLevel(level)
