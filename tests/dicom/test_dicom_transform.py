"""Predictions are brought to another scan's space with all that is known of them."""

import numpy as np
from students import make_student
from synthetic import LARGE, write

from kd_jax.data.cases import loose_case
from kd_jax.dicom import transform
from kd_jax.prediction.predictor import Predictor


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
