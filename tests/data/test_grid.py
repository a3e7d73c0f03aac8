"""The way from the scan to the networks' grid and back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.data.grid import Grid, brain_grid, from_grid, paper_grid, to_grid_image, to_grid_labels

NATIVE = (12, 10, 8)
SAME = Grid(NATIVE, (2, 1, 0), (8, 6, 8), (8, 6, 8))
HALF = Grid(NATIVE, (2, 1, 0), (8, 6, 8), (4, 3, 4))
MIXED = Grid(NATIVE, (0, 2, 1), (10, 6, 5), (5, 12, 5))  # shrinks, grows, stays


@st.composite
def grids(draw, nearest=(False, True)):
  native = tuple(draw(st.integers(1, 9)) for _ in range(3))
  start = tuple(draw(st.integers(0, n - 1)) for n in native)
  size = tuple(draw(st.integers(1, n - a)) for n, a in zip(native, start, strict=True))
  shape = tuple(draw(st.integers(1, 12)) for _ in range(3))
  return Grid(native, start, size, shape, draw(st.sampled_from(nearest)))


@settings(max_examples=60, deadline=None)
@given(grids())
def test_json_both_ways(grid):
  assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@settings(max_examples=60, deadline=None)
@given(grids())
def test_a_constant_stays_a_constant(grid):
  x = to_grid_image(np.full((2, *grid.native_shape), 3.0, np.float32), grid)
  assert x.shape == (2, *grid.shape)
  np.testing.assert_allclose(x, 3, rtol=1e-6)
  back = from_grid(x, grid, fill=-1)
  assert (back.shape, back.dtype) == ((2, *grid.native_shape), np.float32)
  np.testing.assert_allclose(back[(slice(None), *grid.box)], 3, rtol=1e-6)
  assert (back == -1).sum() == back.size - 2 * np.prod(grid.size)


@settings(max_examples=60, deadline=None)
@given(grids(nearest=(False,)), st.integers(0, 2))
def test_a_ramp_along_one_axis_is_monotone_and_in_range(grid, axis):
  ramp = np.broadcast_to(
    np.arange(grid.native_shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)]),
    grid.native_shape,
  )
  x = to_grid_image(ramp, grid)
  assert (np.diff(x, axis=axis) >= -1e-5).all()
  assert x.min() >= grid.start[axis] - 1e-5
  assert x.max() <= grid.start[axis] + grid.size[axis] - 1 + 1e-5


@settings(max_examples=60, deadline=None)
@given(grids(), st.integers(0, 2**31))
def test_labels_are_labels_of_the_crop(grid, seed):
  y = np.random.default_rng(seed).integers(0, 4, grid.native_shape).astype(np.uint8)
  got = to_grid_labels(y, grid)
  assert (got.shape, got.dtype) == (grid.shape, np.uint8)
  assert set(np.unique(got)) <= set(np.unique(y[grid.box]))


def test_same_shape_is_a_view():
  x = np.arange(np.prod(NATIVE), dtype=np.int16).reshape(NATIVE)
  got = to_grid_image(x, SAME)
  assert np.shares_memory(got, x)
  np.testing.assert_array_equal(got, x[2:10, 1:7, 0:8])
  assert np.shares_memory(to_grid_labels(x, SAME), x)


def test_there_and_back_without_resampling_is_exact():
  x = np.random.default_rng(0).standard_normal((3, *NATIVE)).astype(np.float32)
  back = from_grid(to_grid_image(x, SAME), SAME, fill=(7, 8, 9))
  np.testing.assert_array_equal(back[:, 2:10, 1:7, 0:8], x[:, 2:10, 1:7, 0:8])
  np.testing.assert_array_equal(back[:, 0, 0, 0], [7, 8, 9])


@pytest.mark.parametrize(
  ("n_in", "n_out", "x", "expected"),
  [
    # Growing: half-voxel centres, the ends held.
    (2, 4, [0, 4], [0, 1, 3, 4]),
    (3, 6, [0, 4, 8], [0, 1, 3, 5, 7, 8]),
    # Shrinking: a triangle as wide as the new spacing. 4 -> 2 weighs 3/7 3/7 1/7, ends cut.
    (4, 2, [7, 0, 0, 0], [3, 0]),
    (4, 2, [0, 0, 7, 0], [1, 3]),
    (6, 2, [1, 1, 1, 1, 1, 1], [1, 1]),
  ],
)
def test_linear_by_hand(n_in, n_out, x, expected):
  grid = Grid((n_in, 1, 1), (0, 0, 0), (n_in, 1, 1), (n_out, 1, 1))
  got = to_grid_image(np.array(x, np.float32).reshape(n_in, 1, 1), grid)
  np.testing.assert_allclose(got.ravel(), expected, atol=1e-6)


def test_both_ways_agree_on_where_voxels_are():
  """A blob's centre of mass stays where it is: no half-voxel shift in either direction."""
  z = np.stack(np.meshgrid(*map(np.arange, (40, 40, 40)), indexing="ij"))
  centre = np.array([19.3, 22.7, 17.1])
  blob = np.exp(-((z - centre[:, None, None, None]) ** 2).sum(0) / 30).astype(np.float32)
  for shape in [(20, 20, 20), (27, 40, 60), (80, 13, 33)]:
    grid = Grid(blob.shape, (0, 0, 0), blob.shape, shape)
    there = to_grid_image(blob, grid)
    where = [(i + 0.5) * 40 / n - 0.5 for i, n in zip(np.indices(shape), shape, strict=True)]
    np.testing.assert_allclose([(w * there).sum() / there.sum() for w in where], centre, atol=0.02)
    back = from_grid(there[None], grid)[0]
    np.testing.assert_allclose([(w * back).sum() / back.sum() for w in z], centre, atol=0.02)


