"""Small ET becomes core: the rule, the choice of its threshold, and its way from run to mask."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runs import make_data, make_run
from students import make_student
from synthetic import LARGE, make_case

from kd_jax import config as config_lib
from kd_jax.deploy import Ensemble, Prepared
from kd_jax.errors import ConfigError
from kd_jax.evaluate import Choice, evaluate
from kd_jax.inference import BY_VALIDATION
from kd_jax.metrics.volumetric import region_mask
from kd_jax.open_student import open_student, open_students
from kd_jax.predict import Output, predict
from kd_jax.share import export
from kd_jax.small_et import PredictedET, choose, compare_et, mean_dice, without_small_et
from kd_jax.validate import validate

BLOCK = 6 * 6 * 6  # voxels of ET that Block finds, of 27 mm3 each


# --- The rule ---------------------------------------------------------------------------------


def classes(et: int) -> np.ndarray:
  """(8, 8, 8) with some of each class, and `et` voxels of ET in two places."""
  x = np.zeros((8, 8, 8), np.uint8)
  x[:2], x[2, :4] = 2, 1
  x[4, 0, : et // 2], x[7, 7, : et - et // 2] = 3, 3
  return x


@pytest.mark.parametrize(
  ("et", "voxel_mm", "smallest", "removed"),
  [
    (6, (1, 1, 1), 7, True),
    (6, (1, 1, 1), 6, False),  # as large as the threshold is large enough
    (6, (1, 1, 1), 0, False),
    (6, (2, 1, 1), 7, False),  # mm3, not voxels
    (6, (0.5, 1, 1), 4, True),
    (6, np.float32([1, 1, 0.99999994]), 6, False),
    (0, (1, 1, 1), 100, False),
  ],
)
def test_an_et_below_the_threshold_becomes_core(et, voxel_mm, smallest, removed):
  before = classes(et)
  after = without_small_et(before, smallest, voxel_mm)
  assert after.dtype == np.uint8 and (before == classes(et)).all()
  assert (after == 3).sum() == (0 if removed else et)
  for region in ("WT", "TC"):
    np.testing.assert_array_equal(region_mask(after, region), region_mask(before, region))


def test_what_is_compared():
  truth = classes(0)
  assert compare_et(classes(6), truth, (1, 1, 2)) == PredictedET(12, 0, 1)
  assert compare_et(classes(0), truth, (1, 1, 2)) == PredictedET(0, 1, 1)
  assert compare_et(classes(0), classes(6), (1, 1, 2)) == PredictedET(0, 0, 0)
  assert compare_et(classes(6), classes(2), (1, 1, 1)) == PredictedET(6, 2 * 2 / 8, 0)


# --- The choice -------------------------------------------------------------------------------


def false(volume: float) -> PredictedET:
  """ET predicted where there is none."""
  return PredictedET(volume, 0.0, 1.0)


def true(volume: float, dice: float) -> PredictedET:
  return PredictedET(volume, dice, 0.0)


LARGE_ET = [true(5000, 0.8)] * 20


@pytest.mark.parametrize(
  ("cases", "expected"),
  [
    ([], 0),
    (LARGE_ET, 0),  # nothing to gain
    ([*LARGE_ET, PredictedET(0, 1, 1), PredictedET(0, 0, 0)], 0),  # nothing predicted
    ([*LARGE_ET, false(30)], 0),  # one case is no evidence
    ([*LARGE_ET, false(30), false(40)], 50),
    ([*LARGE_ET, false(30), false(90)], 100),
    ([*LARGE_ET, false(30), false(50)], 100),  # 50 mm3 are not less than 50
    ([false(30), false(40), false(900)], 50),  # nor does one case raise it
    ([false(30), false(40), false(900), false(800)], 1000),
    ([false(30), false(40), true(20, 0.9)], 50),
    ([false(30), false(40), true(20, 0.6), true(20, 0.6)], 0),
    ([false(400), false(450), true(60, 0.7), true(80, 0.7)], 0),
    ([false(20), false(30), false(400), false(450), true(60, 0.7), true(80, 0.7)], 50),
    ([*LARGE_ET, false(2000), false(2000), false(2000)], 0),  # larger than may be removed
  ],
)
def test_the_threshold_is_the_smallest_that_gains_more_than_one_case_can(cases, expected):
  assert choose(cases) == expected
  assert choose(cases[::-1]) == expected
  if cases:
    assert mean_dice(cases, expected) >= mean_dice(cases, 0.0)


def test_mean_dice():
  cases = [false(30), true(40, 0.5), true(400, 0.9), PredictedET(0, 1, 1)]
  assert mean_dice(cases, 0.0) == pytest.approx((0 + 0.5 + 0.9 + 1) / 4)
  assert mean_dice(cases, 50.0) == pytest.approx((1 + 0 + 0.9 + 1) / 4)


# --- In validation ----------------------------------------------------------------------------


def write_entry(path: Path, truth: np.ndarray, spacing: float) -> Path:
  """As much of a cache entry as validation reads."""
  path.mkdir()
  np.save(path / "images.npy", np.zeros((4, *truth.shape), np.float16))
  np.save(path / "labels.npy", truth)
  meta = {"format": 2, "crc32": {"images": 0, "labels": 0}, "spacing_mm": [spacing] * 3}
  (path / "meta.json").write_text(json.dumps(meta))
  return path


def test_validation_chooses_for_the_student(tmp_path):
  """Student and teacher find six voxels of ET everywhere; three of four cases have core there."""
  enhancing = classes(6)
  core = np.where(enhancing == 3, 1, enhancing).astype(np.uint8)
  entries = {
    f"case{i}": write_entry(tmp_path / f"case{i}", core if i else enhancing, spacing=2.0)
    for i in range(4)
  }
  networks = {"student": ("student", ("t1ce",)), "flair": ("flair", ("flair",))}

  def found(params, volume):
    return np.moveaxis(np.eye(4)[enhancing], -1, 0)

  result = validate(found, networks, entries, BY_VALIDATION, pictures=1)
  assert result.smallest_et == 50  # 48 mm3 are less: three cases gain 1, one loses 1
  assert result.dice_et == pytest.approx(3 / 4)
  assert result.dice["student"] == result.dice["flair"] == {"WT": 1, "TC": 1, "ET": 1 / 4}
  assert result.score == pytest.approx((1 + 1 + 1 / 4) / 3)  # without the rule
  assert len(result.pictures) == 1

  fixed = validate(found, networks, entries, 40.0)
  assert (fixed.smallest_et, fixed.dice_et) == (40, 1 / 4)


# --- From a run to a mask ---------------------------------------------------------------------


class Block(Ensemble):
  """Finds one block of ET, whatever the scan."""

  def predict(self, prepared: Prepared) -> np.ndarray:
    et = np.zeros(prepared.images.shape[1:], np.float32)
    et[2:8, 2:8, 2:8] = 1
    return np.stack([1 - et, 0 * et, 0 * et, et])


def found_labels(path: Path) -> dict[int, int]:
  values, counts = np.unique(np.asarray(nib.load(path).dataobj), return_counts=True)
  return dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
  place = tmp_path_factory.mktemp("run")
  data = make_data(place / "data")
  return make_run(place / "run", data, notes={"smallest_et": BLOCK * 27.0 + 1})


def test_the_threshold_goes_from_the_run_to_the_mask(tmp_path, terminal, run):
  student = open_student(run)
  export(student, tmp_path / "shared")
  assert json.loads((tmp_path / "shared" / "model.json").read_text())["predict"] == {
    "mode": "sliding",
    "overlap": 0.25,
    "mirror": False,
    "smallest_et": BLOCK * 27.0 + 1,
  }
  scan = make_case(tmp_path / "scan", affine=LARGE)
  for i, (given, label) in enumerate([(None, 1), (0.0, 4), (BLOCK * 27.0, 4)]):
    ensemble = Block(open_students(str(tmp_path / "shared")), smallest_et=given)
    for maps in (False, True):  # each has a way of its own
      output = Output(tmp_path / f"masks{i}{maps}", "brats2018", probabilities=maps)
      predict(ensemble, scan, output, terminal)
      assert found_labels(output.mask("scan")) == {0: 14 * 16 * 12 - BLOCK, label: BLOCK}
    expected = student.predict.smallest_et if given is None else given
    record = json.loads((output.folder / "predict.json").read_text())
    assert record["prediction"]["smallest_et"] == expected
    assert nib.load(output.map("scan", "ET")).get_fdata().max() == 1  # maps stay as they are


def test_the_threshold_counts_in_an_evaluation(tmp_path, terminal, run):
  summary = evaluate(Block(open_students(str(run))), Choice(), tmp_path, terminal)
  assert summary["prediction"]["smallest_et"] == BLOCK * 27 + 1
  volumes = {r: m["predicted_mm3"]["mean"] for r, m in summary["regions"].items()}
  assert volumes == {"WT": BLOCK * 27, "TC": BLOCK * 27, "ET": 0}
  assert any("its threshold of small ET were chosen" in note for note in summary["notes"])


@pytest.mark.parametrize(("setting", "expected"), [(-1.0, BLOCK * 27 + 1), (0.0, 0), (9.0, 9)])
def test_a_fixed_setting_is_not_the_validation_s(tmp_path, run, setting, expected):
  shutil.copytree(run, tmp_path / "run")
  raw = config_lib.read(run / "config.json")
  raw["predict"]["smallest_et"] = setting
  config_lib.write(tmp_path / "run" / "config.json", raw)
  student = open_student(tmp_path / "run")
  assert student.predict.smallest_et == expected
  assert student.training["smallest_et_by_validation"] == (setting == -1)


def test_a_student_of_an_earlier_version_keeps_all_et(tmp_path):
  export(make_student(), tmp_path / "shared")
  path = tmp_path / "shared" / "model.json"
  model = json.loads(path.read_text())
  del model["predict"]["smallest_et"]
  path.write_text(json.dumps(model))
  assert open_student(tmp_path / "shared").predict == make_student().predict
  assert Ensemble([open_student(tmp_path / "shared")]).describe()["smallest_et"] == 0


def test_an_ensemble_takes_the_lower_median(tmp_path):
  students = []
  for seed, smallest in enumerate((0.0, 500.0, 100.0)):
    path = tmp_path / str(seed)
    export(make_student(seed), path)
    model = json.loads((path / "model.json").read_text())
    model["predict"]["smallest_et"] = smallest
    (path / "model.json").write_text(json.dumps(model))
    students.append(open_student(path))
  assert Ensemble(students).settings.smallest_et == 100
  assert Ensemble(students[:2]).settings.smallest_et == 0
  assert Ensemble(students, smallest_et=7.0).settings.smallest_et == 7


@pytest.mark.parametrize("smallest", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_no_volume_is_refused(smallest):
  with pytest.raises(ConfigError, match=f"--smallest_et={smallest} is not"):
    Ensemble([make_student()], smallest_et=smallest)
