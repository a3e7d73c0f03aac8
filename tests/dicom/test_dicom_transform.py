"""Predictions are brought to another scan's space with all that is known of them."""

import nibabel as nib
import numpy as np
import pytest
from students import make_student
from synthetic import LARGE, write

from kd_jax.data import nifti
from kd_jax.data.cases import loose_case
from kd_jax.data.grid import Grid
from kd_jax.dicom import transform
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.predictor import Predictor
from kd_jax.settings.inference import MinimumSizes


def test_opinions_move_with_the_prediction(tmp_path):
  """Onto a scan of the same voxels, stored the other way round: the same maps and volumes."""
  shape = (20, 24, 16)
  data = np.random.default_rng(0).integers(1, 900, shape).astype(np.int16)
  places = np.indices(shape).transpose(1, 2, 3, 0) + 0.5
  data[(((places / shape - 0.5) / 0.45) ** 2).sum(axis=-1) > 1] = 0  # a ball in the air
  there = write(tmp_path / "there_t1ce.nii.gz", data, LARGE)
  turned = LARGE @ np.diag([-1, 1, 1, 1])
  turned[:3, 3] += LARGE[:3, 0] * (shape[0] - 1)
  back = write(tmp_path / "back_t1ce.nii.gz", data[::-1], turned)
  predictor = Predictor([make_student(spacing=3.0), make_student(1, spacing=3.0)])
  scans = [
    predictor.load(loose_case(path.name, {"t1ce": path}), lambda line: None)
    for path in (there, back)
  ]
  found = predictor.predict(scans[0], opinions=True)
  moved = transform.onto(found, scans[1].reference, np.eye(4))
  assert len(moved.opinions.classes) == 2
  for (name, x), (same, y) in zip(found.uncertainty(), moved.uncertainty(), strict=True):
    assert name == same and x.shape == y.shape and x.max() > 0
    np.testing.assert_allclose(y, x, atol=1e-3)
  assert moved.volumes_mm3() == found.volumes_mm3()


def moved_nowhere(grid: Grid, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(the classes of a prediction on a grid, the same brought onto its own scan)."""
  scan = nifti.decode(nib.Nifti1Image(np.ones(grid.native_shape, np.int16), LARGE).to_bytes())
  prepared = Prepared(np.zeros((1, *grid.shape), np.float32), grid, scan)
  prediction = Prediction(probabilities, prepared, MinimumSizes(0, 0))
  return prediction.classes(), transform.onto(prediction, scan, np.eye(4)).classes()


def test_no_voxel_of_the_grid_is_lost_on_the_way_back():
  """Also not where the grid's outer voxels are larger than the scan's."""
  grid = Grid((30, 32, 28), (3, 4, 2), (24, 21, 18), (8, 7, 6))
  et = np.zeros((4, *grid.shape), np.float32)
  et[3] = 1
  classes, moved = moved_nowhere(grid, et)
  assert np.count_nonzero(classes) == 24 * 21 * 18
  np.testing.assert_array_equal(moved, classes)


@pytest.mark.parametrize("shape", [(9, 8, 5), (31, 17, 40)])
def test_a_nearest_grid_goes_back_by_its_own_rule(shape):
  grid = Grid((20, 18, 16), (2, 0, 3), (17, 18, 11), shape, nearest=True)
  probabilities = np.random.default_rng(0).dirichlet(np.ones(4), shape)
  classes, moved = moved_nowhere(grid, np.moveaxis(probabilities, -1, 0).astype(np.float32))
  assert len(np.unique(classes)) == 4
  np.testing.assert_array_equal(moved, classes)
