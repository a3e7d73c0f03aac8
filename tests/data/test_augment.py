"""Augmentation: what it may change, and what it must leave alone."""

import functools
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from quick import QUICK
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from kd_jax.data.augmentation.augment import _average, augment
from kd_jax.settings.data import AugmentSettings
from kd_jax.training.mesh import make_mesh
from kd_jax.training.step import batch_sharding

SHAPE = (3, 4, 6, 8, 10)  # B, M, D, H, W
LIGHT = AugmentSettings(spatial=0.0, artefact=0.0)
EVERY = replace(LIGHT, flip=0.0, intensity=1.0)
NONE = replace(EVERY, gamma=0.0, contrast=0.0, brightness=0.0, noise=0.0)
FLIPS = replace(LIGHT, intensity=0.0)
ARTEFACTS = replace(FLIPS, flip=0.0, artefact=0.5)
CLEAN = replace(ARTEFACTS, bias=0.0, blur=0.0, lowres=1.0)
WARP = replace(FLIPS, flip=0.0, spatial=0.5)
STILL = replace(WARP, rotate=0.0, scale=0.0, elastic=0.0)

# All but three of the probabilities may be traced, so these tests share a few programs.
# They are used for a moment only: compiled without LLVM's optimisations, in a third of the time.


@functools.partial(jax.jit, static_argnames="static", compiler_options=QUICK)
def program(key, images, labels, static, sizes):
  return augment(key, images, labels, AugmentSettings(**dict(static), **sizes))


def run(seed, images, labels, settings):
  sizes = asdict(settings)
  static = tuple((name, sizes.pop(name)) for name in ("spatial", "intensity", "artefact"))
  got = program(jax.random.key(seed), images, labels, static, sizes)
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
  first, again, other = (run(seed, *batch, LIGHT) for seed in (5, 5, 6))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  assert not np.array_equal(first[0], other[0])


def test_types_and_shapes():
  images, labels = run(0, *some_batch(), LIGHT)
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
    _, got = run(seed, images, labels, LIGHT)
    for before, after in zip(labels, got, strict=True):
      np.testing.assert_array_equal(np.bincount(before.flat), np.bincount(after.flat))


def test_probability_zero_is_the_identity():
  images, labels = some_batch()
  got_images, got_labels = run(0, images, labels, replace(FLIPS, flip=0.0))
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
  got, _ = run(0, images, labels, replace(EVERY, flip=0.5))
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


# --- Bias, blur, thick slices -----------------------------------------------------------------


def artefacts(settings, images, labels=None, seeds=4):
  """(before, after) of each sample and modality, over some keys."""
  labels = np.zeros((SHAPE[0], *SHAPE[2:]), np.uint8) if labels is None else labels
  for seed in range(seeds):
    got, got_labels = run(seed, images, labels, settings)
    np.testing.assert_array_equal(got_labels, labels)
    np.testing.assert_array_equal(got == 0, images == 0)
    for b, m in np.ndindex(SHAPE[:2]):
      yield images[b, m].astype(np.float32), got[b, m]


def changed(pairs):
  return [(x, y) for x, y in pairs if np.abs(x - y).max() > 1e-3]


def test_artefacts_of_no_size_change_nothing():
  for x, y in artefacts(CLEAN, *some_batch(), seeds=2):
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_bias_is_a_smooth_factor_on_what_lies_above_the_lowest():
  pairs = list(artefacts(replace(CLEAN, bias=0.5), *some_batch()))
  happened = changed(pairs)
  assert 0.3 * len(pairs) < len(happened) < 0.7 * len(pairs)  # of probability a half
  fields = []
  for x, y in happened:
    low = x.min()
    above = (x - low > 0.3) & (x != 0)
    field = np.full(x.shape, np.nan)
    field[above] = np.log((y - low)[above] / (x - low)[above])
    steps = [np.abs(np.diff(field, axis=axis)) for axis in range(3)]
    assert max(np.nanmax(step) for step in steps) < 0.5 / 10  # far from a draw a voxel
    fields.append(field[above].mean())
    assert np.abs(field[above]).max() <= 0.5
  assert len(np.unique(np.round(fields, 5))) == len(fields)  # each modality has its own


