"""Checkpoints: all that a run needs to go on as if it had never stopped. The only file with Orbax.

A checkpoint has three items: `networks` (all parameters and the student's average), `training`
(the rest of the state) and `notes` (plain JSON: best scores, plateau rule, thresholds).
It is written under a temporary name, with the checksums of its files, and renamed when complete, so
a killed process leaves the last one whole, and a disk that forgets is noticed. The data's position
is the step's number: see data/pipeline.py.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from errno import EACCES, EDQUOT, EIO, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from kd_jax.runs.layout import CHECKPOINTS
from kd_jax.runtime import checksums, processes
from kd_jax.runtime.errors import UserError

_SCORE = "score"
_REMOVAL_S = 1.0  # in which a checkpoint that is being removed is gone


class Items(NamedTuple):
  """The trees of arrays that a checkpoint holds.

  Attributes:
    networks: {"params": {"teachers", "student"}, "ema": the student's average or None}.
    training: what prediction has no use for.
  """

  networks: dict[str, Any]
  training: dict[str, Any]


class Best(NamedTuple):
  """What is read of a run's best checkpoint.

  Attributes:
    step: steps done.
    student: the student's parameters: their average, if the run keeps one.
    averaged: whether they are that.
    notes: what the host knew, as JSON.
    score: the validation's; None if the checkpoint has just been removed.
  """

  step: int
  student: dict[str, Any]
  averaged: bool
  notes: dict[str, Any]
  score: float | None


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
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._note_checksums,
        # Else threads wait 20 minutes for folders that cannot be made, and the process with them.
        create_directories_asynchronously=False,
      ),
    )
    self.folder = workdir.absolute() / CHECKPOINTS
    self._begun = -1  # the step whose checkpoint was begun last
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

  def save(self, step: int, items: Items, notes: dict, score: float | None = None) -> None:
    """Begins to write a checkpoint; the arrays may be donated to the next step at once.

    Args:
      step: steps done.
      items: the state after that step.
      notes: what the host knows, as JSON.
      score: of a validation after that step, higher is better.

    Raises:
      UserError: this checkpoint or the one begun before cannot be written.
    """
    self.wait()
    self._begun = step
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          networks=ocp.args.StandardSave(items.networks),
          training=ocp.args.StandardSave(items.training),
          notes=ocp.args.JsonSave(notes),
        ),
        metrics=None if score is None else {_SCORE: score},
        force=True,
      )

  def restore(self, step: int, abstract: Items, sharding: Sharding) -> tuple[Items, dict]:
    """The arrays and the notes of a checkpoint.

    Args:
      abstract: the arrays' shapes, from jax.eval_shape.
      sharding: where they are to lie.
    """
    older = "cohort" in self._stored_tree(step)["params"]
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    if older:
      target = _with_names(target, _OLDER_NAMES)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        networks=ocp.args.StandardRestore(target.networks),
        training=ocp.args.StandardRestore(target.training),
        notes=ocp.args.JsonRestore(),
      ),
    )
    items = Items(restored.networks, restored.training)
    return (_with_names(items, _TODAY_S_NAMES) if older else items), restored.notes

  def restore_student(self, step: int) -> tuple[dict[str, Any], bool]:
    """The student's parameters alone, as NumPy arrays, and whether they are the run's average.

    Raises:
      UserError: its files are not what was written.
    """
    if found := checksums.damage(self.folder / str(step)):
      raise UserError(
        f"the checkpoint of step {step} in {self.folder} is damaged ({found}). Put it back from a "
        f"copy; or move {self.folder / str(step)} elsewhere, and the best of the others is used"
      )
    stored = self._stored_tree(step)
    averaged = stored.get("ema") is not None
    wanted = (
      {"ema": stored["ema"]} if averaged else {"params": {"student": stored["params"]["student"]}}
    )
    tree = self._read(step, wanted)
    return (tree["ema"] if averaged else tree["params"]["student"]), averaged

  def restore_networks(self, step: int) -> dict[str, Any]:
    """All networks' parameters and the student's average, {"params", "ema"}, as NumPy arrays."""
    return self._read(step, self._stored_tree(step))

  def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """A part of the networks' stored tree."""
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
      return reader.restore(self.folder / str(step) / "networks", args=args)

  def _stored_tree(self, step: int) -> dict[str, Any]:
    """The networks' arrays as they are stored: names and shapes."""
    with ocp.PyTreeCheckpointer() as reader:
      return reader.metadata(self.folder / str(step) / "networks").item_metadata.tree

  def notes(self, step: int) -> dict:
    """The notes alone."""
    args = ocp.args.Composite(notes=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args).notes

  def wait(self) -> None:
    """Until all that was begun is on disk; raises what went wrong there, UserError for the disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says what a disk's refusal means; Orbax raises it as an OSError or within another error."""
    try:
      yield
    except Exception as e:
      refusals = [os.strerror(n) for n in (ENOSPC, EDQUOT, EROFS, EACCES, EPERM, EIO)]
      why = next((reason for reason in refusals if reason in str(e)), None)
      if why is None and not isinstance(e, OSError):
        raise
      raise UserError(
        f"cannot write the checkpoint of step {self._begun} in {self.folder}: {why or e}. The ones "
        "before it are as they were; make room and start again"
      ) from e

  def _note_checksums(self) -> None:
    """Called by Orbax where all is written and only the renaming is left."""
    if processes.first():
      for folder in self.folder.glob(f"{self._begun}.*"):
        checksums.write(folder)


def read_best(workdir: Path) -> Best:
  """The best checkpoint; where a run that goes on replaces it meanwhile, the one that replaced it.

  Raises:
    UserError: no checkpoint was validated, or the best is damaged.
  """
  while True:
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.best_step()
    try:
      student, averaged = checkpoints.restore_student(step)
      return Best(step, student, averaged, checkpoints.notes(step), checkpoints.score(step))
    except Exception:  # Orbax has many errors for what is not there any more
      time.sleep(_REMOVAL_S)
      if (checkpoints.folder / str(step)).exists():
        raise


def set_aside_damaged(workdir: Path, tell: Callable[[str], None]) -> None:
  """Moves checkpoints whose files are not what was written out of the way of the last sound one.

  It does not check older ones than that.

  Raises:
    UserError: no checkpoint is sound; all stay where they are.
  """
  folder, damaged = workdir / CHECKPOINTS, {}
  steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdigit()), reverse=True)
  for step in steps:
    if not (found := checksums.damage(folder / str(step))):
      break
    damaged[step] = found
  if damaged and len(damaged) == len(steps):
    listed = "; ".join(f"step {step}: {found}" for step, found in damaged.items())
    raise UserError(
      f"no checkpoint in {folder} is sound ({listed}). Put one back from a copy; to begin anew, "
      "move the folder elsewhere or give another --workdir"
    )
  for step, found in damaged.items():
    target = workdir / f"damaged-checkpoint-{step}"
    shutil.rmtree(target, ignore_errors=True)  # the same step, damaged before
    (folder / str(step)).rename(target)
    tell(
      f"warning: the checkpoint of step {step} is damaged ({found}); it is set aside as {target}, "
      "and the one before it is used. Look after that disk"
    )


# --- Checkpoints of earlier versions ------------------------------------------------------------

# The names of the parameters' groups, of all groups and within the teachers' group.
_OLDER_NAMES = {
  frozenset(("teachers", "student")): {"teachers": "cohort"},
  frozenset(("networks", "fusion")): {"networks": "teachers"},
  frozenset(("networks",)): {"networks": "teachers"},
}
_TODAY_S_NAMES = {
  frozenset(("cohort", "student")): {"cohort": "teachers"},
  frozenset(("teachers", "fusion")): {"teachers": "networks"},
  frozenset(("teachers",)): {"teachers": "networks"},
}


def _with_names(tree: Any, names: Mapping[frozenset, Mapping[str, str]]) -> Any:
  """A tree in which dicts with certain keys have other ones."""
  if isinstance(tree, dict):
    renamed = names.get(frozenset(tree), {})
    return {renamed.get(key, key): _with_names(part, names) for key, part in tree.items()}
  if isinstance(tree, tuple):
    parts = [_with_names(part, names) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
  return tree
