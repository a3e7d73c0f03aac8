"""Optimisers of the two parameter groups: AdamW or SGD, clipping, a schedule, the plateau rule."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from kd_jax.settings.training import OptimizerSettings, PlateauSettings


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
    raise ValueError(
      f"schedule {settings.schedule!r} is none of constant, warmup_cosine, poly, plateau"
    )
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
  return optax.chain(_clip(settings.clip_norm), descent)


def _clip(most: float) -> optax.GradientTransformation:
  """optax.clip_by_global_norm with one factor for all gradients, which has the same state.

  Optax divides each gradient: XLA for CPU writes every quotient, by hundreds of kernels of its own.
  """

  def update(
    grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, optax.OptState]:
    del params
    factor = most / jnp.maximum(optax.tree.norm(grads), most)
    return jax.tree.map(lambda grad: grad * factor, grads), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


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
