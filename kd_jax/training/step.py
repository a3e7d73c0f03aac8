"""The training step: one compiled function, nothing else is compiled for training.

It augments the batch, runs all networks, sets the confidence weights, computes every loss and
gradient, updates teachers, fusion and student together, and returns the metrics. All forward passes
use the parameters from before the step, so the update is exactly one joint step.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.method import batch_scores as metrics_lib
from kd_jax.method import confidence as confidence_lib
from kd_jax.method.confidence import Confidence
from kd_jax.method.distillation import certainty_shares
from kd_jax.method.objective import distillation_share, objective
from kd_jax.models.framework import Framework, Outputs, Params
from kd_jax.models.interface import Output
from kd_jax.settings.method import ConfidenceSettings, LossSettings
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.accumulate import grad_in_parts
from kd_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]  # image (B, M, D, H, W), label (B, D, H, W)
Metrics = dict[str, jax.Array]


def make_train_step(
  framework: Framework,
  optimizers: Mapping[str, optax.GradientTransformation],
  loss: LossSettings,
  confidence: ConfidenceSettings,
  *,
  steps_per_epoch: int,
  augment: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
  ema_decay: float = 0.0,
  accumulate: int = 1,
  skip_nonfinite: bool = False,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """The step as a pure function of state, batch and the run's key, for `compile_step`.

  The key is the augmentation's; each step folds its number in, so a resumed run repeats itself. It
  is an argument so that runs that differ in their seed alone share one compiled program.

  Args:
    framework: the networks.
    optimizers: one for each parameter group.
    loss: weights and reductions of the losses.
    confidence: how the teachers are weighted.
    steps_per_epoch: for the first-epoch rule and the epoch-wise confidence.
    augment: (key, images, labels) -> (images, labels), on the device.
    ema_decay: of the student's average; 0 for none.
    accumulate: parts of the batch that go through the networks one after the other; the step is
      the same, see accumulate.py.
    skip_nonfinite: where a loss, a gradient or a score is NaN or infinite, the step leaves
      everything but its number as it was, and says so in the metric `skipped` (0 or 1). Costs the
      memory of a second state.
  """

  def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    images, labels = batch["image"], batch["label"]
    if augment is not None:
      images, labels = augment(jax.random.fold_in(key, state.step), images, labels)
    brain = jnp.any(images != 0, axis=1)  # (B, D, H, W)
    new_epoch = state.step % steps_per_epoch == 0
    begun = confidence_lib.begin_step(state.confidence, new_epoch, confidence)
    share = distillation_share(state.step, steps_per_epoch, loss)

    def forward(params: Params, images: jax.Array) -> Outputs:
      """Without the features that no loss asks for."""
      return _keep(framework(params, images, state.teachers_ema), loss.features)

    def loss_of(outputs: Outputs) -> tuple[jax.Array, tuple[Metrics, dict[str, jax.Array]]]:
      scores = _scores(lax.stop_gradient(outputs), labels, confidence)
      weights = _teacher_weights(outputs, scores, begun, confidence)
      total, terms = objective(outputs, labels, weights, share, loss, brain)
      return total, (terms | _by_region("weight", weights), scores)

    def loss_fn(params: Params):
      outputs = forward(params, images)
      total, rest = loss_of(outputs)
      return total, (outputs, rest)

    if accumulate == 1:
      grads, (outputs, rest) = jax.grad(loss_fn, has_aux=True)(state.params)
    else:
      grads, outputs, rest = grad_in_parts(forward, loss_of, state.params, images, accumulate)
    metrics, scores = rest

    updated = _update(state, grads, optimizers, ema_decay)
    metrics |= {f"grad_norm/{group}": optax.tree.norm(grads[group]) for group in optimizers}
    confidence_state = begun
    if outputs.teachers:
      metrics |= _by_region("score", scores)
      confidence_state = confidence_lib.end_step(begun, scores, confidence)
    metrics |= _batch_dice(outputs, labels)
    new_state = dataclasses.replace(updated, confidence=confidence_state)
    if skip_nonfinite:
      # A new epoch begins all the same.
      kept = dataclasses.replace(state, step=new_state.step, confidence=begun)
      new_state, metrics = _finite_or(kept, new_state, metrics)
    return new_state, metrics

  return train_step


def _teacher_weights(
  outputs: Outputs,
  scores: Mapping[str, jax.Array],
  begun: Confidence,
  settings: ConfidenceSettings,
) -> dict[str, jax.Array]:
  """Teacher's name -> its weight in this step: (), (3,) by region or (B, D, H, W) by voxel."""
  if settings.by == "voxel":
    logits = {name: output.logits for name, output in outputs.heard.teachers.items()}
    return certainty_shares(logits, settings.total)
  if settings.update == "batch":
    return confidence_lib.weights_of(scores, settings.total)
  return begun.weights


