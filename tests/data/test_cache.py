"""prepare: what an entry holds, what makes a case unusable, and what happens after a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic import LARGE, NEW, SHAPE, brats_root, images, make_case, seg, write

from kd_jax.data import nifti
from kd_jax.data.cache import prepare
from kd_jax.data.cases import Case, find_cases
from kd_jax.data.entry import open_entry, verify_entry
from kd_jax.data.grid import Grid, from_grid, paper_grid, to_grid_image
from kd_jax.data.preprocess import normalise, to_arrays
from kd_jax.runtime.errors import CaseError, ConfigError, UserError
from kd_jax.runtime.terminal import error_table
from kd_jax.settings.data import CacheSettings
from kd_jax.settings.schema import build
from kd_jax.tasks.names import MODALITIES

ZSCORE = CacheSettings(spacing=3.0)
PAPER = CacheSettings(normalise="paper", grid="paper")


@pytest.fixture
def root(tmp_path):
  for i, name in enumerate(("A", "B", "C")):
    make_case(tmp_path / "data" / name, seed=i)
  return tmp_path / "data"


def prepare_one(folder: Path, cache: Path, settings=ZSCORE):
  (case,) = find_cases(folder)
  ready, errors = prepare([case], cache, settings, workers=1)
  assert not errors
  return open_entry(ready[case.name])


# --- What an entry holds ----------------------------------------------------------------------


def test_zscore_entry(root, tmp_path):
  entry = prepare_one(root / "A", tmp_path / "cache")
  box = (slice(2, 12), slice(3, 13), slice(1, 11))
  assert entry.images.dtype == np.float16
  assert isinstance(entry.images, np.memmap)
  assert entry.grid == Grid(SHAPE, (2, 3, 1), (10, 10, 10), (10, 10, 10))
  for got, x in zip(entry.images, images(0).values(), strict=True):
    inside = x[box].astype(np.float64)
    expected = (inside - inside.mean()) / inside.std()
    np.testing.assert_allclose(got, expected, atol=2e-3)
  np.testing.assert_array_equal(entry.labels, np.where(seg() == 4, 3, seg())[box])
  assert entry.labels.dtype == np.uint8
  assert entry.meta["class_voxels"] == np.bincount(entry.labels.ravel(), minlength=4).tolist()
  assert entry.meta["spacing_mm"] == [3, 3, 3]
  assert (entry.meta["case"], entry.meta["patient"], entry.meta["convention"]) == (
    "A",
    "A",
    "brats2018",
  )
  assert entry.meta["sources"]["t1ce"]["name"] == "A_t1ce.nii.gz"
  verify_entry(entry.path)


def test_sequences_that_nobody_reads_may_be_missing(root, tmp_path):
  for kind in ("flair", "t1", "t2"):
    (root / "B" / f"B_{kind}.nii.gz").unlink()
  wanted = replace(ZSCORE, sequences=("t1ce",))
  whole = prepare_one(root / "A", tmp_path / "cache")
  assert prepare_one(root / "A", tmp_path / "cache", wanted).path == whole.path  # one for all
  entry = prepare_one(root / "B", tmp_path / "cache", wanted)
  own = [kind == "t1ce" for kind in MODALITIES]
  assert [bool(x.any()) for x in entry.images] == own
  assert entry.images.shape[0] == 4 and entry.images.dtype == np.float16
  volume = nifti.read(root / "B" / "B_t1ce.nii.gz")
  expected, grid = to_arrays({"t1ce": volume}, spacing=ZSCORE.spacing)
  np.testing.assert_array_equal(entry.images[own], expected)
  assert entry.grid == grid and entry.labels.any()
  assert list(entry.meta["sources"]) == ["t1ce", "seg"]
  for sequences, missing in ((("t1ce", "t2"), ["t2"]), (MODALITIES, ["flair", "t1", "t2"])):
    settings = replace(ZSCORE, sequences=sequences)
    ready, errors = prepare(find_cases(root / "B"), tmp_path / "cache", settings, workers=1)
    assert not ready and [e.finding for e in errors] == [f"no {m} image" for m in missing]


def test_zscore_is_over_the_modality_s_own_voxels():
  x = images()["t1"]
  x[5, 6, 7] = 0
  brain = x != 0
  z = normalise(x)
  assert z.dtype == np.float32
  assert z[5, 6, 7] == 0 and z[0, 0, 0] == 0
  assert z[brain].mean() == pytest.approx(0, abs=1e-6)
  assert z[brain].std() == pytest.approx(1, abs=1e-6)


def test_a_scan_alone_has_the_values_it_has_among_others():
  """The student predicts from what it was trained on."""
  scans = images()
  scans["t1ce"][4, 4, 4] = 0  # brain in the others
  volumes = {m: nifti.decode(nib.Nifti1Image(x, LARGE).to_bytes()) for m, x in scans.items()}
  together, _ = to_arrays(volumes)
  alone, _ = to_arrays({"t1ce": volumes["t1ce"]})
  np.testing.assert_array_equal(alone[0], together[list(volumes).index("t1ce")])


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1e-3, 1e9, 1e30])
def test_zscore_does_not_see_the_scale(scale):
  x = images()["t1"]
  expected = normalise(x)
  with np.errstate(over="raise"):
    got = normalise((x * scale).astype(np.float32))
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_intensities_below_float32_are_an_error():
  with pytest.raises(ValueError, match="too small"):
    normalise((images()["t1"] * 1e-42).astype(np.float32))


def test_a_constant_image_does_not_divide_by_zero():
  x = np.full((3, 3, 3), 7, np.int16)
  np.testing.assert_array_equal(normalise(x), 0)


def test_paper_entry_has_the_published_intensities(root, tmp_path):
  entry = prepare_one(root / "A", tmp_path / "cache", PAPER)
  assert (entry.images.shape, entry.images.dtype) == ((4, 128, 128, 128), np.float32)
  assert entry.grid == paper_grid(SHAPE)
  raw = to_grid_image(images(0)["t1ce"], paper_grid(SHAPE))
  np.testing.assert_array_equal(entry.images[MODALITIES.index("t1ce")], raw)  # min is 0


def test_paper_formula_keeps_its_precedence():
  x = np.array([[[-2, 4, 6]]], np.int16)
  np.testing.assert_allclose(normalise(x, "paper"), x - (-2 / 6) - (-2), rtol=1e-6)


def test_other_spacings_are_resampled(tmp_path):
  for kind, x in (images() | {"seg": seg()}).items():
    write(tmp_path / "A" / f"A_{kind}.nii.gz", x, LARGE @ np.diag([1.5, 0.75, 3, 1]))
  entry = prepare_one(tmp_path / "A", tmp_path / "cache", CacheSettings(spacing=4.5))
  assert entry.images.shape == (4, 10, 5, 20)
  np.testing.assert_allclose(entry.meta["spacing_mm"], 4.5)
  np.testing.assert_allclose(entry.meta["native_voxel_mm"], (4.5, 2.25, 9), atol=1e-6)
  back = from_grid(np.asarray(entry.labels == 2, np.float32)[None], entry.grid)[0]
  truth = seg() == 2
  assert 2 * ((back > 0.5) & truth).sum() / ((back > 0.5).sum() + truth.sum()) > 0.85


def test_files_stored_in_different_orientations_are_one_case(root, tmp_path):
  before = prepare_one(root / "A", tmp_path / "cache")
  image = nib.load(root / "A" / "A_t1.nii.gz")
  image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
  nib.save(nib.as_closest_canonical(image), root / "A" / "A_t1.nii.gz")  # RAS
  after = prepare_one(root / "A", tmp_path / "cache")
  assert after.path != before.path
  np.testing.assert_array_equal(after.images, before.images)


def test_foreground_coordinates(root, tmp_path):
  entry = prepare_one(root / "A", tmp_path / "cache")
  for cls, coordinates in enumerate(entry.foreground, start=1):
    assert coordinates.dtype == np.int16
    assert len(coordinates) == (entry.labels == cls).sum() > 0
    assert len(np.unique(coordinates, axis=0)) == len(coordinates)
    assert (entry.labels[tuple(coordinates.T)] == cls).all()


def test_foreground_is_capped_and_absent_classes_are_empty(tmp_path):
  shape = (40, 40, 40)
  y = np.zeros(shape, np.uint8)
  y[5:30, 5:30, 5:30] = 2
  for kind, x in (images(shape=shape) | {"seg": y}).items():
    x[33:] = 0
    write(tmp_path / "A" / f"A_{kind}.nii", x)
  first, second = (
    prepare_one(tmp_path / "A", tmp_path / c, CacheSettings()) for c in ("cache1", "cache2")
  )
  assert [len(c) for c in first.foreground] == [0, 4096, 0]
  assert (first.labels[tuple(first.foreground[1].T)] == 2).all()
  spread = first.foreground[1].max(0) - first.foreground[1].min(0)
  assert (spread == 24).all()  # of the whole class, not of its first voxels
  np.testing.assert_array_equal(first.foreground[1], second.foreground[1])


def test_a_case_without_seg_for_prediction(root, tmp_path):
  (root / "A" / "A_seg.nii.gz").unlink()
  (case,) = find_cases(root / "A")
  ready, errors = prepare([case], tmp_path / "cache", replace(ZSCORE, require_seg=False), workers=1)
  entry = open_entry(ready["A"])
  assert (errors, entry.labels, entry.foreground) == ([], None, ())
  verify_entry(entry.path)
  ready, errors = prepare([case], tmp_path / "cache", ZSCORE, workers=1)  # the entry is there
  assert (ready, errors[0].finding) == ({}, "no label map")


def test_one_modality_gets_the_same_treatment(root):
  """Prediction has the student's modality alone: brain and grid come from that."""
  volumes = {m: nifti.read(root / "A" / f"A_{m}.nii.gz") for m in MODALITIES}
  every, grid = to_arrays(volumes)
  one, grid_of_one = to_arrays({"t1ce": volumes["t1ce"]})
  assert grid == grid_of_one
  np.testing.assert_array_equal(one[0], every[MODALITIES.index("t1ce")])