@pytest.mark.parametrize("sizes", [{"blur": 2.0}, {"lowres": 4.0}], ids=str)
def test_coarser_images_keep_a_flat_brain_and_lose_detail(sizes):
  settings = replace(CLEAN, **sizes)
  inside = some_batch()[0] != 0
  # Neither the zeros outside nor the patch's end darken a brain of one intensity.
  for x, y in artefacts(settings, np.where(inside, 2.5, 0).astype(np.float16)):
    np.testing.assert_allclose(y, x, rtol=1e-5)
  lost = [y[y != 0].std() / x[x != 0].std() for x, y in changed(artefacts(settings, *some_batch()))]
  assert len(lost) > 12
  assert max(lost) < 1.05 and min(lost) < 0.7
  assert len(np.unique(np.round(lost, 5))) == len(lost)


def test_blur_is_the_gaussian_of_the_voxels_inside():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, 1, 40))
  for sigma in (0.7, 1.5):
    weights = np.asarray(_average(40, np.full((1, 1), sigma), np.ones((1, 1))))
    mine = np.einsum("bmij,bmj->bmi", weights, x) / weights.sum(-1)
    ones = gaussian_filter1d(np.ones(40), sigma, mode="constant", truncate=8)
    theirs = gaussian_filter1d(x, sigma, mode="constant", truncate=8) / ones
    np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_slices_are_means_interpolated_between_their_middles():
  (weights,), *_ = np.asarray(_average(13, np.zeros((1, 1)), np.full((1, 1), 3.0)))
  weights = weights / weights.sum(-1, keepdims=True)
  x = np.random.default_rng(0).standard_normal(13)
  means = [x[:2].mean()] + [x[k - 1 : k + 2].mean() for k in (3, 6, 9)] + [x[11:].mean()]
  got = weights @ x
  np.testing.assert_allclose(got[[3, 6, 9]], means[1:4], atol=1e-5)
  np.testing.assert_allclose(got[4], (2 * means[1] + means[2]) / 3, atol=1e-5)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_thick_slices_lie_across_one_axis():
  along = np.zeros(SHAPE, np.float16)
  along[:] = 1 + np.arange(SHAPE[2]).reshape(-1, 1, 1) % 2
  settings = replace(CLEAN, lowres=4.0)
  changes = [np.abs(x - y).max() > 1e-3 for x, y in artefacts(settings, along, seeds=12)]
  assert 0.08 < np.mean(changes) < 0.25  # a half, times a third


# --- The warp ---------------------------------------------------------------------------------


def ramps():
  """Modalities that say where a voxel is, and a label that says it once more."""
  d, h, w = np.indices((12, 14, 16)) + 1.0
  images = np.broadcast_to(np.stack([d, h, w, d + h + w]), (4, 4, 12, 14, 16))
  labels = np.broadcast_to(d, (4, 12, 14, 16))
  return images.astype(np.float16), labels.astype(np.uint8)


def warps(settings, seeds=6):
  """(images, label, whether warped) of samples over some keys."""
  images, labels = ramps()
  for seed in range(seeds):
    for image, label in zip(*run(seed, images, labels, settings), strict=True):
      yield image, label, not np.array_equal(image, images[0].astype(np.float32))


def test_all_modalities_and_the_label_are_warped_alike():
  happened = []
  for image, label, warped in warps(WARP):
    happened.append(warped)
    d, h, w, total = image
    np.testing.assert_allclose(d + h + w, total, atol=1e-3)
    interior = (total != 0) & (label != 0)
    for ramp in (d, h, w):  # beyond the patch's sides the interpolation has one neighbour only
      interior &= (ramp > 1.01) & (ramp < ramp.max() - 0.01)
    assert interior.sum() > 500
    assert np.abs(label - d)[interior].max() <= 0.5 + 1e-3
    if not warped:
      np.testing.assert_array_equal(label, ramps()[1][0])
  assert 6 < sum(happened) < 18  # a half of 24


