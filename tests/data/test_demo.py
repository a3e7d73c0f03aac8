"""The demonstration data set: its form, its radiology, and how it is written."""

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from kd_jax.data.demo import phantom
from kd_jax.data.demo import writer as demo
from kd_jax.runtime.errors import UserError

SEED = 0
INDICES = (0, 3)  # with ring, necrosis and oedema
PLANS = 40


@pytest.fixture(scope="module")
def subjects() -> list[phantom.Subject]:
  return [phantom.make_subject(SEED, index) for index in INDICES]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Two cases, written in parallel."""
  root = tmp_path_factory.mktemp("demo")
  calls = []
  folders = demo.write_dataset(root, 2, SEED, workers=2, progress=lambda *call: calls.append(call))
  assert calls == [(1, 2), (2, 2)]
  assert folders == [root / "Demo_00000", root / "Demo_00001"]
  return root


def _contents(folder: Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _plan(index: int) -> phantom.Plan:
  return phantom._plan(np.random.default_rng([SEED, index]), SEED, index)


def test_form(subjects: list[phantom.Subject]) -> None:
  for subject in subjects:
    assert set(subject.images) == {"flair", "t1", "t1ce", "t2"}
    brain = subject.images["t1"] > 0
    assert 0.9e6 < brain.sum() < 1.6e6
    for image in subject.images.values():
      assert image.shape == (240, 240, 155)
      assert image.dtype == np.int16
      assert image.min() == 0
      np.testing.assert_array_equal(image > 0, brain)
    assert subject.labels.shape == (240, 240, 155)
    assert subject.labels.dtype == np.uint8
    assert set(np.flatnonzero(np.bincount(subject.labels.ravel()))) == {0, 1, 2, 4}
    assert not subject.labels[~brain].any()
    assert 15e3 <= (subject.labels > 0).sum() <= 201e3


def test_subjects_differ(subjects: list[phantom.Subject]) -> None:
  a, b = subjects
  assert ((a.images["t1"] > 0) != (b.images["t1"] > 0)).sum() > 50e3  # another head
  both = np.logical_and(a.labels, b.labels).sum()
  assert both < 0.5 * min((a.labels > 0).sum(), (b.labels > 0).sum())  # another tumour


def test_contrasts_are_those_of_radiology(subjects: list[phantom.Subject]) -> None:
  for subject in subjects:
    # White matter: the bright mode of T1, far from the tumour. Signals are in units of its own.
    t1 = subject.images["t1"].astype(np.float32)
    far = ndimage.uniform_filter((subject.labels > 0).astype(np.float32), 21) < 1e-6
    inside = ndimage.binary_erosion(t1 > 0, iterations=6) & far
    white = inside & (t1 > np.percentile(t1[inside], 65))
    oedema, ring, necrosis = (
      {name: np.median(x[subject.labels == k]) / np.median(x[white]) for name, x in images.items()}
      for k, images in ((k, subject.images) for k in (phantom.ED, phantom.ET, phantom.NCR))
    )
    wet = subject.labels == phantom.ED
    for name in ("flair", "t2"):
      assert oedema[name] > 1.25
      assert necrosis[name] > 1.05
      assert 0.6 < ring[name] / oedema[name] < 1.4  # these sequences do not tell the ring
    flair = subject.images["flair"]
    assert np.median(flair[wet]) > np.percentile(flair[inside], 95)
    for name in ("t1", "t1ce"):
      assert 0.7 < oedema[name] < 1  # slightly dark, yet within what normal tissue shows:
      low, high = np.percentile(subject.images[name][inside], [10, 95])
      assert low < np.median(subject.images[name][wet]) < high
      assert necrosis[name] < oedema[name]
    assert ring["t1ce"] > 1.15
    assert ring["t1"] < 1


def test_csf_is_dark_on_flair_and_bright_on_t2(subjects: list[phantom.Subject]) -> None:
  for subject in subjects:
    inner = ndimage.binary_erosion(subject.images["t1"] > 0, iterations=8) & (subject.labels == 0)
    t2 = subject.images["t2"][inner]
    csf = t2 > np.percentile(t2, 99.5)
    assert np.median(t2[csf]) > 1.6 * np.median(t2)
    for name in ("flair", "t1", "t1ce"):
      x = subject.images[name][inner]
      assert np.median(x[csf]) < 0.75 * np.median(x)


def test_kinds_of_tumour() -> None:
  plans = [_plan(index) for index in range(PLANS)]
  assert sum(not plan.enhancing for plan in plans) >= 2
  assert sum(not plan.necrotic for plan in plans) >= 1
  assert sum(plan.foci > 1 for plan in plans) >= 1
  assert all(15e3 <= plan.whole <= 200e3 and plan.core < plan.whole for plan in plans)


@pytest.mark.parametrize(
  ("wanted", "absent"),
  [(lambda plan: not plan.enhancing, phantom.ET), (lambda plan: not plan.necrotic, phantom.NCR)],
)
def test_a_kind_lacks_its_label(wanted: Callable[[phantom.Plan], bool], absent: int) -> None:
  index = next(i for i in range(PLANS) if wanted(_plan(i)))
  labels = phantom.make_subject(SEED, index).labels
  assert set(np.unique(labels)) == {0, 1, 2, 4} - {absent}


def test_files(written: Path) -> None:
  folder = written / "Demo_00000"
  assert sorted(_contents(folder)) == [
    f"Demo_00000_{name}.nii.gz" for name in ("flair", "seg", "t1", "t1ce", "t2")
  ]
  for path in folder.iterdir():
    image = nib.load(path)
    assert image.shape == (240, 240, 155)
    assert image.get_data_dtype() == (np.uint8 if "seg" in path.name else np.int16)
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(image.affine, expected)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header.get_zooms() == (1, 1, 1)
  licence = (written / "LICENSE.txt").read_text(encoding="utf-8")
  assert "CC BY-SA 3.0" in licence
  assert "Rohlfing" in licence
  assert not [path for path in written.iterdir() if path.name.startswith(".")]


def test_files_hold_the_subject(written: Path, subjects: list[phantom.Subject]) -> None:
  """Made in another process, beside another case: the subject is the same."""
  folder = written / "Demo_00000"
  for name, volume in (*subjects[0].images.items(), ("seg", subjects[0].labels)):
    stored = np.asanyarray(nib.load(folder / f"Demo_00000_{name}.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, volume)


def test_a_broken_case_is_rebuilt_to_the_same_bytes_and_others_stay(written: Path) -> None:
  before = [_contents(written / name) for name in ("Demo_00000", "Demo_00001")]
  stamps = [path.stat().st_mtime_ns for path in sorted((written / "Demo_00001").iterdir())]
  lost, *rest = sorted((written / "Demo_00000").iterdir())
  lost.unlink()
  rest[0].write_bytes(rest[0].read_bytes()[:1000])
  demo.write_dataset(written, 2, SEED, workers=1)
  assert [_contents(written / name) for name in ("Demo_00000", "Demo_00001")] == before
  assert [p.stat().st_mtime_ns for p in sorted((written / "Demo_00001").iterdir())] == stamps


def test_complete_cases_cost_nothing(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(demo, "make_subject", lambda *_: pytest.fail("made again"))
  assert len(demo.write_dataset(written, 2, SEED)) == 2
  assert demo.write_case(written, SEED, 1) == written / "Demo_00001"
  assert demo.write_dataset(written, 1, SEED, first=1) == [written / "Demo_00001"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  empty = phantom.Subject({"t1": np.zeros((2, 2, 2), np.int16)}, np.zeros((2, 2, 2), np.uint8))

  def fail(path: Path, *_: object) -> None:
    path.write_bytes(b"half")
    raise OSError("No space left on device")

  monkeypatch.setattr(demo, "make_subject", lambda *_: empty)
  monkeypatch.setattr(demo, "_write", fail)
  with pytest.raises(UserError, match="No space left"):
    demo.write_case(tmp_path, SEED, 0)
  assert not list(tmp_path.iterdir())


def test_gzip_headers_hold_neither_time_nor_name(written: Path) -> None:
  for path in (written / "Demo_00000").iterdir():
    head = path.read_bytes()[:8]
    assert head[3] == 0  # no name
    assert head[4:8] == bytes(4)  # no time
    with gzip.open(path) as file:
      file.read(1)


def test_user_errors(written: Path, tmp_path: Path) -> None:
  for wrong in (
    dict(cases=0),
    dict(cases=1, seed=-1),
    dict(cases=1, workers=0),
    dict(cases=1, first=-1),
  ):
    with pytest.raises(UserError, match="at least"):
      demo.write_dataset(tmp_path, **wrong)
  with pytest.raises(UserError, match="another demonstration case"):
    demo.write_dataset(written, 1, SEED + 1)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write"):
    demo.write_dataset(tmp_path / "file" / "below", 1)


def test_needs_no_jax() -> None:
  code = "import sys, kd_jax.data.demo.writer; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


# Subject 0 of seed 0 in version 2: voxels by label, and each label's mean over the healthy brain's.
FROZEN = {
  "voxels": (15575, 47017, 12419),
  "flair": (1.2260, 1.5359, 1.3486),
  "t1": (0.9452, 1.0852, 1.0762),
  "t1ce": (0.8901, 0.9368, 1.5680),
  "t2": (1.4013, 1.2765, 1.4147),
}


def test_the_generator_is_frozen(subjects: list[phantom.Subject]) -> None:
  """Scores of methods are compared on its cases: a change needs a new version in demo.py."""
  subject = subjects[0]
  masks = [subject.labels == label for label in (phantom.NCR, phantom.ED, phantom.ET)]
  assert [mask.sum() for mask in masks] == pytest.approx(FROZEN["voxels"], rel=1e-3)
  for name, image in subject.images.items():
    healthy = image[(image > 0) & (subject.labels == 0)].mean()
    means = [image[mask].mean() / healthy for mask in masks]
    assert means == pytest.approx(FROZEN[name], abs=1e-3), name
  assert b"demo 2" in demo._description(SEED, 0)
