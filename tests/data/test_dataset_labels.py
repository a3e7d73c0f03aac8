"""A training set's labels: decided before anything is prepared, kept in entries, said in a line."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from synthetic import LARGE, NEW, make_case, seg, write

from kd_jax.data import dataset
from kd_jax.data.entry import open_entry
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.data import DataSettings
from kd_jax.tasks.labels import from_classes, to_classes
from kd_jax.tasks.names import MODALITIES

CLASSES = to_classes(seg(), "brats2018")


def quiet(label: str):
  return lambda done, total, name="": None


def settings(root, **more) -> DataSettings:
  own = {"cache": str(root / "cache"), "spacing": 3.0, "prepare_workers": 1}
  return DataSettings(root=str(root / "data"), **own | more)


def prepared(root, **more):
  """Case -> its entry; and the lines that were told."""
  own = settings(root, **more)
  found, _ = dataset.find(own, quiet)
  cases, lines = dataset.settle(own, found.cases, quiet)
  entries, bad = dataset.prepare(own, MODALITIES, cases, quiet)
  assert bad == []
  return {name: open_entry(path) for name, path in entries.items()}, lines


@pytest.mark.parametrize("named", ["BraTS-GLI-0000{}-000", "UCSF-PDGM-000{}"])
def test_cases_of_2021_under_new_names_keep_their_et(tmp_path, named):
  for i in range(2):
    make_case(tmp_path / "data" / named.format(i), NEW, "-", seed=i, et=4, affine=LARGE)
  entries, told = prepared(tmp_path)
  for entry in entries.values():
    assert entry.meta["class_voxels"][3] == (CLASSES == 3).sum()
    assert entry.meta["convention"] == "brats2018"
  (line,) = told
  assert "a 4 and no 3" in line and "--config.data.labels" in line


@pytest.mark.parametrize("said", ["msd", '{"NCR": 9, "ED": 1, "ET": 2}', "brats-ped"])
def test_other_orders_are_said_by_the_setting(tmp_path, said):
  own = settings(tmp_path, labels=said)
  case = make_case(tmp_path / "data" / "case0", affine=LARGE)
  write(case / "case0_seg.nii.gz", from_classes(CLASSES, own.labels), LARGE)
  entries, told = prepared(tmp_path, labels=said)
  voxels = np.bincount(CLASSES.ravel(), minlength=4).tolist()
  assert entries["case0"].meta["class_voxels"][1:] == voxels[1:]
  assert entries["case0"].meta["convention"] == own.labels and told == []


def test_two_conventions_stop_before_the_work(tmp_path):
  for i, et in enumerate((3, 4)):
    make_case(tmp_path / "data" / f"BraTS-GLI-0000{i}-000", NEW, "-", seed=i, et=et, affine=LARGE)
  with pytest.raises(ConfigError, match=r"two label conventions.*--config\.data\.labels=brats2024"):
    prepared(tmp_path)
  assert {path.name for path in (tmp_path / "cache").iterdir()} == {"labels.json"}


def test_the_next_start_reads_no_label_map(tmp_path):
  make_case(tmp_path / "data" / "case0", affine=LARGE)
  seen = []

  def progress(label):
    return lambda done, total, name="": seen.append(label)

  for expected in (["looking at the labels", "preparing cases"], ["preparing cases"]):
    del seen[:]
    dataset.report(settings(tmp_path), MODALITIES, progress, lambda line: None)
    assert seen == expected


@pytest.mark.parametrize("largest", [4, 255 / 2])
def test_labels_that_were_scaled_to_floats(tmp_path, largest):
  """1 is stored as 64, and read as 64 * 4 / 255 = 1.00392."""
  case = make_case(tmp_path / "data" / "case0", affine=LARGE)
  stored = nib.Nifti1Image(np.rint(seg() * (255.0 / largest)).astype(np.uint8), LARGE)
  raw = bytearray(stored.to_bytes())
  raw[112:120] = np.array([largest / 255, 0], "<f4").tobytes()
  (case / "case0_seg.nii.gz").write_bytes(gzip.compress(bytes(raw)))
  entries, _ = prepared(tmp_path)
  assert entries["case0"].meta["class_voxels"][1:] == np.bincount(CLASSES.ravel())[1:].tolist()
