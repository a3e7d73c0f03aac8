"""All that training changes, as one tree of arrays; what a checkpoint holds of it."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from kd_jax.method import confidence as confidence_lib
from kd_jax.method.confidence import Confidence
from kd_jax.models.framework import Framework, Params
from kd_jax.runs.checkpoints import Items
from kd_jax.settings.method import ConfidenceSettings


@flax.struct.dataclass
class TrainState:
  """All that training changes.

  Attributes:
    step: (), steps done.
    params: {"teachers", "student"}, see models/framework.py.
    opt_state: one optax state a group.
    confidence: the teachers' weights and running scores.
    lr_scale: a factor on each group's learning rate, lowered by the plateau rule.
    ema: the average of the student's parameters, or None.
    teachers_ema: of two cohorts of teachers, which the student hears; else None.
  """

  step: jax.Array
  params: Params
  opt_state: dict[str, Any]
  confidence: Confidence
  lr_scale: dict[str, jax.Array]
  ema: Params | None
  teachers_ema: Params | None = None


def init_state(
  framework: Framework,
  optimizers: Mapping[str, optax.GradientTransformation],
  confidence: ConfidenceSettings,
  key: jax.Array,
  *,
  ema: bool = False,
) -> TrainState:
  """A fresh state."""
  params = framework.init(key)
  heard = ema and framework.spec.cohorts > 1
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={group: tx.init(params[group]) for group, tx in optimizers.items()},
    confidence=confidence_lib.init(framework.spec.teachers, confidence),
    lr_scale={group: jnp.ones(()) for group in optimizers},
    ema=jax.tree.map(jnp.copy, params["student"]) if ema else None,
    teachers_ema=jax.tree.map(jnp.copy, params["teachers"]) if heard else None,
  )


def to_items(state: TrainState) -> Items:
  """A state as the items of a checkpoint: what prediction needs, and the rest."""
  fields = {name: getattr(state, name) for name in TrainState.__dataclass_fields__}
  networks = {name: fields.pop(name) for name in ("params", "ema")}
  if state.teachers_ema is None:  # nor has a checkpoint of earlier versions
    del fields["teachers_ema"]
  return Items(networks, fields)


def from_items(items: Items) -> TrainState:
  """The state that `to_items` took apart."""
  return TrainState(**items.networks, **items.training)