def test_a_warp_of_no_size_moves_nothing():
  assert not any(warped for *_, warped in warps(STILL, seeds=3))


def test_labels_come_from_the_patch_and_zeros_from_beyond():
  images, labels = ramps()
  _, got = run(1, images, labels + 3, replace(WARP, scale=1.0))
  assert set(np.unique(got)) <= {0, *range(4, 16)}
  assert (got == 0).any()


def test_rotation_and_scale_stay_within_their_sizes():
  scales, angles = [], []
  settings = replace(STILL, rotate=15.0, scale=0.2)
  for image, _, warped in warps(settings):
    if warped:
      middle = tuple(slice(n // 2 - 3, n // 2 + 3) for n in image.shape[1:])
      places = np.indices(image.shape[1:])[(slice(None), *middle)].reshape(3, -1).T
      found = image[(slice(3), *middle)].reshape(3, -1).T
      affine = np.linalg.lstsq(np.c_[places, np.ones(len(places))], found, rcond=None)[0][:3].T
      factor = np.cbrt(np.linalg.det(affine))
      np.testing.assert_allclose(affine @ affine.T / factor**2, np.eye(3), atol=1e-3)
      scales.append(np.log(factor))
      angles.append(Rotation.from_matrix(affine / factor).as_euler("XYZ", degrees=True))
  assert np.abs(scales).max() <= 0.201 and min(scales) < -0.05 < 0.05 < max(scales)
  assert np.abs(angles).max() <= 15.1
  assert (np.max(angles, 0) > 4).all() and (np.min(angles, 0) < -4).all()


def test_deformation_is_its_own():
  moved = []
  for image, _, warped in warps(replace(STILL, elastic=4.0)):
    if warped:
      displacement = image[:3] - ramps()[0][0, :3]
      inner = displacement[:, 4:-4, 4:-4, 4:-4]
      assert np.abs(inner).max() <= 4
      moved.append(inner.std())
  assert len(moved) > 5 and max(moved) > 0.05


def test_a_sample_is_drawn_without_regard_to_the_others():
  images, labels = ramps()
  others = images.copy()
  others[1:] = images[1:, :, ::-1]
  for seed in range(2):
    (mine, label), (again, same) = (run(seed, x, labels, WARP) for x in (images, others))
    np.testing.assert_array_equal(mine[0], again[0])
    np.testing.assert_array_equal(label, same)


# --- On a mesh --------------------------------------------------------------------------------


def test_every_mesh_gives_the_same_patches():
  """Batch over `data` and depth over `space`; what is random, and what reaches across shards."""
  settings = AugmentSettings(spatial=0.5, artefact=0.5)
  rng = np.random.default_rng(0)
  images = rng.standard_normal((4, 4, 16, 16, 16)).astype(np.float16)
  images[..., :2] = 0
  labels = rng.integers(0, 4, (4, 16, 16, 16)).astype(np.uint8)

  def on(shape):
    mesh = make_mesh(*shape)
    sharding = batch_sharding(mesh)
    placed = (
      jax.device_put(images, sharding["image"]),
      jax.device_put(labels, sharding["label"]),
    )
    step = jax.jit(functools.partial(augment, settings=settings), compiler_options=QUICK)
    compiled = step.lower(jax.random.key(0), *placed).compile()
    for kind, x in zip(("image", "label"), compiled.output_shardings, strict=True):
      # The networks go on in shards: nothing is gathered onto every device and left there.
      assert x.is_equivalent_to(sharding[kind], placed[kind == "label"].ndim)
    return [jax.device_get(compiled(jax.random.key(seed), *placed)) for seed in range(3)]

  for (image, label), (expected, expected_label) in zip(on((2, 4)), on((1, 1)), strict=True):
    np.testing.assert_array_equal(label, expected_label)
    np.testing.assert_allclose(image, expected, atol=2e-5)
    assert (np.bincount(label.flat) != np.bincount(labels.flat)).any()  # no flip alone
