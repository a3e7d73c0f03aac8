"""Host-side scores; the slice Dice agrees with the device's, which the golden cases check."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.metrics import device, volumetric


def mask(*voxels, shape=(3, 3, 3)):
  m = np.zeros(shape, bool)
  for v in voxels:
    m[v] = True
  return m


@pytest.mark.parametrize(
  ("predicted", "truth", "expected"),
  [
    (mask(), mask(), 1.0),
    (mask((0, 0, 0)), mask(), 0.0),
    (mask(), mask((0, 0, 0)), 0.0),
    (mask((0, 0, 0)), mask((0, 0, 0)), 1.0),
    (mask((0, 0, 0), (1, 1, 1)), mask((0, 0, 0)), 2 / 3),
    (mask((0, 0, 0), (1, 1, 1)), mask((0, 0, 0), (2, 2, 2)), 0.5),
  ],
)
def test_dice(predicted, truth, expected):
  assert volumetric.dice(predicted, truth) == pytest.approx(expected)


def test_scores_of_a_case_by_region():
  truth = np.zeros((4, 4, 4), np.uint8)
  truth[0, 0, :3] = (1, 2, 3)
  predicted = np.zeros_like(truth)
  predicted[0, 0, :3] = (3, 2, 3)  # the necrosis taken for enhancing tumour
  scores = volumetric.score_case(predicted, truth)
  assert scores["dice_WT"] == 1 and scores["dice_TC"] == 1
  assert scores["dice_ET"] == pytest.approx(2 / 3)


def test_slice_dice_is_the_published_one():
  rng = np.random.default_rng(0)
  predicted, truth = rng.integers(0, 4, (2, 6, 8, 8)).astype(np.uint8)
  predicted[:2] = truth[:3] = 0
  for region in ("WT", "TC", "ET"):
    ours = volumetric.slice_dice_reference(
      *(volumetric.region_mask(x, region) for x in (predicted, truth))
    )
    on_device = device.slice_dice(jnp.asarray(predicted)[None], jnp.asarray(truth)[None], region)
    assert ours == pytest.approx(float(on_device), rel=1e-5)


def test_an_empty_prediction_is_flattered_by_the_slice_dice_only():
  truth = np.zeros((10, 8, 8), bool)
  truth[4:6, 2:5, 2:5] = True
  empty = np.zeros_like(truth)
  assert volumetric.dice(empty, truth) == 0
  assert volumetric.slice_dice_reference(empty, truth) == pytest.approx(0.8, abs=1e-6)
