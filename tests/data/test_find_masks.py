"""Which files of a folder are the segmentations to score."""

import os

import pytest

from kd_jax.data.masks import PREDICTION, TRUTH, find_masks
from kd_jax.data.own_masks import Entry, Journal
from kd_jax.prediction.uncertainty import UNCERTAINTY
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.labels import REGIONS


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_linked_case_folders_are_entered(tmp_path):
  touch(tmp_path, "archive/SMITH/seg.nii.gz", "archive/x.nii.gz")
  (tmp_path / "truth").mkdir()
  os.symlink("../archive/SMITH", tmp_path / "truth" / "P1")
  os.symlink("../archive/x.nii.gz", tmp_path / "truth" / "P2.nii.gz")
  assert {name: path.name for name, path in find_masks(tmp_path / "truth", TRUTH).items()} == {
    "P1": "seg.nii.gz",
    "P2": "P2.nii.gz",
  }


def test_dead_links_are_named(tmp_path):
  touch(tmp_path, "P1.nii.gz")
  os.symlink("gone/P2.nii.gz", tmp_path / "P2.nii.gz")
  assert set(find_masks(tmp_path, TRUTH)) == {"P1", "P2"}  # scoring says what is wrong
  os.symlink("/mnt/absent/P3", tmp_path / "P3")
  with pytest.raises(UserError, match=r"P3\): a link to /mnt/absent/P3, which is not there"):
    find_masks(tmp_path, TRUTH)


def test_masks_beside_their_scans(tmp_path):
  touch(tmp_path, "P1_t1ce.nii.gz", "P1.nii.gz", "P1_WT.nii.gz", "other.nii.gz", "b/P2.nii.gz")
  Journal(tmp_path).note("P1", Entry({}, {"P1.nii.gz": "0", "P1_WT.nii.gz": "0"}))
  assert set(find_masks(tmp_path, PREDICTION)) == {"P1", "P2"}


def test_maps_beside_a_mask_are_no_masks(tmp_path):
  touch(tmp_path, "P1.nii.gz", "P2_entropy.nii.gz")
  touch(tmp_path, *(f"P1_{what}.nii.gz" for what in (*REGIONS, *UNCERTAINTY)))
  assert set(find_masks(tmp_path, PREDICTION)) == {"P1", "P2_entropy"}
