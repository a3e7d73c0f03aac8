"""Postprocessing: the rules, the choice of minimum sizes, and their way from run to mask."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runs import make_data, make_run
from scipy import ndimage
from students import make_student
from synthetic import LARGE, make_case

from kd_jax.data.entry import FORMAT
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.students import evaluate
from kd_jax.metrics.volumetric import dice, region_mask, volume_mm3
from kd_jax.prediction.output import Output
from kd_jax.prediction.postprocess import (
  COMPONENT_MM3,
  NO_POSTPROCESSING,
  Evidence,
  MinimumSizes,
  choose,
  component_sizes_to_try,
  evidence_of,
  postprocess,
  remove_small_components,
  remove_small_et,
)
from kd_jax.prediction.predict import predict
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.prediction.student_directory import export
from kd_jax.runs.students import open_student, open_students
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import presets, record
from kd_jax.settings.inference import BY_VALIDATION
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.validation import validate

CALIBRATED = {
  "calibration": {"temperatures": {"WT": 1.5, "TC": 2.0, "ET": 1.0}, "cases": 4},
  "volumes": {"WT": {"low_ml": 1.0, "high_ml": 9.0, "cases": 5, "without": 0}},
}
BLOCK = 6 * 6 * 6  # voxels of ET that Block finds, of 27 mm3 each


# --- Small ET ----------------------------------------------------------------------------------


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
  after = remove_small_et(before, smallest, voxel_mm)
  assert after.dtype == np.uint8 and (before == classes(et)).all()
  assert (after == 3).sum() == (0 if removed else et)
  for region in ("WT", "TC"):
    np.testing.assert_array_equal(region_mask(after, region), region_mask(before, region))


# --- Connected components -----------------------------------------------------------------------


def scattered() -> np.ndarray:
  """(12, 12, 12): a tumour of 64 voxels, and components of 1, 2 (at a corner) and 8."""
  x = np.zeros((12, 12, 12), np.uint8)
  x[1:5, 1:5, 1:5] = 2
  x[2:4, 2:4, 2:4] = 3
  x[11, 0, 0] = 3
  x[10, 10, 4], x[11, 11, 5] = 1, 2
  x[8:10, 1:3, 8:10] = 2
  return x


@pytest.mark.parametrize(
  ("smallest", "voxel_mm", "left"),
  [
    (0, (1, 1, 1), {64, 8, 2, 1}),
    (1, (1, 1, 1), {64, 8, 2, 1}),  # as large as the threshold is large enough
    (2, (1, 1, 1), {64, 8, 2}),
    (2, (2, 1, 1), {64, 8, 2, 1}),  # mm3, not voxels
    (8, (1, 1, 0.99999994), {64, 8}),
    (9, (1, 1, 1), {64}),
    (1e6, (1, 1, 1), {64}),  # what has most core stays
  ],
)
def test_components_below_the_threshold_become_background(smallest, voxel_mm, left):
  before = scattered()
  after = remove_small_components(before, smallest, np.float32(voxel_mm))
  assert after.dtype == np.uint8 and (before == scattered()).all()
  component, count = ndimage.label(after, np.ones((3, 3, 3)))
  assert set(np.bincount(component.ravel())[1:].tolist()) == left and count == len(left)
  np.testing.assert_array_equal(after[after > 0], before[after > 0])


def test_two_components_with_as_much_core_both_stay():
  x = np.zeros((9, 4, 4), np.uint8)
  x[0], x[4], x[8, 0, 0] = 1, 3, 3
  np.testing.assert_array_equal(np.unique(remove_small_components(x, 1e6, (1, 1, 1))[8]), [0])
  assert (remove_small_components(x, 1e6, (1, 1, 1))[:8] == x[:8]).all()


def test_what_has_most_core_stays_and_without_core_the_largest():
  """Oedema that is none may be larger than the tumour."""
  x = np.zeros((20, 4, 4), np.uint8)
  x[:8] = 2  # the largest
  x[10:12], x[10, 0, 0] = 3, 1  # the largest core
  x[14:18], x[14, 0, 0] = 2, 3  # larger, and less core
  x[19, 0, 0] = 1
  after = remove_small_components(x, 1e6, (1, 1, 1))
  np.testing.assert_array_equal(np.flatnonzero(after.any((1, 2))), [10, 11])
  assert evidence_of(x, x, (1, 1, 1), (1e6,)).et_mm3 == [31]
  after = remove_small_components(np.where(x == 2, x, 0), 1e6, (1, 1, 1))
  np.testing.assert_array_equal(np.flatnonzero(after.any((1, 2))), range(8))


def test_an_empty_mask_has_no_components():
  nothing = np.zeros((4, 4, 4), np.uint8)
  assert not remove_small_components(nothing, 100, (1, 1, 1)).any()
  found = evidence_of(nothing, scattered()[:4, :4, :4], (1, 1, 1), (0.0, 100.0))
  assert found == Evidence([[0, 0, 0]] * 2, [0, 0], False)


def test_components_go_first():
  """The ET that counts is what is left without small components."""
  x = scattered()  # 8 + 1 voxels of ET
  assert (postprocess(x, MinimumSizes(2, 9), (1, 1, 1)) == 3).sum() == 0
  assert (postprocess(x, MinimumSizes(0, 9), (1, 1, 1)) == 3).sum() == 9
  np.testing.assert_array_equal(postprocess(x, NO_POSTPROCESSING, (1, 1, 1)), x)


# --- The choice -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_evidence_is_what_the_rule_would_score(seed):
  rng = np.random.default_rng(seed)
  noise = (ndimage.gaussian_filter(rng.normal(size=(20, 24, 16)), 1.2) for _ in range(2))
  predicted, truth = (np.digitize(x, [0.1, 0.2, 0.25]).astype(np.uint8) for x in noise)
  truth[truth == 3] = 1 if seed == 2 else 3
  voxel_mm, sizes = (2.0, 1.5, 1.0), (0.0, 20.0, 100.0, 500.0, 1e6)
  found = evidence_of(predicted, truth, voxel_mm, sizes)
  assert found.no_et == (seed == 2)
  assert len(set(found.et_mm3)) > 2  # there is something to leave out
  for i, smallest in enumerate(sizes):
    cleaned = remove_small_components(predicted, smallest, voxel_mm)
    masks = [[region_mask(x, r) for x in (cleaned, truth)] for r in REGIONS]
    assert found.dice[i] == pytest.approx([dice(*pair) for pair in masks])
    assert found.et_mm3[i] == volume_mm3(masks[-1][0], voxel_mm)


def no_et(volume: float) -> Evidence:
  """ET predicted where there is none; the same with and without small components."""
  n = 1 + len(COMPONENT_MM3)
  return Evidence([[0.8, 0.8, 0.0 if volume else 1.0]] * n, [volume] * n, True)


def with_et(volume: float, dice: float) -> Evidence:
  n = 1 + len(COMPONENT_MM3)
  return Evidence([[0.8, 0.8, dice]] * n, [volume] * n, False)


LARGE_ET = [with_et(5000, 0.8)] * 20


@pytest.mark.parametrize(
  ("cases", "expected"),
  [
    (LARGE_ET, 0),  # nothing to gain
    ([*LARGE_ET, no_et(0), with_et(0, 0)], 0),  # nothing predicted
    ([*LARGE_ET, no_et(30)], 0),  # one case is no evidence
    ([*LARGE_ET, no_et(30), no_et(40)], 50),
    ([*LARGE_ET, no_et(30), no_et(90)], 100),
    ([*LARGE_ET, no_et(30), no_et(50)], 100),  # 50 mm3 are not less than 50
    ([no_et(30), no_et(40), no_et(900)], 50),  # nor does one case raise it
    ([no_et(30), no_et(40), no_et(900), no_et(800)], 1000),
    ([no_et(30), no_et(40), with_et(20, 0.9)], 50),
    ([no_et(30), no_et(40), with_et(20, 0.6), with_et(20, 0.6)], 0),
    ([no_et(400), no_et(450), with_et(60, 0.7), with_et(80, 0.7)], 0),
    ([no_et(20), no_et(30), no_et(400), no_et(450), with_et(60, 0.7), with_et(80, 0.7)], 50),
    ([*LARGE_ET, no_et(2000), no_et(2000), no_et(2000)], 0),  # larger than may be removed
  ],
)
def test_the_threshold_of_et_is_the_smallest_that_gains_more_than_one_case_can(cases, expected):
  smallest, means = choose(cases, MinimumSizes(BY_VALIDATION, BY_VALIDATION))
  assert (
    smallest == choose(cases[::-1], MinimumSizes(BY_VALIDATION, BY_VALIDATION))[0] == (0, expected)
  )
  kept = [e.dice[0][-1] if e.et_mm3[0] >= expected else float(e.no_et) for e in cases]
  assert means == pytest.approx([0.8, 0.8, np.mean(kept)])
  assert means[-1] >= choose(cases, MinimumSizes(BY_VALIDATION, 0.0))[1][-1]


@pytest.mark.parametrize("smallest", [50, 100, 200, 300, 500, 1000])
def test_every_threshold_of_et_can_be_chosen(smallest):
  cases = [*LARGE_ET, no_et(smallest - 1), no_et(smallest - 1.5)]
  assert choose(cases, MinimumSizes(0.0, BY_VALIDATION))[0] == (0, smallest)


def rising(*gains: float) -> Evidence:
  """WT gains so much at each minimum component size over none, and no more after the last."""
  steps = [0.0, *gains] + [gains[-1]] * (len(COMPONENT_MM3) - len(gains))
  return Evidence([[0.5 + gain, 0.5, 0.5] for gain in steps], [5000.0] * len(steps), False)


@pytest.mark.parametrize(
  ("cases", "expected"),
  [
    ([rising(0.0)] * 9, 0),  # nothing to gain
    ([rising(0.1)], 0),  # one case is no evidence
    ([*[rising(0.0)] * 9, rising(0.4)], 0),
    ([rising(0.01), rising(0.01)], 50),  # and no larger than it must be
    ([rising(0.01, 0.02, 0.03)] * 3, 200),
    ([rising(0.01, 0.02, -0.03)] * 3, 100),
    ([rising(0.01, -0.02, 0.03)] * 3, 200),  # what lies between does not matter
    ([rising(0.01, 0.02)] * 3 + [rising(0.01, -0.3)], 50),  # a lesion more is worth more
    ([rising(0.01, 0.02)] * 3 + [rising(0.01, 0.3)], 100),
    ([rising(0.02, 0.01)] * 3 + [rising(0.02, 0.3)], 50),  # one case does not raise it
  ],
)
def test_the_component_size_is_the_least_that_gains_without_the_best_case(cases, expected):
  smallest, means = choose(cases, MinimumSizes(BY_VALIDATION, 0.0))
  assert smallest == choose(cases[::-1], MinimumSizes(BY_VALIDATION, 0.0))[0] == (expected, 0)
  i = (0.0, *COMPONENT_MM3).index(expected)
  assert means[0] == pytest.approx(np.mean([case.dice[i][0] for case in cases]))
  assert means[0] >= np.mean([case.dice[0][0] for case in cases])


def test_every_minimum_size_of_a_component_can_be_chosen():
  """From 50 mm3 to 64 ml, in doublings and, below 1 ml, as decades are divided."""
  sizes = [50, 100, 200, 500, *(1000 * 2**i for i in range(7))]
  for i, smallest in enumerate(sizes):
    cases = [rising(*[0.0] * i, 0.1)] * 3
    assert choose(cases, MinimumSizes(BY_VALIDATION, 0.0))[0] == (smallest, 0)
  assert component_sizes_to_try(BY_VALIDATION) == (0, *sizes)


def test_what_is_asked_for_is_not_chosen():
  assert component_sizes_to_try(300.0) == (300.0,)
  case = Evidence([[0.1, 0.2, 0.3]], [40.0], True)
  assert choose([case], MinimumSizes(300.0, 50.0)) == (MinimumSizes(300, 50), [0.1, 0.2, 1])


# --- In validation ----------------------------------------------------------------------------


def write_entry(path: Path, truth: np.ndarray, spacing: float) -> Path:
  """As much of a cache entry as validation reads."""
  path.mkdir()
  np.save(path / "images.npy", np.zeros((4, *truth.shape), np.float16))
  np.save(path / "labels.npy", truth)
  meta = {"format": FORMAT, "crc32": {"images": 0, "labels": 0}, "spacing_mm": [spacing] * 3}
  (path / "meta.json").write_text(json.dumps(meta))
  return path


@pytest.fixture
def validated(tmp_path):
  """Student and teacher find six voxels of ET everywhere; three of four cases have core there."""
  enhancing = classes(6)
  core = np.where(enhancing == 3, 1, enhancing).astype(np.uint8)
  entries = {
    f"case{i}": write_entry(tmp_path / f"case{i}", core if i else enhancing, spacing=2.0)
    for i in range(4)
  }
  networks = {"student": ("student", ("t1ce",)), "flair": ("flair", ("flair",))}

  def found(name, params, volume):
    return np.moveaxis(np.eye(4)[enhancing], -1, 0)

  return functools.partial(validate, found, networks, entries)


def test_validation_chooses_for_the_student(validated):
  result = validated(MinimumSizes(0.0, BY_VALIDATION), pictures=1)
  assert result.minimum_sizes == (0, 50)  # 48 mm3 are less: three cases gain 1, one loses 1
  assert result.postprocessed == {"WT": 1, "TC": 1, "ET": pytest.approx(3 / 4)}
  assert result.dice["student"] == result.dice["flair"] == {"WT": 1, "TC": 1, "ET": 1 / 4}
  assert result.score == pytest.approx((1 + 1 + 1 / 4) / 3)  # without the rules
  assert len(result.pictures) == 1

  both = validated(MinimumSizes(BY_VALIDATION, BY_VALIDATION))
  assert both.minimum_sizes == (
    50,
    0,
  )  # ET lies apart, in two components of 24 mm3; none is left to judge
  assert both.postprocessed["ET"] == pytest.approx(3 / 4)
  assert both.postprocessed["WT"] == pytest.approx(2 * 160 / (160 + 166))


def test_fixed_thresholds_are_what_validation_reports(validated):
  result = validated(MinimumSizes(24.0, 40.0))
  assert result.minimum_sizes == (24, 40)
  assert result.postprocessed == result.dice["student"]
  assert validated().minimum_sizes == (0, 0)
  assert validated(MinimumSizes(25.0, 0.0)).postprocessed["ET"] == pytest.approx(3 / 4)


# --- From a run to a mask ---------------------------------------------------------------------


class Block(Predictor):
  """Finds one block of ET and, apart, a voxel of oedema, whatever the scan."""

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    et = np.zeros(prepared.images.shape[1:], np.float32)
    et[2:8, 2:8, 2:8] = 1
    ed = np.zeros_like(et)
    ed[0, 0, 0] = 1
    return np.stack([1 - et - ed, 0 * et, ed, et])


def found_labels(path: Path) -> dict[int, int]:
  values, counts = np.unique(np.asarray(nib.load(path).dataobj), return_counts=True)
  return dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
  place = tmp_path_factory.mktemp("run")
  data = make_data(place / "data")
  notes = {"min_component_mm3": 28.0, "min_et_mm3": BLOCK * 27.0 + 1}
  return make_run(place / "run", data, notes=notes | CALIBRATED)


def test_what_validation_knows_of_probabilities_goes_from_the_run_to_the_student(tmp_path, run):
  for path in (run, tmp_path / "shared"):
    student = open_student(path)
    assert student.calibration.temperatures == CALIBRATED["calibration"]["temperatures"]
    assert student.calibration.cases == 4
    assert dataclasses.asdict(student.volumes["WT"]) == CALIBRATED["volumes"]["WT"]
    if path == run:
      export(student, tmp_path / "shared")


def test_the_thresholds_go_from_the_run_to_the_mask(tmp_path, terminal, run):
  student = open_student(run)
  export(student, tmp_path / "shared")
  assert json.loads((tmp_path / "shared" / "model.json").read_text())["inference"] == {
    "window": "sliding",
    "overlap": 0.25,
    "mirror": False,
    "min_component_mm3": 28.0,
    "min_et_mm3": BLOCK * 27.0 + 1,
    "calibrate": True,
  }
  scan = make_case(tmp_path / "scan", affine=LARGE)
  given = [(None, None), (None, 0.0), (None, BLOCK * 27.0), (27.0, None), (0.0, 0.0)]
  for i, (component, et) in enumerate(given):
    students = open_students(str(tmp_path / "shared"))
    predictor = Block(students, min_component_mm3=component, min_et_mm3=et)
    label, kept = 1 if et is None else 4, {} if component is None else {2: 1}
    for maps in (False, True):  # each has a way of its own
      output = Output(tmp_path / f"masks{i}{maps}", "brats2018", probabilities=maps)
      predict(predictor, scan, output, terminal)
      background = 14 * 16 * 12 - BLOCK - len(kept)
      assert found_labels(output.mask("scan")) == {0: background, label: BLOCK, **kept}
    record = json.loads((output.folder / "predict.json").read_text())["prediction"]
    assert record["min_component_mm3"] == (28 if component is None else component)
    assert record["min_et_mm3"] == (student.inference.min_et_mm3 if et is None else et)
    assert nib.load(output.map("scan", "ET")).get_fdata().max() == 1  # maps stay as they are


def test_the_thresholds_count_in_an_evaluation(tmp_path, terminal, run):
  summary = evaluate(Block(open_students(str(run))), Choice(), tmp_path, terminal)
  assert summary["prediction"]["min_component_mm3"] == 28
  assert summary["prediction"]["min_et_mm3"] == BLOCK * 27 + 1
  volumes = {r: m["predicted_mm3"]["mean"] for r, m in summary["regions"].items()}
  assert volumes == {"WT": BLOCK * 27, "TC": BLOCK * 27, "ET": 0}
  assert any("minimum sizes of postprocessing were chosen" in note for note in summary["notes"])


@pytest.mark.parametrize("setting", [-1.0, 0.0, 9.0])
@pytest.mark.parametrize(
  ("name", "chosen"), [("min_component_mm3", 28), ("min_et_mm3", BLOCK * 27 + 1)]
)
def test_a_fixed_setting_is_not_the_validation_s(tmp_path, run, name, chosen, setting):
  shutil.copytree(run, tmp_path / "run")
  settings = presets.override(record.read(run / "config.json"), {f"inference.{name}": setting})
  record.write(tmp_path / "run" / "config.json", settings)
  student = open_student(tmp_path / "run")
  assert getattr(student.inference, name) == (chosen if setting == -1 else setting)
  assert (name in student.training["chosen_by_validation"]) == (setting == -1)


def test_a_student_of_an_earlier_version_keeps_all(tmp_path):
  export(make_student(), tmp_path / "shared")
  path = tmp_path / "shared" / "model.json"
  model = json.loads(path.read_text())
  del model["inference"]["min_et_mm3"], model["inference"]["min_component_mm3"]
  path.write_text(json.dumps(model))
  assert open_student(tmp_path / "shared").inference == make_student().inference
  assert Predictor([open_student(tmp_path / "shared")]).settings.minimum_sizes == NO_POSTPROCESSING


def test_an_ensemble_takes_the_lower_median(tmp_path):
  students = []
  for seed, (component, et) in enumerate([(9.0, 0.0), (8.0, 500.0), (0.0, 100.0)]):
    path = tmp_path / str(seed)
    export(make_student(seed), path)
    model = json.loads((path / "model.json").read_text())
    model["inference"] |= {"min_component_mm3": component, "min_et_mm3": et}
    (path / "model.json").write_text(json.dumps(model))
    students.append(open_student(path))
  assert Predictor(students).settings.minimum_sizes == (8, 100)
  assert Predictor(students[:2]).settings.minimum_sizes == (8, 0)
  assert Predictor(students, min_et_mm3=7.0).settings.minimum_sizes == (8, 7)
  assert Predictor(students, min_component_mm3=7.0).settings.minimum_sizes == (7, 100)


@pytest.mark.parametrize("name", ["min_component_mm3", "min_et_mm3"])
@pytest.mark.parametrize("smallest", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_no_volume_is_refused(name, smallest):
  with pytest.raises(ConfigError, match=f"inference.{name} = {smallest}"):
    Predictor([make_student()], **{name: smallest})
