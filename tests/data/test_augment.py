"""Augmentation: what it may change, and what it must leave alone."""

import functools
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from kd_jax.data.augment import AugmentSettings, augment

SHAPE = (3, 4, 6, 8, 10)  # B, M, D, H, W
EVERY = AugmentSettings(flip=0.0, intensity=1.0)
NONE = replace(EVERY, gamma=0.0, contrast=0.0, brightness=0.0, noise=0.0)
FLIPS = AugmentSettings(intensity=0.0)

# All but the probability of intensity changes may be traced, so these tests share three programs.
# They are used for a moment only: compiled without LLVM's optimisations, in a third of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnames="intensity", compiler_options=QUICK)
def program(key, images, labels, intensity, sizes):
  return augment(key, images, labels, AugmentSettings(intensity=intensity, **sizes))


def run(seed, images, labels, settings):
  sizes = asdict(settings)
  intensity = sizes.pop("intensity")
  got = program(jax.random.key(seed), images, labels, intensity, sizes)
  return tuple(map(np.asarray, got))


def some_batch(seed=0):
  """Normalised images with a margin of exact zeros, and labels."""
  rng = np.random.default_rng(seed)
  images = np.zeros(SHAPE, np.float16)
  inside = images[..., 1:-1, 2:-1, 1:-2]
  inside[:] = rng.standard_normal(inside.shape)
  inside[inside == 0] = 0.5
  return images, rng.integers(0, 4, (SHAPE[0], *SHAPE[2:])).astype(np.uint8)


def test_the_same_key_gives_the_same_and_another_key_another():
  batch = some_batch()
  first, again, other = (run(seed, *batch, AugmentSettings()) for seed in (5, 5, 6))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert not np.array_equal(first[0], other[0])


def test_types_and_shapes():
  images, labels = run(0, *some_batch(), AugmentSettings())
  assert (images.shape, images.dtype) == (SHAPE, np.float32)
  assert (labels.shape, labels.dtype) == (SHAPE[:1] + SHAPE[2:], np.uint8)


def numbered():
  """Every voxel has its own number, and a label that tells whether image and label still agree."""
  place = np.arange(1, 1 + np.prod(SHAPE[2:]), dtype=np.float32).reshape(SHAPE[2:])
  images = np.broadcast_to(place, SHAPE) + 1000 * np.arange(4).reshape(4, 1, 1, 1)
  return images.astype(np.float32), np.broadcast_to(place % 4, (3, *SHAPE[2:])).astype(np.uint8)


def flips_of(image, original):
  """The axes along which a sample was turned: found by trying all eight."""
  for turned in np.ndindex(2, 2, 2):
    axes = tuple(axis for axis in range(3) if turned[axis])
    if np.array_equal(image, np.flip(original, axes)):
      return axes
  raise AssertionError("no flip explains this image")


def test_flips_keep_modalities_and_label_together():
  images, labels = numbered()
  seen = []
  for seed in range(20):
    got_images, got_labels = run(seed, images, labels, FLIPS)
    for image, label in zip(got_images, got_labels, strict=True):
      axes = flips_of(image[0], images[0, 0])
      seen.append(axes)
      np.testing.assert_array_equal(image, np.flip(images[0], [a + 1 for a in axes]))
      np.testing.assert_array_equal(label, np.flip(labels[0], axes))
  assert len(set(seen)) == 8  # each axis by itself
  assert any(len(set(seen[i : i + 3])) > 1 for i in range(0, 60, 3))  # each sample by itself


def test_a_certain_flip_turns_every_axis():
  images, labels = numbered()
  got_images, got_labels = run(0, images, labels, replace(FLIPS, flip=1.0))
  np.testing.assert_array_equal(got_images, images[..., ::-1, ::-1, ::-1])
  np.testing.assert_array_equal(got_labels, labels[..., ::-1, ::-1, ::-1])


def test_labels_keep_their_histogram():
  images, labels = some_batch()
  for seed in range(4):
    _, got = run(seed, images, labels, AugmentSettings())
    for before, after in zip(labels, got, strict=True):
      np.testing.assert_array_equal(np.bincount(before.flat), np.bincount(after.flat))


def test_probability_zero_is_the_identity():
  images, labels = some_batch()
  got_images, got_labels = run(0, images, labels, AugmentSettings(flip=0.0, intensity=0.0))
  np.testing.assert_array_equal(got_images, images.astype(np.float32))
  np.testing.assert_array_equal(got_labels, labels)


