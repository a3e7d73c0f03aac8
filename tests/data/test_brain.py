"""The brain of a scan: what is a speck, what a part of the brain, and what stays as it is."""

import numpy as np
import pytest
from synthetic import brats_root

from kd_jax.data import nifti
from kd_jax.data.brain import find_brain, without_specks
from kd_jax.data.cases import find_cases
from kd_jax.data.grid import brain_grid, to_grid_image
from kd_jax.data.preprocess import PlainImage, normalise, to_arrays

MM = (2.0, 2.0, 2.0)
SHAPE = (70, 82, 68)


def ball(centre, radius, shape=SHAPE):
  """(D, H, W) boolean; in voxels."""
  grid = np.ogrid[tuple(slice(0, n) for n in shape)]
  return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def scan(mask=None) -> np.ndarray:
  values = np.random.default_rng(0).integers(100, 900, SHAPE).astype(np.int16)
  return np.where(ball((35, 41, 34), 26) if mask is None else mask, values, 0)


def put(x, *places, value=1):
  x = x.astype(np.promote_types(x.dtype, np.min_scalar_type(value)))
  for place in places:
    x[place] = value
  return x


SPECKS = {
  "one voxel": ((1, 1, 1),),
  "two corners": ((0, 0, 0), (-1, -1, -1)),
  "three voxels away": ((35, 41 + 26 + 4, 34),),
  "a patch of scalp": (np.s_[30:40, 1:3, 30:34],),
  "a plane's rest": (np.s_[0, 10:60, 3],),
}


@pytest.mark.parametrize("value", [1, -3, 30000])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", SPECKS)
def test_specks_are_left_out(name, order, value):
  clean = scan()
  x = np.array(put(clean, *SPECKS[name], value=value), order=order)
  brain = find_brain(x, MM)
  np.testing.assert_array_equal(brain.mask, clean != 0)
  assert sum(brain.specks) == np.count_nonzero(x) - np.count_nonzero(clean) > 0
  assert brain.parts == (np.count_nonzero(clean),)
  got, grid = to_arrays({"t1ce": PlainImage(x, MM)})
  expected, expected_grid = to_arrays({"t1ce": PlainImage(clean, MM)})
  assert grid == expected_grid
  np.testing.assert_array_equal(got, expected)


def hole(x, radius=12):
  return np.where(ball((35, 41, 34), radius), 0, x)


WHOLE = {
  "plain": scan,
  "ventricles cut out": lambda: hole(scan()),
  "a speck in a hole": lambda: put(hole(scan()), (35, 41, 34)),
  "an island that touches a corner": lambda: put(scan(), (35, 41 + 27, 34)),
  "negative values": lambda: put(scan(), np.s_[30:35, 30:35, 30:35], value=-7),
  "floats": lambda: (scan() / 1e6).astype(np.float32),
  "all of the volume": lambda: scan(np.ones(SHAPE, bool)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_brain_without_specks_is_as_before(name):
  x = WHOLE[name]()
  brain = find_brain(x, MM)
  np.testing.assert_array_equal(brain.mask, x != 0)
  assert brain.specks == ()
  assert without_specks(x, MM) is x
  arrays, grid = to_arrays({"t1": PlainImage(x, MM)})
  assert grid == brain_grid(x != 0, MM, 1.0)
  before = to_grid_image(normalise(x[grid.box]), grid.cropped).astype(np.float16)
  np.testing.assert_array_equal(arrays[0], before)


def test_a_speck_of_one_sequence_only():
  clean = {m: PlainImage(scan(), MM) for m in ("flair", "t1ce")}
  dirty = clean | {"flair": PlainImage(put(scan(), (1, 1, 1)), MM)}
  (got, grid), (expected, expected_grid) = to_arrays(dirty), to_arrays(clean)
  assert grid == expected_grid
  np.testing.assert_array_equal(got, expected)


def test_halves_that_do_not_touch_are_both_brain():
  x = scan()
  x[33:37] = 0  # 8 mm
  brain = find_brain(put(x, (1, 1, 1)), MM)
  np.testing.assert_array_equal(brain.mask, x != 0)
  assert len(brain.parts) == 2 and sum(brain.parts) == np.count_nonzero(x)
  assert brain.specks == (1,)
  assert not brain.around


@pytest.mark.parametrize("radii", [(18, 26, 34), (22, 24, 30)])  # the shell is larger, smaller
def test_a_thick_shell_is_around(radii):
  brain, inner, outer = (ball((35, 41, 34), r) for r in radii)
  assert find_brain(scan(brain | (outer & ~inner)), MM).around


def test_a_thin_shell_is_no_part():
  x = scan(ball((35, 41, 34), 22) | (ball((35, 41, 34), 32) & ~ball((35, 41, 34), 29)))
  brain = find_brain(x, MM)
  assert brain.parts == (np.count_nonzero(ball((35, 41, 34), 22)),)
  assert sum(brain.specks) > 0.3 * np.count_nonzero(x)


@pytest.mark.parametrize(("mm", "gap"), [((1, 1, 1), 2), ((2, 2, 2), 0), ((0.5, 1, 1), 4)])
def test_the_gap_is_measured_in_mm(mm, gap):
  for empty in (gap, gap + 1):
    x = np.zeros((90, 40, 40), np.int16)
    x[10:40, 5:35, 5:35] = 9
    x[40 + empty, 20, 20] = 1
    for shift in range(4):  # wherever the blocks begin
      assert bool(find_brain(np.roll(x, shift, 0), mm).specks) == (empty > gap)


def test_an_empty_scan():
  assert find_brain(np.zeros(SHAPE, np.uint8), MM).specks == ()


def test_real_cases_have_no_specks():
  for case in find_cases(brats_root()):
    for path in case.images.values():
      volume = nifti.read(path)
      assert without_specks(volume.data, volume.voxel_mm) is volume.data, path
