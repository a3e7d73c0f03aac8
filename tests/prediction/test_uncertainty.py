"""Uncertainty: maps beside the mask, volumes by each opinion, and what predict says of a case."""

import dataclasses
import json
import tracemalloc

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from students import make_student
from test_calibration import KNOWN, VOLUMES
from test_predict import HEADERS, Bright, bright, head, said, save

from kd_jax.data.grid import Grid
from kd_jax.data.preprocess import PlainImage
from kd_jax.prediction import sliding_window
from kd_jax.prediction.assessment import assess, lines
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.sliding_window import shapes
from kd_jax.prediction.uncertainty import Opinions, entropy, gather, interval
from kd_jax.runtime.errors import UserError
from kd_jax.settings.inference import InferenceSettings, MinimumSizes
from kd_jax.tasks.labels import REGIONS

# --- Entropy ----------------------------------------------------------------------------------


def constant(*p: float) -> np.ndarray:
  """(K, 2, 2, 2) float32, the same everywhere."""
  return np.broadcast_to(np.float32(p)[:, None, None, None], (len(p), 2, 2, 2))


def test_the_entropy_is_that_of_the_classes():
  assert entropy(constant(1, 0, 0, 0)).max() == 0
  assert entropy(constant(0.25, 0.25, 0.25, 0.25)) == pytest.approx(np.log(4))
  assert entropy(constant(0.5, 0.5, 0, 0)) == pytest.approx(np.log(2))
  assert entropy(constant(0.5, 0.5, 0, 0)).dtype == np.float32


def information(*opinions: np.ndarray) -> np.ndarray:
  mean, kept = gather(iter(opinions))
  return entropy(mean) - kept.entropy


def test_mutual_information_is_what_opinions_differ_by():
  sure, other, torn = constant(1, 0, 0, 0), constant(0, 1, 0, 0), constant(0.5, 0.5, 0, 0)
  assert information(torn, torn) == pytest.approx(0, abs=1e-6)  # agreed, that nothing is known
  assert information(sure, other) == pytest.approx(np.log(2))  # each is sure, of something else
  assert 0.1 < information(sure, torn).max() < np.log(2)
  assert information(sure) == pytest.approx(0)
  mean, kept = gather([sure, other, other])
  np.testing.assert_allclose(mean, constant(1 / 3, 2 / 3, 0, 0), rtol=1e-6)
  np.testing.assert_array_equal(kept.classes[:, 0, 0, 0], [0, 1, 1])
  assert sure[0, 0, 0, 0] == 1  # the first one is not the place where the sum is made


def test_the_interval_holds_nine_tenths():
  assert interval(range(101), 50) == (5, 95)
  assert interval([7.0], 7.0) == (7, 7)
  low, high = interval([1.0, 2.0], 1.5)
  assert 1 < low < high < 2
  assert interval(range(101), 3.5) == (3.5, 95)  # the mask's own volume is never outside
  assert interval(range(101), 99) == (5, 99)


@pytest.mark.parametrize("mirror", [False, True])
def test_opinions_are_what_a_prediction_is_the_mean_of(mirror):
  """Of networks that see left from right, in windows that overlap."""

  def network(weights, x):
    return jnp.concatenate([w * jnp.roll(x, i, axis=1 + i % 3) for i, w in enumerate(weights)], -1)

  members = [(network, jnp.arange(4) * scale) for scale in (0.5, -0.7)]
  volume = np.random.default_rng(0).normal(size=(1, 24, 18, 16)).astype(np.float32)
  settings = InferenceSettings("sliding", 0.25, mirror)
  arguments = (members, volume, shapes((16, 16, 16), 3.0, "brain", multiple=8), settings)
  whole = sliding_window.predict(*arguments)
  opinions = list(sliding_window.opinions(*arguments))
  assert len(opinions) == (16 if mirror else 2)
  np.testing.assert_allclose(np.mean(opinions, axis=0), whole, atol=2e-6)
  for i, one in enumerate(opinions):
    assert one.shape == whole.shape and one.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert all(np.abs(one - other).max() > 1e-4 for other in opinions[:i])


# --- Volumes ----------------------------------------------------------------------------------


def test_volumes_are_those_of_each_opinion_as_its_mask_would_be():
  classes = np.zeros((3, 8, 8, 8), np.uint8)
  classes[0, :4], classes[1, :5], classes[2, :6] = 2, 3, 2
  classes[2, 7, 7, 7] = 2  # a component that postprocessing removes
  grid = Grid((20, 20, 20), (0, 0, 0), (16, 16, 16), (8, 8, 8))
  scan = PlainImage(np.ones(grid.native_shape), (1.0, 0.5, 1.5))
  opinions = Opinions(classes, np.zeros((8, 8, 8), np.float32))
  p = np.zeros((4, 8, 8, 8), np.float32)
  prediction = Prediction(p, Prepared(p, grid, scan), MinimumSizes(20.0, 0.0), opinions=opinions)
  voxel = 0.75 * 8  # mm3, of the grid
  assert prediction.volumes_mm3() == {
    "WT": [4 * 64 * voxel, 5 * 64 * voxel, 6 * 64 * voxel],
    "TC": [0, 5 * 64 * voxel, 0],
    "ET": [0, 5 * 64 * voxel, 0],
  }
  mask = np.zeros(grid.native_shape, np.uint8)
  mask[:9, :16, :16] = 2  # 1.728 ml
  facts = assess(prediction, mask, {})
  assert facts["interval_ml"]["WT"] == pytest.approx([4.1 * 0.384, 5.9 * 0.384], abs=1e-3)