def test_changes_of_no_size_change_nothing():
  images, labels = some_batch()
  np.testing.assert_allclose(run(0, images, labels, NONE)[0], images, atol=2e-6)


def test_intensities_leave_labels_and_background_alone():
  images, labels = some_batch()
  for seed in range(4):
    got_images, got_labels = run(seed, images, labels, EVERY)
    np.testing.assert_array_equal(got_labels, labels)
    np.testing.assert_array_equal(got_images == 0, images == 0)


def test_background_stays_zero_through_everything():
  images, labels = some_batch()
  got, _ = run(0, images, labels, AugmentSettings(flip=0.5, intensity=1.0))
  assert ((got == 0).sum((2, 3, 4)) == (images == 0).sum((2, 3, 4))).all()


def changes(settings, seeds=6):
  """(before, after) of the voxels inside, by sample and modality, over some keys."""
  images, labels = some_batch()
  for seed in range(seeds):
    got, _ = run(seed, images, labels, settings)
    for b, m in np.ndindex(SHAPE[:2]):
      inside = images[b, m] != 0
      yield images[b, m][inside].astype(np.float64), got[b, m][inside].astype(np.float64)


def test_gamma_keeps_order_and_range():
  bent = []
  for x, y in changes(replace(NONE, gamma=0.4)):
    np.testing.assert_allclose([y.min(), y.max()], [x.min(), x.max()], atol=1e-5)
    assert (np.diff(y[np.argsort(x)]) >= -1e-5).all()
    level, new = ((z - x.min()) / (x.max() - x.min()) for z in (x, y))
    middle = (level > 0.2) & (level < 0.8)
    powers = np.log(new[middle]) / np.log(level[middle])
    np.testing.assert_allclose(powers, powers[0], rtol=1e-3)
    bent.append(np.log(powers[0]))
  assert np.abs(bent).max() <= 0.4 + 1e-3
  assert min(bent) < -0.2 < 0.2 < max(bent)
  assert len(np.unique(np.round(bent, 5))) == len(bent)  # one draw a sample and modality


def test_contrast_is_one_factor_and_brightness_one_shift():
  factors, shifts = [], []
  for x, y in changes(replace(NONE, contrast=0.25)):
    np.testing.assert_allclose(y, x * (y[0] / x[0]), rtol=1e-3, atol=1e-5)
    factors.append(np.log(y[0] / x[0]))
  for x, y in changes(replace(NONE, brightness=0.3)):
    np.testing.assert_allclose(y - x, y[0] - x[0], atol=1e-5)
    shifts.append(y[0] - x[0])
  assert np.abs(factors).max() <= 0.251 and min(factors) < -0.1 < 0.1 < max(factors)
  assert np.abs(shifts).max() <= 0.301 and min(shifts) < -0.1 < 0.1 < max(shifts)


def test_noise_is_centred_and_bounded():
  sizes = []
  for x, y in changes(replace(NONE, noise=0.15)):
    noise = y - x
    assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(len(x)) + 1e-6
    sizes.append(noise.std())
  assert max(sizes) < 0.15 * 1.3
  assert max(sizes) > 0.1 > 0.05 > min(sizes)


def test_changes_happen_with_their_probability():
  share = replace(NONE, intensity=0.3, brightness=1.0)
  happened = [np.abs(y - x).max() > 1e-4 for x, y in changes(share, seeds=25)]  # 300 draws
  assert 0.22 < np.mean(happened) < 0.38


@pytest.mark.parametrize("value", [0.0, 2.5, -3.0, 1e-4])
def test_constant_patches_stay_finite(value):
  labels = np.zeros((3, *SHAPE[2:]), np.uint8)
  for seed in range(3):
    images, _ = run(seed, np.full(SHAPE, value, np.float16), labels, EVERY)
    assert np.isfinite(images).all()
    if value == 0:
      assert (images == 0).all()


def test_a_single_voxel_of_brain_stays_finite():
  images, labels = np.zeros(SHAPE, np.float16), np.zeros((3, *SHAPE[2:]), np.uint8)
  images[:, :, 3, 4, 5] = -1.5
  got, _ = run(0, images, labels, EVERY)
  assert np.isfinite(got).all()
  assert ((got != 0) == (images != 0)).all()
