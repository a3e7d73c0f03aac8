"""What a run needs before its first step: data, networks, the step, its state, its logs."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.data.augmentation import augment
from kd_jax.data.dataset import Choice, Dataset, choose, open_dataset
from kd_jax.data.entry import open_entry
from kd_jax.data.subjects import Subject, read_subjects, write_subjects
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework
from kd_jax.runs import provenance
from kd_jax.runs.checkpoints import Checkpoints, set_aside_damaged
from kd_jax.runs.layout import (
  CONFIG_FILE,
  FOLDS_FILE,
  NUMBERS_FILE,
  RUN_FILE,
  SUBJECTS_FILE,
  has_begun,
)
from kd_jax.runs.log import Log, NoLog, RunLog
from kd_jax.runtime import compiler_options, files, processes
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.errors import some
from kd_jax.runtime.terminal import Terminal
from kd_jax.settings import record
from kd_jax.settings.run import Settings
from kd_jax.settings.training import TrainSettings
from kd_jax.training import autotune, cohorts, memory, messages, optimisers
from kd_jax.training import step as step_lib
from kd_jax.training.state import TrainState, from_items, init_state, to_items


class Plan(NamedTuple):
  """How many steps there are, and when what is due.

  Attributes:
    steps_per_epoch, total_steps: of the run.
    train: its settings.
  """

  steps_per_epoch: int
  total_steps: int
  train: TrainSettings

  def epoch(self, step: int) -> int:
    """The epoch that a step (from 1) belongs to, from 0."""
    return (step - 1) // self.steps_per_epoch

  def log(self, step: int) -> bool:
    return step % self.train.log_every == 0

  def validate(self, step: int) -> bool:
    ends = step % self.steps_per_epoch == 0
    return step == self.total_steps or (
      ends and (self.epoch(step) + 1) % self.train.validate_every == 0
    )

  def save(self, step: int) -> bool:
    return step % self.train.save_every == 0 or self.validate(step)


class Setup(NamedTuple):
  """A run that is ready for its next step; nothing in here changes but `state`.

  Attributes:
    plan: see there.
    dataset: the cases of the fold.
    cohorts: the names of the training cases, by cohort of teachers.
    framework: the networks.
    make_step: remat -> the step (state, batch, key) -> (state, metrics), to be compiled.
    remat: which to compile it with.
    options: for the compiler.
    state: where the run stands, on the mesh.
    notes: what the host knew at the last checkpoint; {} at the start.
    key: of the augmentation, on the mesh.
    checkpoints, log: see there.
    first: steps that were done before.
  """

  plan: Plan
  dataset: Dataset
  cohorts: list[list[str]]
  framework: Framework
  make_step: Callable[[str], Any]
  remat: memory.Choice
  options: Options
  state: TrainState
  notes: dict
  key: jax.Array
  checkpoints: Checkpoints
  log: Log
  first: int


def set_up(settings: Settings, mesh: Mesh, workdir: Path, terminal: Terminal) -> Setup:
  """Prepares the data, builds the networks, takes up the last checkpoint, opens the logs.

  Raises:
    UserError: cases, settings or checkpoints that the user has to correct.
  """
  told: list[str] = []  # before there is a log

  def tell(text: str) -> None:
    terminal.line(text)
    told.append(text)

  begun, changed = has_begun(workdir), []
  if begun:
    changed = record.check_resumable(record.read(workdir / CONFIG_FILE), settings, workdir)
  choice = choose(settings.data, workdir / FOLDS_FILE if begun else None, terminal.progress)
  for line in choice.lines:
    tell(line)
  dataset = open_dataset(settings.data, settings.model.sequences, choice, terminal.progress, tell)
  processes.wait()  # until all have read what the run began with
  if processes.first():
    _claim(workdir, settings, choice, dataset, begun, tell)
  halves = cohorts.settle(settings, workdir, dataset, begun)
  train = settings.train
  checkpoints, notes = _checkpoints(workdir, train.keep, tell)
  plan = _plan(train, max(1, len(dataset.train) // settings.data.batch), notes)

  convolutions = autotune.for_run(settings, workdir, tell, terminal.progress)
  framework = Framework(settings.model, convolutions=convolutions)
  optimizers = {
    group: optimisers.optimizer(own, plan.total_steps)
    for group, own in settings.optim.groups.items()
  }
  init_key, augment_key = jax.random.split(jax.random.key(settings.seed))
  new_state = functools.partial(
    init_state,
    framework,
    optimizers,
    settings.confidence,
    init_key,
    ema=settings.optim.ema_decay > 0,
  )
  replicated = NamedSharding(mesh, P())
  state = _last_state(checkpoints, new_state, replicated)
  # device_put takes no typed key to devices of other processes.
  on_mesh = jax.jit(jax.random.wrap_key_data, out_shardings=replicated)
  key = on_mesh(np.asarray(jax.random.key_data(augment_key)))

  first = int(state.step)
  log: Log = RunLog(workdir, terminal, first) if processes.first() else NoLog()
  make_step = functools.partial(
    _train_step, settings, convolutions, optimizers, plan.steps_per_epoch, mesh
  )
  remat = memory.choose(settings, convolutions, mesh.shape, _bytes(state))
  dtype = framework.dtype.name
  options, warnings = compiler_options.choose(train.compiler_options, dtype)
  setup = Setup(
    plan=plan,
    dataset=dataset,
    cohorts=halves,
    framework=framework,
    make_step=make_step,
    remat=remat,
    options=options,
    state=state,
    notes=notes,
    key=key,
    checkpoints=checkpoints,
    log=log,
    first=first,
  )
  messages.introduce(log, settings, workdir, dataset, mesh, plan.total_steps)
  messages.machine(log, dtype, remat, options, warnings)
  messages.details(log, workdir, state, changed)
  for text in told:
    log.line(text, terminal=False)
  if processes.first():
    _record(setup, settings, workdir)
  return setup


def _bytes(state: TrainState) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(state))


def _record(setup: Setup, settings: Settings, workdir: Path) -> None:
  """Notes this start of the run, and says so."""
  computed = {
    "dtype": setup.framework.dtype.name,
    "remat": setup.remat.remats[0],
    "compiler_options": dict(setup.options),
  }
  made = provenance.record(workdir, step=setup.first, seed=settings.seed, **computed)
  setup.log.line(f"seed {settings.seed}, {provenance.source(made)}; all of it: {RUN_FILE}")


def _train_step(
  settings: Settings,
  convolutions: Convolutions,
  optimizers: dict,
  steps_per_epoch: int,
  mesh: Mesh,
  remat: str,
) -> Callable:
  augmentation = functools.partial(augment.augment, settings=settings.augment)
  step = step_lib.make_train_step(
    Framework(settings.model, remat, convolutions),
    optimizers,
    settings.loss,
    settings.confidence,
    steps_per_epoch=steps_per_epoch,
    augment=augmentation if settings.augment.any else None,
    ema_decay=settings.optim.ema_decay,
    accumulate=settings.train.accumulate,
    skip_nonfinite=settings.train.skip_nonfinite > 0,
  )
  return step_lib.compile_step(step, mesh)


def _checkpoints(workdir: Path, keep: int, tell: Callable[[str], None]) -> tuple[Checkpoints, dict]:
  """A run's checkpoints, and the last one's notes; {} if there is none yet."""
  with processes.first_before_others():
    if processes.first():
      set_aside_damaged(workdir, tell)
  checkpoints = Checkpoints(workdir, keep)
  steps = checkpoints.steps()
  return checkpoints, checkpoints.notes(steps[-1]) if steps else {}


def _plan(train: TrainSettings, one_pass: int, notes: dict) -> Plan:
  """one_pass: steps over the cases that are there now; notes: of the last checkpoint."""
  # Cases that have gone since the run began move no epoch, and no schedule.
  steps_per_epoch = train.steps_per_epoch or notes.get("steps_per_epoch", one_pass)
  return Plan(steps_per_epoch, train.epochs * steps_per_epoch, train)


def _last_state(
  checkpoints: Checkpoints, new_state: Callable[[], TrainState], sharding: NamedSharding
) -> TrainState:
  """Of the last checkpoint; or a fresh one."""
  if steps := checkpoints.steps():
    abstract = to_items(jax.eval_shape(new_state))
    return from_items(checkpoints.restore(steps[-1], abstract, sharding)[0])
  return jax.device_put(new_state(), sharding)


def _claim(
  workdir: Path,
  settings: Settings,
  choice: Choice,
  dataset: Dataset,
  begun: bool,
  tell: Callable[[str], None],
) -> None:
  """Writes what a run begins with; what killed starts have left of the run's files goes."""
  for name in (CONFIG_FILE, FOLDS_FILE, SUBJECTS_FILE, RUN_FILE, NUMBERS_FILE):
    files.sweep(workdir / name)
  subjects = _subjects(dataset)
  if begun and (workdir / SUBJECTS_FILE).exists():
    subjects = _with_earlier(subjects, read_subjects(workdir / SUBJECTS_FILE), workdir, tell)
  if not begun:
    files.write_text(workdir / FOLDS_FILE, json.dumps(choice.folds, indent=1) + "\n")
  write_subjects(workdir / SUBJECTS_FILE, *subjects)
  record.write(workdir / CONFIG_FILE, settings)


def _subjects(dataset: Dataset) -> list[list[Subject]]:
  """Who this run trains and validates on, so that no evaluation mistakes them for new ones."""

  def subject(name: str) -> Subject:
    case, content = dataset.cases[name], open_entry(dataset.entries[name]).meta["content"]
    return Subject(case.name, case.patient, case.label_map[1], content)

  return [[subject(name) for name in side] for side in (dataset.train, dataset.val)]


def _with_earlier(
  now: Sequence[Sequence[Subject]],
  earlier: Sequence[Sequence[Subject]],
  workdir: Path,
  tell: Callable[[str], None],
) -> list[list[Subject]]:
  """With the subjects of before that are not there, or not the same, any more: they stay known."""
  gone = [[s for s in before if s not in side] for side, before in zip(now, earlier, strict=True)]
  if names := [subject.name for side in gone for subject in side]:
    tell(
      f"warning: since the run in {workdir} began, cases have gone or got other images, another "
      f"patient or another label convention: {some(sorted(set(names)))}; what it was "
      f"trained on stays in {SUBJECTS_FILE}"
    )
  return [[*side, *lost] for side, lost in zip(now, gone, strict=True)]
