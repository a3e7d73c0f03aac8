"""Settings as the published method has them, where the default recipe differs."""

import dataclasses

from kd_jax.settings import presets
from kd_jax.settings.method import ConfidenceSettings, LossSettings
from kd_jax.settings.training import OptimizerSettings

_LOSS = presets.settings("brats21:mtcm_kd").loss
_CONFIDENCE = ConfidenceSettings(total=0.15, update="epoch")
_OPTIMISER = OptimizerSettings(learning_rate=1e-3, warmup=0.05, weight_decay=0.0, clip_norm=0.0)


def loss(**changes) -> LossSettings:
  """The published terms in volumetric Dice, with changes."""
  return dataclasses.replace(_LOSS, **changes)


def confidence(**changes) -> ConfidenceSettings:
  """Confidence weights by epoch that add up to 0.15, with changes."""
  return dataclasses.replace(_CONFIDENCE, **changes)


def optimiser(**changes) -> OptimizerSettings:
  """Plain Adam without decay or clipping, with changes."""
  return dataclasses.replace(_OPTIMISER, **changes)
