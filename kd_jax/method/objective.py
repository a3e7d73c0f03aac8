"""What the networks are trained on: every term of docs/method.md, "Objective", and their sum."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.method import distillation, losses
from kd_jax.models.framework import Outputs
from kd_jax.models.interface import Output
from kd_jax.settings.method import LossSettings
from kd_jax.tasks.labels import REGIONS

_MOST_STEPS = 2**31 - 1  # an int32 counts them
Values = dict[str, jax.Array]  # name in the logs -> ()


def distillation_share(step: jax.Array, steps_per_epoch: int, settings: LossSettings) -> jax.Array:
  """() steps done -> (), 0 before distillation, 1 once it has its full weight.

  In whole steps: as a float32, an epoch's number may fall short of itself, and distillation would
  begin a step late.

  Source: docs/method.md, "Objective", eq. 16.
  """
  since = step - min(settings.kd_from_epoch * steps_per_epoch, _MOST_STEPS)
  if not settings.kd_ramp_epochs:
    return (since >= 0).astype(jnp.float32)
  return jnp.clip(since / (settings.kd_ramp_epochs * steps_per_epoch), 0, 1)


def objective(
  outputs: Outputs,
  labels: jax.Array,
  teacher_weights: Mapping[str, jax.Array],
  share: jax.Array,
  settings: LossSettings,
  brain: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The joint loss of teachers and student; the two share no gradient.

  Teachers' logits and fused logits enter the student's terms without gradient, so one backward pass
  of the sum gives each group exactly its own gradient (docs/method.md, "Objective", eq. 14 and 15).

  Args:
    outputs: of all networks.
    labels: (B, D, H, W) class indices.
    teacher_weights: teacher's name -> its weight: (); (3,) one a region, with kd_targets
      "regions"; or (B, D, H, W) one a voxel, with "classes".
    share: (), how far distillation has come in, 0 to 1.
    settings: the weights.
    brain: (B, D, H, W) boolean.

  Returns:
    The loss, and every term by its name in the logs (scalars, unweighted but for `loss/student`,
    `loss/teachers` and `loss/distillation`: what of the student's loss comes from teachers).
  """
  terms: dict[str, jax.Array] = {}
  side_weights = cast(Mapping[str, float], settings.deep_supervision)

  def supervised(name: str, logits: jax.Array) -> jax.Array:
    y = losses.shrink_labels(labels, logits.shape[1:4])
    terms[name] = losses.dice_jaccard_ce(y, logits, settings.dice_reduction, settings.targets)
    return terms[name]

  def deep(name: str, output: Output) -> jax.Array:
    """The supervised loss of a network and of its side heads."""
    total = supervised(name, output.logits)
    for level, logits in output.side_logits.items():
      if weight := side_weights[level]:
        total += weight * supervised(f"{name}/{level}", logits)
    return total

  teachers: Any = sum(
    deep(f"loss/teacher/{name}", output) for name, output in outputs.teachers.items()
  )
  for level, fused in outputs.fused.items():
    teachers += settings.cooperative[level] * supervised(f"loss/cooperative/{level}", fused)

  alone = deep("loss/supervised", outputs.student)
  extra = _extra(outputs, labels, settings, terms)
  if outputs.teachers:
    together = settings.supervised * alone
    taught = _responses(outputs, labels, teacher_weights, settings, brain, terms)
    together += taught
    together += extra
    taught += extra
    for level, fused in outputs.heard.fused.items():
      own = outputs.student.side_logits[level]
      weights = settings.side[level]
      terms[f"loss/side/{level}/kd"] = _response(own, fused, labels, 1.0, settings, brain)[1]
      together += weights.total * (
        weights.supervised * supervised(f"loss/side/{level}/supervised", own)
        + weights.kd * terms[f"loss/side/{level}/kd"]
      )
      taught += weights.total * weights.kd * terms[f"loss/side/{level}/kd"]
    terms["loss/distillation"] = share * taught
    if settings.kd_ramp_epochs:
      student = share * together + (1 - share) * alone
    else:
      student = jnp.where(share > 0, together, alone)
  else:
    student = alone + extra

  terms["loss/student"] = student
  if outputs.teachers:
    terms["loss/teachers"] = teachers
  return teachers + student, terms


