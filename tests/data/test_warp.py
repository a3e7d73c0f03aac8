"""Warping: the geometry's arithmetic, and what happens where the brain and the patch end."""

import jax
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from kd_jax.data.augmentation import warp
from kd_jax.settings.data import MOST_ELASTIC

SIDE = 9
resample = jax.jit(warp.resample)


def patch(seed=0):
  """Images (2, 3, D, H, W) without a zero, and labels without one too."""
  rng = np.random.default_rng(seed)
  images = rng.uniform(1, 2, (2, 3, SIDE, SIDE, SIDE)).astype(np.float32)
  return images, rng.integers(1, 5, (2, SIDE, SIDE, SIDE)).astype(np.uint8)


def warped(images, labels, matrix, shift=0.0):
  matrix = np.broadcast_to(np.asarray(matrix, np.float32), (2, 3, 3))
  source = warp.sources(matrix, np.float32(shift), (SIDE,) * 3)
  return tuple(map(np.asarray, resample(images, labels, source)))


def test_the_identity_is_exact():
  images, labels = patch()
  got_images, got_labels = warped(images, labels, np.eye(3))
  np.testing.assert_array_equal(got_images, images)
  np.testing.assert_array_equal(got_labels, labels)
  assert (got_images.dtype, got_labels.dtype) == (images.dtype, labels.dtype)


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (0, 2)])
def test_a_quarter_turn_is_exact(axes):
  """A voxel takes what the matrix's place holds: out[i, j] = in[j, n - 1 - i] about the middle."""
  images, labels = patch()
  matrix = np.eye(3)
  first, second = axes
  matrix[[first, second]] = 0
  matrix[first, second], matrix[second, first] = 1, -1
  got_images, got_labels = warped(images, labels, matrix)
  np.testing.assert_array_equal(got_images, np.rot90(images, axes=(first + 2, second + 2)))
  np.testing.assert_array_equal(got_labels, np.rot90(labels, axes=(first + 1, second + 1)))


def test_beyond_the_patch_there_is_nothing():
  images, labels = patch()
  got_images, got_labels = warped(images, labels, np.eye(3), [[[[[3]]], [[[0]]], [[[-1]]]]] * 2)
  np.testing.assert_array_equal(got_images[:, :, :-3, :, 1:], images[:, :, 3:, :, :-1])
  np.testing.assert_array_equal(got_labels[:, :-3, :, 1:], labels[:, 3:, :, :-1])
  for x in (got_images, got_labels):
    assert (x[..., -3:, :, :] == 0).all() and (x[..., 0] == 0).all()


def test_interpolation_is_scipy_s():
  images, labels = patch()
  matrix = 0.7 * Rotation.from_euler("XYZ", [10, -20, 30], degrees=True).as_matrix()
  got_images, got_labels = warped(images, labels, matrix)
  middle = (SIDE - 1) / 2
  offsets = np.indices((SIDE,) * 3).reshape(3, -1) - middle
  places = (matrix @ offsets + middle).reshape(3, SIDE, SIDE, SIDE)
  inside = ((places > 0) & (places < SIDE - 1)).all(0)
  assert inside.mean() > 0.7
  for b, m in np.ndindex(2, 3):
    expected = map_coordinates(images[b, m], places, order=1)
    np.testing.assert_allclose(got_images[b, m][inside], expected[inside], atol=1e-5)
  for b in range(2):
    expected = map_coordinates(labels[b], places, order=0)
    np.testing.assert_array_equal(got_labels[b][inside], expected[inside])


def test_the_brain_s_border_stays_sharp():
  """Zeros outside are no intensities: a flat brain stays flat up to its border."""
  images, labels = (np.zeros_like(x) for x in patch())
  images[..., 2:7, 2:7, 2:7] = np.array([-1.5, 2.0, 7.0]).reshape(3, 1, 1, 1)
  matrix = Rotation.from_euler("XYZ", [15, 5, -25], degrees=True).as_matrix()
  got, _ = warped(images, labels, matrix)
  for m, value in enumerate([-1.5, 2.0, 7.0]):
    brain = got[:, m] != 0
    np.testing.assert_allclose(got[:, m][brain], value, rtol=1e-5)
    assert brain[0].sum() == pytest.approx(5**3, rel=0.15)


def test_matrices_are_rotations_one_after_the_other():
  angles = np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32)
  scale = np.array([0.5, 1, 1.5, 2], np.float32)
  expected = scale[:, None, None] * Rotation.from_euler("XYZ", angles).as_matrix()
  np.testing.assert_allclose(warp.matrices(angles, scale), expected, atol=1e-6)


@pytest.mark.parametrize("knot", [4, 7])
def test_the_spline_is_exact_for_what_is_linear(knot):
  shape = (5, 8, 15)
  counts = warp.control_points(shape, knot)
  d, h, w = (knot * (np.arange(n) - 1.0) for n in counts)  # where control points lie
  points = 3 + d[:, None, None] - 2 * h[:, None] + 0.5 * w
  d, h, w = np.indices(shape)
  expected = 3 + d - 2 * h + 0.5 * w
  np.testing.assert_allclose(
    warp.smooth(points.astype(np.float32), shape, knot), expected, atol=1e-4
  )


def test_the_largest_deformation_does_not_fold():
  """At its worst, control points at either end of their range, and for both signs."""
  shape, rng = (40, 40, 40), np.random.default_rng(0)
  points = rng.choice([-1.0, 1.0], (8, 3, *warp.control_points(shape, warp.KNOT)))
  shift = MOST_ELASTIC * np.asarray(warp.smooth(points.astype(np.float32), shape, warp.KNOT))
  for displacement in shift:
    slopes = np.stack([np.stack(np.gradient(x)) for x in displacement])  # (3, 3, D, H, W)
    folds = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))
    assert folds.min() > 0
