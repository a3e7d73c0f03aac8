"""Calibration: temperatures that are found again, errors that add up, students that keep them."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from students import make_student
from test_postprocess import write_entry

from kd_jax.data.grid import Grid
from kd_jax.data.preprocess import PlainImage
from kd_jax.prediction import calibration
from kd_jax.prediction.calibration import NONE, Calibration
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.quality import VolumeRange
from kd_jax.prediction.student_directory import export
from kd_jax.runs.students import open_student
from kd_jax.runtime.errors import UserError
from kd_jax.settings.inference import MinimumSizes
from kd_jax.tasks.labels import REGIONS
from kd_jax.training import messages
from kd_jax.training.validation import validate

EARLIER = Path(__file__).parents[1] / "earlier" / "student"


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def voxels(temperature: float, seed: int = 0, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
  """(p, truth): what a network says, (n, n, n), whose logits are `temperature` times too large."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(-2, 2.5, (n, n, n))
  truth = rng.random(logits.shape) < sigmoid(logits)
  return sigmoid(np.minimum(logits * temperature, 15)).astype(np.float32), truth


def case(temperature: float, seed: int = 0) -> dict[str, np.ndarray]:
  return dict.fromkeys(REGIONS, calibration.histogram(*voxels(temperature, seed)))


# --- Temperatures -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.8, 3.0])
def test_the_temperature_is_found_again(temperature):
  found = calibration.fit([case(temperature, seed) for seed in range(4)])
  assert found.cases == 4
  assert all(t == pytest.approx(temperature, rel=0.04) for t in found.temperatures.values())


def test_a_temperature_must_help_patients_that_it_was_not_fitted_on():
  assert calibration.fit([case(3.0)]) == NONE  # one case says nothing of the next
  assert calibration.fit([]) == NONE
  # One patient of five for whom probabilities are far off does not move the others' temperature.
  found = calibration.fit([*(case(1.0, seed) for seed in range(4)), case(4.5, 9)])
  assert found.of("WT") == 1
  # Nor do two who contradict each other.
  assert calibration.fit([case(0.4), case(2.5, 1)]).of("WT") == 1
  assert calibration.fit([case(2.4), case(2.5, 1)]).of("WT") == pytest.approx(2.45, rel=0.04)


def test_each_region_has_its_own():
  mixed = [case(2.0, i) | {"ET": case(0.5, i)["ET"]} for i in range(3)]
  found = calibration.fit(mixed)
  assert found.of("WT") == found.of("TC") == pytest.approx(2, rel=0.04)
  assert found.of("ET") == pytest.approx(0.5, rel=0.04)


def test_a_temperature_keeps_the_threshold_and_the_order():
  p = np.linspace(0, 1, 999, dtype=np.float32).reshape(3, 3, 111)
  assert calibration.with_temperature(p, 1.0) is p
  for temperature in (0.3, 2.0):
    q = calibration.with_temperature(p, temperature)
    assert q.dtype == np.float32 and (np.diff(q.ravel()) >= 0).all()
    off = abs(p - 0.5) > 1e-6
    np.testing.assert_array_equal((q > 0.5)[off], (p > 0.5)[off])
    np.testing.assert_allclose(q[1], sigmoid(np.log(p[1] / (1 - p[1])) / temperature), rtol=1e-4)
  warm = calibration.with_temperature(np.float32([[[0, 1e-9, 1]]]), 5.0)
  assert 0 <= warm[0, 0, 0] < warm[0, 0, 1] < 0.05 and 0.95 < warm[0, 0, 2] <= 1


def test_a_volume_that_is_computed_in_parts_is_the_same(monkeypatch):
  p, truth = voxels(2.0)
  whole = calibration.with_temperature(p, 2.0), calibration.histogram(p, truth)
  monkeypatch.setattr(calibration, "_SLAB", 1000)  # two planes at once
  np.testing.assert_array_equal(calibration.with_temperature(p, 2.0), whole[0])
  np.testing.assert_array_equal(calibration.histogram(p, truth), whole[1])
  assert whole[1].sum() == p.size and whole[1][1].sum() == truth.sum()
  nothing = np.zeros((0, 4, 4), np.float32)
  assert calibration.histogram(nothing, nothing > 0).sum() == 0


