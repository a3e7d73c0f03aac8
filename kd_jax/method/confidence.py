"""Performance-aware confidence weights: how much the student hears each teacher.

  alpha_i = total * score_i / sum_j score_j

with score_i the Dice of teacher i over past training batches (METHOD §2). Ways of forgetting:
"epoch", as published, averages over an epoch and changes the weights when the next one begins;
"ema" averages exponentially and changes them every step. "batch" forgets all: a batch's own scores
are its weights.

Weights are one a teacher, or one a teacher and region, each region weighing the teachers by their
Dice on it alone; then scores and weights are (3,) where they are () otherwise. "voxel" weighs by
how sure a teacher is of a voxel instead (distillation.certainty_shares).

A share of the total goes to every teacher, also where all of them know less than the student, as
of enhancing tumour if none sees T1ce. With `above_student` the student's score is kept too, and a
teacher whose score is not above it is not heard; the others' weights stay.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp

from kd_jax.tasks.labels import REGIONS

UPDATES = ("epoch", "ema", "batch")
BY = ("teacher", "region", "voxel")
STUDENT = "student"  # no teacher may be called so


@dataclass(frozen=True)
class ConfidenceSettings:
  """See the module.

  Attributes:
    total: what the weights of all teachers add up to.
    score: "soft_dice", "hard_dice" or "slice_dice" (metrics/device.py).
    regions: whose mean Dice is the score, with "teacher".
    by: "teacher", "region" or "voxel".
    update: "epoch", "ema" or "batch".
    ema_decay: per step, with "ema".
    above_student: hear only those who do better than the student.
  """

  total: float = 0.15
  score: str = "soft_dice"
  regions: tuple[str, ...] = ("WT",)
  by: str = "teacher"
  update: str = "epoch"
  ema_decay: float = 0.99
  above_student: bool = False


@flax.struct.dataclass
class Confidence:
  """State of the weights, by teacher's name: no order of teachers to get wrong.

  Attributes:
    weights: alpha, in use now; () each, or (3,) by region.
    scores: the sum over the epoch's steps so far, or the exponential average; likewise, and with
      `above_student` the STUDENT's.
    count: (), steps that `scores` holds.
  """

  weights: dict[str, jax.Array]
  scores: dict[str, jax.Array]
  count: jax.Array


def init(teachers: Collection[str], settings: ConfidenceSettings) -> Confidence:
  """Every teacher heard alike."""
  shape = (len(REGIONS),) if settings.by == "region" else ()
  scored = (*teachers, STUDENT) if teachers and settings.above_student else teachers
  return Confidence(
    weights={name: jnp.full(shape, settings.total / len(teachers), float) for name in teachers},
    scores={name: jnp.zeros(shape) for name in scored},
    count=jnp.zeros((), jnp.int32),
  )


def weights_of(scores: Mapping[str, jax.Array], total: float) -> dict[str, jax.Array]:
  """Scores -> alpha; uniform where all scores are zero.

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
    return confidence.replace(weights=weights)
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
    keep, add = 1.0, 1.0
  else:
    decay = settings.ema_decay if settings.update == "ema" else 0.0
    keep = jnp.where(confidence.count > 0, decay, 0.0)
    add = 1 - keep
  running = {
    name: (keep * old + add * scores[name]).astype(old.dtype)
    for name, old in confidence.scores.items()
  }
  return confidence.replace(scores=running, count=confidence.count + 1)


def _where(condition: jax.Array, new: dict, old: dict) -> dict:
  return {name: jnp.where(condition, new[name], old[name]).astype(old[name].dtype) for name in old}
