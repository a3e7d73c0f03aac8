"""What the networks are trained on: every term of METHOD §2, named, and their weighted sum."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.method import distillation, losses
from kd_jax.models.framework import Outputs
from kd_jax.models.resunet import Output
from kd_jax.tasks.labels import REGIONS


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
    dice_reduction: "volume", "sample", or "slice" as published (losses.overlap).
    targets: "classes", or "regions": what the supervised losses are taken over.
    kd_reduction: "voxel_mean", or "voxel_sum" as published.
    kd_targets: "classes", or "regions": each region's response is distilled against its complement.
    kd_regions: which of them, with "regions".
    kd_where: "all", "brain", "agreement" or "balanced": which voxels' responses count
      (distillation.voxel_weights).
    temperature: of every KD term.
    supervised: weight of the student's own supervised loss once distillation has begun.
    cooperative: weight of the fused logits' supervised loss, by level.
    side: the student's deep supervision, by level.
    deep_supervision: weight of a supervised loss, by level, for every network with a head there
      (model.teacher_side_heads); with and without teachers, beside `side`.
    fused_teacher: weight of the level 1 fused logits, enlarged, as one more teacher of the
      student's logits.
    bottleneck, prototype: weights of the alternatives of distillation.py, the mean over teachers.
    kd_from_epoch: the first epoch (from 0) with distillation; before it the student's loss is its
      supervised one alone.
    kd_ramp_epochs: epochs from there until distillation has its full weight, linearly.
  """

  dice_reduction: str = "volume"
  targets: str = "classes"
  kd_reduction: str = "voxel_mean"
  kd_targets: str = "classes"
  kd_regions: tuple[str, ...] = tuple(REGIONS)
  kd_where: str = "all"
  temperature: float = 4.0
  supervised: float = 0.75
  cooperative: Mapping[str, float] = field(default_factory=lambda: {"level1": 0.08, "level2": 0.05})
  side: Mapping[str, SideWeights] = field(
    default_factory=lambda: {
      "level1": SideWeights(0.10, 0.7, 0.3),
      "level2": SideWeights(0.03, 0.6, 0.4),
    }
  )
  deep_supervision: Mapping[str, float] = field(
    default_factory=lambda: {"level1": 0.0, "level2": 0.0}
  )
  fused_teacher: float = 0.0
  bottleneck: float = 0.0
  prototype: float = 0.0
  kd_from_epoch: int = 1
  kd_ramp_epochs: float = 0.0

  @property
  def features(self) -> tuple[str, ...]:
    """The features that a loss asks for, names of resunet.Output.features."""
    asked = {"bottleneck": self.bottleneck, "level1": self.prototype}
    return tuple(name for name, weight in asked.items() if weight)


def distillation_share(epochs: jax.Array, settings: LossSettings) -> jax.Array:
  """() epochs done, with fractions -> (), 0 before distillation, 1 once it has its full weight."""
  since = epochs - settings.kd_from_epoch
  if not settings.kd_ramp_epochs:
    return (since >= 0).astype(jnp.float32)
  return jnp.clip(since / settings.kd_ramp_epochs, 0, 1)


