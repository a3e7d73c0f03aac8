"""Optimisers of the two parameter groups: AdamW or SGD, clipping, a schedule, the plateau rule."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import optax

GROUPS = ("cohort", "student")
ALGORITHMS = ("adamw", "sgd")
SCHEDULES = ("constant", "warmup_cosine", "poly", "plateau")


@dataclass(frozen=True)
class PlateauSettings:
  """Lower the learning rate when the validation score stops rising (schedule "plateau").

  Attributes:
    factor: what the learning rate is multiplied by.
    patience: validations without a better score that are borne.
    from_epoch: the first epoch (from 0) whose validation counts.
  """

  factor: float = 0.1
  patience: int = 5
  from_epoch: int = 0


@dataclass(frozen=True)
class OptimizerSettings:
  """One group's optimiser.

  Attributes:
    algorithm: "adamw", which is Adam where weight_decay is 0; or "sgd" with Nesterov's momentum
      beta1 and the decay in the gradient (nnU-Net: learning_rate 0.01, beta1 0.99, weight_decay
      3e-5, "poly").
    learning_rate: the schedule's highest.
    schedule: one of SCHEDULES; "plateau" is constant here and lowered by PlateauSettings.
    warmup: the share of all steps in which "warmup_cosine" and "poly" rise from 0.
    final: the share of learning_rate that "warmup_cosine" and "poly" end with.
    power: of "poly" (nnU-Net's 0.9).
    beta1, beta2, epsilon, weight_decay: of AdamW; beta1 and weight_decay of SGD too.
    clip_norm: the largest gradient norm of the group; 0 for no clipping.
  """

  algorithm: str = "adamw"
  learning_rate: float = 1e-3
  schedule: str = "warmup_cosine"
  warmup: float = 0.05
  final: float = 0.0
  power: float = 0.9
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  plateau: PlateauSettings = field(default_factory=PlateauSettings)


def schedule(settings: OptimizerSettings, total_steps: int) -> optax.Schedule:
  """Step (from 0) -> learning rate."""
  peak = settings.learning_rate
  if settings.schedule in ("constant", "plateau"):
    return optax.constant_schedule(peak)
  warmup = min(round(settings.warmup * total_steps), total_steps - 1)
  rest = total_steps - warmup
  if settings.schedule == "warmup_cosine":
    fall = optax.cosine_decay_schedule(peak, rest, alpha=settings.final)
  elif settings.schedule == "poly":
    fall = optax.polynomial_schedule(peak, peak * settings.final, settings.power, rest)
  else:
    raise ValueError(f"schedule {settings.schedule!r} is none of {SCHEDULES}")
  if not warmup:
    return fall
  # The first step already moves: it has 1 / warmup of the peak, not 0.
  rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
  return optax.join_schedules([rise, fall], [warmup])


def optimizer(settings: OptimizerSettings, total_steps: int) -> optax.GradientTransformation:
  """The group's optimiser over a run of total_steps."""
  rate = schedule(settings, total_steps)
  if settings.algorithm == "sgd":
    descent = optax.chain(
      optax.add_decayed_weights(settings.weight_decay),
      optax.sgd(rate, momentum=settings.beta1, nesterov=True),
    )
  else:
    descent = optax.adamw(
      rate,
      b1=settings.beta1,
      b2=settings.beta2,
      eps=settings.epsilon,
      weight_decay=settings.weight_decay,
    )
  if not settings.clip_norm:
    return descent
  return optax.chain(optax.clip_by_global_norm(settings.clip_norm), descent)


@dataclass(frozen=True)
class Plateau:
  """Where the plateau rule of one group stands: plain numbers, kept with each checkpoint."""

  best: float | None = None
  waited: int = 0

  def after(self, score: float, epoch: int, settings: PlateauSettings) -> tuple["Plateau", bool]:
    """Takes one validation's score (higher is better) into account.

    Returns:
      The new standing, and whether the learning rate is to be lowered now.
    """
    if epoch < settings.from_epoch:
      return self, False
    if self.best is None or score > self.best:
      return Plateau(score, 0), False
    if self.waited + 1 > settings.patience:
      return Plateau(self.best, 0), True
    return Plateau(self.best, self.waited + 1), False


def learning_rates(
  settings: dict[str, OptimizerSettings], total_steps: int
) -> Callable[[int, dict[str, jax.Array]], dict[str, float]]:
  """(step, lr_scale by group) -> the learning rate of that step, by group; for the logs."""
  schedules = {group: schedule(own, total_steps) for group, own in settings.items()}
  return lambda step, scale: {
    group: float(rate(step)) * float(scale[group]) for group, rate in schedules.items()
  }
