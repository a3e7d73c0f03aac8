"""Quality control of masks, in words."""

import numpy as np
import pytest

from kd_jax.data.grid import Grid, paper_grid
from kd_jax.prediction.quality import VolumeRange, findings, joint_volumes, usual_volumes

SHAPE = (40, 50, 30)
MM = (1.0, 1.0, 2.0)


def scan() -> np.ndarray:
  """A brain that reaches from 2 to the last voxel but two of each axis."""
  x = np.zeros(SHAPE, np.float32)
  x[2:-2, 2:-2, 2:-2] = 100
  return x


def mask(*box: slice, cls: int = 3) -> np.ndarray:
  classes = np.zeros(SHAPE, np.uint8)
  classes[box] = cls
  return classes


def brain_grid() -> Grid:
  size = tuple(n - 4 for n in SHAPE)
  return Grid(SHAPE, (2, 2, 2), size, size)


MIDDLE = (slice(10, 20), slice(10, 20), slice(10, 20))


def test_nothing_is_said_of_an_ordinary_mask():
  assert findings(mask(*MIDDLE), scan(), MM, brain_grid(), {}) == []
  # The surface of the brain is no edge of what the student sees.
  assert findings(mask(slice(2, 12), *MIDDLE[1:]), scan(), MM, brain_grid(), {}) == []


def test_an_empty_mask():
  assert findings(np.zeros(SHAPE, np.uint8), scan(), MM, brain_grid(), {}) == ["it has no tumour"]


@pytest.mark.parametrize(
  ("axis", "at", "name"),
  [
    *[(0, 0, "right"), (0, -1, "left"), (1, 0, "front"), (1, -1, "back")],
    *[(2, 0, "lower"), (2, -1, "upper")],
  ],
)
def test_a_mask_at_the_edge_of_the_scan(axis, at, name):
  image = np.full(SHAPE, 100, np.float32)
  grid = Grid(SHAPE, (0, 0, 0), SHAPE, SHAPE)
  box = list(MIDDLE)
  box[axis] = slice(0, 6) if at == 0 else slice(SHAPE[axis] - 6, None)
  (line,) = findings(mask(*box), image, MM, grid, {})
  assert line == f"it touches the {name} edge of the scan, so tumour may be missing"
  box[axis] = slice(1, 6) if at == 0 else slice(SHAPE[axis] - 6, -1)
  assert findings(mask(*box), image, MM, grid, {}) == []


def test_a_voxel_at_the_edge_is_no_finding():
  image, grid = np.full(SHAPE, 100, np.float32), Grid(SHAPE, (0, 0, 0), SHAPE, SHAPE)
  x = mask(*MIDDLE)
  x[0, 10, 10:12] = 3
  assert findings(x, image, MM, grid, {}) == []  # 4 mm2
  x[0, 10:14, 10:12] = 3
  assert len(findings(x, image, MM, grid, {})) == 1  # 16 mm2


def test_a_mask_at_the_edge_of_a_window_that_cuts_the_brain():
  """The published protocol sees the first 147 slices; the brain may go on."""
  shape = (20, 20, 155)
  grid, image = paper_grid(shape), np.full(shape, 50, np.float32)
  x = np.zeros(shape, np.uint8)
  x[5:12, 5:12, 140:147] = 2
  (line,) = findings(x, image, (1, 1, 1), grid, {})
  assert line.startswith("it touches the upper edge of what the student sees of the scan")
  image[:, :, 147:] = 0
  assert findings(x, image, (1, 1, 1), grid, {}) == []


def test_tumour_outside_the_brain():
  x = mask(slice(0, 12), *MIDDLE[1:])
  found = findings(x, scan(), MM, brain_grid(), {})
  assert found == ["16.7% of its tumour lies outside the brain, where the images are 0"]


# --- Volumes ----------------------------------------------------------------------------------


def volumes(**changes) -> dict[str, VolumeRange]:
  usual = {"WT": VolumeRange(1.0, 4.0, 30, 0), "ET": VolumeRange(0.5, 3.0, 30, 0)}
  return usual | changes


@pytest.mark.parametrize(
  ("slices", "said"),
  [
    (slice(10, 20), ""),  # 2 ml
    (slice(5, 28), ""),  # 4.6 ml: beyond the range, but not far
    (slice(10, 12), "far outside of what training cases have: WT 0.4 ml (1.0-4.0 ml)"),
  ],
)
def test_volumes_far_from_those_of_training(slices, said):
  found = findings(mask(*MIDDLE[:2], slices), scan(), MM, brain_grid(), {"WT": volumes()["WT"]})
  assert found == ([said] if said else [])


def test_large_volumes_are_far_too():
  x = mask(slice(2, 38), slice(10, 30), slice(5, 15), cls=2)  # 14.4 ml of oedema, no ET
  found = findings(x, scan(), MM, brain_grid(), volumes())
  assert found[0] == "far outside of what training cases have: WT 14.4 ml (1.0-4.0 ml)"
  assert found[1:] == ["it has no ET, which every training case has"]
  some_without = volumes(ET=VolumeRange(0.5, 3.0, 29, 1))
  assert len(findings(x, scan(), MM, brain_grid(), some_without)) == 1
  few = volumes(ET=VolumeRange(0.5, 3.0, 9, 0))  # too few to be surprised
  assert len(findings(x, scan(), MM, brain_grid(), few)) == 1


def test_all_volumes_that_are_far_off_are_one_finding():
  (line,) = findings(mask(slice(2, 38), *MIDDLE[1:]), scan(), MM, brain_grid(), volumes())
  assert line.endswith("have: WT 7.2 ml (1.0-4.0 ml), ET 7.2 ml (0.5-3.0 ml)")


def test_a_region_that_no_training_case_has():
  none = VolumeRange(0.0, 0.0, 0, 30)
  found = findings(mask(*MIDDLE), scan(), MM, brain_grid(), {"ET": none})
  assert found == ["it has ET, which no training case has"]


def test_the_range_of_training_cases():
  cases = [((10**6, 1000 * i, 2000 * i, 0 if i < 3 else 500 * i), 8.0) for i in range(101)]
  found = usual_volumes(cases)
  every = np.arange(101) * 3.5 * 8  # WT in ml, from 3 on
  assert found["WT"].cases == 100 and found["WT"].without == 1
  assert found["WT"].high_ml == pytest.approx(np.quantile(every[1:], 0.99), rel=1e-4)
  assert found["ET"].cases == 98 and found["ET"].without == 3
  assert found["ET"].low_ml == pytest.approx(np.quantile(np.arange(3, 101) * 4, 0.01), abs=1e-3)
  assert usual_volumes([]) == {}
  assert usual_volumes([((5, 0, 0, 0), 1.0)])["ET"] == VolumeRange(0.0, 0.0, 0, 1)


def test_several_students_have_seen_what_each_of_them_has():
  a = {"WT": VolumeRange(1.0, 4.0, 30, 0)}
  b = {"WT": VolumeRange(0.5, 3.0, 20, 2)}
  assert joint_volumes([a, b]) == {"WT": VolumeRange(0.5, 4.0, 20, 2)}
  assert joint_volumes([a, {"WT": VolumeRange(0.0, 0.0, 0, 9)}])["WT"].low_ml == 1
  assert joint_volumes([a, {}]) == joint_volumes([]) == {}
