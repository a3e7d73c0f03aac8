"""Training, from settings to a work directory with checkpoints, logs and pictures."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kd_jax.data import pipeline
from kd_jax.data.dataset import spread
from kd_jax.data.entry import open_entry
from kd_jax.models.framework import Params
from kd_jax.prediction import quality, sliding_window
from kd_jax.runs import provenance
from kd_jax.runtime import child_processes, commands, lock, processes
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.interrupts import Interrupts
from kd_jax.runtime.memory import memory
from kd_jax.runtime.terminal import Terminal, duration
from kd_jax.settings import schema
from kd_jax.settings.run import Settings
from kd_jax.training import messages, optimisers, program
from kd_jax.training import step as step_lib
from kd_jax.training.mesh import mesh_for
from kd_jax.training.metric_averages import MetricAverages
from kd_jax.training.optimisers import Plateau
from kd_jax.training.setup import Setup, set_up
from kd_jax.training.state import to_items
from kd_jax.training.validation import Validation, validate


class NonFiniteError(UserError):
  """A loss or gradient that is no number any more."""


def train(settings: Settings, workdir: Path, terminal: Terminal) -> None:
  """Trains, or goes on where the work directory's last checkpoint stands.

  Args:
    settings: of the run.
    workdir: made if need be.
    terminal: where to tell.

  Raises:
    UserError: a setting, a file or a loss that the user has to correct; or another run that
      works in the directory.
  """
  child_processes.refuse_second_run()
  mesh = mesh_for(settings)  # an error before any work
  alone = lock.held(workdir, terminal.line) if processes.first() else contextlib.nullcontext()
  with alone:
    setup = set_up(settings, mesh, workdir, terminal)
    _loop(_Run(setup, settings, workdir, terminal), mesh)


def _loop(run: "_Run", mesh: Mesh) -> None:
  """Steps until all are done, or a signal comes; logs, validates and saves in between."""
  setup, plan = run.setup, run.setup.plan
  with (
    contextlib.closing(setup.log),
    contextlib.closing(setup.checkpoints),
    contextlib.closing(_batches(run, mesh)) as batches,
    Interrupts() as interrupts,
    run.terminal.live("training", plan.total_steps, setup.first) as show,
  ):
    for step in range(setup.first + 1, plan.total_steps + 1):
      run.take_step(step, next(batches))
      log_now, validate_now = plan.log(step), plan.validate(step)
      stop_now = interrupts.agreed(ask=log_now or validate_now)
      save_now = plan.save(step) or stop_now
      if log_now or save_now:  # save nothing before its numbers are checked
        show(step, run.log_numbers(step))
      result = run.validate(step) if validate_now else None
      if save_now:
        run.save(step, result)
      if log_now or save_now:
        run.averages = MetricAverages()
      if stop_now:
        setup.checkpoints.wait()
        setup.log.line(f"stopped by {interrupts.name} after step {step}; the checkpoint is saved")
        raise SystemExit(128 + interrupts.number)
    setup.checkpoints.wait()
    idle = setup.first >= plan.total_steps
    messages.conclude(setup.log, run.workdir, setup.dataset, run.best, idle)


def _batches(run: "_Run", mesh: Mesh) -> Generator[step_lib.Batch, None, None]:
  """The training batches from the run's next step on, on the devices of the mesh."""
  data, entries = run.settings.data, run.setup.dataset.entries
  first, second = ([entries[name] for name in names] for names in (*run.setup.cohorts, [])[:2])
  shardings = step_lib.batch_sharding(mesh)
  rows = pipeline.rows_here(shardings["label"], data.batch)
  batches = pipeline.training_batches(
    first,
    data.sampling,
    second=second,
    batch=data.batch,
    parts=run.settings.train.accumulate,
    seed=run.settings.seed,
    first=run.setup.first,
    rows=rows,
    tell=run.setup.log.line,
  )
  with contextlib.closing(batches):
    for batch in batches:
      yield pipeline.to_devices(batch, rows, shardings, data.batch)