# --- Errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_errors_are_those_of_the_voxels(temperature):
  p, truth = voxels(2.5)
  found = calibration.errors(calibration.histogram(p, truth), temperature)
  q = sigmoid(np.log(p / (1 - p)) / temperature).ravel()
  place = np.minimum((q * 15).astype(int), 14)
  gaps = [abs(q[place == i].mean() - truth.ravel()[place == i].mean()) for i in range(15)]
  share = [(place == i).mean() for i in range(15)]
  assert found.brier == pytest.approx(np.mean((q - truth.ravel()) ** 2), abs=2e-4)
  assert found.ece == pytest.approx(np.dot(gaps, share), abs=1e-3)
  assert found.ace == pytest.approx(np.mean(gaps), abs=6e-3)


def test_the_true_temperature_has_the_least_errors():
  counts = calibration.histogram(*voxels(2.5, n=48))
  before, after = calibration.errors(counts, 1.0), calibration.errors(counts, 2.5)
  assert all(a < b for a, b in zip(after, before, strict=True))
  assert after.ece < 0.004 < 0.03 < before.ece
  bins = calibration.reliability(counts, 2.5)
  assert len(bins) == 15 and sum(b.voxels for b in bins) == 48**3
  assert all(abs(b.probability - b.share) < 0.03 for b in bins)


def test_nothing_has_no_errors():
  nothing = np.zeros_like(case(1.0)["WT"])
  assert calibration.errors(nothing, 2.0) == (0, 0, 0)
  assert calibration.reliability(nothing, 2.0) == []


# --- In validation ----------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [True, False])
def test_validation_fits_the_student_s_temperatures(tmp_path, asked):
  """Of a student that is three times too sure of WT; a teacher is validated with it."""
  entries, said = {}, {}
  for i in range(3):
    p, truth = voxels(3.0, seed=i, n=20)
    entries[f"P{i}"] = write_entry(tmp_path / f"P{i}", truth * np.uint8(2), 1.0)
    np.save(entries[f"P{i}"] / "images.npy", np.full((4, *p.shape), i, np.float16))
    said[i] = np.stack([1 - p, 0 * p, p, 0 * p])

  def predict(network, params, volume):
    p = said[int(volume.max())]
    return p if network == "student" else p[[0, 2, 1, 3]]

  networks = {"student": ("", ("t1ce",)), "flair": ("", ("flair",))}
  found = validate(predict, networks, entries, calibrate=asked)
  if not asked:
    assert found.calibration == NONE and found.evidence == {}
    return
  assert found.calibration.cases == 3
  assert found.calibration.of("WT") == pytest.approx(3, rel=0.05)
  assert {r: counts.sum() for r, counts in found.evidence.items()} == dict.fromkeys(
    REGIONS, 3 * 20**3
  )
  lines, numbers = [], {}
  log = SimpleNamespace(line=lines.append, scalars=lambda step, values: numbers.update(values))
  messages.validated(log, 7, found, {"score": 0.5, "step": 7}, 1.0)
  assert numbers["val/temperature/WT"] == found.calibration.of("WT")
  (line,) = [x for x in lines if x.startswith("calibration: ")]
  before, after = re.search(r"WT: temperature [\d.]+, ECE ([\d.]+) -> ([\d.]+);", line).groups()
  assert float(after) < float(before) / 3


# --- Predicted Dice ---------------------------------------------------------------------------


def test_the_expected_dice_is_the_mean_over_truths_that_are_drawn():
  rng = np.random.default_rng(0)
  p, _ = voxels(1.0, n=12)
  mask = p > 0.4
  truths = (rng.random(p.shape) < p for _ in range(400))
  drawn = [2 * (t & mask).sum() / (t.sum() + mask.sum()) for t in truths]
  assert calibration.expected_dice(p, mask) == pytest.approx(np.mean(drawn), abs=0.003)


def test_the_expected_dice_of_clear_and_of_empty_masks():
  mask = np.zeros((4, 4, 4), bool)
  assert calibration.expected_dice(np.zeros(mask.shape, np.float32), mask) == 1
  p = np.full(mask.shape, 1e-3, np.float32)
  p[0, 0, 0] = 0.3
  assert calibration.expected_dice(p, mask) == pytest.approx(0.7)
  mask[0] = True
  assert calibration.expected_dice(mask.astype(np.float32), mask) == 1
  assert calibration.expected_dice(1 - mask.astype(np.float32), mask) == 0