@pytest.mark.parametrize(
  "wrong", [{"normalise": "minmax"}, {"grid": "whole"}, {"spacing": 0.0}, {"spacing": float("nan")}]
)
def test_impossible_settings(wrong):
  with pytest.raises(ConfigError):
    build(CacheSettings, wrong)


# --- What makes a case unusable ---------------------------------------------------------------


def remove(case, kind):
  case[kind].unlink()


def change(case, kind, edit):
  data = np.asarray(nib.load(case[kind]).dataobj).copy()
  result = edit(data)
  write(case[kind], data if result is None else result, LARGE)


def put(value, dtype=None):
  def edit(data):
    data = data.astype(dtype or data.dtype)
    data[6, 6, 5] = value
    return data

  return edit


def cut(case, kind):
  case[kind].write_bytes(case[kind].read_bytes()[:-200])


def move(case, kind, mm):
  shifted = LARGE.copy()
  shifted[0, 3] += mm
  write(case[kind], np.asarray(nib.load(case[kind]).dataobj), shifted)


def turn(case, kind, mm):
  """About the origin, so far that the corner moves by mm."""
  angle = mm / (np.hypot(*SHAPE[:2]) * 3)
  rotation = np.eye(4)
  rotation[:2, :2] = [[1, -angle], [angle, 1]]
  turned = np.diag([1.0, 1, 1, 1])
  turned[:3, :3] = (rotation @ LARGE)[:3, :3]
  turned[:, 3] = LARGE[:, 3]
  write(case[kind], np.asarray(nib.load(case[kind]).dataobj), turned)


