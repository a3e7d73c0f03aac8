"""Whole volumes through windows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.prediction import sliding_window
from kd_jax.prediction.sliding_window import plan, predict, window_starts
from kd_jax.settings.inference import InferenceSettings


def voxelwise(params, x):
  """A network that sees one voxel at a time: windows must not change what it says."""
  return x[..., :1] * params["w"]  # (B, D, H, W, 4)


PARAMS = {"w": jnp.asarray([0.3, -1.0, 2.0, 0.1])}


def expected(volume):
  logits = volume[0][..., None] * np.asarray(PARAMS["w"])
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return np.moveaxis(e / e.sum(-1, keepdims=True), -1, 0)


ALLOWED = sliding_window.shapes(
  (16, 16, 16), 5.0, "brain", voxel_bytes=100, memory=16**3 * 100 * 8, multiple=8
)
SHAPES = [(20, 33, 17), (9, 40, 16), (41, 25, 30)]


@pytest.mark.parametrize("mode", ("sliding", "whole", "auto"))
@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("mirror", [False, True])
def test_windows_do_not_show(mode, overlap, mirror):
  """Volumes of several shapes, one smaller than the patch."""
  settings = InferenceSettings(mode, overlap, mirror)
  for seed, shape in enumerate(SHAPES):
    volume = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    probabilities = predict([(voxelwise, PARAMS)], volume, ALLOWED, settings)
    assert probabilities.shape == (4, *shape)
    np.testing.assert_allclose(probabilities, expected(volume), atol=1e-5)


def test_one_program_serves_volumes_of_a_usual_size():
  traced = []

  def network(params, x):
    traced.append(x.shape)
    return voxelwise(params, x)

  for shape in [(20, 33, 17), (9, 36, 16)]:
    predict([(network, PARAMS)], np.ones((1, *shape), np.float16), ALLOWED, InferenceSettings())
  assert len(set(traced)) == 1 and len(traced) <= 2  # a loop's body may be traced twice


def test_members_are_averaged():
  volume = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
  other = {"w": -PARAMS["w"]}
  one, two = (
    predict([(voxelwise, p)], volume, ALLOWED, InferenceSettings()) for p in (PARAMS, other)
  )
  members = [(voxelwise, PARAMS), (voxelwise, other)]
  both = predict(members, volume, ALLOWED, InferenceSettings())
  np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)


def test_mirroring_is_the_mean_over_mirror_images():
  """A network that shifts along each axis: mirrored, it shifts to all corners alike."""

  def shift(params, x):
    return jnp.roll(voxelwise(params, x), (1, 2, 3), axis=(1, 2, 3))

  volume = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32)
  settings = InferenceSettings("whole", mirror=True)
  mirrored = predict([(shift, PARAMS)], volume, ALLOWED, settings)
  flips = [axes for n in range(4) for axes in itertools.combinations((1, 2, 3), n)]
  plain = InferenceSettings("whole")
  images = [
    np.flip(predict([(shift, PARAMS)], np.flip(volume, axes), ALLOWED, plain), axes)
    for axes in flips
  ]
  assert len(images) == 8
  np.testing.assert_allclose(mirrored, np.mean(images, axis=0), atol=1e-6)
  for one, other in itertools.combinations(images, 2):
    assert np.abs(one - other).max() > 0.1  # so that none of the eight may be missing


def test_what_is_said_of_a_case_does_not_depend_on_others():
  """In any padded shape, a volume smaller than the window lies in its middle, as in training."""
  seen = []

  def network(params, x):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
    return voxelwise(params, x)

  predict([(network, PARAMS)], np.ones((1, 10, 16, 8)), ALLOWED, InferenceSettings())
  jax.effects_barrier()
  (window,) = seen
  assert window.shape == (1, 16, 16, 16, 1)
  assert window.sum() == 10 * 16 * 8 and window[0, 3:13, :, 4:12].all()


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


def test_whole_windows_have_few_sizes():
  shapes = sliding_window.shapes((128, 128, 128), 1.0, "brain", multiple=8)
  whole = InferenceSettings("whole")
  for shape in [(140, 175, 140), (133, 171, 150), (80, 100, 152)]:
    assert plan(shape, shapes, whole).window == (144, 176, 152)
  for shape in [(140, 180, 140), (133, 171, 153), (160, 192, 100)]:
    assert plan(shape, shapes, whole).window == (160, 192, 160)
  assert plan((165, 180, 20), shapes, whole).window == (192, 192, 24)
  assert plan((130, 170, 20), shapes, whole).window == (144, 176, 24)
  paper = sliding_window.shapes((128,) * 3, 1.0, "paper", multiple=8)
  assert plan((128,) * 3, paper, whole).window == (128,) * 3


@pytest.mark.parametrize("multiple", [4, 16, 32, 64])
def test_windows_suit_a_network_that_needs_other_multiples(multiple):
  shapes = sliding_window.shapes((128, 128, 128), 1.0, "brain", multiple=multiple)
  for shape in [(140, 175, 140), (20, 33, 100), (165, 200, 17), (160, 192, 160)]:
    window = plan(shape, shapes, InferenceSettings("whole")).window
    assert all(side % multiple == 0 for side in window)
    assert all(n <= side for n, side in zip(shape, window, strict=True))


def test_sliding_windows_share_one_padded_shape():
  shapes = sliding_window.shapes((128, 128, 128), 1.0, "brain", multiple=8)
  for shape in [(140, 175, 140), (160, 192, 160), (20, 30, 40)]:
    assert plan(shape, shapes, InferenceSettings()).padded == (160, 192, 160)


def test_auto_is_whole_where_memory_allows():
  auto = InferenceSettings("auto")
  for memory, whole in [(None, False), (1e9, False), (1e10, True)]:
    shapes = sliding_window.shapes((128, 128, 128), 1.0, "brain", 2000.0, memory, multiple=8)
    window = plan((140, 180, 140), shapes, auto).window
    assert window == ((160, 192, 160) if whole else (128, 128, 128))


def gaussian(n):
  """A standard deviation of an eighth of the window, as in nnU-Net."""
  return np.exp(-(((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) / 2)


def test_the_middle_of_a_window_counts_most():
  """No voxel's weight is so small that it drowns in rounding."""
  weight = sliding_window._gaussian((16, 32, 8))
  expected = np.einsum("d,h,w->dhw", gaussian(16), gaussian(32), gaussian(8))
  assert expected.min() < 1e-3
  np.testing.assert_allclose(weight, np.maximum(expected, 1e-3), rtol=1e-6)
  assert weight.dtype == np.float32


def test_where_windows_overlap_each_counts_by_its_weight():
  """A network that finds class 1 in the first half of what it sees, class 2 in the second."""

  def halves(params, x):
    where = 1 + (jnp.arange(16) >= 8).reshape(1, 16, 1, 1)
    return 50 * jax.nn.one_hot(jnp.broadcast_to(where, x.shape[:4]), 4)

  shapes = sliding_window.shapes((16, 16, 16), 10.0, "brain", multiple=8)
  volume = np.ones((1, 24, 16, 16), np.float32)
  found = predict([(halves, {})], volume, shapes, InferenceSettings("sliding", 0.5))
  line = np.maximum(gaussian(16) * gaussian(16)[8] ** 2, 1e-3)  # in the middle of H and W
  second = line[8:] / (line[8:] + line[:8])  # class 2 is the first window's
  assert second.min() < 0.1 and second.max() > 0.9
  np.testing.assert_allclose(found[2, 8:16, 8, 8], second, rtol=1e-5)
  np.testing.assert_allclose(found[1, 8:16, 8, 8], 1 - second, rtol=1e-5)
  np.testing.assert_allclose(found[1, :8], 1, rtol=1e-5)
  np.testing.assert_allclose(found[2, 16:], 1, rtol=1e-5)
