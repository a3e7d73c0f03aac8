"""Odd data folders: cases and scans are found, or the folder is refused in words."""

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import LARGE, make_case, write

from kd_jax.data import cache, folds, masks
from kd_jax.data.cases import find_cases, search
from kd_jax.data.scans import find_scans
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.files import write_bytes
from kd_jax.runtime.terminal import error_table
from kd_jax.settings.data import CacheSettings

MORE = int(os.environ.get("KD_JAX_FUZZ", "0"))  # =20: twenty times as many, other ones each time
T1CE = ("t1ce",)


def tries(examples: int):
  return settings(
    max_examples=examples * max(MORE, 1), derandomize=not MORE, deadline=None, database=None
  )


ODD_NAMES = [
  *("a\nb", "a\r\x1b[2Jb", "'", '"', "<script>alert(1)<", "$(reboot)", "`reboot`", "%s{0}", "-rf"),
  *("a b", " ", "\u202egnp", "größe", "日本", "\U0001f9e0", "e\u0301", "CON", "a;b|c&d", "*?[x]"),
  *("\udcff\udcfe", "x" * 230, "é" * 110, "a..b", "a\\b", "=1+1", "\x7f", "\u2028"),
]
NAMES = st.one_of(
  st.sampled_from(ODD_NAMES),
  st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9
  ),
  st.text(string.ascii_letters + "_-.", min_size=1, max_size=5),
)
BRATS = ("_t1ce.nii.gz", "-t1c.nii", "_T1CE.NII.GZ", "_flair.nii", "_seg.nii.gz", "t1ce.nii.gz")
OTHERS = ("_0000.nii.gz", "_0001.nii.gz", ".nii.gz", ".nii", "", ".txt", "_t1ce.nii.gz\n")
ENDINGS = st.sampled_from([*BRATS, *OTHERS])
KINDS = st.sampled_from(["file", "folder", "inside", "pipe", "up", "self", "nowhere", "device"])


def make(folder: Path, name: str, kind: str) -> None:
  """One entry of a folder, if the file system takes it."""
  path = folder / name
  try:
    if os.path.lexists(path):
      return
    if kind == "file":
      path.write_bytes(b"x")
    elif kind == "folder":
      path.mkdir()
    elif kind == "inside":
      path.mkdir()
      (path / name).touch()
    elif kind == "pipe":
      os.mkfifo(path)
    else:
      target = {"up": "..", "self": name, "nowhere": "absent", "device": "/dev/zero"}[kind]
      path.symlink_to(target)
  except (OSError, ValueError):
    pass


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """New folders, one an example."""
  base, number = tmp_path_factory.mktemp("fuzz"), iter(range(1_000_000))
  return lambda: base / str(next(number))


@given(st.lists(st.tuples(NAMES, ENDINGS, KINDS, st.booleans()), min_size=1, max_size=8))
@tries(80)
def test_any_folder(places, entries):
  root = places()
  (root / "deeper").mkdir(parents=True)
  for name, ending, kind, deeper in entries:
    make(root / "deeper" if deeper else root, name + ending, kind)
  before = sorted(os.walk(root))
  for find in (
    lambda: find_cases(root),
    lambda: find_scans(root, T1CE)[0],
    lambda: find_scans(root, ("t1ce", "flair"))[0],
    lambda: masks.find_masks(root, masks.TRUTH),
  ):
    try:
      found = find()
    except UserError as e:
      assert str(e).strip()
      continue
    for one in found:
      name = one if isinstance(one, str) else one.name
      assert "/" not in name and "\0" not in name
      if not isinstance(one, str) and not hasattr(one, "patient"):  # a scan: a mask's name
        assert name not in ("", ".", "..")
        assert (root / f"{name}.nii.gz").parent == root
  assert sorted(os.walk(root)) == before