FINDINGS = {
  "missing modality": (lambda c: remove(c, "t2"), "", "no t2 image"),
  "missing seg": (lambda c: remove(c, "seg"), "", "no label map"),
  "unknown name": (
    lambda c: c["t2"].rename(c["t2"].with_name("ax.nii.gz")),
    "",
    "no t2 image (not understood: ax.nii.gz)",
  ),
  "truncated": (lambda c: cut(c, "t1"), "B_t1.nii.gz", "truncated or damaged gzip"),
  "not NIfTI": (lambda c: c["t1"].write_bytes(b"x" * 999), "B_t1.nii.gz", "not a NIfTI"),
  "empty file": (lambda c: c["seg"].write_bytes(b""), "B_seg.nii.gz", "the file is empty"),
  "shape of one": (
    lambda c: change(c, "flair", lambda x: x[:-1]),
    "B_flair.nii.gz",  # though flair is the first read: the other four agree
    "shape (13, 16, 12) differs from (14, 16, 12)",
  ),
  "shape of seg": (lambda c: change(c, "seg", lambda x: x[..., :-1]), "B_seg.nii.gz", "shape"),
  "affine": (lambda c: move(c, "t1ce", 0.2), "B_t1ce.nii.gz", "affine differs by 0.2 mm"),
  "turned": (lambda c: turn(c, "seg", 0.5), "B_seg.nii.gz", "affine differs by 0.4"),
  "unknown label": (lambda c: change(c, "seg", put(3)), "B_seg.nii.gz", "unknown label 3 (1 voxe"),
  "half label": (lambda c: change(c, "seg", put(0.5, "f4")), "B_seg.nii.gz", "unknown label 0.5"),
  "NaN": (
    lambda c: change(c, "t2", put(np.nan, "f4")),
    "B_t2.nii.gz",
    "1 of its voxels are NaN or inf",
  ),
  "Inf": (
    lambda c: change(c, "t2", put(np.inf, "f4")),
    "B_t2.nii.gz",
    "1 of its voxels are NaN or inf",
  ),
  "zero image": (lambda c: change(c, "t1", np.zeros_like), "B_t1.nii.gz", "every voxel is 0"),
  "constant image": (
    lambda c: change(c, "t1", lambda x: np.where(x > 0, np.int16(300), x)),
    "B_t1.nii.gz",
    "2 different values (0, 300)",
  ),
  "constant background": (
    lambda c: change(c, "flair", lambda x: x + 7),
    "B_flair.nii.gz",
    "background is 7 ",
  ),
  "NaN background": (
    lambda c: change(c, "t1ce", lambda x: np.where(x > 0, x, np.float32(np.nan))),
    "B_t1ce.nii.gz",
    "NaN or infinite",
  ),
  "labels in the air": (
    lambda c: change(c, "seg", lambda y: np.where(images(1)["t1"] == 0, 2, y).astype(np.uint8)),
    "B_seg.nii.gz",
    "of its tumour lies outside the brain",
  ),
  "a brain mask": (
    lambda c: change(c, "seg", lambda y: (images(1)["t1"] > 0).astype(np.uint8)),
    "B_seg.nii.gz",
    "like a brain mask",
  ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_name_case_file_and_remedy(root, tmp_path, name):
  damage, file, finding = FINDINGS[name]
  kinds = (*MODALITIES, "seg")
  damage({kind: root / "B" / f"B_{kind}.nii.gz" for kind in kinds})
  ready, errors = prepare(find_cases(root), tmp_path / "cache", ZSCORE, workers=1)
  assert list(ready) == ["A", "C"]  # the others are not held up
  (error,) = errors
  assert isinstance(error, CaseError)
  assert error.case == "B"
  assert error.file == str(root / "B" / file).rstrip("/")
  assert finding in error.finding
  assert error.remedy


def test_rounding_of_the_affine_is_accepted(root, tmp_path):
  files = {kind: root / "A" / f"A_{kind}.nii.gz" for kind in (*MODALITIES, "seg")}
  move(files, "t1", 0.002)
  turn(files, "seg", 0.02)
  prepare_one(root / "A", tmp_path / "cache")


def told_of(cases, cache, **options):
  lines: list[str] = []
  ready, errors = prepare(cases, cache, ZSCORE, tell=lines.append, **options)
  assert not errors and len(ready) == len(cases)
  return lines


@pytest.mark.parametrize("workers", [1, 2])
def test_warnings_are_told_whenever_the_case_is_used(root, tmp_path, workers):
  def speck(x):
    x[0, 0, 0] = 1

  change({"t2": root / "B" / "B_t2.nii.gz"}, "t2", speck)
  change({"seg": root / "C" / "C_seg.nii.gz"}, "seg", np.zeros_like)
  cases = find_cases(root)
  first = told_of(cases, tmp_path / "cache", workers=workers)
  assert [line.split(":")[1].strip() for line in first] == ["A", "B", "C"]  # small brains, all
  assert "outside the brain, in 1 place (" in first[1] and "B_t2.nii.gz" in first[1]
  assert "it has no tumour" in first[2] and "it has no tumour" not in "".join(first[:2])
  assert told_of(cases, tmp_path / "cache", workers=workers) == first  # from the entries


def test_many_warnings_end_in_a_count(tmp_path):
  for i in range(12):
    make_case(tmp_path / "data" / f"case{i:02}", seed=i)
  lines = told_of(find_cases(tmp_path / "data"), tmp_path / "cache", workers=1)
  assert len(lines) == 11
  assert lines[-1] == "warning: 2 more cases have warnings, 12 in all"


def test_a_tumour_that_sticks_out_a_little_is_a_warning(root, tmp_path):
  """Brain extraction cuts tumours at the meninges."""

  def cut_brain(x):
    x[:5] = 0

  every = {kind: root / "A" / f"A_{kind}.nii.gz" for kind in MODALITIES}
  for kind in MODALITIES:
    change(every, kind, cut_brain)
  y = seg()
  y[4] = 0
  y[4, 5:9, 5] = 2  # 4 of 184 voxels
  change({"seg": root / "A" / "A_seg.nii.gz"}, "seg", lambda _: y)
  lines = told_of(find_cases(root)[:1], tmp_path / "cache", workers=1)
  assert "2.2% of its tumour lies outside the brain" in lines[0]


def test_specks_do_not_change_what_the_networks_see(root, tmp_path):
  before = prepare_one(root / "A", tmp_path / "cache")

  def specks(x):
    x[0, 0, 0], x[-1, -1, -1] = 1, 3000

  change({"t1": root / "A" / "A_t1.nii.gz"}, "t1", specks)
  after = prepare_one(root / "A", tmp_path / "cache")
  assert after.path != before.path
  assert after.grid == before.grid
  np.testing.assert_array_equal(after.images, before.images)
  np.testing.assert_array_equal(after.labels, before.labels)


def test_the_paper_s_entry_keeps_specks(root, tmp_path):
  """The published program cleans nothing."""
  x = images(0)["t1"]
  x[0, 0, 3] = 5000
  write(root / "A" / "A_t1.nii.gz", x, LARGE)
  entry = prepare_one(root / "A", tmp_path / "cache", PAPER)
  raw = to_grid_image(x, paper_grid(SHAPE))
  np.testing.assert_array_equal(entry.images[MODALITIES.index("t1")], raw)


def test_all_findings_of_all_cases_come_together(root, tmp_path):
  (root / "A" / "A_t1.nii.gz").unlink()
  (root / "A" / "A_t2.nii.gz").write_bytes(b"")
  change({"seg": root / "C" / "C_seg.nii.gz"}, "seg", put(9))
  ready, errors = prepare(find_cases(root), tmp_path / "cache", ZSCORE, workers=1)
  assert list(ready) == ["B"]
  assert [(e.case, e.finding.split(" (")[0]) for e in errors] == [
    ("A", "no t1 image"),
    ("A", "the file is empty"),
    ("C", "unknown label 9"),
  ]
  lines = error_table(errors).splitlines()
  assert [line.split(" | ")[0].strip() for line in lines] == ["case", "-" * 4, "A", "A", "C"]
  columns = [[i for i, c in enumerate(line) if line[i - 1 : i + 2] == " | "] for line in lines]
  assert all(c == columns[0] for c in columns)
  assert "A_t2.nii.gz" in lines[3]


def test_a_mended_case_is_prepared_next_time(root, tmp_path):
  good = (root / "B" / "B_t1.nii.gz").read_bytes()
  (root / "B" / "B_t1.nii.gz").write_bytes(good[:50])
  cases = find_cases(root)
  assert len(prepare(cases, tmp_path / "cache", ZSCORE, workers=1)[1]) == 1
  (root / "B" / "B_t1.nii.gz").write_bytes(good)
  ready, errors = prepare(cases, tmp_path / "cache", ZSCORE, workers=1)
  assert (list(ready), errors) == (["A", "B", "C"], [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_unreadable_file(root, tmp_path):
  (root / "A" / "A_t1.nii.gz").chmod(0)
  _, errors = prepare(find_cases(root), tmp_path / "cache", ZSCORE, workers=1)
  assert "ermission" in errors[0].finding


def test_a_file_that_vanishes_after_the_search(root, tmp_path):
  cases = find_cases(root)
  (root / "A" / "A_t1.nii.gz").unlink()
  ready, errors = prepare(cases, tmp_path / "cache", ZSCORE, workers=1)
  assert list(ready) == ["B", "C"]
  assert "No such file" in errors[0].finding and errors[0].file.endswith("A_t1.nii.gz")


def test_a_cache_that_cannot_be_written(root, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="cannot make the cache folder"):
    prepare(find_cases(root), tmp_path / "file" / "cache", ZSCORE)


# --- What is rebuilt --------------------------------------------------------------------------


def built(ready):
  """When each entry was made."""
  return {name: (path / "meta.json").stat().st_mtime_ns for name, path in ready.items()}


def test_touching_rebuilds_nothing_and_a_change_just_that_case(root, tmp_path):
  cases, cache = find_cases(root), tmp_path / "cache"
  first, _ = prepare(cases, cache, ZSCORE, workers=1)
  made = built(first)
  for path in root.rglob("*.nii.gz"):
    os.utime(path, (1, 1))
  touched, _ = prepare(cases, cache, ZSCORE, workers=1)
  assert (touched, built(touched)) == (first, made)
  change({"t1": root / "B" / "B_t1.nii.gz"}, "t1", put(901))
  changed, _ = prepare(cases, cache, ZSCORE, workers=1)
  assert changed["B"] != first["B"]
  assert {n: changed[n] for n in "AC"} == {n: first[n] for n in "AC"}
  assert {n: built(changed)[n] for n in "AC"} == {n: made[n] for n in "AC"}


def test_unchanged_files_are_not_read_again(root, tmp_path, monkeypatch):
  cases, cache = find_cases(root), tmp_path / "cache"
  prepare(cases, cache, ZSCORE, workers=1)
  monkeypatch.setattr("kd_jax.data.cache.file_hash", lambda path: pytest.fail(f"read {path}"))
  ready, _ = prepare(cases, cache, ZSCORE, workers=1)
  assert len(ready) == 3
  monkeypatch.undo()
  (cache / "files.json").write_text("damaged")  # costs reading, nothing else
  again, errors = prepare(cases, cache, ZSCORE, workers=1)
  assert (again, errors) == (ready, [])


@pytest.mark.parametrize("other", [{"spacing": 2.0}, {"normalise": "paper"}, {"grid": "paper"}])
def test_settings_have_entries_of_their_own(root, tmp_path, other):
  cases, cache = find_cases(root)[:1], tmp_path / "cache"
  first, _ = prepare(cases, cache, ZSCORE, workers=1)
  second, _ = prepare(cases, cache, replace(ZSCORE, **other), workers=1)
  assert first["A"] != second["A"]
  assert prepare(cases, cache, ZSCORE, workers=1)[0] == first


def test_a_relabelled_case_is_another_entry(root, tmp_path):
  """The same bytes read by another convention give other classes."""
  make_case(root / "BraTS-GLI-00000-000", NEW, "-")  # 4 is ET here as 2021 reads it
  folder, cache = root / "BraTS-GLI-00000-000", tmp_path / "cache"
  as_2024 = prepare_one(folder, cache)
  (case,) = find_cases(folder, "brats2018")
  as_2018 = open_entry(prepare([case], cache, ZSCORE, workers=1)[0][case.name])
  assert as_2024.meta["class_voxels"][3] == 0  # a cavity, no tumour
  assert as_2018.meta["class_voxels"][3] > 0


def test_progress_counts_every_case_once(root, tmp_path):
  cases, seen = find_cases(root), []
  (root / "B" / "B_t1.nii.gz").write_bytes(b"")
  for _ in range(2):
    prepare(cases, tmp_path / "cache", ZSCORE, 1, lambda *report: seen.append(report))
  # The second time A and C are there at once, and B is tried again.
  assert seen == [(1, 3, "A"), (2, 3, "B"), (3, 3, "C"), (1, 3, "A"), (2, 3, "C"), (3, 3, "B")]


def test_damaged_entries_are_noticed(root, tmp_path):
  entry = prepare_one(root / "A", tmp_path / "cache")
  with open(entry.path / "images.npy", "r+b") as f:
    f.seek(-1, os.SEEK_END)
    f.write(b"\x7f")
  with pytest.raises(UserError, match=r"images\.npy is damaged"):
    verify_entry(entry.path)
  os.truncate(entry.path / "images.npy", 500)
  with pytest.raises(UserError, match="no usable cache entry"):
    open_entry(entry.path)
  with pytest.raises(UserError, match="no usable cache entry"):
    open_entry(tmp_path)


@pytest.mark.parametrize("how", ["bit", "truncated", "missing", "meta"])
def test_damaged_entries_are_made_again_and_named(root, tmp_path, how):
  cases = find_cases(root)
  first, _ = prepare(cases, tmp_path / "cache", ZSCORE, workers=1)
  sound = (first["B"] / "images.npy").read_bytes()
  images = first["B"] / "images.npy"
  if how == "bit":
    images.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
  elif how == "truncated":
    os.truncate(images, 500)
  elif how == "missing":
    images.unlink()
  else:
    (first["B"] / "meta.json").write_text("{")
  times, told = built({name: first[name] for name in "AC"}), []
  again, errors = prepare(cases, tmp_path / "cache", ZSCORE, workers=1, tell=told.append)
  assert again == first and not errors
  (line,) = (line for line in told if "made again" in line)
  assert "case B is made again" in line
  assert images.read_bytes() == sound
  assert built({name: first[name] for name in "AC"}) == times
  assert not list((tmp_path / "cache").glob("tmp-*"))
  told.clear()
  prepare(cases, tmp_path / "cache", ZSCORE, workers=1, tell=told.append)
  assert not any("made again" in line for line in told)


# --- Processes and kills ----------------------------------------------------------------------


def test_workers_give_what_one_process_gives(root, tmp_path):
  (root / "B" / "B_t1.nii.gz").write_bytes(b"")
  cases, seen = find_cases(root), []
  alone, errors_alone = prepare(cases, tmp_path / "a", ZSCORE, workers=0)
  ready, errors = prepare(cases, tmp_path / "b", ZSCORE, 2, lambda *report: seen.append(report))
  assert [str(e) for e in errors] == [str(e) for e in errors_alone]
  assert list(ready) == list(alone)
  for name in ready:
    files = sorted(p.name for p in ready[name].iterdir())
    assert files == ["foreground.npy", "images.npy", "labels.npy", "meta.json"]
    for file in files:
      assert (ready[name] / file).read_bytes() == (alone[name] / file).read_bytes()
  assert [done for done, _, _ in seen] == [1, 2, 3]
  assert {name for _, _, name in seen} == {"A", "B", "C"}


class KillsItsWorker:
  def __reduce__(self):
    return os._exit, (9,)


def test_a_dying_worker_is_an_error_not_a_hang(root, tmp_path):
  cases = find_cases(root)
  cases[1] = Case("B", "B", KillsItsWorker(), cases[1].images, cases[1].seg, "brats2018")
  with pytest.raises(UserError, match=r"worker process died.*one of: .*B.*fewer workers"):
    prepare(cases, tmp_path / "cache", ZSCORE, workers=2)


KILLED = """
import os, signal, sys
import numpy as np
from kd_jax.settings.data import CacheSettings
from kd_jax.settings.schema import build
from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
save, calls = np.save, []
def save_or_die(path, array):
  calls.append(path)
  if len(calls) == 5:  # three arrays a case: in the middle of the second
    os.kill(os.getpid(), signal.SIGKILL)
  save(path, array)
np.save = save_or_die
prepare(find_cases(sys.argv[1]), sys.argv[2], CacheSettings(spacing=3.0), workers=1)
"""


def test_a_killed_prepare_is_taken_up_again(root, tmp_path):
  cache = tmp_path / "cache"
  child = subprocess.run([sys.executable, "-c", KILLED, root, cache])
  assert child.returncode == -signal.SIGKILL
  left = sorted(p.name for p in cache.iterdir())
  assert sum(name.startswith("tmp-") for name in left) == 1  # of B; of A an entry
  assert len(left) == 2
  (entry_of_a,) = (cache / name for name in left if not name.startswith("tmp-"))
  made = (entry_of_a / "meta.json").stat().st_mtime_ns
  ready, errors = prepare(find_cases(root), cache, ZSCORE, workers=1)
  assert errors == []
  assert ready["A"] == entry_of_a
  assert (entry_of_a / "meta.json").stat().st_mtime_ns == made
  for path in ready.values():
    verify_entry(path)
  assert sorted(p.name for p in cache.iterdir()) == sorted(
    ["files.json", *(p.name for p in ready.values())]
  )


def test_the_temporary_folder_of_a_living_run_is_left_alone(root, tmp_path):
  cache = tmp_path / "cache"
  living = cache / f"tmp-{socket.gethostname()}-{os.getppid()}-abc"
  elsewhere, old = cache / "tmp-other-host-1-abc", cache / "tmp-other-host-2-abc"
  for path in (living, elsewhere, old):
    path.mkdir(parents=True)
  os.utime(old, (time.time() - 7200,) * 2)
  prepare(find_cases(root)[:1], cache, ZSCORE, workers=1)
  assert (living.exists(), elsewhere.exists(), old.exists()) == (True, True, False)


def test_workers_end_when_their_parent_is_killed(root, tmp_path):
  """A worker waits for work for ever if nobody tells it that its parent is gone."""
  script = tmp_path / "run.py"
  script.write_text(f"""
import multiprocessing, os, signal
from kd_jax.settings.data import CacheSettings
from kd_jax.settings.schema import build
from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
def die(done, total, name):
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
  prepare(find_cases({str(root)!r}), {str(tmp_path / "cache")!r}, CacheSettings(), 2, die)
""")
  paths = os.pathsep.join(["", str(Path(__file__).parents[2])])
  env = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "") + paths}
  with open(tmp_path / "pids", "w") as pids_file:  # a pipe would wait for the workers to close it
    child = subprocess.run([sys.executable, script], stdout=pids_file, env=env)
  assert child.returncode == -signal.SIGKILL
  pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
  assert len(pids) == 2
  deadline = time.time() + 20
  while any(running(pid) for pid in pids) and time.time() < deadline:
    time.sleep(0.1)
  assert not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
  except OSError:
    return False


def test_no_jax_in_the_workers():
  code = "import sys, kd_jax.data.cache, kd_jax.data.folds; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- Real cases -------------------------------------------------------------------------------


def test_real_cases_at_1_mm(tmp_path):
  cases, told = find_cases(brats_root()), []
  settings = CacheSettings()
  ready, errors = prepare(cases, tmp_path / "cache", settings, workers=2, tell=told.append)
  assert told == []  # no warning of a real case
  assert (errors, len(ready)) == ([], 7)
  for case in cases:
    entry = open_entry(ready[case.name])
    grid = entry.grid
    assert grid.shape == grid.size == entry.images.shape[1:]
    assert grid.native_shape == (240, 240, 155)
    assert all(100 < n < 200 for n in grid.shape)
    assert np.isfinite(entry.images).all()
    # Back in the scan, written and read: the very labels of the file.
    native = from_grid(np.asarray(entry.labels, np.float32)[None], grid)[0].astype(np.uint8)
    source = nifti.read(case.seg)
    truth = np.where(source.data == 4, 3, source.data).astype(np.uint8)
    np.testing.assert_array_equal(native, truth)
  gli = open_entry(ready["BraTS-GLI-00000-000"])  # a float32 seg
  assert gli.meta["class_voxels"][1:] == [11738, 12836, 32731]
  text = json.dumps(gli.meta)
  assert str(tmp_path) not in text and str(brats_root()) not in text  # no machine's paths inside
