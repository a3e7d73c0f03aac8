"""Cases to look at: NIfTI files in the scan's space, and the page."""

import nibabel as nib
import numpy as np
import pytest
from students import make_student
from synthetic import LARGE, make_case, write

from kd_jax.prediction.predictor import Predictor
from kd_jax.report import viewer
from kd_jax.report.visualize import visualize
from kd_jax.runtime.errors import UserError


def test_scan_prediction_truth_and_page(tmp_path, terminal, monkeypatch):
  monkeypatch.setattr(viewer, "niivue", lambda: ("/* a script */", "0"))
  case = make_case(tmp_path / "case1", affine=LARGE)
  predictor = Predictor([make_student(spacing=3.0)])
  visualize(predictor, case, "brats2023", tmp_path / "out", terminal)
  folder = tmp_path / "out" / "case1"
  scan = nib.load(case / "case1_t1ce.nii.gz")
  for name in ("scan", "prediction", "truth"):
    image = nib.load(folder / f"{name}.nii.gz")
    assert image.shape == scan.shape
    np.testing.assert_array_equal(image.affine, scan.affine)
  np.testing.assert_array_equal(nib.load(folder / "scan.nii.gz").get_fdata(), scan.get_fdata())
  truth = np.asarray(nib.load(folder / "truth.nii.gz").dataobj)
  assert set(np.unique(truth)) == {0, 1, 2, 3}  # the file has ET as 4
  assert "case1" in (folder / "view.html").read_text()


def test_without_a_truth(tmp_path, terminal, monkeypatch):
  monkeypatch.setattr(viewer, "niivue", lambda: ("/* a script */", "0"))
  case = make_case(tmp_path / "case1", affine=LARGE)
  (case / "case1_seg.nii.gz").unlink()
  visualize(Predictor([make_student(spacing=3.0)]), case, "brats2018", tmp_path / "out", terminal)
  assert not (tmp_path / "out" / "case1" / "truth.nii.gz").exists()
  assert (tmp_path / "out" / "case1" / "view.html").exists()


def test_a_bad_case_does_not_stop_the_others(tmp_path, terminal, monkeypatch):
  monkeypatch.setattr(viewer, "niivue", lambda: ("/* a script */", "0"))
  for name in ("case1", "case2"):
    make_case(tmp_path / "in" / name, affine=LARGE)
  (tmp_path / "in" / "case1" / "case1_t1ce.nii.gz").write_bytes(b"broken")
  with pytest.raises(UserError, match="case1"):
    visualize(
      Predictor([make_student(spacing=3.0)]), tmp_path / "in", "brats2018", tmp_path / "o", terminal
    )
  assert (tmp_path / "o" / "case2" / "view.html").exists()


@pytest.mark.parametrize(
  ("spoil", "why"),
  [
    (lambda data, affine: (data[:, :, :-2], affine), r"its shape \(14, 16, 10\) is not"),
    (lambda data, affine: (data, affine + 20 * np.eye(4, k=3)), "up to 20 mm off"),
    (lambda data, affine: (np.where(data == 1, 9, data), affine), r"9 .*Correct the file, or take"),
  ],
)
def test_a_truth_that_is_not_the_scan_s_is_not_drawn(tmp_path, terminal, monkeypatch, spoil, why):
  """As when it is scored; the other cases are drawn."""
  monkeypatch.setattr(viewer, "niivue", lambda: ("/* a script */", "0"))
  for name in ("case1", "case2"):
    make_case(tmp_path / "in" / name, affine=LARGE)
  file = tmp_path / "in" / "case1" / "case1_seg.nii.gz"
  image = nib.load(file)
  write(file, *spoil(np.asarray(image.dataobj), image.affine))
  predictor = Predictor([make_student(spacing=3.0)])
  with pytest.raises(UserError, match=rf"case1_seg.nii.gz.*{why}"):
    visualize(predictor, tmp_path / "in", "brats2018", tmp_path / "o", terminal)
  assert not (tmp_path / "o" / "case1").exists()
  assert (tmp_path / "o" / "case2" / "view.html").exists()


def test_the_missing_package_is_told_before_the_work(tmp_path, terminal, monkeypatch):
  def missing():
    raise UserError("pip install")

  monkeypatch.setattr(viewer, "niivue", missing)
  with pytest.raises(UserError, match="pip install"):
    visualize(Predictor([make_student()]), tmp_path, "brats2018", tmp_path / "o", terminal)
  assert not (tmp_path / "o").exists()