def _update(
  state: TrainState,
  grads: Params,
  optimizers: Mapping[str, optax.GradientTransformation],
  ema_decay: float,
) -> TrainState:
  """The joint update of all groups, from gradients at the parameters before the step."""
  params, opt_state = {}, {}
  for group, tx in optimizers.items():
    updates, opt_state[group] = tx.update(grads[group], state.opt_state[group], state.params[group])
    updates = jax.tree.map(lambda u, scale=state.lr_scale[group]: u * scale, updates)
    params[group] = optax.apply_updates(state.params[group], updates)
  return dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    ema=_average(state.step, state.ema, params["student"], ema_decay),
    teachers_ema=_average(state.step, state.teachers_ema, params["teachers"], ema_decay),
  )


def _finite_or(
  kept: TrainState, new_state: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
  """new_state if all metrics are finite, else kept; with the metric `skipped`."""
  finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
  chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, kept)
  return chosen, metrics | {"skipped": 1.0 - finite}


def _keep(outputs: Outputs, features: Sequence[str]) -> Outputs:
  """Without the features that are not among these."""

  def kept(x: Output | jax.Array) -> Output | jax.Array:
    if not isinstance(x, Output):
      return x
    return x._replace(features={name: x.features[name] for name in features})

  return jax.tree.map(kept, outputs, is_leaf=lambda x: isinstance(x, Output))


def _scores(
  outputs: Outputs, labels: jax.Array, settings: ConfidenceSettings
) -> dict[str, jax.Array]:
  """Teacher's name (and the student's, if asked for) -> its Dice: (), or (3,) by region."""
  networks = dict(outputs.heard.teachers)
  if networks and settings.above_student:
    networks[confidence_lib.STUDENT] = outputs.student

  def score(output: Output, regions: Sequence[str]) -> jax.Array:
    return metrics_lib.score(output.logits, labels, settings.score, regions)

  if settings.by == "region":
    return {
      name: jnp.stack([score(output, (region,)) for region in REGIONS])
      for name, output in networks.items()
    }
  return {name: score(output, settings.regions) for name, output in networks.items()}


def _by_region(what: str, values: Mapping[str, jax.Array]) -> Metrics:
  """Scores or weights as scalars for the logs; those of voxels by their mean."""
  found: Metrics = {}
  for name, value in values.items():
    if value.shape == (len(REGIONS),):
      found |= {f"confidence/{what}/{name}/{r}": v for r, v in zip(REGIONS, value, strict=True)}
    else:
      found[f"confidence/{what}/{name}"] = jnp.mean(value)
  return found


def _batch_dice(outputs: Outputs, labels: jax.Array) -> Metrics:
  """Hard Dice over the batch's volume, by network and region: a sign of life in the logs."""
  networks = {**outputs.teachers, "student": outputs.student}
  return {
    f"dice/{name}/{region}": metrics_lib.score(output.logits, labels, "hard_dice", (region,))
    for name, output in networks.items()
    for region in REGIONS
  }


def _average(step: jax.Array, old: Params | None, new: Params, decay: float) -> Params | None:
  """The exponential average of parameters, quick to follow in its first steps; None stays None."""
  if old is None:
    return None
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda old, new: d * old + (1 - d) * new, old, new)


def batch_sharding(mesh: Mesh) -> dict[str, NamedSharding]:
  """The batch over `data`, the volume's depth over `space`."""
  return {
    "image": NamedSharding(mesh, P("data", None, "space")),
    "label": NamedSharding(mesh, P("data", "space")),
  }


def compile_step(step: Callable, mesh: Mesh) -> Callable:
  """jit over the mesh: state and key replicated, state donated, batch sharded, metrics replicated.

  Put the first state on the mesh before the first call, or that call compiles a program of its own.
  """
  replicated = NamedSharding(mesh, P())
  return jax.jit(
    step,
    in_shardings=(replicated, batch_sharding(mesh), replicated),
    out_shardings=(replicated, replicated),
    donate_argnums=0,
  )
