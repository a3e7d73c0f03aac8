"""Training, from a configuration to a work directory with checkpoints, logs and pictures."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.data import pipeline
from kd_jax.data.augmentation import augment
from kd_jax.data.dataset import Dataset, open_dataset, spread
from kd_jax.data.entry import open_entry
from kd_jax.data.subjects import SUBJECTS_FILE, Subject, write_subjects
from kd_jax.models.framework import Framework, Params
from kd_jax.prediction import sliding_window as inference
from kd_jax.runs import provenance
from kd_jax.runs.checkpoints import Checkpoints, set_aside_damaged
from kd_jax.runs.log import NoLog, RunLog
from kd_jax.runtime import lock, processes
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.interrupts import Interrupts
from kd_jax.runtime.memory import memory
from kd_jax.runtime.terminal import Terminal, duration
from kd_jax.settings import config as config_lib
from kd_jax.settings.config import CONFIG_FILE, Config
from kd_jax.training import messages as announce
from kd_jax.training import optimisers as optim
from kd_jax.training import step as step_lib
from kd_jax.training.mesh import mesh_for
from kd_jax.training.metric_averages import Window
from kd_jax.training.optimisers import Plateau
from kd_jax.training.step import TrainState
from kd_jax.training.validation import Validation, validate


class NonFiniteError(UserError):
  """A loss or gradient that is no number any more."""


def train(raw: Mapping[str, Any], workdir: Path, terminal: Terminal) -> None:
  """Trains, or goes on where the work directory's last checkpoint stands.

  Args:
    raw: the resolved configuration, as config.to_dict has it.
    workdir: made if need be.
    terminal: where to tell.

  Raises:
    UserError: a setting, a file or a loss that a person has to look at; or another run that
      works in the directory.
  """
  config = config_lib.parse(raw)
  mesh = mesh_for(config)  # refused before any work
  alone = lock.held(workdir, terminal.line) if processes.first() else contextlib.nullcontext()
  with alone:
    _train(config, raw, mesh, workdir, terminal)


def _train(
  config: Config, raw: Mapping[str, Any], mesh: Mesh, workdir: Path, terminal: Terminal
) -> None:
  """`train`, with the work directory to itself."""
  told: list[str] = []  # before there is a log

  def tell(text: str) -> None:
    terminal.line(text)
    told.append(text)

  # --- Work directory and data ---
  changed = _claim_workdir(workdir, raw)
  dataset = open_dataset(config.data, workdir, terminal.progress, tell)
  if processes.first():
    write_subjects(workdir / SUBJECTS_FILE, *_subjects(dataset))
  steps_per_epoch = config.train.steps_per_epoch or max(1, len(dataset.train) // config.data.batch)
  total_steps = config.train.epochs * steps_per_epoch

  # --- Networks, the one compiled step ---
  framework = Framework(config.model, config.train.remat)
  optimizers = {
    group: optim.optimizer(settings, total_steps) for group, settings in config.optim.groups.items()
  }
  init_key, augment_key = jax.random.split(jax.random.key(config.seed))
  train_step = step_lib.compile_step(
    step_lib.make_train_step(
      framework,
      optimizers,
      config.loss,
      config.confidence,
      steps_per_epoch=steps_per_epoch,
      augment=_augmentation(config),
      ema_decay=config.optim.ema_decay,
      accumulate=config.train.accumulate,
      skip_nonfinite=config.train.skip_nonfinite > 0,
    ),
    mesh,
  )

  # --- State: fresh, or the last checkpoint's ---
  replicated = NamedSharding(mesh, P())
  # device_put takes no typed key to devices of other processes.
  on_mesh = jax.jit(jax.random.wrap_key_data, out_shardings=replicated)
  augment_key = on_mesh(np.asarray(jax.random.key_data(augment_key)))
  new_state = functools.partial(
    step_lib.init_state,
    framework,
    optimizers,
    config.confidence,
    init_key,
    ema=config.optim.ema_decay > 0,
  )
  with processes.first_before_others():
    if processes.first():
      set_aside_damaged(workdir, tell)
  checkpoints = Checkpoints(workdir, config.train.keep)
  if steps := checkpoints.steps():
    state, notes = checkpoints.restore(steps[-1], jax.eval_shape(new_state), replicated)
  else:
    state, notes = jax.device_put(new_state(), replicated), {}
  first = int(state.step)
  plateaus = {
    group: Plateau(**notes.get("plateau", {}).get(group, {})) for group in config.optim.groups
  }
  best = notes.get("best", {})
  skipped = notes.get("skipped", 0)  # steps that were not finite, in all

  # --- Logs ---
  log = RunLog(workdir, terminal, first) if processes.first() else NoLog()
  rates = optim.learning_rates(config.optim.groups, total_steps)
  announce.introduce(log, config, workdir, dataset, mesh, state, first, total_steps, changed)
  for text in told:
    log.line(text, terminal=False)
  if processes.first():
    made = provenance.record(workdir, step=first, seed=config.seed)
    log.line(f"seed {config.seed}, {provenance.source(made)}; all of it: {provenance.RUN_FILE}")

  # --- Validation ---
  watched = {
    name: dataset.entries[name] for name in spread(dataset.val, config.train.validate_cases)
  }
  sizes = inference.sizes(config.data.patch, config.data.spacing, config.data.grid)

  def predict(params: Params, volume: np.ndarray) -> np.ndarray:
    params = jax.tree.map(lambda x: x.addressable_data(0), params)  # as it lies on one device
    return inference.predict([(framework.network, params)], volume, sizes, config.predict)

  def run_validation(state: TrainState) -> Validation:
    networks = framework.networks(state.params)
    if state.ema is not None:
      networks["student"] = (state.ema, config.model.student)
    progress = terminal.progress("validating")
    return validate(
      predict, networks, watched, config.predict.smallest, config.train.pictures, progress
    )

  # --- The loop ---
  def save(step: int, result: Validation | None) -> None:
    standing = {group: dataclasses.asdict(plateau) for group, plateau in plateaus.items()}
    notes = {"plateau": standing, "best": best, "next_batch": step, "skipped": skipped}
    if result:
      notes |= {f"smallest_{name}": mm3 for name, mm3 in result.smallest._asdict().items()}
    checkpoints.save(step, state, notes, result.score if result else None)

  shardings = step_lib.batch_sharding(mesh)
  rows = pipeline.rows_here(shardings["label"], config.data.batch)
  batches = pipeline.training_batches(
    [dataset.entries[name] for name in dataset.train],
    config.data.sampling,
    batch=config.data.batch,
    seed=config.seed,
    first=first,
    rows=rows,
  )
  with (
    contextlib.closing(log),
    contextlib.closing(checkpoints),
    contextlib.closing(batches),
    Interrupts() as interrupts,
    terminal.live("training", total_steps, first) as show,
  ):
    for step in range(first + 1, total_steps + 1):
      batch = pipeline.to_devices(next(batches), rows, shardings, config.data.batch)
      if step == first + 1:
        train_step = _compile(train_step, state, batch, augment_key, log)
        window = Window()
      state, metrics = train_step(state, batch, augment_key)
      window.add(step, metrics)

      epoch = (step - 1) // steps_per_epoch  # of this step, from 0
      epoch_ends = step % steps_per_epoch == 0
      log_now = step % config.train.log_every == 0
      validate_now = step == total_steps or (
        epoch_ends and (epoch + 1) % config.train.validate_every == 0
      )
      stop_now = interrupts.agreed(ask=log_now or validate_now)
      save_now = step % config.train.save_every == 0 or validate_now or stop_now

      if log_now or save_now:  # nothing is saved before it was looked at
        values = window.close(config.data.batch)
        for bad in values.non_finite:
          skipped += 1
          if skipped > config.train.skip_nonfinite:
            checkpoints.wait()
            error = _non_finite(*bad, skipped - 1, workdir, checkpoints.steps())
            log.line(f"error: {error}", terminal=False)
            raise error
          most = config.train.skip_nonfinite
          log.line(f"step {bad[0]} is left out: {bad[1]} is {bad[2]} ({skipped} of {most} at most)")
        numbers = values.means | memory()
        if config.train.skip_nonfinite:
          numbers["skipped"] = skipped  # so far, in all
        numbers |= {
          f"lr/{g}": rate for g, rate in rates(step - 1 - skipped, state.lr_scale).items()
        }
        log.scalars(step, {f"train/{name}": value for name, value in numbers.items()})
        left = duration((total_steps - step) * numbers["seconds_per_step"])
        line = (
          f"step {step}/{total_steps}  epoch {epoch + 1}  {announce.summary(numbers)}  {left} left"
        )
        log.line(line, terminal=not terminal.console.is_terminal)
        show(step, announce.summary(numbers))

      result = None
      if validate_now:
        began = time.monotonic()
        result = run_validation(state)
        score = result.score
        if not best or score > best["score"]:
          best = {"score": score, "step": step}
        for group, settings in config.optim.groups.items():
          if settings.schedule == "plateau":
            plateaus[group], lower = plateaus[group].after(score, epoch, settings.plateau)
            if lower:
              state = _lower_rate(state, group, settings.plateau.factor)
              log.line(f"the learning rate of {group} is lowered: no better score for a while")
        announce.validated(log, step, result, best, time.monotonic() - began)
      if save_now:
        save(step, result)
      if log_now or save_now:
        window = Window()
      if stop_now:
        checkpoints.wait()
        log.line(f"stopped by {interrupts.name} after step {step}; the checkpoint is saved")
        raise SystemExit(128 + interrupts.number)

    checkpoints.wait()
    announce.conclude(log, workdir, dataset, best, first >= total_steps)


# --- Pieces of the loop -----------------------------------------------------------------------


def _augmentation(config: Config) -> Callable | None:
  if not config.augment.any:
    return None
  return functools.partial(augment.augment, settings=config.augment)


def _compile(
  step: Callable, state: TrainState, batch: step_lib.Batch, key: jax.Array, log: RunLog
) -> Callable:
  """Compiles ahead, so that no step's time holds it, and a change of shapes later is an error."""
  log.line("compiling the training step (a minute or two on CPU, the first time)")
  began = time.monotonic()
  compiled = step.lower(state, batch, key).compile()
  log.line(f"compiled in {time.monotonic() - began:.0f} s")
  return compiled