class _Run:
  """A run in progress: what is fixed, and what its steps change.

  Attributes:
    setup, settings, workdir, terminal: fixed.
    state: after the last step.
    averages: metrics since the last line of the log.
    best: {"score", "step"} of the best validation; {} before the first.
    plateaus: where the plateau rule of each group stands.
    skipped: steps that were not finite, in all.
  """

  def __init__(self, setup: Setup, settings: Settings, workdir: Path, terminal: Terminal):
    self.setup, self.settings = setup, settings
    self.workdir, self.terminal = workdir, terminal
    self.state, notes = setup.state, setup.notes
    self.averages = MetricAverages()
    self.best: dict[str, Any] = notes.get("best", {})
    self.skipped: int = notes.get("skipped", 0)
    standing = _plateaus_of(notes)
    self.plateaus = {group: Plateau(**standing.get(group, {})) for group in settings.optim.groups}
    self._step: Any = None  # until it is compiled
    groups, total = settings.optim.groups, setup.plan.total_steps
    self._rates = optimisers.learning_rates(groups, total)
    data = settings.data
    self._shapes = sliding_window.shapes(
      data.patch, data.spacing, data.grid, multiple=settings.model.multiple
    )
    watched = spread(setup.dataset.val, settings.train.validate_cases)
    training = [open_entry(setup.dataset.entries[name]).meta for name in setup.dataset.train]
    voxels = [(meta["class_voxels"], math.prod(meta["spacing_mm"])) for meta in training]
    self._volumes = schema.plain(quality.usual_volumes(voxels))
    self._watched = {name: setup.dataset.entries[name] for name in watched}

  def take_step(self, step: int, batch: step_lib.Batch) -> None:
    """One step; the first one of this process is compiled before, so that no time holds it."""
    if step == self.setup.first + 1:
      self._compile(batch)
      self.averages = MetricAverages()
    self.state, metrics = self._step(self.state, batch, self.setup.key)
    self.averages.add(step, metrics)

  def log_numbers(self, step: int) -> str:
    """Waits for the steps so far, logs their means; returns a summary.

    Raises:
      NonFiniteError: more steps than allowed had a number that is NaN or infinite.
    """
    log, plan, most = self.setup.log, self.setup.plan, self.settings.train.skip_nonfinite
    values = self.averages.close(self.settings.data.batch)
    for bad in values.non_finite:
      self._skip(*bad, most)
    numbers = values.means | memory()
    if most:
      numbers["skipped"] = self.skipped  # so far, in all
    rates = self._rates(step - 1 - self.skipped, self.state.lr_scale)
    numbers |= {f"lr/{group}": rate for group, rate in rates.items()}
    log.scalars(step, {f"train/{name}": value for name, value in numbers.items()})
    summary = messages.summary(numbers)
    left = duration((plan.total_steps - step) * numbers["seconds_per_step"])
    line = f"step {step}/{plan.total_steps}  epoch {plan.epoch(step) + 1}  {summary}  {left} left"
    log.line(line, terminal=not self.terminal.console.is_terminal)
    return summary

  def validate(self, step: int) -> Validation:
    """Scores all networks, notes the best step, lowers learning rates by the plateau rule."""
    began, framework = time.monotonic(), self.setup.framework
    heard = self.state.teachers_ema or self.state.params["teachers"]
    networks = framework.networks(self.state.params | {"teachers": heard})
    if self.state.ema is not None:
      networks["student"] = (self.state.ema, self.settings.model.student)
    result = validate(
      self._predict,
      networks,
      self._watched,
      self.settings.inference.minimum_sizes,
      self.settings.train.preview_cases,
      self.settings.inference.calibrate,
      self.terminal.progress("validating"),
    )
    if not self.best or result.score >= self.best["score"]:  # as checkpoints are kept
      self.best = {"score": result.score, "step": step}
    self._follow_plateaus(result.score, self.setup.plan.epoch(step))
    seconds = time.monotonic() - began
    messages.validated(self.setup.log, step, result, self.best, seconds)
    return result

  def save(self, step: int, result: Validation | None) -> None:
    """Begins to write a checkpoint; result: of a validation after this step."""
    standing = {group: dataclasses.asdict(plateau) for group, plateau in self.plateaus.items()}
    notes = {"plateau": standing, "best": self.best, "next_batch": step, "skipped": self.skipped}
    notes["steps_per_epoch"] = self.setup.plan.steps_per_epoch
    if result:
      notes |= {f"min_{name}": mm3 for name, mm3 in result.minimum_sizes._asdict().items()}
      notes |= {"calibration": schema.plain(result.calibration), "volumes": self._volumes}
    score = result.score if result else None
    self.setup.checkpoints.save(step, to_items(self.state), notes, score)

  def _compile(self, batch: step_lib.Batch) -> None:
    setup, log = self.setup, self.setup.log
    log.line("compiling the training step (a minute or two on CPU, the first time)")
    arguments = (self.state, batch, setup.key)
    compiled = program.compile_step(
      setup.make_step, arguments, setup.remat, setup.options, log.line
    )
    self._step = compiled.run
    log.line(str(compiled))
    if processes.first():
      known = {"remat": compiled.remat, "compile_seconds": round(compiled.seconds, 1)}
      provenance.amend(self.workdir, **known, step_bytes=compiled.bytes)

  def _skip(self, step: int, name: str, value: float, most: int) -> None:
    """Counts a step that was not finite. NonFiniteError if there are more than may be."""
    self.skipped += 1
    log, checkpoints = self.setup.log, self.setup.checkpoints
    if self.skipped > most:
      checkpoints.wait()
      kept = checkpoints.steps()
      error = _non_finite(step, name, value, self.skipped - 1, self.workdir, kept)
      log.line(f"error: {error}", terminal=False)
      raise error
    log.line(f"step {step} is left out: {name} is {value} ({self.skipped} of {most} at most)")

  def _follow_plateaus(self, score: float, epoch: int) -> None:
    for group, own in self.settings.optim.groups.items():
      if own.schedule != "plateau":
        continue
      self.plateaus[group], lower = self.plateaus[group].after(score, epoch, own.plateau)
      if lower:
        scale = self.state.lr_scale
        scale = scale | {group: scale[group] * own.plateau.factor}
        self.state = dataclasses.replace(self.state, lr_scale=scale)
        self.setup.log.line(f"the learning rate of {group} is lowered: no better score for a while")

  def _predict(self, name: str, params: Params, volume: np.ndarray) -> np.ndarray:
    params = jax.tree.map(lambda x: x.addressable_data(0), params)  # as it lies on one device
    member = (self.setup.framework.network_of(name), params)
    return sliding_window.predict(
      [member], volume, self._shapes, self.settings.inference, self.setup.options
    )


def _plateaus_of(notes: dict[str, Any]) -> dict[str, Any]:
  """What a checkpoint's notes say of each group; an earlier name is understood."""
  standing = dict(notes.get("plateau", {}))
  if "cohort" in standing:
    standing["teachers"] = standing.pop("cohort")
  return standing


def _non_finite(
  step: int, name: str, value: float, skipped: int, workdir: Path, kept: Sequence[int]
) -> NonFiniteError:
  before = f" after {skipped} such steps that were left out" if skipped else ""
  sound = f"The checkpoint of step {kept[-1]} in {workdir} is sound. " if kept else ""
  return NonFiniteError(
    f"step {step}: {name} is {value}{before}. {sound}Lower the learning rate "
    "(optim.student.learning_rate, optim.teachers.learning_rate), clip gradients "
    f"(optim.*.clip_norm), look at the cases with {commands.named('prepare')}, or let a few "
    "such steps pass (train.skip_nonfinite)."
  )