# --- Kept with a student ----------------------------------------------------------------------

KNOWN = Calibration({"WT": 1.5, "TC": 2.0, "ET": 0.8}, 9)
VOLUMES = {"WT": VolumeRange(5.0, 200.0, 30, 0), "ET": VolumeRange(1.0, 40.0, 28, 2)}


def calibrated_student(seed: int = 0, **changes):
  return dataclasses.replace(make_student(seed), calibration=KNOWN, volumes=VOLUMES, **changes)


def test_an_exported_student_keeps_its_calibration(tmp_path):
  export(calibrated_student(), tmp_path)
  student = open_student(tmp_path)
  assert student.calibration == KNOWN and student.volumes == VOLUMES
  assert Predictor([student]).calibration == KNOWN
  assert Predictor([student]).volumes == VOLUMES
  assert Predictor([student], calibrate=False).calibration == NONE


def test_students_of_earlier_versions_have_none(tmp_path):
  export(calibrated_student(), tmp_path)
  model = json.loads((tmp_path / "model.json").read_text())
  del model["calibration"], model["volumes"], model["inference"]["calibrate"]
  (tmp_path / "model.json").write_text(json.dumps(model))
  student = open_student(tmp_path)
  assert student.calibration == NONE and student.volumes == {}
  assert student.calibration.of("WT") == 1
  assert open_student(EARLIER).calibration == NONE  # as version 0.1 wrote it


@pytest.mark.parametrize(
  ("part", "value"),
  [
    ("calibration", {"temperatures": {"WT": 0}, "cases": 3}),
    ("calibration", {"temperatures": {"WT": float("nan")}, "cases": 3}),
    ("calibration", {"temperatures": {"wt": 1.2}, "cases": 3}),
    ("calibration", {"temperatures": [1, 1, 1]}),
    ("calibration", {"temperature": {}}),
    ("calibration", [1]),
    ("volumes", {"WT": [1, 2]}),
    ("volumes", {"WT": {"low_ml": -1, "high_ml": 2, "cases": 1, "without": 0}}),
  ],
)
def test_an_edited_calibration_is_refused(tmp_path, part, value):
  export(calibrated_student(), tmp_path)
  model = json.loads((tmp_path / "model.json").read_text())
  (tmp_path / "model.json").write_text(json.dumps(model | {part: value}))
  with pytest.raises(UserError, match=r"model.json is damaged or was edited: \w*"):
    open_student(tmp_path)


def test_several_students_share_the_lower_median():
  others = [Calibration({"WT": t, "TC": 2.0, "ET": t}, 5) for t in (1.2, 3.0)]
  students = [calibrated_student(), *(dataclasses.replace(make_student(), calibration=c) for c in others)]  # fmt: skip  # noqa: E501
  assert Predictor(students).calibration == Calibration({"WT": 1.5, "TC": 2.0, "ET": 1.2}, 5)
  assert Predictor([*students, make_student()]).calibration == NONE
  assert Predictor(students).volumes == {}  # two of them do not know theirs


def test_masks_stay_as_they_are():
  rng = np.random.default_rng(0)
  p = rng.dirichlet([2, 1, 1, 1], (10, 12, 8)).transpose(3, 0, 1, 2).astype(np.float32)
  grid = Grid((24, 26, 18), (1, 2, 1), (20, 24, 16), (10, 12, 8))
  prepared = Prepared(p[:1], grid, PlainImage(np.ones(grid.native_shape)))
  plain = Prediction(p, prepared, MinimumSizes())
  warm = plain._replace(calibration=KNOWN)
  np.testing.assert_array_equal(plain.classes(), warm.classes())
  for region, before in plain.regions().items():
    after = warm.regions()[region]
    np.testing.assert_array_equal(before > 0.5, after > 0.5)
    assert np.abs(before - after).max() > 0.02
    assert (after[0] == 0).all()  # outside the box there is nothing
    np.testing.assert_array_equal(warm.region(region, calibrated=False), before[grid.box])