def _lower_rate(state: TrainState, group: str, factor: float) -> TrainState:
  return state.replace(lr_scale=state.lr_scale | {group: state.lr_scale[group] * factor})


def _non_finite(
  step: int, name: str, value: float, skipped: int, workdir: Path, kept: Sequence[int]
) -> NonFiniteError:
  before = f" after {skipped} such steps that were left out" if skipped else ""
  sound = f"The checkpoint of step {kept[-1]} in {workdir} is sound. " if kept else ""
  return NonFiniteError(
    f"step {step}: {name} is {value}{before}. {sound}Lower the learning rate "
    "(optim.student.learning_rate, optim.cohort.learning_rate), clip gradients "
    "(optim.*.clip_norm), look at the cases with --mode=prepare, or let a few such steps pass "
    "(train.skip_nonfinite)."
  )


def _claim_workdir(workdir: Path, raw: Mapping[str, Any]) -> list[str]:
  """Writes the configuration; says what has changed since the run began."""
  path, changed = workdir / CONFIG_FILE, []
  if any(folder.name.isdigit() for folder in workdir.glob("checkpoints/*")):
    changed = config_lib.check_resumable(config_lib.read(path), raw, workdir)
  processes.wait()  # until all have read what it was
  if processes.first():
    config_lib.write(path, raw)
  return changed


def _subjects(dataset: Dataset) -> tuple[list[Subject], list[Subject]]:
  """Whom this run trains and validates on, so that no evaluation mistakes them for new ones."""

  def subject(name: str) -> Subject:
    case, content = dataset.cases[name], open_entry(dataset.entries[name]).meta["content"]
    return Subject(case.name, case.patient, case.convention, content)

  return [subject(name) for name in dataset.train], [subject(name) for name in dataset.val]
