"""The pipeline can learn: a student alone reaches WT Dice > 0.9 on the one real case it sees."""

import jax
import numpy as np
import published
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from synthetic import brats_root

from kd_jax.data import cache, nifti, pipeline
from kd_jax.data.cases import find_cases
from kd_jax.data.entry import open_entry
from kd_jax.evaluation.case_results import score_against
from kd_jax.models.framework import Framework
from kd_jax.prediction import sliding_window
from kd_jax.prediction.postprocess import NO_POSTPROCESSING
from kd_jax.prediction.predictor import Prediction, Prepared
from kd_jax.settings.data import CacheSettings, SamplingSettings
from kd_jax.settings.inference import InferenceSettings
from kd_jax.settings.model import ModelSettings
from kd_jax.settings.training import GROUPS
from kd_jax.tasks.names import MODALITIES
from kd_jax.training import step
from kd_jax.training.mesh import make_mesh
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import init_state

STEPS = 450
PATCH = (48, 48, 48)


@pytest.mark.slow
def test_the_student_overfits_one_real_case(tmp_path):
  case = next(c for c in find_cases(brats_root()) if c.name == "Brats18_CBICA_APR_1")
  ready, bad = cache.prepare([case], tmp_path, CacheSettings(spacing=2.0))
  assert not bad
  (path,) = ready.values()

  framework = Framework(ModelSettings(student=("t1ce",), teachers={}, filters=(8, 16, 32, 64)))
  settings = published.optimiser(learning_rate=3e-3, clip_norm=12.0)
  optimizers = {group: optimizer(settings, STEPS) for group in GROUPS}
  confidence = published.confidence()
  mesh = make_mesh(1, 1)
  one_step = step.compile_step(
    step.make_train_step(
      framework, optimizers, published.loss(), confidence, steps_per_epoch=STEPS
    ),
    mesh,
  )
  state = init_state(framework, optimizers, confidence, jax.random.key(0))
  state = jax.device_put(state, NamedSharding(mesh, P()))
  batches = pipeline.training_batches(
    [path], SamplingSettings(PATCH, foreground_oversampling=0.5, workers=0), batch=1, seed=0
  )
  for _ in range(STEPS):
    batch = pipeline.to_devices(next(batches), [0], step.batch_sharding(mesh), 1)
    state, metrics = one_step(state, batch, jax.random.key(0))
  assert np.isfinite(metrics["loss/student"])

  entry = open_entry(path)
  member = (framework.network, state.params["student"])
  volume = entry.images[[MODALITIES.index("t1ce")]]
  sizes = sliding_window.shapes(PATCH, 2.0, "brain", multiple=8)
  probabilities = sliding_window.predict([member], volume, sizes, InferenceSettings())
  scan = nifti.read(case.images["t1ce"])
  predicted = Prediction(
    probabilities, Prepared(volume, entry.grid, scan), NO_POSTPROCESSING
  ).classes()
  scores = score_against(case, predicted, scan)
  print(scores)
  assert scores["dice_WT"] > 0.9
