"""Performance-aware confidence weights: how much the student learns from each teacher.

  weight_i = total * score_i / sum_j score_j

score_i is the Dice of teacher i over past training batches (docs/method.md, "Confidence weights").
Three ways of averaging it: "epoch", as published, averages over an epoch and changes the weights
when the next one begins; "ema" averages exponentially and changes them every step; "batch" uses the
scores of the batch itself.

There is one weight a teacher, or one a teacher and region, where each region weighs the teachers by
their Dice on it alone; then scores and weights are (3,) where they are () otherwise. "voxel" weighs
by how sure a teacher is of a voxel instead (distillation.certainty_shares).

Every teacher gets a share of the total, also where all of them know less than the student, as of
enhancing tumour if none sees T1ce. With `above_student` the student's score is kept too, and a
teacher whose score is not above it gets the weight 0; the other weights stay.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from kd_jax.settings.method import ConfidenceSettings
from kd_jax.tasks.labels import REGIONS

STUDENT = "student"  # no teacher may be called so


@flax.struct.dataclass
class Confidence:
  """State of the weights, by teacher's name: no order of teachers to get wrong.

  Attributes:
    weights: in use now; () each, or (3,) by region.
    scores: the sum over the epoch's steps so far, or the exponential average; likewise, and with
      `above_student` the STUDENT's.
    count: (), steps that `scores` holds.
  """

  weights: dict[str, jax.Array]
  scores: dict[str, jax.Array]
  count: jax.Array


def init(teachers: Collection[str], settings: ConfidenceSettings) -> Confidence:
  """Equal weights for all teachers."""
  shape = (len(REGIONS),) if settings.by == "region" else ()
  scored = (*teachers, STUDENT) if teachers and settings.above_student else teachers
  return Confidence(
    weights={name: jnp.full(shape, settings.total / len(teachers), float) for name in teachers},
    scores={name: jnp.zeros(shape) for name in scored},
    count=jnp.zeros((), jnp.int32),
  )


def weights_of(scores: Mapping[str, jax.Array], total: float) -> dict[str, jax.Array]:
  """Scores -> teacher weights; uniform where all scores are zero.

  Args:
    scores: teachers' by name; with the STUDENT's, those not above it get 0.
    total: of all weights, had all teachers done better.
  """
  teachers = {name: score for name, score in scores.items() if name != STUDENT}
  mass = sum(teachers.values())
  safe = jnp.where(mass > 0, mass, 1)
  weights = {
    name: total * jnp.where(mass > 0, score / safe, 1 / len(teachers))
    for name, score in teachers.items()
  }
  if STUDENT in scores:
    student = scores[STUDENT]
    weights = {n: jnp.where(teachers[n] > student, w, 0) for n, w in weights.items()}
  return weights


def begin_step(
  confidence: Confidence, new_epoch: jax.Array, settings: ConfidenceSettings
) -> Confidence:
  """Sets the weights from what was seen before this step.

  Args:
    confidence: after the last step.
    new_epoch: (), whether this step is the first of an epoch.
    settings: how to weigh and forget.
  """
  due = confidence.count > 0
  if settings.update == "epoch":
    due &= new_epoch
  fresh = weights_of(confidence.scores, settings.total)  # a sum weighs as its mean does
  weights = _where(due, fresh, confidence.weights)
  if settings.update != "epoch":
    return dataclasses.replace(confidence, weights=weights)
  zeros = jax.tree.map(jnp.zeros_like, confidence.scores)
  return Confidence(
    weights=weights,
    scores=_where(due, zeros, confidence.scores),
    count=jnp.where(due, 0, confidence.count),
  )


def end_step(
  confidence: Confidence, scores: Mapping[str, jax.Array], settings: ConfidenceSettings
) -> Confidence:
  """Takes this step's scores by name into account."""
  if settings.update == "epoch":
    keep: Any = 1.0
    add: Any = 1.0
  else:
    decay = settings.ema_decay if settings.update == "ema" else 0.0
    keep = jnp.where(confidence.count > 0, decay, 0.0)
    add = 1 - keep
  running = {
    name: (keep * old + add * scores[name]).astype(old.dtype)
    for name, old in confidence.scores.items()
  }
  return dataclasses.replace(confidence, scores=running, count=confidence.count + 1)


def _where(condition: jax.Array, new: dict, old: dict) -> dict:
  return {name: jnp.where(condition, new[name], old[name]).astype(old[name].dtype) for name in old}