def objective(
  outputs: Outputs,
  labels: jax.Array,
  alpha: Mapping[str, jax.Array],
  share: jax.Array,
  settings: LossSettings,
  brain: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The joint loss of cohort and student; the two share no gradient.

  Teachers' logits and fused logits enter the student's terms without gradient, so one backward pass
  of the sum gives each group exactly its own gradient.

  Args:
    outputs: of all networks.
    labels: (B, D, H, W) class indices.
    alpha: teacher's name -> its weight: (); (3,) one a region, with kd_targets "regions"; or
      (B, D, H, W) one a voxel, with "classes".
    share: (), how far distillation has come in, 0 to 1.
    settings: the weights.
    brain: (B, D, H, W) boolean.

  Returns:
    The loss, and every term by its name in the logs (scalars, unweighted but for `loss/student`
    and `loss/cohort`).
  """
  terms = {}

  def supervised(name: str, logits: jax.Array) -> jax.Array:
    y = losses.shrink_labels(labels, logits.shape[1:4])
    terms[name] = losses.comb(y, logits, settings.dice_reduction, settings.targets)
    return terms[name]

  def deep(name: str, output: Output) -> jax.Array:
    """The supervised loss of a network and of its side heads."""
    total = supervised(name, output.logits)
    for level, logits in output.side_logits.items():
      if weight := settings.deep_supervision[level]:
        total += weight * supervised(f"{name}/{level}", logits)
    return total

  cohort = sum(deep(f"loss/teacher/{name}", output) for name, output in outputs.teachers.items())
  for level, fused in outputs.fused.items():
    cohort += settings.cooperative[level] * supervised(f"loss/cooperative/{level}", fused)

  student = alone = deep("loss/supervised", outputs.student)
  if outputs.teachers:
    together = settings.supervised * alone
    together += _responses(outputs, labels, alpha, settings, brain, terms)
    together += _features(outputs, labels, settings, terms)
    for level, fused in outputs.fused.items():
      own = outputs.student.side_logits[level]
      weights = settings.side[level]
      terms[f"loss/side/{level}/kd"] = _response(own, fused, labels, 1.0, settings, brain)[1]
      together += weights.total * (
        weights.supervised * supervised(f"loss/side/{level}/supervised", own)
        + weights.kd * terms[f"loss/side/{level}/kd"]
      )
    if settings.kd_ramp_epochs:
      student = share * together + (1 - share) * alone
    else:
      student = jnp.where(share > 0, together, alone)

  terms["loss/student"] = student
  if outputs.teachers:
    terms["loss/cohort"] = cohort
  return cohort + student, terms


def _responses(
  outputs: Outputs,
  labels: jax.Array,
  alpha: Mapping[str, jax.Array],
  settings: LossSettings,
  brain: jax.Array,
  terms: dict[str, jax.Array],
) -> jax.Array:
  """What the student hears of the teachers' logits, and of the fused ones' enlarged."""
  logits = {name: output.logits for name, output in outputs.teachers.items()}
  own, total = outputs.student.logits, 0.0
  for name, teacher in logits.items():
    heard, terms[f"loss/kd/{name}"] = _response(
      own, teacher, labels, alpha[name], settings, brain, tuple(logits.values())
    )
    total += heard
  if settings.fused_teacher and "level1" in outputs.fused:
    fused = distillation.enlarge(outputs.fused["level1"])
    terms["loss/kd/fused"] = _response(own, fused, labels, 1.0, settings, brain)[1]
    total += settings.fused_teacher * terms["loss/kd/fused"]
  return total


def _response(
  student: jax.Array,
  teacher: jax.Array,
  labels: jax.Array,
  alpha: jax.Array | float,
  settings: LossSettings,
  brain: jax.Array,
  teachers: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """One distillation term on logits of any level: weighted by alpha, and plain."""
  sides = student.shape[1:4]
  labels, brain = (losses.shrink_labels(x, sides) for x in (labels, brain))
  weight = distillation.voxel_weights(settings.kd_where, labels, brain, teachers)
  how = (settings.temperature, settings.kd_reduction, weight)
  if settings.kd_targets == "regions":
    each = losses.region_kd(student, teacher, *how, settings.kd_regions)
    if jnp.ndim(alpha) == 1:  # one a region
      alpha = alpha[np.array([list(REGIONS).index(region) for region in settings.kd_regions])]
    return jnp.mean(alpha * each), jnp.mean(each)
  plain = losses.kd(student, teacher, *how)
  if jnp.ndim(alpha) == 4:  # one a voxel
    return losses.kd(student, teacher, *how, alpha), plain
  return alpha * plain, plain


def _features(
  outputs: Outputs, labels: jax.Array, settings: LossSettings, terms: dict[str, jax.Array]
) -> jax.Array:
  """The terms on features, each the mean over teachers."""
  teachers, own, total = outputs.teachers, outputs.student.features, 0.0
  for name, output in teachers.items():
    if settings.bottleneck:
      found = distillation.bottleneck_kd(own["bottleneck"], output.features["bottleneck"])
      terms[f"loss/bottleneck/{name}"] = found
      total += settings.bottleneck / len(teachers) * found
    if settings.prototype:
      student, teacher = own["level1"], output.features["level1"]
      y = losses.shrink_labels(labels, student.shape[1:4])
      terms[f"loss/prototype/{name}"] = distillation.prototype_kd(student, teacher, y)
      total += settings.prototype / len(teachers) * terms[f"loss/prototype/{name}"]
  return total
