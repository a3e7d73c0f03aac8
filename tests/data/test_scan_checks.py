"""The findings about scans that no student can read, and none about the others."""

import functools
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from synthetic import AFFINE, brats_root

from kd_jax.data import nifti
from kd_jax.data.cases import find_cases
from kd_jax.data.demo.phantom import load_atlas, make_subject
from kd_jax.data.scan_checks import check_scan

SHAPE = (70, 82, 68)  # 2 mm voxels


@functools.cache
def brain() -> np.ndarray:
  """An ellipsoid of 1.3 litres with bright white and darker grey matter, and fluid around it."""
  axes = [(np.arange(n) - (n - 1) / 2) * 2 for n in SHAPE]  # mm
  grid = np.meshgrid(*axes, indexing="ij")
  radius = sum((x / r) ** 2 for x, r in zip(grid, (65, 77, 62), strict=True)) ** 0.5
  tissue = np.select([radius < 0.7, radius < 0.93, radius < 1], [1000, 800, 400], 0)
  noise = np.random.default_rng(0).normal(1, 0.05, SHAPE)
  x = (tissue * noise).astype(np.int16)
  x.setflags(write=False)
  return x


def volume(x, mm=(2, 2, 2), affine=None, qform=None, codes=(2, 1)) -> nifti.Volume:
  """As it comes from a file; codes are those of sform and qform."""
  if affine is None:
    affine = AFFINE @ np.diag([*mm, 1])
  image = nib.Nifti1Image(np.asarray(x), affine)
  image.set_sform(affine, codes[0])
  image.set_qform(affine if qform is None else qform, codes[1])
  return nifti.decode(image.to_bytes())


def shifted(mm: float) -> np.ndarray:
  return volume(brain()).affine + np.pad([[mm]], ((0, 3), (3, 0)))


