"""What the networks are trained on: every term of METHOD §2, named, and their weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from kd_jax import losses
from kd_jax.models.framework import Outputs


@dataclass(frozen=True)
class SideWeights:
  """Deep supervision of the student at one level: total * (supervised * comb + kd * KD)."""

  total: float
  supervised: float
  kd: float


@dataclass(frozen=True)
class LossSettings:
  """The weights of METHOD §2, with the published values as defaults where a network is concerned.

  Attributes:
    dice_reduction: "volume", or "slice" as published.
    kd_reduction: "voxel_mean", or "voxel_sum" as published.
    temperature: of every KD term.
    supervised: weight of the student's own supervised loss once distillation has begun.
    cooperative: weight of the fused logits' supervised loss, by level.
    side: the student's deep supervision, by level.
    kd_from_epoch: the first epoch (from 0) with distillation; before it the student's loss is its
      supervised one alone.
  """

  dice_reduction: str = "volume"
  kd_reduction: str = "voxel_mean"
  temperature: float = 4.0
  supervised: float = 0.75
  cooperative: Mapping[str, float] = field(default_factory=lambda: {"level1": 0.08, "level2": 0.05})
  side: Mapping[str, SideWeights] = field(
    default_factory=lambda: {
      "level1": SideWeights(0.10, 0.7, 0.3),
      "level2": SideWeights(0.03, 0.6, 0.4),
    }
  )
  kd_from_epoch: int = 1


def objective(
  outputs: Outputs,
  labels: jax.Array,
  alpha: Mapping[str, jax.Array],
  distil: jax.Array,
  settings: LossSettings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The joint loss of cohort and student; the two share no gradient.

  Teachers' logits and fused logits enter the student's terms without gradient, so one backward pass
  of the sum gives each group exactly its own gradient.

  Args:
    outputs: of all networks.
    labels: (B, D, H, W) class indices.
    alpha: teacher's name -> its weight, ().
    distil: (), True once distillation has begun.
    settings: the weights.

  Returns:
    The loss, and every term by its name in the logs (scalars, unweighted but for `loss/student`
    and `loss/cohort`).
  """
  terms = {}

  def supervised(name: str, logits: jax.Array) -> jax.Array:
    y = losses.shrink_labels(labels, logits.shape[1:4])
    terms[name] = losses.comb(y, logits, settings.dice_reduction)
    return terms[name]

  def distilled(name: str, student: jax.Array, teacher: jax.Array) -> jax.Array:
    terms[name] = losses.kd(student, teacher, settings.temperature, settings.kd_reduction)
    return terms[name]

  cohort = sum(
    supervised(f"loss/teacher/{name}", output.logits) for name, output in outputs.teachers.items()
  )
  for level, fused in outputs.fused.items():
    cohort += settings.cooperative[level] * supervised(f"loss/cooperative/{level}", fused)

  alone = supervised("loss/supervised", outputs.student.logits)
  student = alone
  if outputs.teachers:
    together = settings.supervised * alone
    for name, output in outputs.teachers.items():
      together += alpha[name] * distilled(f"loss/kd/{name}", outputs.student.logits, output.logits)
    for level, fused in outputs.fused.items():
      own = outputs.student.side_logits[level]
      weights = settings.side[level]
      together += weights.total * (
        weights.supervised * supervised(f"loss/side/{level}/supervised", own)
        + weights.kd * distilled(f"loss/side/{level}/kd", own, fused)
      )
    student = jnp.where(distil, together, alone)

  terms["loss/student"] = student
  if outputs.teachers:
    terms["loss/cohort"] = cohort
  return cohort + student, terms