# --- From a scan to files ---------------------------------------------------------------------


class Torn(Bright):
  """Two opinions: the second marks less, so they differ in the ball's outer part."""

  uncertainty_maps = ("entropy", "mutual_information")

  def opinions(self, prepared: Prepared):
    x = prepared.images[0].astype(np.float32)
    each = []
    for threshold in (1.0, 2.2):
      et = 1 / (1 + np.exp(-8 * (x - threshold)))
      each.append(np.stack([1 - et, 0 * et, 0 * et, et]))
    return gather(each)


def torn() -> Predictor:
  known = dataclasses.replace(make_student(spacing=2.5), calibration=KNOWN, volumes=VOLUMES)
  return Torn([known])


@pytest.mark.parametrize("header", ["RAS", "oblique", "PIR"])
def test_the_maps_lie_in_the_scan_s_space(tmp_path, terminal, header):
  affine, shape = HEADERS[header]
  scan = save(tmp_path / "scan.nii.gz", head(shape), affine)
  predictor = torn()
  output = Output(tmp_path / "out", "brats2018", uncertainty=predictor.uncertainty_maps)
  predict(predictor, scan, output, terminal)
  files = {path.name for path in output.folder.glob("*.nii.gz")}
  assert files == {"scan.nii.gz", "scan_entropy.nii.gz", "scan_mutual_information.nii.gz"}
  mask = np.asarray(nib.load(output.mask("scan")).dataobj)
  reference = nib.load(scan)
  maps = {}
  for what in predictor.uncertainty_maps:
    image = nib.load(output.map("scan", what))
    np.testing.assert_allclose(image.affine, reference.affine, atol=1e-4)
    assert image.shape == reference.shape and image.get_data_dtype() == np.float32
    maps[what] = image.get_fdata()
    assert maps[what].min() >= 0 and maps[what].max() <= np.log(4)
    assert (maps[what][np.asarray(reference.dataobj) == 0] < 0.05).mean() > 0.98
  total, between = maps.values()
  assert (between <= total + 1e-6).all()
  # Opinions differ around the mask, not deep in it and not far away.
  edge = (np.asarray(reference.dataobj) > 700) & (np.asarray(reference.dataobj) < 1250)
  assert between[edge & (mask == 0)].size == 0 or between[edge].mean() > 5 * between.mean()


def test_a_table_with_intervals_predicted_dice_and_who_is_to_be_looked_at(tmp_path, terminal):
  scans = tmp_path / "scans"
  for i in range(3):
    save(scans / f"P{i}_t1ce.nii.gz", head(seed=i))
  noisy = head(seed=9)
  noise = np.random.default_rng(1).normal(0, 350, noisy.shape)
  save(
    scans / "P3_t1ce.nii.gz", np.where(noisy, np.clip(noisy + noise, 1, None), 0).astype(np.int16)
  )
  predictor = torn()
  output = Output(tmp_path / "out", "brats2018", uncertainty=predictor.uncertainty_maps)
  predict(predictor, scans, output, terminal)
  text = said(terminal)
  assert "predicted Dice WT" in text and "which volumes the networks and mirror images" in text
  (first,) = [line for line in text.splitlines() if line.startswith("look at these first")]
  assert first.startswith("look at these first (least predicted Dice): P3 (0.")
  assert first.count("(0.") == 1
  record = json.loads((output.folder / "predict.json").read_text())["cases"]
  facts = {name: entry["facts"] for name, entry in record.items()}
  for name, own in facts.items():
    mask = nib.load(output.mask(name))
    ml = np.count_nonzero(np.asarray(mask.dataobj)) * 2.5**3 / 1000
    assert own["volumes_ml"]["WT"] == pytest.approx(ml, abs=0.01)
    low, high = own["interval_ml"]["WT"]
    assert low <= high and own["calibrated"]
    assert f"{own['volumes_ml']['WT']:.1f} ({low:.1f}-{high:.1f})" in text
  assert facts["P3"]["predicted_dice"]["WT"] < min(
    facts[f"P{i}"]["predicted_dice"]["WT"] for i in range(3)
  )