def test_links_in_circles_and_pipes_are_named(tmp_path):
  case = make_case(tmp_path / "data" / "A")
  (case / "up").symlink_to(tmp_path / "data")
  (tmp_path / "data" / "self").symlink_to("self")
  (tmp_path / "data" / "one").symlink_to("two")
  (tmp_path / "data" / "two").symlink_to("one")
  (tmp_path / "data" / "B").mkdir()
  os.mkfifo(tmp_path / "data" / "B" / "B_t1ce.nii.gz")
  (tmp_path / "data" / "B" / "B_t1.nii.gz").symlink_to("B_t1.nii.gz")
  (tmp_path / "data" / "C" / "C_t1.nii").mkdir(parents=True)
  os.mkfifo(tmp_path / "data" / "C" / "C_t1.nii" / "x.nii")
  found = search(tmp_path / "data")
  assert [case.name for case in found.cases] == ["A", "B"]  # a link to itself may be meant as B's
  assert sorted(error.case for error in found.errors) == [
    *("B_t1ce.nii.gz", "C_t1.nii", "one", "self", "two"),
  ]


def test_a_tree_deeper_than_any_path_is_refused_in_words(tmp_path):
  here = os.open(tmp_path, os.O_RDONLY)
  try:
    for _ in range(25):
      os.mkdir("x" * 200, dir_fd=here)
      here, last = os.open("x" * 200, os.O_RDONLY, dir_fd=here), here
      os.close(last)
  finally:
    os.close(here)
  with pytest.raises(UserError, match=r"cannot look at .*too long"):
    find_cases(tmp_path)


@pytest.mark.parametrize("path", ["~nobody_of_this_name/x", "x" * 5000, "a\0b", "/dev/null/x"])
def test_roots_that_cannot_be(path):
  for find in (find_cases, lambda p: find_scans(p, T1CE)):
    with pytest.raises(UserError):
      find(path)


@pytest.mark.parametrize("file", ["...nii.gz", "..-t1ce.nii.gz", "._t1ce.nii.gz", "..nii.gz"])
def test_no_scan_s_name_leads_out_of_the_output(tmp_path, file):
  """--mode=visualize makes a folder of the name."""
  (tmp_path / file).touch()
  (tmp_path / "list.txt").write_text(file)
  for path in (tmp_path / file, tmp_path / "list.txt"):
    with pytest.raises(UserError, match="cannot be a scan's name"):
      find_scans(path, T1CE)


def test_names_that_differ_only_by_case_are_two_scans_of_one_mask(tmp_path):
  for name in ("A.nii.gz", "a.nii"):
    (tmp_path / name).touch()
  if len(list(tmp_path.iterdir())) == 1:
    pytest.skip("this file system knows no case")
  with pytest.raises(UserError, match="two scans named"):
    find_scans(tmp_path, T1CE)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "\udcff", "a\nb"])
def test_the_longest_and_oddest_names_can_be_written(tmp_path, name):
  write_bytes(tmp_path / name, b"content")
  assert [path.name for path in tmp_path.iterdir()] == [name]


# Lists and splits


LINES = st.one_of(
  st.sampled_from(["..", "/", "../..", "/dev/zero", "~nobody_/x", "a\0b", "x" * 5000, "#", "."]),
  st.sampled_from(["s.nii.gz", "../list/s.nii.gz", "\ufeffs.nii.gz", "s.nii.gz\x85", "list.txt"]),
  st.text(max_size=10),
)


@given(st.lists(LINES, max_size=4), st.binary(max_size=4))
@tries(80)
def test_lists(places, lines, tail):
  folder = places() / "list"
  folder.mkdir(parents=True)
  (folder / "s.nii.gz").touch()
  content = "\n".join(line for line in lines if line not in ("/", "..", "../..")).encode()
  (folder / "list.txt").write_bytes(content + tail)
  try:
    scans = find_scans(folder / "list.txt", T1CE).cases
  except UserError as e:
    assert str(e).strip()
  else:
    assert all("/" not in scan.name for scan in scans)


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4) | st.just("A"),
  lambda x: (
    st.lists(x, max_size=3)
    | st.dictionaries(
      st.sampled_from(["train", "val", "test", "folds", "seed", "0", "channel_names"]), x
    )
  ),
  max_leaves=8,
)
ESCAPES = ["../../etc/passwd", "/etc/passwd", "..", "A/../../B", "A\0", "\ud800", "a\x1b[2J"]


@given(JSON)
@tries(150)
def test_any_split(places, content):
  folder = places()
  folder.mkdir()
  (folder / "given.json").write_text(json.dumps(content))
  case = find_cases(make_light_case(folder / "data" / "A"))[0]
  try:
    kept = folds.decide([case], given=folder / "given.json")
  except UserError as e:
    assert "given.json" in str(e)
  else:
    names = {name for side in folds.split(kept, 0) for name in side}
    assert names <= {"A"}


