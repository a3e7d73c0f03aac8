"""Overlaps by hand; the slice Dice agrees with the device's, which the golden cases check."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_jax.method import batch_scores as device
from kd_jax.metrics import volumetric
from kd_jax.tasks.labels import REGIONS

MASKS = arrays(bool, (3, 4, 2))


def mask(*voxels, shape=(3, 3, 3)):
  m = np.zeros(shape, bool)
  for v in voxels:
    m[v] = True
  return m


NONE, ONE, TWO = mask(), mask((0, 0, 0)), mask((0, 0, 0), (1, 1, 1))
ALL = np.ones((3, 3, 3), bool)


@pytest.mark.parametrize(
  ("predicted", "truth", "dice", "sensitivity", "precision", "specificity"),
  [
    (NONE, NONE, 1, 1, 1, 1),
    (ONE, NONE, 0, 0, 0, 26 / 27),
    (NONE, ONE, 0, 0, 0, 1),
    (ONE, ONE, 1, 1, 1, 1),
    (TWO, ONE, 2 / 3, 1, 1 / 2, 25 / 26),
    (ONE, TWO, 2 / 3, 1 / 2, 1, 1),
    (TWO, mask((0, 0, 0), (2, 2, 2)), 1 / 2, 1 / 2, 1 / 2, 24 / 25),
    (ALL, ONE, 2 / 28, 1, 1 / 27, 0),
    (ONE, ALL, 2 / 28, 1 / 27, 1, 0),
    (ALL, ALL, 1, 1, 1, 1),
  ],
)
def test_overlaps(predicted, truth, dice, sensitivity, precision, specificity):
  assert volumetric.dice(predicted, truth) == pytest.approx(dice)
  assert volumetric.sensitivity(predicted, truth) == pytest.approx(sensitivity)
  assert volumetric.precision(predicted, truth) == pytest.approx(precision)
  assert volumetric.specificity(predicted, truth) == pytest.approx(specificity)


@given(MASKS, MASKS)
def test_properties_of_overlaps(p, t):
  assert volumetric.dice(p, t) == volumetric.dice(t, p)
  assert volumetric.dice(p, p) == volumetric.sensitivity(p, p) == volumetric.specificity(p, p) == 1
  assert volumetric.specificity(p, t) == volumetric.sensitivity(~p, ~t)
  scores = (volumetric.sensitivity(p, t), volumetric.precision(p, t))
  if sum(scores):  # Dice is their harmonic mean
    assert volumetric.dice(p, t) == pytest.approx(2 * scores[0] * scores[1] / sum(scores))
  else:
    assert volumetric.dice(p, t) == 0


@given(MASKS, MASKS, st.integers(0, 3))
def test_specificity_knows_what_was_cropped(p, t, n):
  whole = [np.pad(m, ((0, 0), (0, 0), (0, n))) for m in (p, t)]
  assert volumetric.specificity(p, t, whole[0].size - p.size) == volumetric.specificity(*whole)


def test_volume():
  assert volumetric.volume_mm3(TWO, (0.5, 2.0, 3.0)) == 6
  assert volumetric.volume_mm3(NONE, (1, 1, 1)) == 0


def test_regions():
  classes = np.array([0, 1, 2, 3], np.uint8)
  masks = {region: volumetric.region_mask(classes, region).tolist() for region in REGIONS}
  assert masks == {
    "WT": [False, True, True, True],
    "TC": [False, True, False, True],
    "ET": [False, False, False, True],
  }


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
