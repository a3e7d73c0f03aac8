"""All scores of a case together, among them the official figures for the score pairs."""

import json
from pathlib import Path

import numpy as np
import pytest

from kd_jax.data import nifti
from kd_jax.metrics import volumetric
from kd_jax.metrics.case import METRICS, columns, empty_hd95, score_case
from kd_jax.metrics.lesions import lesion_scores
from kd_jax.metrics.surface import hd95_mm, nsd, surface_pair
from kd_jax.tasks.labels import CONVENTIONS, REGIONS

MM = (1.0, 1.0, 1.0)
SCORES = Path(__file__).parents[2].parent / "shared" / "scores"
PAIRS = (
  "both_without_et",
  "empty_prediction",
  "islands_in_truth",
  "network_a",
  "network_b",
  "truth_without_et",
  "two_tumours_one_found",
)


def case(seed=0, shape=(24, 30, 20)):
  """Predicted and true classes: a tumour each, near each other, and one component far away."""
  rng = np.random.default_rng(seed)
  predicted, truth = np.zeros((2, *shape), np.uint8)
  truth[5:15, 8:20, 5:15] = 2
  truth[7:12, 10:16, 7:12] = rng.integers(1, 4, (5, 6, 5))
  predicted[6:16, 8:19, 5:15] = 2
  predicted[8:12, 10:16, 7:13] = rng.integers(1, 4, (4, 6, 6))
  predicted[21:24, 26:29, 0:2] = 3
  return predicted, truth


@pytest.mark.parametrize("name", PAIRS)
def test_official_figures(name):
  if not SCORES.is_dir():
    pytest.skip(f"no score pairs in {SCORES}")
  expected = json.loads((SCORES / "expected.json").read_text())
  assert set(expected) == set(PAIRS)
  predicted, truth = (
    nifti.read(SCORES / name / f"{kind}.nii.gz") for kind in ("prediction", "truth")
  )
  scores = score_case(predicted.data.astype(np.uint8), truth.data.astype(np.uint8), truth.voxel_mm)
  for region, figures in expected[name].items():
    ours = {figure: scores[f"{figure}_{region}"] for figure in figures}
    assert len(figures) == 10 and ours == pytest.approx(figures, rel=0, abs=1e-6)


def test_columns():
  assert columns()[:4] == ["dice_WT", "dice_TC", "dice_ET", "sensitivity_WT"]
  assert len(set(columns())) == 3 * len(METRICS)
  assert all(better in ("higher", "lower", "") for _, better, *_ in METRICS.values())
  predicted, truth = case()
  scores = score_case(predicted, truth, MM)
  assert list(scores) == columns()
  assert all(type(value) is float and np.isfinite(value) for value in scores.values())


def test_by_region():
  truth = np.zeros((4, 4, 4), np.uint8)
  truth[0, 0, :3] = (1, 2, 3)
  predicted = np.zeros_like(truth)
  predicted[0, 0, :3] = (3, 2, 3)  # the necrosis taken for enhancing tumour
  scores = score_case(predicted, truth, (1.0, 2.0, 3.0))
  assert scores["dice_WT"] == scores["dice_TC"] == scores["nsd_1mm_TC"] == 1
  assert scores["dice_ET"] == pytest.approx(2 / 3)
  assert (scores["sensitivity_ET"], scores["precision_ET"]) == (1, 0.5)
  assert (scores["truth_mm3_ET"], scores["predicted_mm3_ET"]) == (6, 12)
  assert scores["hd95_mm_ET"] == 6  # two voxels of 3 mm


@pytest.mark.parametrize("voxel_mm", [MM, (1.0, 0.8, 2.2)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_crop_gives_what_the_whole_volume_gives(voxel_mm, order):
  predicted, truth = (np.asarray(x, order=order) for x in case())
  scores = score_case(predicted, truth, voxel_mm, hd95_of_empty=373.13)
  for region in REGIONS:
    p, t = (volumetric.region_mask(x, region) for x in (predicted, truth))
    pair, lesions = surface_pair(p, t, voxel_mm), lesion_scores(p, t, voxel_mm)
    expected = {
      "dice": volumetric.dice(p, t),
      "sensitivity": volumetric.sensitivity(p, t),
      "specificity": volumetric.specificity(p, t),
      "precision": volumetric.precision(p, t),
      "hd95_mm": hd95_mm(pair, 373.13),
      "nsd_1mm": nsd(pair, 1),
      "lesionwise_dice": lesions.dice,
      "lesionwise_hd95_mm": lesions.hd95_mm,
      "lesions_found": lesions.found,
      "lesions_missed": lesions.missed,
      "lesions_false": lesions.false,
      "truth_mm3": t.sum() * np.prod(voxel_mm),
      "predicted_mm3": p.sum() * np.prod(voxel_mm),
      "slice_dice_reference": volumetric.slice_dice_reference(p, t),
    }
    assert {m: scores[f"{m}_{region}"] for m in METRICS} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_empty_masks(convention):
  penalty = empty_hd95(convention)
  assert penalty == (373.13 if convention == "brats2018" else 374)
  none, (_, truth) = np.zeros((24, 30, 20), np.uint8), case()
  best = {m: 1 if better == "higher" else 0 for m, (_, better, *_) in METRICS.items()}
  scores = score_case(none, none, MM, penalty)
  for region in REGIONS:
    assert {m: scores[f"{m}_{region}"] for m in METRICS} == best
  missed, invented = score_case(none, truth, MM, penalty), score_case(truth, none, MM, penalty)
  for region in ("WT", "TC"):
    for scores in (missed, invented):
      for metric in ("dice", "sensitivity", "precision", "nsd_1mm", "lesionwise_dice"):
        assert scores[f"{metric}_{region}"] == 0
      assert scores[f"hd95_mm_{region}"] == penalty
      assert scores[f"lesionwise_hd95_mm_{region}"] == 374  # by its own definition
    assert missed[f"specificity_{region}"] == 1 > invented[f"specificity_{region}"]
    assert missed[f"lesions_missed_{region}"] == 1 and invented[f"lesions_false_{region}"] >= 1


def test_the_rounding_of_a_header_changes_nothing():
  predicted, truth = case()
  exact = score_case(predicted, truth, MM)
  assert score_case(predicted, truth, (0.99999994, 1.0000001, 1.0)) == exact


def test_full_masks():
  full = np.full((8, 9, 10), 3, np.uint8)
  scores = score_case(full, full, MM)
  assert scores["dice_ET"] == scores["nsd_1mm_ET"] == scores["lesionwise_dice_ET"] == 1
  assert scores["specificity_ET"] == 1 and scores["hd95_mm_ET"] == 0


@pytest.mark.parametrize(
  ("shape", "voxel_mm", "message"),
  [
    ((4, 5, 6), MM, "one shape"),
    ((4, 5, 7), (1.0, 0.0, 1.0), "positive"),
    ((4, 5, 7), (1.0, float("nan"), 1.0), "positive"),
    ((4, 5, 7), (1.0, 1.0), "positive"),
  ],
)
def test_bad_arguments(shape, voxel_mm, message):
  with pytest.raises(ValueError, match=message):
    score_case(np.zeros(shape, np.uint8), np.zeros((4, 5, 7), np.uint8), voxel_mm)
