"""Small students with random parameters, for tests of what is done with a trained one."""

import functools

import jax
import numpy as np

from kd_jax.data.subjects import Subject
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.settings.inference import InferenceSettings


@functools.cache
def make_student(
  seed: int = 0, modalities: tuple[str, ...] = ("t1ce",), spacing=1.0, network="resunet"
) -> Student:
  """A T1ce student of the smallest network, trained (so it says) on one subject of a clinic."""
  architecture = Architecture(modalities, (4, 4, 8, 8), "channel", network)
  params = architecture.framework().init(jax.random.key(seed))["student"]
  params.pop("side_heads", None)
  return Student(
    name="small",
    source="nowhere",
    architecture=architecture,
    preparation=Preparation("brain", "zscore", spacing, (16, 16, 16)),
    inference=InferenceSettings("sliding", 0.25, False, 0.0, 0.0),
    params=jax.tree.map(np.asarray, params),
    training={"data": "synthetic", "convention": "brats2018", "step": 3},
    scores=None,
    train=[Subject("Clinic_7", "Clinic_7", "brats2018", {"t1ce": "ab" * 16})],
    val=[],
    settings={},
  )
