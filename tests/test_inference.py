"""Whole volumes through windows."""

import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import inference
from kd_jax.inference import PredictSettings, make_predictor, plan, window_starts


def voxelwise(params, x):
  """A network that sees one voxel at a time: windows must not change what it says."""
  return x[..., :1] * params["w"]  # (B, D, H, W, 4)


PARAMS = {"w": jnp.asarray([0.3, -1.0, 2.0, 0.1])}


def expected(volume):
  logits = volume[0][..., None] * np.asarray(PARAMS["w"])
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return np.moveaxis(e / e.sum(-1, keepdims=True), -1, 0)


@pytest.mark.parametrize("mode", inference.MODES)
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
def test_windows_do_not_show(mode, overlap):
  """Volumes of several sizes, one smaller than the patch, share one canvas."""
  shapes = [(20, 33, 17), (9, 40, 16), (41, 25, 30)]
  predict = make_predictor(voxelwise, plan(shapes, (16, 16, 16), PredictSettings(mode, overlap)))
  for seed, shape in enumerate(shapes):
    volume = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    probabilities = np.asarray(predict(PARAMS, volume))
    assert probabilities.shape == (4, *shape)
    np.testing.assert_allclose(probabilities, expected(volume), atol=1e-5)


def test_one_program_serves_all_volumes():
  traced = []

  def network(params, x):
    traced.append(x.shape)
    return voxelwise(params, x)

  shapes = [(20, 33, 17), (9, 40, 16)]
  predict = make_predictor(network, plan(shapes, (16, 16, 16), PredictSettings()))
  for shape in shapes:
    predict(PARAMS, np.ones((1, *shape), np.float16))
  assert len(set(traced)) == 1 and len(traced) <= 2  # a loop's body may be traced twice


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 40, 100), (5, 16, 31)])
def test_windows_cover_the_volume_and_stay_inside(shape, overlap):
  window = (16, 16, 16)
  covered = np.zeros(tuple(max(n, w) for n, w in zip(shape, window, strict=True)), int)
  for start in window_starts(shape, window, overlap):
    covered[tuple(slice(a, a + w) for a, w in zip(start, window, strict=True))] += 1
  assert covered.min() >= 1
  for axis, n in enumerate(shape):
    starts = np.unique(window_starts(shape, window, overlap)[:, axis])
    assert starts.min() == 0 and starts.max() == max(n - 16, 0)
    if len(starts) > 1:
      assert np.diff(starts).max() <= max(1, 16 * (1 - overlap) + 1)


def test_a_window_is_no_larger_than_it_must_be():
  assert plan([(20, 20, 20)], (64, 64, 16), PredictSettings()).window == (24, 24, 16)
  assert plan([(20, 20, 20)], (8, 8, 8), PredictSettings("whole")).window == (24, 24, 24)


def test_the_middle_of_a_window_counts_most():
  weight = inference._gaussian((16, 16, 8))
  assert weight.shape == (16, 16, 8) and weight.min() > 0
  assert weight[8, 8, 4] == weight.max() > 10 * weight[0, 8, 4]
