"""The lesion-wise rules of BraTS 2023, each on masks small enough to score by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kd_jax.metrics.lesions import LesionScores, dilate, lesion_scores
from kd_jax.metrics.surface import crop, hd95_mm, surface_pair
from kd_jax.metrics.volumetric import dice

MM = (1.0, 1.0, 1.0)
SHAPE = (40, 30, 30)
CUBE = (slice(5, 10), slice(5, 10), slice(5, 10))  # 125 voxels


def mask(*boxes):
  m = np.zeros(SHAPE, bool)
  for box in boxes:
    m[box] = True
  return m


def moved(box, *steps):
  return tuple(slice(s.start + step, s.stop + step) for s, step in zip(box, steps, strict=True))


def score(predicted, truth, voxel_mm=MM):
  return lesion_scores(predicted, truth, voxel_mm)


FAR = moved(CUBE, 20, 0, 0)


def test_every_lesion_found():
  truth = mask(CUBE, FAR)
  assert score(truth, truth) == LesionScores(2, 0, 0, 1.0, 0.0)


def test_a_missed_lesion_counts_zero_and_374():
  assert score(mask(CUBE), mask(CUBE, FAR)) == LesionScores(1, 1, 0, 0.5, 187.0)


def test_a_false_component_of_any_size_counts_zero_and_374():
  speck = (20, 20, 20)
  assert score(mask(CUBE, speck), mask(CUBE)) == LesionScores(1, 0, 1, 0.5, 187.0)
  assert score(mask(CUBE, speck, FAR), mask(CUBE)) == LesionScores(1, 0, 2, 1 / 3, 2 * 374 / 3)


def test_components_are_26_connected():
  diagonal = [(20 + i, 20 + i, 20 + i) for i in range(4)]
  assert score(mask(CUBE, *diagonal), mask(CUBE)).false == 1


@pytest.mark.parametrize(
  ("steps", "lesions"),
  [
    ((5 + 6, 0, 0), 1),  # 6 voxels between: the dilations touch
    ((5 + 7, 0, 0), 2),
    ((4 + 5, 4 + 5, 4 + 5), 1),  # across corners the dilations reach less far: 2 each
    ((4 + 6, 4 + 6, 4 + 6), 2),
    ((4 + 7, 4 + 6, 0), 1),  # across edges 3 each
    ((4 + 8, 4 + 8, 0), 2),
  ],
)
def test_near_components_of_the_truth_are_one_lesion(steps, lesions):
  truth = mask(CUBE, moved(CUBE, *steps))
  scores = score(truth, truth)
  assert (scores.found, scores.dice) == (lesions, 1)
  # Half of the one lesion, or one of the two.
  scores = score(mask(CUBE), truth)
  assert scores.found == 1 and scores.missed == lesions - 1
  assert scores.dice == pytest.approx(2 / 3 if lesions == 1 else 1 / 2)


@pytest.mark.parametrize(("voxels", "kept"), [(50, False), (51, True)])
def test_lesions_of_at_most_50_mm3_are_left_out(voxels, kept):
  small = mask((slice(25, 30), slice(5, 10), slice(5, 7)))  # 50
  if voxels == 51:
    small[25, 5, 7] = True
  truth = mask(CUBE) | small
  # Missed, it costs nothing; found, it earns nothing, and its prediction is not a false one.
  assert score(mask(CUBE), truth) == LesionScores(1, kept, 0, *((0.5, 187) if kept else (1.0, 0)))
  assert score(truth, truth) == LesionScores(1 + kept, 0, 0, 1.0, 0.0)
  # Alone in the truth, it leaves nothing to score.
  nothing = mask()
  assert score(nothing, small) == LesionScores(0, kept, 0, *((0.0, 374) if kept else (1.0, 0.0)))


def test_small_components_near_each_other_are_measured_together():
  parts = [(slice(25 + 5 * i, 28 + 5 * i), slice(5, 8), slice(5, 8)) for i in range(2)]  # 27 each
  assert score(mask(), mask(parts[0])).missed == 0
  assert score(mask(), mask(*parts)).missed == 1


def test_the_threshold_is_a_volume():
  row = mask((slice(5, 11), 5, 5))  # 6 voxels
  assert score(mask(), row, (2, 2, 2)).missed == 0  # 48 mm3
  row[11, 5, 5] = True
  assert score(mask(), row, (2, 2, 2)).missed == 1  # 56 mm3
  assert score(mask(), mask((slice(0, 5), slice(0, 5), slice(0, 2))), (1.000001,) * 3).missed == 0


def test_touching_the_dilation_is_enough():
  beside = (slice(9 + 3, 9 + 4), slice(5, 10), slice(5, 10))  # 2 voxels between
  scores = score(mask(beside), mask(CUBE))
  assert (scores.found, scores.missed, scores.false, scores.dice) == (1, 0, 0, 0)
  # From the plate to the cube's face 2 mm, from the cube's far face 7 mm.
  assert scores.hd95_mm == pytest.approx(7, abs=0.1)
  beyond = moved(beside, 1, 0, 0)
  assert score(mask(beyond), mask(CUBE)) == LesionScores(0, 1, 1, 0.0, 374.0)


def test_all_components_near_a_lesion_count_for_it():
  predicted = mask(CUBE, (slice(12, 13), slice(5, 10), slice(5, 10)))  # 125 + 25
  scores = score(predicted, mask(CUBE))
  assert (scores.found, scores.false) == (1, 0)
  assert scores.dice == pytest.approx(2 * 125 / (125 + 150))


def test_a_component_that_touches_two_lesions_counts_for_both_as_a_whole():
  truth = mask(CUBE, FAR)
  predicted = mask((slice(5, 30), slice(5, 10), slice(5, 10)))  # 625
  scores = score(predicted, truth)
  assert (scores.found, scores.missed, scores.false) == (2, 0, 0)
  assert scores.dice == pytest.approx(2 * 125 / (125 + 625))
  one = hd95_mm(surface_pair(predicted, mask(CUBE), MM), 374)
  other = hd95_mm(surface_pair(predicted, mask(FAR), MM), 374)
  assert scores.hd95_mm == pytest.approx((one + other) / 2) and one > 15


def test_empty_masks():
  none, some = mask(), mask(CUBE)
  assert score(none, none) == LesionScores(0, 0, 0, 1.0, 0.0)
  assert score(none, some) == LesionScores(0, 1, 0, 0.0, 374.0)
  assert score(some, none) == LesionScores(0, 0, 1, 0.0, 374.0)


def test_dilation_is_scipys_with_18_neighbours():
  sparse = np.random.default_rng(0).random((20, 17, 15)) > 0.995
  sparse[0, 0, 0] = sparse[-1, 5, -1] = True
  structure = ndimage.generate_binary_structure(3, 2)
  for times in (1, 3):
    np.testing.assert_array_equal(
      dilate(sparse, times), ndimage.binary_dilation(sparse, structure, iterations=times)
    )


def one_by_one(predicted, truth, voxel_mm):
  """The definition, word by word: each lesion's masks cut out of the volume and scored alone."""
  touching, faces_edges = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
  components, n_components = ndimage.label(predicted, touching)
  grown, n_lesions = ndimage.label(ndimage.binary_dilation(truth, faces_edges, 3), touching)
  used, results, found = set(), [], 0
  for i in range(1, n_lesions + 1):
    lesion = truth & (grown == i)
    mine = set(np.unique(components[ndimage.binary_dilation(lesion, faces_edges, 3)])) - {0}
    used |= mine
    if lesion.sum() * np.prod(voxel_mm) > 50:
      part = np.isin(components, list(mine))
      pair = surface_pair(part, lesion, voxel_mm)
      results.append((dice(part, lesion), hd95_mm(pair, 374)))
      found += bool(mine)
  false = n_components - len(used)
  missed = len(results) - found
  results += [(0.0, 374.0)] * false
  means = np.mean(results, axis=0) if results else (1.0, 0.0)
  return (found, missed, false), means


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.002, 0.1), st.sampled_from([MM, (1.0, 2.0, 0.6)]))
def test_many_components_as_one_by_one(seed, share, voxel_mm):
  noise = np.random.default_rng(seed).normal(size=(2, 40, 36, 32))
  noise[0] += noise[1] * 0.7
  smooth = ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
  predicted, truth = smooth > np.quantile(smooth, 1 - share, axis=(1, 2, 3), keepdims=True)
  scores = score(predicted, truth, voxel_mm)
  counts, means = one_by_one(predicted, truth, voxel_mm)
  assert (scores.found, scores.missed, scores.false) == counts
  np.testing.assert_allclose((scores.dice, scores.hd95_mm), means, rtol=1e-12)
  # And a crop is as good.
  box = crop(predicted, truth)
  assert score(predicted[box], truth[box], voxel_mm) == scores
