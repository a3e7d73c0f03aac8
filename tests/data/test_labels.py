"""Label conventions: what each year's numbers mean."""

import numpy as np
import pytest

from kd_jax.runtime.errors import ConfigError
from kd_jax.tasks.labels import CONVENTIONS, REGIONS, from_classes, to_classes


@pytest.mark.parametrize(
  ("convention", "raw", "classes"),
  [
    ("brats2018", [0, 1, 2, 4], [0, 1, 2, 3]),
    ("brats2023", [0, 1, 2, 3], [0, 1, 2, 3]),
    ("brats2024", [0, 1, 2, 3, 4], [0, 1, 2, 3, 0]),
  ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64])
def test_classes_of_each_year(convention, raw, classes, dtype):
  got = to_classes(np.array(raw, dtype), convention)
  assert got.dtype == np.uint8
  assert got.tolist() == classes


@pytest.mark.parametrize(
  ("convention", "raw", "named"),
  [
    ("brats2018", np.array([0, 3, 3, 4], np.uint8), "3 (2 voxels)"),
    ("brats2023", np.array([0, 4], np.uint8), "4 (1 voxels)"),
    ("brats2024", np.array([5, 0], np.uint8), "5 (1 voxels)"),
    ("brats2018", np.array([-1, 0], np.int16), "-1 (1 voxels)"),
    ("brats2018", np.array([257, 256], np.int16), "256 (1 voxels), 257 (1 voxels)"),
    ("brats2018", np.array([0.5, 1.0]), "0.5 (1 voxels)"),
    ("brats2018", np.array([np.nan, 1.0]), "nan (1 voxels)"),
    ("brats2018", np.array([np.inf, 1.0]), "inf (1 voxels)"),
    ("brats2023", np.arange(100, 120, dtype=np.uint8), "15 more values"),
  ],
)
def test_unknown_values_are_named_and_counted(convention, raw, named):
  with pytest.raises(ValueError) as e:
    to_classes(raw, convention)
  assert named in str(e.value)
  assert convention in str(e.value)


def test_floats_close_to_an_integer_are_rounded():
  assert to_classes(np.array([0.9995, 4.0005, -0.0005], np.float32), "brats2018").tolist() == [
    1,
    3,
    0,
  ]
  with pytest.raises(ValueError, match=r"1\.002"):
    to_classes(np.array([1.002]), "brats2018")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_written_labels_read_back_as_the_same_classes(convention):
  classes = np.arange(4, dtype=np.uint8).reshape(2, 2)
  raw = from_classes(classes, convention)
  assert raw.dtype == np.uint8
  assert raw[1, 1] == {"brats2018": 4, "brats-ped": 1}.get(convention, 3)
  assert raw[0, 0] == 0
  np.testing.assert_array_equal(to_classes(raw, convention), classes)


def test_the_cavity_is_in_no_region():
  cavity = to_classes(np.array([4], np.uint8), "brats2024")[0]
  assert all(cavity not in classes for classes in REGIONS.values())


def test_unknown_convention_lists_the_known():
  with pytest.raises(ConfigError, match="brats2018, brats2023, brats2024"):
    to_classes(np.zeros(1, np.uint8), "brats2017")
