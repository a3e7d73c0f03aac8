"""Checkpoints: all that a run needs to go on as if it had never stopped. The only file with Orbax.

A checkpoint has three items: `networks` (all parameters and the student's average), `training`
(the rest of the state) and `notes` (plain JSON: best scores, plateau rule, threshold of small ET).
It is written under a temporary name and renamed when complete, so a killed process leaves the last
one whole. The data's position is the step's number: see data/pipeline.py.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from kd_jax.errors import UserError
from kd_jax.step import TrainState

FOLDER = "checkpoints"
_SCORE = "score"


class Networks(NamedTuple):
  """What prediction needs: {"cohort", "student"} parameters, the student's average or None."""

  params: dict[str, Any]
  ema: dict[str, Any] | None


class Checkpoints:
  """The checkpoints of one work directory: the latest few, and the best by validation score."""

  def __init__(self, workdir: Path, keep: int = 1, *, read_only: bool = False):
    def score_of(metrics: dict) -> float:
      return metrics[_SCORE]

    latest = policies.LatestN(keep)
    best = policies.BestN(get_metric_fn=score_of, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy([latest, best]),
      best_fn=score_of,  # without it, scores are not written
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
    )
    self.folder = workdir.absolute() / FOLDER
    if read_only and not self.folder.is_dir():
      raise UserError(f"{workdir} has no checkpoints; train there first")
    self._manager = ocp.CheckpointManager(
      self.folder, options=options, item_names=("networks", "training", "notes")
    )

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def best_step(self) -> int:
    """The validated checkpoint with the highest score. UserError if none was validated."""
    scores = {step: self.score(step) for step in self.steps()}
    scored = {step: score for step, score in scores.items() if score is not None}
    if not scored:
      raise UserError(f"no checkpoint in {self.folder} was validated; train on to a validation")
    return max(scored, key=lambda step: (scored[step], step))

  def score(self, step: int) -> float | None:
    """The validation score that a checkpoint was saved with."""
    return (self._manager.metrics(step) or {}).get(_SCORE)

  def save(self, step: int, state: TrainState, notes: dict, score: float | None = None) -> None:
    """Begins to write a checkpoint; the state may be donated to the next step at once.

    Args:
      step: steps done.
      state: after that step.
      notes: what the host knows, as JSON.
      score: of a validation after that step, higher is better.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        networks=ocp.args.StandardSave(_networks(state)),
        training=ocp.args.StandardSave(_training(state)),
        notes=ocp.args.JsonSave(notes),
      ),
      metrics=None if score is None else {_SCORE: score},
      force=True,
    )

  def restore(self, step: int, abstract: TrainState, sharding: Sharding) -> tuple[TrainState, dict]:
    """The state and the notes of a checkpoint.

    Args:
      abstract: the state's shapes, from jax.eval_shape.
      sharding: where its arrays are to lie.
    """
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        networks=ocp.args.StandardRestore(_networks(target)),
        training=ocp.args.StandardRestore(_training(target)),
        notes=ocp.args.JsonRestore(),
      ),
    )
    return TrainState(**items.networks, **items.training), items.notes

  def restore_networks(self, step: int, abstract: TrainState) -> Networks:
    """What prediction needs of a checkpoint, on this process's first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _networks(abstract)
    )
    args = ocp.args.Composite(networks=ocp.args.StandardRestore(target))
    return Networks(**self._manager.restore(step, args=args).networks)

  def notes(self, step: int) -> dict:
    """The notes alone."""
    args = ocp.args.Composite(notes=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args).notes

  def wait(self) -> None:
    """Until all that was begun is on disk; raises what went wrong there."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def _networks(state: TrainState) -> dict[str, Any]:
  return {"params": state.params, "ema": state.ema}


def _training(state: TrainState) -> dict[str, Any]:
  return {
    "step": state.step,
    "opt_state": state.opt_state,
    "confidence": state.confidence,
    "lr_scale": state.lr_scale,
  }
