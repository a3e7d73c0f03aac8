"""The programs of examples/ against prediction: the same masks; what is damaged or in the way."""

import dataclasses
import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from students import make_student
from synthetic import LARGE, brats_root, images, write

from kd_jax.data.brain import find_brain
from kd_jax.data.cases import loose_case
from kd_jax.exports.export import FORMATS, describe, export
from kd_jax.prediction.calibration import Calibration
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.segment import segment_file
from kd_jax.runs.students import open_students
from kd_jax.runtime.errors import ConfigError, UserError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
  """Name of a format -> the module of its example."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    yield lambda form: importlib.import_module(f"{form}_predict")


def opened(example, form: str, folder: Path):
  pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
  return getattr(example(form), f"open_{form}")(folder)


def student_with(preparation=None, inference=None, **make):
  own = make_student(**make)
  return dataclasses.replace(
    own,
    preparation=dataclasses.replace(own.preparation, **(preparation or {})),
    inference=dataclasses.replace(own.inference, **(inference or {})),
  )


def scan(folder: Path, shape=(30, 34, 26), modality: str = "t1ce") -> Path:
  """A rough ball of brain with a speck beside it, stored in axes that are not LPS."""
  rng = np.random.default_rng(len(modality))
  places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
  centre = np.array(shape) / 2
  x = rng.integers(100, 900, shape).astype(np.int16)
  x[((((places - centre) / (centre - 4)) ** 2).sum(-1)) > 1] = 0
  x[1, 1, 1] = 77
  turned = LARGE @ np.diag([-1, 1, 1, 1])
  return write(folder / f"a_{modality}.nii.gz", x, turned)


SLOW = pytest.mark.slow
SETTINGS = [
  pytest.param({"spacing": 4.0}, {}, id="resampled"),
  pytest.param(
    *({"spacing": 4.0}, {"min_component_mm3": 3000.0, "min_et_mm3": 1e6}), id="postprocessed"
  ),
  pytest.param({"spacing": 6.0}, {"mirror": True}, id="mirrored", marks=SLOW),
  pytest.param(
    *({"grid": "paper", "normalise": "paper", "patch": (64, 64, 64)}, {"overlap": 0.0}),
    id="published",
    marks=SLOW,
  ),
]


@pytest.mark.parametrize(("preparation", "inference"), SETTINGS)
def test_the_example_s_mask_is_prediction_s(example, tmp_path, preparation, inference):
  student, path = student_with(preparation, inference), scan(tmp_path)
  export([student], tmp_path / "onnx", "onnx", None, str)
  case = loose_case("a", {"t1ce": path})
  prediction = Predictor([student]).predict_case(case)
  model, run = opened(example, "onnx", tmp_path / "onnx")
  labels, _ = example("onnx").segment(model, run, {"t1ce": path})
  wanted = np.array([0, 1, 2, 4])[prediction.classes()]
  np.testing.assert_array_equal(labels, wanted)
  assert len(np.unique(wanted)) > 1


@pytest.mark.slow
def test_stablehlo_s_mask_is_prediction_s_and_an_ensemble_s(example, tmp_path):
  students = [student_with({"spacing": 3.0}, seed=seed) for seed in (0, 1)]
  path = scan(tmp_path)
  export(students, tmp_path / "out", "stablehlo", None, str)
  model, run = opened(example, "stablehlo", tmp_path / "out")
  labels, _ = example("onnx").segment(model, run, {"t1ce": path})
  prediction = Predictor(students).predict_case(loose_case("a", {"t1ce": path}))
  np.testing.assert_array_equal(labels, np.array([0, 1, 2, 4])[prediction.classes()])


@pytest.mark.slow
def test_two_sequences(example, tmp_path):
  student = student_with({"spacing": 4.0}, modalities=("flair", "t1ce"))
  paths = {name: scan(tmp_path, modality=name) for name in ("t1ce", "flair")}
  export([student], tmp_path / "onnx", "onnx", None, str)
  model, run = opened(example, "onnx", tmp_path / "onnx")
  labels, _ = example("onnx").segment(model, run, paths)
  prediction = Predictor([student]).predict_case(loose_case("a", paths))
  np.testing.assert_array_equal(labels, np.array([0, 1, 2, 4])[prediction.classes()])
  with pytest.raises(example("onnx").Unusable, match="reads flair, t1ce; flair is missing"):
    example("onnx").segment(model, run, {"t1ce": paths["t1ce"]})


@pytest.mark.slow
def test_a_real_scan(example, tmp_path):
  path = sorted(brats_root().glob("BraTS2018/*/*_t1ce.nii*"))[0]
  student = student_with({"spacing": 4.0})
  export([student], tmp_path / "onnx", "onnx", None, str)
  model, run = opened(example, "onnx", tmp_path / "onnx")
  labels, _ = example("onnx").segment(model, run, {"t1ce": path})
  prediction = Predictor([student]).predict_case(loose_case("a", {"t1ce": path}))
  np.testing.assert_array_equal(labels, np.array([0, 1, 2, 4])[prediction.classes()])


def test_the_command_writes_prediction_s_file_without_kd_jax(tmp_path):
  """In a process that has neither kd_jax nor jax: byte for byte, header and all."""
  pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
  student, path = student_with({"spacing": 3.0}), scan(tmp_path)
  export([student], tmp_path / "onnx", "onnx", None, str)
  segment_file(Predictor([student]), path, tmp_path / "wanted.nii.gz", "brats2018", str)
  hidden = "import sys; sys.modules |= dict.fromkeys(('kd_jax', 'jax', 'scipy')); "
  start = f"sys.argv[0] = {str(EXAMPLES / 'onnx_predict.py')!r}; import runpy; "
  code = f"{hidden}{start}runpy.run_path(sys.argv[0], run_name='__main__')"
  command = [sys.executable, "-c", code, "onnx", path.name, "mask.nii.gz"]
  done = subprocess.run(
    command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0, done.stderr
  assert "written: mask.nii.gz (1 = NCR, 2 = ED, 4 = ET)" in done.stdout
  assert (tmp_path / "mask.nii.gz").read_bytes() == (tmp_path / "wanted.nii.gz").read_bytes()
  again = [*command[:-1], path.name]
  done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and "is the scan and would be overwritten" in done.stderr


# --- Pieces of the example ------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [True, False])
def test_components_are_scipy_s(example, corners):
  rng = np.random.default_rng(0)
  structure = np.ones((3, 3, 3)) if corners else None
  for share in (0.0, 0.05, 0.15, 0.3, 0.6, 1.0):
    mask = rng.random((9, 13, 11)) < share
    wanted, count = ndimage.label(mask, structure)
    found, own_count = example("onnx").components(mask, corners)
    assert own_count == count and ((found > 0) == mask).all()
    pairs = np.unique(np.stack([found[mask], wanted[mask]]), axis=1)
    assert pairs.shape[1] == count  # one to one


def test_brains_are_those_of_preparation(example):
  rule = {"gap_mm": 2.0, "part_share": 0.05, "thick_mm": 10.0}
  rng = np.random.default_rng(1)
  odd = 0
  for i in range(40):
    x = np.zeros((24, 22, 20), np.int16)
    for _ in range(rng.integers(1, 6)):
      start = rng.integers(0, 16, 3)
      x[tuple(slice(a, a + n) for a, n in zip(start, rng.integers(1, 14, 3), strict=True))] = 5
    if i % 2:  # a shell with something in its hole
      x[2:20, 2:20, 2:18] = 5
      x[4:18, 4:18, 4:16] = 0
      x[9:12, 9:12, 9:11] = 5
    mm = tuple(float(edge) for edge in rng.choice([0.5, 1.0, 2.0, 3.0], 3))
    wanted = find_brain(x, mm)
    np.testing.assert_array_equal(example("onnx").brain_of(x, mm, rule), wanted.mask)
    odd += bool(wanted.specks)
  assert odd > 5


# --- What is damaged, and what is in the way ------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
  pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
  folder = tmp_path_factory.mktemp("made")
  export([make_student()], folder / "onnx", "onnx", "MIT", str)
  return folder


def copy(folder: Path, to: Path) -> Path:
  to.mkdir()
  for path in folder.iterdir():
    (to / path.name).write_bytes(path.read_bytes())
  return to


def tampered(folder: Path) -> None:
  content = bytearray((folder / "model.onnx").read_bytes())
  content[len(content) // 2] ^= 1
  (folder / "model.onnx").write_bytes(content)


def renamed_program(folder: Path) -> None:
  model = json.loads((folder / "model.json").read_text())
  model["program"]["file"] = "../../../../etc/passwd"
  (folder / "model.json").write_text(json.dumps(model))


DAMAGE = {
  r"model\.onnx is damaged or was changed: its SHA-256": tampered,
  r"no complete export: No such file or directory \(.*model\.onnx\)": lambda folder: (
    folder / "model.onnx"
  ).unlink(),
  r"no complete export: No such file or directory \(.*model\.json\)": lambda folder: (
    folder / "model.json"
  ).unlink(),
  r"model\.json is damaged": lambda folder: (folder / "model.json").write_text("{"),
  r"model\.json is damaged: KeyError": lambda folder: (folder / "model.json").write_text("{}"),
  r"no complete export: .*/passwd": renamed_program,  # looked for in the folder itself
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_export_is_one_message(example, made, tmp_path, message):
  folder = copy(made / "onnx", tmp_path / "copy")
  DAMAGE[message](folder)
  with pytest.raises(example("onnx").Unusable, match=message):
    example("onnx").open_onnx(folder)


def test_the_wrong_kind_of_export_is_named(example, made, tmp_path):
  export([make_student()], tmp_path / "own", "safetensors", None, str)
  with pytest.raises(example("onnx").Unusable, match="holds a kd_jax student of format 2"):
    example("onnx").open_onnx(tmp_path / "own")
  with pytest.raises(example("onnx").Unusable, match="for onnx, not for stablehlo"):
    example("stablehlo").open_stablehlo(made / "onnx")
  with pytest.raises(UserError, match="an export for another runtime, which kd_jax cannot open"):
    open_students(str(made / "onnx"))


def test_a_program_that_jax_cannot_read_is_one_message(example, tmp_path):
  export([make_student()], tmp_path / "out", "stablehlo", None, str)
  (tmp_path / "out" / "model.stablehlo").write_bytes(b"of another age")
  model = json.loads((tmp_path / "out" / "model.json").read_text())
  model["program"]["sha256"] = hashlib.sha256(b"of another age").hexdigest()
  (tmp_path / "out" / "model.json").write_text(json.dumps(model))
  with pytest.raises(example("onnx").Unusable, match=r"this JAX \(.*\) cannot read the program"):
    example("stablehlo").open_stablehlo(tmp_path / "out")


def test_a_scan_that_cannot_be_used_is_one_message(example, tmp_path):
  (tmp_path / "x.nii.gz").write_bytes(b"noise")
  with pytest.raises(example("onnx").Unusable, match=r"cannot read .*x\.nii\.gz"):
    example("onnx").read_scan(tmp_path / "x.nii.gz")
  data = images()["t1ce"].astype(np.float32)
  data[5, 5, 5] = np.nan
  with pytest.raises(example("onnx").Unusable, match="holds NaN"):
    example("onnx").read_scan(write(tmp_path / "nan.nii.gz", data, LARGE))
  with pytest.raises(example("onnx").Unusable, match="is empty"):
    example("onnx").brain_of(np.zeros((4, 4, 4)), (1.0, 1.0, 1.0), {})


def test_another_export_is_not_written_over(made, tmp_path):
  folder = copy(made / "onnx", tmp_path / "copy")
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  for students, form in (
    ([make_student(1)], "onnx"),
    ([make_student()], "stablehlo"),
    ([make_student()], "safetensors"),
  ):
    with pytest.raises(UserError, match=r"holds another (export|student) already"):
      export(students, folder, form, None, str)
  assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_export_again_gives_the_same_files_and_keeps_the_card(made, tmp_path):
  folder = copy(made / "onnx", tmp_path / "copy")
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  (folder / "README.md").write_text("by hand")
  told: list[str] = []
  export([make_student()], folder, "onnx", None, told.append)
  assert (folder / "README.md").read_text() == "by hand" and "was there and stays" in told[0]
  for name in ("model.onnx", "model.json"):
    assert (folder / name).read_bytes() == before[name]


def test_flags_that_make_no_sense(tmp_path):
  with pytest.raises(ConfigError, match=r"unknown --format 'onx'; did you mean 'onnx'"):
    export([make_student()], tmp_path, "onx", None, str)
  with pytest.raises(ConfigError, match="safetensors takes one student"):
    export([make_student(), make_student(1)], tmp_path, "safetensors", None, str)
  with pytest.raises(ConfigError, match="--license=my own: expected an identifier"):
    export([make_student()], tmp_path, "onnx", "my own", str)
  assert list(tmp_path.iterdir()) == [] and FORMATS == ("safetensors", "stablehlo", "onnx")


def test_what_model_json_says(made):
  model = json.loads((made / "onnx" / "model.json").read_text())
  content = (made / "onnx" / "model.onnx").read_bytes()
  assert model["program"]["sha256"] == hashlib.sha256(content).hexdigest()
  assert model["program"]["opset"] == 18 and model["sequences"] == ["t1ce"]
  assert model["inputs"]["image"] == ["batch", 1, 16, 16, 16]
  assert model["labels"]["values"] == [0, 1, 2, 4] and model["spacing_mm"] == 1.0
  assert model["students"][0]["weights_sha256"] == make_student().digest()
  assert str(made) not in json.dumps(model)
  assert model["temperatures"] == {"WT": 1.0, "TC": 1.0, "ET": 1.0}


def test_temperatures_are_those_of_the_students_together():
  warm = Calibration({"WT": 1.5, "TC": 2.0, "ET": 1.0}, cases=4)
  students = [dataclasses.replace(make_student(), calibration=warm)]
  assert describe(students, Predictor(students))["temperatures"] == dict(warm.temperatures)
  students.append(make_student(1))
  assert set(describe(students, Predictor(students))["temperatures"].values()) == {1.0}


def test_masks_are_written_in_the_file_s_own_axes(example, tmp_path):
  path = scan(tmp_path)
  data, file = example("onnx").read_scan(path)
  example("onnx").write_mask(tmp_path / "m.nii.gz", (data > 500).astype(np.uint8), file)
  raw, mask = nib.load(path), nib.load(tmp_path / "m.nii.gz")
  np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(raw.dataobj) > 500)
  np.testing.assert_array_equal(mask.affine, raw.affine)