def turned(degrees: float, axis: int = 2) -> np.ndarray:
  """An affine of 2 mm voxels whose axes are that much off the scanner's."""
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  affine = np.eye(4)
  i, j = (k for k in range(3) if k != axis)
  affine[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
  return affine @ AFFINE @ np.diag([2, 2, 2, 1])


def with_values(*changes) -> np.ndarray:
  """The brain as float32, with (where, value) put in."""
  x = brain().astype(np.float32)
  for where, value in changes:
    x[where] = value
  return x


def head() -> np.ndarray:
  """The brain in a larger field of view, with skull, skin and neck around it, and noise."""
  x = np.pad(brain(), 10)
  x[6:-6, 6:-6, :-6][x[6:-6, 6:-6, :-6] == 0] = 300
  return x + np.random.default_rng(0).integers(1, 20, x.shape, dtype=np.int16)


def noise_around() -> np.ndarray:
  return np.where(OUTSIDE, np.random.default_rng(0).integers(1, 20, SHAPE, np.int16), brain())


def masked_head() -> np.ndarray:
  x = head()
  return np.pad(np.where(x < 20, 0, x), 20)


def ct() -> np.ndarray:
  return np.where(brain() > 0, brain() // 20, -1000).astype(np.int16)


def t2() -> np.ndarray:
  return np.where(brain() > 0, (1.6 - brain() / 1000) ** 2, 0)


def frame(x: np.ndarray) -> np.ndarray:
  """In a larger field of view, as after resampling to another grid."""
  return np.pad(x, 3)


def scattered() -> np.ndarray:
  """Sparse noise in the air."""
  x = np.pad(brain(), 20)
  noise = np.random.default_rng(0).random(x.shape) < 0.06
  values = np.random.default_rng(1).integers(1, 90, x.shape)
  return np.where((x == 0) & noise, values, x).astype(np.int16)


def blobs(size: int, apart: int) -> np.ndarray:
  """Pieces all over the air around the brain."""
  x = np.pad(brain(), 30)
  air = np.zeros(x.shape, bool)
  for i, j in np.ndindex(*(n // apart for n in x.shape[:2])):
    air[i * apart :, j * apart :][:size, :size, 2 : 2 + size] = True
  return np.where(air, 400, x).astype(np.int16)


def threads() -> np.ndarray:
  """The brain, and what runs from it to the edges: lines of a fold-over or a bad interpolation."""
  x = np.pad(brain(), 25)
  middle = [n // 2 for n in x.shape]
  for axis in range(3):
    line = [slice(m, m + 1) for m in middle]
    line[axis] = slice(None)
    x[tuple(line)] = 200
  return x


def scalp() -> np.ndarray:
  """The brain, 8 mm of nothing, and 4 mm of skin."""
  x = np.pad(brain(), 10)
  mm = ndimage.distance_transform_edt(x == 0, sampling=2)
  return np.where((mm > 8) & (mm < 12), 500, x).astype(np.int16)


def cord() -> np.ndarray:
  """The brain, and the spinal cord below it."""
  x = np.pad(brain(), ((0, 0), (0, 0), (45, 0)))
  x[30:38, 38:46, :60] = 700 + np.arange(60)
  return x


def table() -> np.ndarray:
  x = np.pad(brain(), 12)
  x[2:-2, -4:-1, 2:-2] = 300 + np.arange(x.shape[2] - 4)
  return x


def neck() -> np.ndarray:
  """The brain, and around it a shell that is thick at one side."""
  x = np.pad(brain(), 20)
  mm = ndimage.distance_transform_edt(x == 0, sampling=2)
  shell = (mm > 8) & (mm < np.linspace(12, 30, x.shape[1])[:, None])
  return np.where(shell, 300 + np.arange(x.shape[2]), x).astype(np.int16)


def halves() -> np.ndarray:
  x = brain().copy()
  x[33:37] = 0
  return x


def slab() -> np.ndarray:
  """Slices that some tool filled with one value."""
  x = np.pad(brain(), ((4, 4), (4, 4), (4, 8)))
  x[..., -3:] = 7
  return x


def splined() -> np.ndarray:
  """Resampled by cubic splines: ringing goes on for ever, ever smaller."""
  return ndimage.shift(np.pad(brain().astype(np.float32), 12), 0.5, order=3)


OUTSIDE = brain() == 0
ODD = {
  # name: (volume, what the finding says)
  "empty": (lambda: volume(np.zeros(SHAPE, np.int16)), "every voxel is 0"),
  "constant": (lambda: volume(np.full(SHAPE, 7, np.int16)), "every voxel is 7"),
  "nan": (lambda: volume(with_values((OUTSIDE, np.nan))), r"\d+ of its voxels are NaN"),
  "inf": (lambda: volume(with_values(((30, 30, 30), np.inf))), "1 of its voxels are NaN or inf"),
  "mask": (lambda: volume((brain() > 0).astype(np.uint8)), r"2 different values \(0, 1\)"),
  "labels": (lambda: volume(brain() // 300), r"5 different values \(0, 1, 2, 3, 4\)"),
  "small voxels": (lambda: volume(brain(), (0.1, 1, 1)), "voxels are 0.1 x 1 x 1 mm"),
  "large voxels": (lambda: volume(brain(), (2, 2, 12)), "voxels are 2 x 2 x 12 mm"),
  "one slice": (lambda: volume(brain()[:, :, 30:40]), "measures 140 x 164 x 20 mm"),
  "thick slices": (lambda: volume(brain()[:, :, ::2], (2, 2, 4)), "2 x 2 x 4 mm, coarser"),
  "oblique": (lambda: volume(brain(), affine=turned(14)), "14 degrees off"),
  "tilted": (lambda: volume(brain(), affine=turned(-25, axis=0)), "25 degrees off"),
  "no orientation": (lambda: volume(brain(), codes=(0, 0)), "qform_code and sform_code are 0"),
  "two places": (lambda: volume(brain(), qform=shifted(20)), "up to 20 mm apart"),
  "head": (lambda: volume(head()), r"\(100% of the volume\).*not look skull-stripped"),
  "noise": (lambda: volume(noise_around(), (1.7,) * 3), r"1\.9\d litres \(100% .*not look skull"),
  "masked head": (lambda: volume(masked_head()), r"litres \([1-5]\d% .*not look skull-stripped"),
  "small": (lambda: volume(brain(), (1.5, 1.5, 1.5)), r"0\.5\d litres.*less than"),
  "part": (lambda: volume(brain()[:, :, :24]), r"litres.*less than"),
  "grey background": (lambda: volume(with_values((OUTSIDE, 12))), "background is 12 "),
  "negative background": (lambda: volume(with_values((OUTSIDE, -1))), "background is -1 "),
  "framed background": (
    lambda: volume(frame(with_values((OUTSIDE, 7)))),
    "not 0 have one value, 7,",
  ),
  "filled slab": (lambda: volume(slab()), r"background is 7 \(100% of an outer slice"),
  "splines": (lambda: volume(splined()), "are nearly 0, as resampling leaves"),
  "scattered": (lambda: volume(scattered()), "lie apart from the brain"),
  "threads": (lambda: volume(threads()), r"fill 9% of the box around them"),
  "a cord": (lambda: volume(cord()), r"fill 3\d% of the box"),
  "many pieces": (lambda: volume(blobs(4, 9)), "lie apart from the brain"),
  "some pieces": (lambda: volume(blobs(1, 30)), r"it has \d+ voxels outside the brain, in \d+ pl"),
  "scalp": (lambda: volume(scalp()), "lie apart from the brain"),
  "table": (lambda: volume(table()), "lie apart from the brain"),
  "neck": (lambda: volume(neck(), (1.8, 1.8, 1.8)), r"\d\.\d\d litres, one around another"),
  "halves": (lambda: volume(halves()), r"parts of 0\.\d+ \+ 0\.\d+ litres that do not touch"),
  "one speck": (lambda: volume(with_values(((0, 0, 0), 1))), r"1 voxel outside .* 0\.008 ml"),
  "big brain": (lambda: volume(brain(), (2.4, 2.4, 2.4)), r"2\.\d\d litres.*more than a brain"),
  "z-scored": (lambda: volume(np.where(OUTSIDE, 0, brain() / 200 - 4.3)), "% of its brain voxels"),
  "ct": (lambda: volume(ct()), "run from -1000 to .*Hounsfield"),
  "t2": (lambda: volume(t2()), "as on T2"),
}
ERRORS = ("empty", "constant", "nan", "inf", "mask", "labels", "small voxels", "large voxels")
ERRORS += ("one slice", "head", "noise", "masked head", "ct", "grey background", "scattered")
ERRORS += ("negative background", "framed background", "filled slab", "splines", "many pieces")
ERRORS += ("scalp", "table", "neck", "threads")


@pytest.mark.parametrize("name", ODD)
def test_an_odd_scan(name):
  make, text = ODD[name]
  findings = check_scan(make(), "t1ce")
  match = [finding for finding in findings if re.search(text, finding.text)]
  assert len(match) == 1, findings
  assert match[0].severity == ("error" if name in ERRORS else "warning")
  # They are put together as "text. remedy".
  assert not match[0].text.endswith(".")
  assert match[0].remedy.endswith(".")
  if name not in ("one slice", "part"):  # these hold too little brain, or nothing else
    assert len(findings) == 1, findings


FINE = {
  "int16": lambda: volume(brain()),
  "float": lambda: volume(brain() / np.float32(1234)),
  "tiny intensities": lambda: volume(brain() * np.float32(1e-9)),
  "uint8": lambda: volume((brain() // 5).astype(np.uint8)),
  "some negative voxels": lambda: volume(with_values((np.s_[20:50, 20:50, 30], -3))),
  "cropped to its box": lambda: volume(brain()[2:-2, 2:-2, 3:-3]),
  "slightly oblique": lambda: volume(brain(), affine=turned(9)),
  "stored in other axes": lambda: volume(brain(), affine=np.diag([2, 2, 2, 1])[[1, 2, 0, 3]]),
  "only a qform": lambda: volume(brain(), codes=(0, 1)),
  "only an sform": lambda: volume(brain(), codes=(2, 0), qform=shifted(20)),
  "nearly one place": lambda: volume(brain(), qform=shifted(0.5)),
}


@pytest.mark.parametrize("modality", ["t1", "t1ce"])
@pytest.mark.parametrize("name", FINE)
def test_a_good_scan(name, modality):
  assert check_scan(FINE[name](), modality) == []


def test_contrast_counts_only_for_t1_and_t1ce():
  assert check_scan(volume(t2()), "t2") == []
  assert check_scan(volume(t2()), "flair") == []
  assert len(check_scan(volume(t2()), "t1")) == 1


def test_a_qform_that_is_no_rotation():
  made = volume(brain())
  made.header["quatern_b"] = made.header["quatern_c"] = 0.9
  (finding,) = check_scan(made, "t1ce")
  assert "a qform that is no rotation" in finding.text


def test_errors_come_first():
  findings = check_scan(volume(brain() // 300, affine=turned(14)), "t1ce")
  assert [finding.severity for finding in findings] == ["error", "warning"]


def test_one_slice_is_no_crash():
  assert check_scan(volume(brain()[:, :, 34:35]), "t1ce")[0].severity == "error"


def test_the_atlas_as_the_guide_writes_it(tmp_path, monkeypatch):
  guide = Path(__file__).parents[2] / "docs" / "clinical-scans.md"
  code = re.search(r"```python\n(.*?sri24\.npz.*?)```", guide.read_text(), re.DOTALL)[1]
  monkeypatch.chdir(tmp_path)
  exec(code, {})
  atlas = nifti.read("sri24.nii.gz")
  np.testing.assert_array_equal(atlas.affine, load_atlas().affine)
  assert check_scan(atlas, "t1") == []


@pytest.mark.slow
@pytest.mark.parametrize("index", range(20))
def test_generated_subjects(index):
  images = make_subject(0, index).images
  for modality in ("t1", "t1ce"):
    assert check_scan(volume(images[modality], affine=load_atlas().affine), modality) == []
  (finding,) = check_scan(volume(images["t2"], affine=load_atlas().affine), "t1ce")
  assert "as on T2" in finding.text


def test_real_cases():
  worst, cases = 0.0, find_cases(brats_root())
  for case in cases:
    for modality in ("t1", "t1ce"):
      scan = nifti.read(case.images[modality])
      start = time.perf_counter()
      assert check_scan(scan, modality) == [], case
      worst = max(worst, time.perf_counter() - start)
  assert worst < 1.5  # 0.1 s on an idle machine
  (finding,) = check_scan(nifti.read(cases[0].images["t2"]), "t1ce")
  assert "as on T2" in finding.text
  (finding,) = check_scan(nifti.read(cases[0].seg), "t1ce")
  assert (finding.severity, "a label map" in finding.text) == ("error", True)