@pytest.mark.parametrize(
  ("y", "expected"),
  [
    ([0, 0, 2, 2, 0, 0, 0, 0], [0, 2, 0, 0]),  # a plate in one output voxel
    ([0, 0, 0, 3, 3, 0, 0, 0], [0, 3, 3, 0]),  # across two: half of each, a tie
    ([0, 0, 0, 3, 0, 0, 0, 0], [0, 0, 0, 0]),  # less than half
    ([1, 1, 1, 2, 2, 2, 2, 2], [1, 2, 2, 2]),
    ([1, 1, 1, 1, 3, 3, 3, 3], [1, 1, 3, 3]),
  ],
)
def test_labels_shrink_by_vote(y, expected):
  grid = Grid((8, 1, 1), (0, 0, 0), (8, 1, 1), (4, 1, 1))
  got = to_grid_labels(np.array(y, np.uint8).reshape(8, 1, 1), grid)
  assert got.ravel().tolist() == expected


def test_a_growing_label_map_keeps_its_shape():
  y = np.zeros((6, 6, 6), np.uint8)
  y[2:4, 2:4, 2:4] = 1
  got = to_grid_labels(y, Grid(y.shape, (0, 0, 0), y.shape, (18, 18, 18)))
  assert got[9, 9, 9] == 1
  assert got.sum() == 6**3 - 12 * 4 - 8  # linear shares round its edges and corners off
  np.testing.assert_array_equal(got, got[::-1, ::-1, ::-1])


@pytest.mark.parametrize("native", [(240, 240, 155), (20, 30, 155), (20, 30, 160), (20, 30, 40)])
def test_paper_grid_takes_the_published_slices_and_indices(native):
  grid = paper_grid(native)
  first, last = {155: (3, 147), 160: (0, 147), 40: (0, 40)}[native[2]]
  assert grid.box == (slice(0, native[0]), slice(0, native[1]), slice(first, last))
  x = np.arange(np.prod(native), dtype=np.int32).reshape(native)
  rows, columns, slices = (
    np.floor(np.arange(128) * n / 128).astype(int) for n in (*native[:2], last - first)
  )
  expected = x[np.ix_(rows, columns, first + slices)]
  np.testing.assert_array_equal(to_grid_image(x, grid), expected)
  np.testing.assert_array_equal(to_grid_labels(x, grid), expected)


def test_paper_grid_back_is_nearest_with_the_fill_outside():
  grid = paper_grid((256, 64, 155))
  x = np.random.default_rng(0).random((1, 128, 128, 128), np.float32)
  back = from_grid(x, grid, fill=0.5)
  assert (back[..., :3] == 0.5).all()
  assert (back[..., 147:] == 0.5).all()
  np.testing.assert_array_equal(back[0, :, :, 3], x[0][np.arange(256) // 2][:, ::2][:, :, 0])


@pytest.mark.parametrize(
  ("voxel_mm", "spacing", "shape"),
  [
    ((1, 1, 1), 1.0, (6, 5, 4)),
    ((0.99999, 1.00001, 1), 1.0, (6, 5, 4)),
    ((1, 1, 1), 2.0, (3, 2, 2)),
    ((0.5, 1, 3), 1.0, (3, 5, 12)),
    ((1, 1, 1), 100.0, (1, 1, 1)),
  ],
)
def test_brain_grid_is_the_box_at_the_spacing(voxel_mm, spacing, shape):
  brain = np.zeros(NATIVE, bool)
  brain[3:9, 2:7, 1:5] = True
  brain[4, 4, 2] = False
  grid = brain_grid(brain, voxel_mm, spacing)
  assert grid == Grid(NATIVE, (3, 2, 1), (6, 5, 4), shape)


def test_brain_grid_needs_a_brain():
  with pytest.raises(ValueError, match="empty"):
    brain_grid(np.zeros(NATIVE, bool), (1, 1, 1), 1)


def test_cropped_grid_sees_the_same():
  x = np.random.default_rng(0).random(NATIVE, np.float32)
  for grid in (SAME, HALF, MIXED):
    np.testing.assert_array_equal(to_grid_image(x[grid.box], grid.cropped), to_grid_image(x, grid))


def test_another_volume_is_refused():
  with pytest.raises(ValueError, match=r"\(12, 10, 8\)"):
    to_grid_image(np.zeros((12, 10, 9)), HALF)
