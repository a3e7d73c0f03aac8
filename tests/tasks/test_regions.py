"""What regions are made of, and label maps at the edges of what one can be."""

import numpy as np
import pytest

from kd_jax.tasks.labels import CLASSES, REGIONS, to_classes


def test_regions_are_made_of_the_classes_that_brats_names():
  """The whole tumour is all but background; its core is all of it but oedema."""
  names = {region: {CLASSES[k] for k in classes} for region, classes in REGIONS.items()}
  assert names == {"WT": {"NCR", "ED", "ET"}, "TC": {"NCR", "ET"}, "ET": {"ET"}}
  assert CLASSES[0] == "background" and len(CLASSES) == 4


@pytest.mark.parametrize("convention", ["brats2018", "brats2023", "brats2024"])
def test_a_mask_of_booleans_is_labels_0_and_1(convention):
  got = to_classes(np.array([[True, False]]), convention)
  np.testing.assert_array_equal(got, [[1, 0]])
  assert got.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, bool])
def test_no_voxels_are_no_classes(dtype):
  got = to_classes(np.zeros((0, 3), dtype), "brats2023")
  assert got.shape == (0, 3) and got.dtype == np.uint8


def test_the_largest_label_that_a_file_can_hold_is_counted_like_any_other():
  with pytest.raises(ValueError, match=r"255 \(2 voxels\)"):
    to_classes(np.array([255, 0, 255], np.int32), "brats2023")
