"""Surface distances: by hand, in closed form on balls, against the package surface-distance."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial.distance import cdist
from synthetic import brats_root

from kd_jax.data import nifti
from kd_jax.data.cases import find_cases
from kd_jax.metrics.surface import Surface, crop, hd95_mm, nearest_mm, nsd, surface, surface_pair
from kd_jax.metrics.volumetric import region_mask
from kd_jax.tasks.labels import REGIONS, to_classes

MM = (1.0, 1.0, 1.0)
SPACINGS = (MM, (0.7, 1.3, 2.5), (3.0, 1.0, 0.4))
MASKS = arrays(bool, (4, 5, 3))


def ball(radius, centre=(0, 0, 0), voxel_mm=MM, half_mm=40):
  axes = [np.arange(-int(half_mm / mm), int(half_mm / mm) + 1) * mm for mm in voxel_mm]
  grid = np.meshgrid(*axes, indexing="ij")
  return sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)) <= radius**2


def blob(seed, shape=(22, 25, 19), share=0.3):
  noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
  return noise > np.quantile(noise, 1 - share)


def hd95(p, t, voxel_mm=MM, of_empty=374.0):
  return hd95_mm(surface_pair(p, t, voxel_mm), of_empty)


def test_area_of_one_voxel_and_of_a_slab():
  one = np.ones((1, 1, 1), bool)
  a, b, c = 2.0, 3.0, 5.0
  octahedron = np.linalg.norm((b * c, a * c, a * b))  # between the centres of the faces
  assert surface(one, (a, b, c)).area_mm2.sum() == pytest.approx(octahedron)
  assert len(surface(one, MM).corners) == 8

  slab = np.ones((1, 30, 40), bool)
  inner = surface(slab, (a, b, c)).area_mm2.reshape(2, 31, 41)[:, 1:-1, 1:-1]
  np.testing.assert_allclose(inner, b * c)  # away from the rim: one face a corner, on both sides


def test_area_has_no_preferred_direction():
  mask, voxel_mm = blob(3), SPACINGS[1]
  whole = surface(mask, voxel_mm).area_mm2.sum()
  for axes in itertools.permutations(range(3)):
    turned = mask.transpose(axes)[::-1, :, ::-1]
    mm = tuple(voxel_mm[a] for a in axes)
    assert surface(turned, mm).area_mm2.sum() == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("voxel_mm", [MM, (1.0, 1.0, 2.0)])
def test_area_of_a_ball(voxel_mm):
  area = surface(ball(25, voxel_mm=voxel_mm), voxel_mm).area_mm2.sum()
  assert area == pytest.approx(4 * np.pi * 25**2, rel=0.15)  # its staircase is larger


@pytest.mark.parametrize("voxel_mm", [MM, (1.0, 1.5, 2.0)])
def test_concentric_balls(voxel_mm):
  pair = surface_pair(ball(20, voxel_mm=voxel_mm), ball(27, voxel_mm=voxel_mm), voxel_mm)
  assert hd95_mm(pair, 374) == pytest.approx(7, abs=max(voxel_mm))
  assert nsd(pair, 7 - 2 * max(voxel_mm)) == 0
  assert nsd(pair, 7 + 2 * max(voxel_mm)) == 1


def test_shifted_balls():
  r, d = 25, 6
  pair = surface_pair(ball(r), ball(r, (d, 0, 0)), MM)
  # cos(angle to the shift) is uniform on a sphere.
  cosine = np.linspace(-1, 1, 100_001)
  distance = np.abs(np.sqrt(r**2 + d**2 - 2 * r * d * cosine) - r)
  assert hd95_mm(pair, 374) == pytest.approx(np.quantile(distance, 0.95), abs=0.75)
  for tolerance in (2.5, 3.5, 4.5):
    # Lattice points are off the sphere.
    share = [np.mean(distance <= tolerance + off) for off in (-0.75, 0.75)]
    assert share[0] < nsd(pair, tolerance) < share[1]


def test_the_larger_of_two_directed_percentiles_not_the_pooled_one():
  t = ball(10)
  p = t | ball(4, (30, 0, 0))
  pair = surface_pair(p, t, MM)
  far = pair.predicted_mm > 5
  share = pair.predicted.area_mm2[far].sum() / pair.predicted.area_mm2.sum()
  assert 0.05 < share < 0.2 and (pair.truth_mm == 0).all()
  expected = np.quantile(pair.predicted_mm[far], 1 - 0.05 / share)
  assert hd95_mm(pair, 374) == pytest.approx(expected, abs=1)
  assert hd95_mm(pair, 374) == hd95(t, p)


def test_area_counts_not_the_number_of_points():
  # A thin voxel axis: two plates and a far column whose corners are many, but small in area.
  voxel_mm = (10.0, 10.0, 0.1)
  t = np.zeros((12, 12, 40), bool)
  t[:8, :8, :2] = True
  p = t.copy()
  p[11, 11, :] = True
  pair = surface_pair(p, t, voxel_mm)
  far = pair.predicted_mm > 1
  assert far.mean() > 0.05
  assert pair.predicted.area_mm2[far].sum() < 0.05 * pair.predicted.area_mm2.sum()
  assert hd95_mm(pair, 374) == 0


@pytest.mark.parametrize("voxel_mm", SPACINGS)
@pytest.mark.parametrize("n", [50, 2000])  # by the tree and by the distance map
def test_nearest_point(n, voxel_mm):
  rng = np.random.default_rng(n)
  of, to = (Surface(rng.integers(5, 25, (m, 3)), np.ones(m)) for m in (n, 300))
  every = cdist(of.corners * voxel_mm, to.corners * voxel_mm)
  np.testing.assert_allclose(nearest_mm(of, to, voxel_mm), every.min(axis=1), atol=1e-12)


@pytest.mark.parametrize("of_empty", [373.13, 374.0])
def test_empty_masks(of_empty):
  none, some = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
  assert hd95(none, none, of_empty=of_empty) == 0
  assert hd95(none, some, of_empty=of_empty) == hd95(some, none, of_empty=of_empty) == of_empty
  assert nsd(surface_pair(none, none, MM)) == 1
  assert nsd(surface_pair(none, some, MM)) == nsd(surface_pair(some, none, MM)) == 0


def test_tolerance_holds_in_spite_of_rounding():
  t = np.zeros((6, 6, 6), bool)
  t[1:4, 1:4, 1:4] = True
  moved = np.roll(t, 1, axis=0)
  assert nsd(surface_pair(moved, t, (1.0000001,) * 3), 1.0) == 1
  assert nsd(surface_pair(moved, t, (1.001,) * 3), 1.0) < 1


@settings(deadline=None)
@given(MASKS, MASKS, st.sampled_from(SPACINGS))
def test_properties(p, t, voxel_mm):
  pair, swapped = surface_pair(p, t, voxel_mm), surface_pair(t, p, voxel_mm)
  score, overlap = hd95_mm(pair, 374), nsd(pair)
  assert hd95_mm(swapped, 374) == score and nsd(swapped) == pytest.approx(overlap, rel=1e-12)
  assert 0 <= overlap <= 1 + 1e-12
  same = surface_pair(p, p, voxel_mm)
  assert hd95_mm(same, 374) == 0 and nsd(same, 0) == pytest.approx(1)
  if p.any() and t.any():
    assert 0 <= score <= np.linalg.norm(np.array(p.shape) * voxel_mm)
    assert nsd(pair, 1e6) == pytest.approx(1)
    double = surface_pair(p, t, tuple(2 * mm for mm in voxel_mm))
    assert hd95_mm(double, 374) == pytest.approx(2 * score, rel=1e-12)
    assert nsd(double, 2) == pytest.approx(overlap, abs=1e-9)


@settings(deadline=None)
@given(MASKS, MASKS, st.tuples(*[st.integers(0, 4)] * 6), st.sampled_from(SPACINGS))
def test_place_in_the_volume_does_not_matter_and_a_crop_is_as_good(p, t, pads, voxel_mm):
  here = surface_pair(p, t, voxel_mm)
  there = [np.pad(m, np.reshape(pads, (3, 2))) for m in (p, t)]
  moved = surface_pair(*there, voxel_mm)
  box = crop(*there)
  cropped = surface_pair(*(m[box] for m in there), voxel_mm)
  for other in (moved, cropped):
    np.testing.assert_array_equal(here.predicted_mm, other.predicted_mm)
    np.testing.assert_array_equal(here.truth_mm, other.truth_mm)
    np.testing.assert_array_equal(here.truth.area_mm2, other.truth.area_mm2)


def test_crop():
  p, t = np.zeros((2, 10, 12, 14), np.uint8)
  assert p[crop(p, t)].size == 0
  p[2, 5, 6], t[4, 1, 13] = 3, 1
  assert crop(p, t) == (slice(2, 5), slice(1, 6), slice(6, 14))


def test_a_subset_is_what_its_masks_alone_give():
  p, t = np.zeros((2, 20, 20, 20), bool)
  p[2:6, 2:6, 2:6] = t[3:8, 2:6, 2:6] = True
  apart_p, apart_t = np.zeros((2, 20, 20, 20), bool)
  apart_p[14:17, 14:17, 2:5] = apart_t[12:15, 2:5, 14:19] = True
  pair = surface_pair(p | apart_p, t | apart_t, SPACINGS[1])
  part = pair.subset((pair.predicted.corners < 10).all(axis=1), np.ones(len(pair.truth_mm), bool))
  alone = surface_pair(p, t | apart_t, SPACINGS[1])
  np.testing.assert_array_equal(part.predicted_mm, alone.predicted_mm)
  np.testing.assert_array_equal(part.truth_mm, alone.truth_mm)
  np.testing.assert_array_equal(part.predicted.area_mm2, alone.predicted.area_mm2)


def assert_same_as_the_package(p, t, voxel_mm):
  package = pytest.importorskip("surface_distance")
  theirs = package.compute_surface_distances(t, p, voxel_mm)
  pair = surface_pair(p, t, voxel_mm)
  for mm, area, direction, side in (
    (pair.predicted_mm, pair.predicted.area_mm2, "pred_to_gt", "pred"),
    (pair.truth_mm, pair.truth.area_mm2, "gt_to_pred", "gt"),
  ):
    np.testing.assert_allclose(np.sort(mm), theirs[f"distances_{direction}"], atol=1e-9)
    np.testing.assert_allclose(
      np.sort(area), np.sort(theirs[f"surfel_areas_{side}"]), rtol=1e-12, atol=1e-12
    )
  # Where 95 per cent of an area lie within a distance to the last digit, rounding of sums alone
  # says whether that distance or the next one is the percentile: both are right.
  low, high = (package.compute_robust_hausdorff(theirs, 95 + d) for d in (-1e-9, 1e-9))
  assert hd95_mm(pair, 374) in [pytest.approx(mm, abs=1e-9) for mm in (low, high)]
  assert low == high or _near_95_per_cent(theirs)
  for tolerance in (1.0, 2.0):
    overlap = package.compute_surface_dice_at_tolerance(theirs, tolerance)
    assert nsd(pair, tolerance) == pytest.approx(overlap, abs=1e-9)


def _near_95_per_cent(theirs):
  """Whether a share of either surface, by distance, is 95 per cent but for rounding."""
  areas = [theirs[f"surfel_areas_{side}"] for side in ("pred", "gt")]
  return any(np.abs(np.cumsum(a) / np.sum(a) - 0.95).min() < 1e-10 for a in areas)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("voxel_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_blobs_as_the_package_has_them(seed, voxel_mm):
  assert_same_as_the_package(blob(seed), blob(seed + 100, share=0.1), voxel_mm)
  assert_same_as_the_package(blob(seed), blob(seed) & ~blob(seed + 50), voxel_mm)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@settings(max_examples=25, deadline=None)
@given(MASKS, st.sampled_from(SPACINGS))
def test_noise_as_the_package_has_it(p, voxel_mm):
  t = np.zeros_like(p)
  t[:2, 1:4] = True
  if p.any():
    p[0, 0, 0] = True
    assert_same_as_the_package(p, t, voxel_mm)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("region", REGIONS)
def test_real_tumours_as_the_package_has_them(region):
  pytest.importorskip("surface_distance")
  for case in [case for case in find_cases(brats_root()) if case.seg][:2]:
    seg = nifti.read(case.seg)
    truth = region_mask(to_classes(seg.data, case.convention), region)
    predicted = np.roll(ndimage.binary_erosion(truth), (2, -1, 1), axis=(0, 1, 2))
    predicted[100:103, 100:104, 70:75] = True  # a component far from the rest
    box = crop(predicted, truth)
    assert_same_as_the_package(predicted[box], truth[box], seg.voxel_mm)