def test_one_network_alone_has_entropy_and_no_interval(tmp_path, terminal, tiny):
  scan = save(tmp_path / "scan.nii.gz", head())
  students = [make_student(seed, spacing=6.0, network=tiny) for seed in range(2)]
  assert Predictor(students[:1]).uncertainty_maps == ("entropy",)
  assert len(Predictor(students).uncertainty_maps) == 2
  assert len(Predictor(students[:1], mirror=True).uncertainty_maps) == 2
  predictor = Predictor(students[:1])
  output = Output(tmp_path / "out", "brats2018", uncertainty=predictor.uncertainty_maps)
  predict(predictor, scan, output, terminal)
  assert sorted(p.name for p in output.folder.glob("*.nii.gz")) == [
    "scan.nii.gz",
    "scan_entropy.nii.gz",
  ]
  text = said(terminal)
  assert "predicted Dice" not in text  # it has no calibration
  assert "look at these first" not in text and "(" not in text.splitlines()[-3]
  # The same mask as without.
  plain = Output(tmp_path / "plain", "brats2018")
  predict(predictor, scan, plain, terminal)
  assert plain.mask("scan").read_bytes() == output.mask("scan").read_bytes()


def test_masks_from_before_there_were_temperatures_are_finished(tmp_path, terminal):
  scan, output = save(tmp_path / "scan.nii.gz", head()), Output(tmp_path / "out", "brats2018")
  predict(bright(), scan, output, terminal)
  path = output.folder / "predict.json"
  record = json.loads(path.read_text())
  del record["prediction"]["calibrate"], record["cases"]["scan"]["facts"]
  path.write_text(json.dumps(record))
  predict(bright(), scan, output, terminal)
  assert "1 of 1 cases are finished already" in said(terminal)
  with pytest.raises(UserError, match="another student, label convention or inference settings"):
    predict(Bright([make_student()], calibrate=False), scan, output, terminal)


def test_maps_and_a_scan_of_such_a_name_are_told_apart(tmp_path, terminal):
  for name in ("P", "P_entropy"):
    save(tmp_path / "scans" / f"{name}.nii.gz", head())
  predictor = bright()
  output = Output(tmp_path / "out", "brats2018", uncertainty=predictor.uncertainty_maps)
  with pytest.raises(UserError, match=r"P_entropy.nii.gz would be written for P and for P_entropy"):
    predict(predictor, tmp_path / "scans", output, terminal)
  assert not output.folder.exists()


def test_findings_are_told(tmp_path, terminal):
  """Small volumes for this student, and a ball that the end of the scan cuts."""
  scan = save(tmp_path / "scan.nii.gz", head()[:40])
  predict(torn(), scan, Output(tmp_path / "out", "brats2018"), terminal)
  (line,) = [x for x in said(terminal).splitlines() if x.startswith("check the mask of scan: ")]
  assert "it touches the left edge of the scan, so tumour may be missing" in line


def test_findings_of_many_cases_are_told_in_part():
  facts = {"volumes_ml": dict.fromkeys(REGIONS, 1.0), "calibrated": False, "findings": ["odd"]}
  facts["predicted_dice"] = dict.fromkeys(REGIONS, 0.5)
  told = lines({f"P{i:02}": facts for i in range(30)})
  assert [x for x in told if x.startswith("check the mask of ")][-1] == "check the mask of P19: odd"
  assert told[-1] == "check the masks of 10 more cases: see findings in predict.json"


def test_the_order_is_told_without_a_calibration_too():
  def facts(dice: float, calibrated: bool) -> dict:
    values = dict.fromkeys(REGIONS, dice)
    shared = {"volumes_ml": dict.fromkeys(REGIONS, 1.0), "findings": [], "calibrated": calibrated}
    return shared | {"predicted_dice": values}

  for calibrated in (True, False):
    cases = {f"P{i:02}": facts(1 - abs(i - 7) / 30, calibrated) for i in range(12)}
    table, first = lines(cases)
    assert ("predicted Dice" in table) == calibrated
    assert ("not calibrated" in first) == (not calibrated)
    assert [x.split(" (")[0] for x in first.split(": ")[1].split(", ")] == ["P00", "P01", "P02"]
    assert len(lines({"P": facts(0.1, calibrated)})) == 1  # nothing comes after the only one


def test_a_large_scan_holds_one_map_at_a_time(tmp_path, terminal):
  """Four maps of a scan of 240^3 voxels are 221 MB; what is needed at once is far less."""
  small = np.random.default_rng(0).dirichlet(np.ones(4), (16, 16, 16)).astype(np.float32)
  p = np.ascontiguousarray(np.moveaxis(small, -1, 0))
  shape = (240, 240, 240)
  grid = Grid(shape, (110, 110, 110), (16, 16, 16), (16, 16, 16))
  prediction = Prediction(
    p, Prepared(p, grid, PlainImage(np.ones(shape, np.uint8))), MinimumSizes()
  )
  one = 4 * 240**3
  tracemalloc.start()
  classes = prediction.classes()
  for region in REGIONS:
    assert prediction.whole(prediction.region(region)).shape == shape
  for _, x in prediction.uncertainty():
    assert x.shape == shape
  prediction.expected_dice(classes)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1.6 * one