def _responses(
  outputs: Outputs,
  labels: jax.Array,
  teacher_weights: Mapping[str, jax.Array],
  settings: LossSettings,
  brain: jax.Array,
  terms: dict[str, jax.Array],
) -> jax.Array | float:
  """Distillation from the teachers' logits, and from the level 1 fused logits, enlarged."""
  logits = {name: output.logits for name, output in outputs.heard.teachers.items()}
  own = outputs.student.logits
  total: jax.Array | float = 0.0
  for name, teacher in logits.items():
    weighted, terms[f"loss/kd/{name}"] = _response(
      own, teacher, labels, teacher_weights[name], settings, brain, tuple(logits.values())
    )
    total += weighted
  if settings.fused_teacher and "level1" in outputs.heard.fused:
    fused = distillation.enlarge(outputs.heard.fused["level1"])
    terms["loss/kd/fused"] = _response(own, fused, labels, 1.0, settings, brain)[1]
    total += settings.fused_teacher * terms["loss/kd/fused"]
  return total


def _response(
  student: jax.Array,
  teacher: jax.Array,
  labels: jax.Array,
  teacher_weight: jax.Array | float,
  settings: LossSettings,
  brain: jax.Array,
  teachers: tuple[jax.Array, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """One distillation term on logits of any level: with the teacher's weight, and without."""
  sides = student.shape[1:4]
  labels, brain = (losses.shrink_labels(x, sides) for x in (labels, brain))
  weight = distillation.voxel_weights(settings.kd_where, labels, brain, teachers)
  how = (settings.temperature, settings.kd_reduction, weight)
  if settings.kd_targets == "regions":
    each = losses.region_kd(student, teacher, *how, settings.kd_regions)
    if jnp.ndim(teacher_weight) == 1:  # one a region
      chosen = np.array([list(REGIONS).index(region) for region in settings.kd_regions])
      teacher_weight = jnp.asarray(teacher_weight)[chosen]
    return jnp.mean(teacher_weight * each), jnp.mean(each)
  plain = losses.kd(student, teacher, *how)
  if jnp.ndim(teacher_weight) == 4:  # one a voxel
    return losses.kd(student, teacher, *how, teacher_weight), plain
  return teacher_weight * plain, plain


def _bottleneck(outputs: Outputs, labels: jax.Array) -> Values:
  own = outputs.student.features["bottleneck"]
  return {
    name: distillation.bottleneck_kd(own, teacher.features["bottleneck"])
    for name, teacher in outputs.heard.teachers.items()
  }


def _prototype(outputs: Outputs, labels: jax.Array) -> Values:
  if not outputs.teachers:
    return {}
  own = outputs.student.features["level1"]
  y = losses.shrink_labels(labels, own.shape[1:4])
  return {
    name: distillation.prototype_kd(own, teacher.features["level1"], y)
    for name, teacher in outputs.heard.teachers.items()
  }


# Further terms of the student's loss. The setting that is the term's weight -> a function of the
# outputs and the labels (B, D, H, W); the mean of its values is weighted. A new one is a line here.
EXTRA_TERMS: dict[str, Callable[[Outputs, jax.Array], Values]] = {
  "bottleneck": _bottleneck,
  "prototype": _prototype,
}


def _extra(
  outputs: Outputs, labels: jax.Array, settings: LossSettings, terms: dict[str, jax.Array]
) -> jax.Array | float:
  """The weighted sum of EXTRA_TERMS; a term without weight is no part of the program."""
  total = 0.0
  for name, term in EXTRA_TERMS.items():
    if weight := getattr(settings, name):
      values = term(outputs, labels)
      terms |= {f"loss/{name}/{of}": value for of, value in values.items()}
      total += sum(weight / len(values) * value for value in values.values())
  return total