def make_light_case(folder: Path) -> Path:
  folder.mkdir(parents=True)
  for kind in ("flair", "t1", "t1ce", "t2", "seg"):
    (folder / f"{folder.name}_{kind}.nii.gz").touch()
  return folder


@pytest.mark.parametrize("name", ESCAPES)
def test_a_split_cannot_name_what_is_no_case(tmp_path, name):
  """Names of a split are compared with those of cases; none becomes a path."""
  for form in ({"folds": [["A"], [name]]}, {"train": [name], "val": ["A"]}):
    (tmp_path / "given.json").write_text(json.dumps(form))
    (case,) = find_cases(tmp_path if (tmp_path / "A").exists() else make_light_case(tmp_path / "A"))
    with pytest.raises(UserError, match="not in the data"):
      folds.decide([case], given=tmp_path / "given.json")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "given.json"]


@given(JSON)
@tries(60)
def test_any_dataset_json(places, content):
  folder = places()
  folder.mkdir()
  (folder / "X_0000.nii.gz").touch()
  (folder / "dataset.json").write_text(json.dumps(content))
  try:
    find_scans(folder, T1CE)
  except UserError as e:
    assert "dataset.json" in str(e)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff\ufeff"])
def test_json_that_no_parser_likes(tmp_path, content):
  (tmp_path / "folds.json").write_text(content)
  with pytest.raises(UserError, match="holds no folds"):
    folds.read(tmp_path / "folds.json")
  (tmp_path / "X_0000.nii.gz").touch()
  (tmp_path / "dataset.json").write_text(content)
  with pytest.raises(UserError, match="no usable"):
    find_scans(tmp_path, T1CE)


# Cases into the cache


def prepare(tmp_path, spacing=3.0) -> list[CaseError]:
  cases, settings = find_cases(tmp_path / "data"), CacheSettings(spacing)
  ready, errors = cache.prepare(cases, tmp_path / "cache", settings, workers=1)
  assert not ready
  error_table(errors)
  return errors


def test_a_voxel_size_cannot_ask_for_more_memory_than_there_is(tmp_path):
  make_case(tmp_path / "data" / "A", affine=LARGE * np.array([[300], [300], [300], [1]]))
  errors = prepare(tmp_path)
  assert len(errors) == 4
  assert all("its voxels are 900 x 900 x 900 mm" in error.finding for error in errors)


def test_a_spacing_cannot_ask_for_more_memory_than_there_is(tmp_path):
  """Resampled to a hundredth of its voxels, a brain would be as large as a house."""
  make_case(tmp_path / "data" / "A", affine=LARGE * np.array([[3], [3], [3], [1]]))
  (error,) = prepare(tmp_path, spacing=0.1)
  assert "with voxels of 9 x 9 x 9 mm the brain would take 900 x 900 x 900" in str(error)


@pytest.mark.parametrize(("value", "finding"), [(3e38, "too extreme"), (np.nan, "NaN or infinite")])
def test_extreme_intensities_are_named(tmp_path, value, finding):
  folder = make_case(tmp_path / "data" / "A")
  extreme = np.zeros((14, 16, 12), np.float32)
  inside = extreme[3:9, 4:9, 3:9]
  inside[:] = np.random.default_rng(0).uniform(0.9, 1, inside.shape) * value
  inside[0] *= -1
  write(folder / "A_t1.nii.gz", extreme, LARGE)
  assert any(finding in error.finding for error in prepare(tmp_path))


def test_a_seg_of_another_shape_or_place_is_named(tmp_path):
  folder = make_case(tmp_path / "data" / "A")
  write(folder / "A_seg.nii.gz", np.ones((14, 16, 11), np.uint8), LARGE)
  (error,) = prepare(tmp_path)
  assert "shape (14, 16, 11) differs from (14, 16, 12)" in error.finding
  write(
    folder / "A_seg.nii.gz",
    np.ones((14, 16, 12), np.uint8),
    LARGE + np.outer(np.eye(4)[0], np.eye(4)[3]),
  )
  assert any("affine differs" in error.finding for error in prepare(tmp_path))
