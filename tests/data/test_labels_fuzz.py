"""Label maps of every year, as files hold them: the right classes, or a message with the values."""

import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import AFFINE

from kd_jax.data import nifti
from kd_jax.runtime.errors import ConfigError
from kd_jax.tasks.labels import CONVENTIONS, canonical, from_classes, to_classes

MORE = int(os.environ.get("KD_JAX_FUZZ", "0"))  # =20: twenty times as many, other ones each time
# By year: what its organisers' files hold, and the classes that this is.
YEARS = {
  **{f"brats20{n}": {0: 0, 1: 1, 2: 2, 4: 3} for n in range(17, 22)},
  "brats2023": {0: 0, 1: 1, 2: 2, 3: 3},
  "brats2024": {0: 0, 1: 1, 2: 2, 3: 3, 4: 0},
}
DTYPES = ("u1", "i1", "i2", "u2", "i4", "i8", "f2", "f4", "f8")


def tries(examples: int):
  return settings(
    max_examples=examples * max(MORE, 1), derandomize=not MORE, deadline=None, database=None
  )


def through_a_file(data: np.ndarray, slope: float = 1.0) -> np.ndarray:
  """As read from a NIfTI file that stores data / slope."""
  image = nib.Nifti1Image(data, AFFINE, dtype=data.dtype)
  raw = bytearray(image.to_bytes())
  raw[112:120] = np.array([slope, 0], "<f4").tobytes()
  return nifti.decode(bytes(raw)).data


@pytest.mark.parametrize("year", YEARS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("off", [0, 1e-4, -1e-4])
def test_every_year_in_every_type_from_a_file(year, dtype, off):
  """Floats such as 0.9999 are what registration tools and float32 exports leave."""
  wanted = np.array(list(YEARS[year].values()), np.uint8)
  raw = np.resize(list(YEARS[year]), (5, 2, 3)) + (off if dtype[0] == "f" else 0)
  found = to_classes(through_a_file(raw.astype(dtype)), canonical(year))
  np.testing.assert_array_equal(found, np.resize(wanted, (5, 2, 3)))


def test_scaled_label_maps():
  """Labels 0, 1, 2, 4 stored as 0, 10, 20, 40 with a slope of 0.1, which float32 cannot hold."""
  raw = np.resize([0, 10, 20, 40], (4, 2, 2)).astype("i2")
  found = to_classes(through_a_file(raw, 0.1), "brats2018")
  np.testing.assert_array_equal(found, np.resize([0, 1, 2, 3], (4, 2, 2)))


@given(st.sampled_from(list(CONVENTIONS)), st.sampled_from(DTYPES), st.data())
@tries(150)
def test_any_values(convention, dtype, data):
  kind = np.dtype(dtype)
  if kind.kind == "f":
    width = 8 * kind.itemsize
    odd = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 0.9999, 1.5, 255.0, 256.0, -0.0, -1.0])
    values = odd | st.floats(width=width)
  else:
    values = st.integers(0, 5) | st.integers(np.iinfo(kind).min, np.iinfo(kind).max)
  raw = np.array(data.draw(st.lists(values, min_size=1, max_size=8)), kind)
  table = CONVENTIONS[convention]
  near = np.array([min(table, key=lambda label, x=x: abs(label - x)) for x in raw.astype("f8")])
  with np.errstate(invalid="ignore"):
    known = np.abs(raw.astype("f8") - near) <= 1e-3
  if known.all():
    np.testing.assert_array_equal(to_classes(raw, convention), [table[int(x)] for x in near])
  else:
    with pytest.raises(ValueError, match=f"unknown label .*; {convention} has 0, 1, 2"):
      to_classes(raw, convention)


@given(st.lists(st.integers(0, 3), min_size=1), st.sampled_from(list(CONVENTIONS)))
@tries(50)
def test_what_is_written_reads_back_as_it_was(classes, convention):
  classes = np.array(classes, np.uint8)
  np.testing.assert_array_equal(to_classes(from_classes(classes, convention), convention), classes)


@given(st.text(max_size=12).filter(lambda name: name not in YEARS))
@tries(30)
def test_other_years_are_refused_with_the_known_ones(name):
  with pytest.raises(ConfigError, match="known: brats2018, brats2023, brats2024"):
    canonical(name)


@pytest.mark.parametrize("largest", [1, 2, 4, 255])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
def test_labels_on_the_scale_of_an_image(largest, dtype):
  """Some tools scale 0..largest to the whole range of the type, so that 1 becomes 1.00392."""
  slope = largest / np.iinfo(dtype).max
  wanted = np.resize([label for label in (0, 1, 2, 4) if label <= largest], (4, 1, 1))
  raw = bytearray(nib.Nifti1Image(np.rint(wanted / slope).astype(dtype), AFFINE).to_bytes())
  raw[112:120] = np.array([slope, 0], "<f4").tobytes()
  volume = nifti.decode(bytes(raw))
  assert volume.step == pytest.approx(slope if slope < 1 else 0)
  classes = to_classes(volume.data, "brats2018", volume.step)
  np.testing.assert_array_equal(from_classes(classes, "brats2018"), wanted)


@pytest.mark.parametrize("value", [1.02, 0.98, 1.5])
def test_numbers_between_the_labels_are_no_labels(value):
  """More than half a step away, or stored as floats, which have no step."""
  with pytest.raises(ValueError, match=f"{value}"):
    to_classes(np.array([0, value], np.float32), "brats2018", 4 / 255)
  with pytest.raises(ValueError, match=r"1\.00392"):
    to_classes(np.array([0, 256 / 255], np.float32), "brats2018")
