"""The bench of real patients: what is trained, on which machine, in which order, in which time.

Without JAX: the runs are in patient_runs.py, the tables in patient_tables.py.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ablations.recipes import ALONE, RECIPES, SIZES, settings_of
from benchmarks.ablations.records import read_record, record_file
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json, write_text
from kd_jax.settings import presets
from kd_jax.settings.run import Settings

DEFAULT, EQUAL_TIME = "best", "alone_equal_time"
USUAL = (DEFAULT, ALONE, EQUAL_TIME)  # recipes
POINTS = 4  # of a run, at which all networks are looked at
KEPT_ASIDE = "kept_aside"  # of a record
_FACTOR_FILE = "equal_time.json"
_OF_3_MM = ("data.patch", "augment.elastic", "augment.blur", "augment.lowres", "inference.overlap")
GRIDS: Mapping[float, presets.Overrides] = {
  # Of an augmentation in voxels the same millimetres, about, as at 1 mm.
  2.0: {
    "data.patch": (64, 64, 64),
    "augment.elastic": 2.0,
    "augment.blur": 0.75,
    "augment.lowres": 2.5,
  },
  3.0: {name: presets.DATASETS["quickstart"][name] for name in _OF_3_MM},
}


class Machine(NamedTuple):
  """What is trained if nothing else is said.

  Attributes:
    spacing, filters: of the data and the networks.
    epochs: of as many steps as SIZES["patients"] says.
  """

  spacing: float
  filters: tuple[int, ...]
  epochs: int

  @property
  def learning_rate(self) -> float:
    """Of both groups: the quickstart's for networks as small as its own."""
    return 3e-3 if self.filters[0] <= 8 else 1e-3


CPU = Machine(3.0, (8, 16, 32, 64), 16)
ACCELERATOR = Machine(2.0, (16, 32, 64, 128), 20)


class Job(NamedTuple):
  """One student: a recipe's, of one seed and one fold."""

  recipe: str
  seed: int
  fold: int

  def folder(self, output: Path, folds: int) -> Path:
    """Of the run; its record lies beside it."""
    return output / self.recipe / f"seed{self.seed}" / f"fold{self.fold}of{folds}"


def in_order(recipes: Sequence[str]) -> list[str]:
  """The most telling first: the default, the student alone, it at equal time, then the others."""
  first = [name for name in USUAL if name in recipes]
  return [*first, *(name for name in dict.fromkeys(recipes) if name not in first)]


def jobs(recipes: Sequence[str], seeds: Sequence[int], folds: int) -> list[Job]:
  """One fold after the other with all recipes, so that what is cut off leaves pairs."""
  names = in_order(recipes)
  return [Job(name, seed, fold) for seed in seeds for fold in range(folds) for name in names]


def settings(
  job: Job, data: Path, cache: Path, machine: Machine, folds: int, factor: float = 1.0
) -> Settings:
  """The settings of one run.

  Args:
    data: a folder of BraTS cases.
    factor: how many times as many steps EQUAL_TIME has.

  Raises:
    ConfigError: an unknown recipe, or a value that is not allowed.
  """
  equal = job.recipe == EQUAL_TIME
  base = settings_of(SIZES["patients"], ALONE if equal else job.recipe, job.seed, data, folds=folds)
  epochs = max(1, round(machine.epochs * factor)) if equal else machine.epochs
  own = {
    **GRIDS[machine.spacing],
    "data.spacing": machine.spacing,
    "data.fold": job.fold,
    "data.cache": str(cache),
    "model.filters": machine.filters,
    "optim.teachers.learning_rate": machine.learning_rate,
    "optim.student.learning_rate": machine.learning_rate,
    "train.epochs": epochs,
    "train.validate_every": epochs,  # no checkpoint is chosen: the last one is scored
    "train.save_every": max(1, epochs * base.train.steps_per_epoch // POINTS),
    "train.keep": 2 * POINTS,  # a run that is stopped saves in between, too
    "name": f"{job.recipe}-{job.seed}-{job.fold}",
  }
  return presets.override(base, own)


def equal_time(output: Path) -> dict[str, Any] | None:
  """{"factor", "by"}: how many times the steps of the student alone take the default's time."""
  path = output / _FACTOR_FILE
  return read_json(path) if path.is_file() else None


def settle_equal_time(
  output: Path, job: Job, folds: int, by_flops: float, measured: bool = True
) -> dict[str, Any]:
  """What equal_time gives; before the first such run it is decided, and kept for all others.

  By the times of a step in this seed's and fold's runs of both; by operations without them, or if
  they are not to be measured, as on a machine with other work.
  """
  if kept := equal_time(output):
    return kept
  pair = [record_file(job._replace(recipe=r).folder(output, folds)) for r in (DEFAULT, ALONE)]
  if measured and all(path.is_file() for path in pair):
    default, alone = (read_record(path)["seconds_per_step"] for path in pair)
    said = {"factor": round(default / alone, 2), "by": "times of a step, measured"}
  else:
    said = {"factor": round(by_flops, 2), "by": "floating-point operations"}
  write_text(output / _FACTOR_FILE, json.dumps(said) + "\n")
  return said


def what(recipe: str, output: Path) -> str:
  """A recipe in words."""
  if recipe != EQUAL_TIME:
    return RECIPES[recipe].what
  said = equal_time(output) or {"factor": "?", "by": "not decided yet"}
  return f"the student alone for {said['factor']} times the steps ({said['by']})"


def is_done(job: Job, output: Path, folds: int, kept_aside: bool) -> bool:
  """Whether the job's record is there, with the kept-aside patients' scores if they are asked."""
  path = record_file(job.folder(output, folds))
  return path.is_file() and (not kept_aside or KEPT_ASIDE in read_record(path))


def run_all(
  todo: Sequence[Job],
  done: Callable[[Job], bool],
  run: Callable[[Job, float | None], bool],
  minutes: float | None = None,
  took: Mapping[str, float] | None = None,
  trained: Callable[[Job], bool] = lambda job: False,
  clock: Callable[[], float] = time.monotonic,
) -> bool:
  """Runs what is not done yet, as many as fit.

  Args:
    todo: in their order.
    done: whether a job's record is there.
    run: (job, seconds left) -> whether it came to its end; it stops where they are over.
    minutes: None for no limit.
    took: recipe -> the seconds of its longest run of before.
    trained: whether a job only lacks the kept-aside patients' scores; that takes little.

  Returns:
    Whether all are done. The first is begun in any case: what it has done when it is stopped is not
    lost. After it nothing is begun that is known not to fit: a run takes as long as the recipe's
    longest one, and the default counts with its partner, so that what is there can be compared.
  """
  known = dict(took or {})
  end = None if minutes is None else clock() + 60 * minutes
  waiting = [job for job in todo if not done(job)]
  for i, job in enumerate(waiting):
    if i and end is not None and _expected(waiting[i:], known, trained) > end - clock():
      print(f"{job.recipe}, seed {job.seed}, fold {job.fold} would not fit any more", flush=True)
      return False
    print(f"[{i + 1}/{len(waiting)}] {job.recipe}, seed {job.seed}, fold {job.fold}", flush=True)
    began = clock()
    if not run(job, None if end is None else end - began):
      print("stopped: the time is over; the same command goes on with it", flush=True)
      return False
    known[job.recipe] = max(known.get(job.recipe, 0.0), clock() - began)
  return True


def _expected(
  waiting: Sequence[Job], known: Mapping[str, float], trained: Callable[[Job], bool]
) -> float:
  """Seconds of the first job, and of the student alone where it follows as its partner.

  What has never run is taken to need nothing, so that it is begun.
  """
  job, paired = waiting[0], [waiting[0]._replace(recipe=ALONE)]
  together = [job, *(paired if job.recipe == DEFAULT and waiting[1:2] == paired else ())]
  return sum(known.get(own.recipe, 0.0) for own in together if not trained(own))


def times_of(todo: Sequence[Job], output: Path, folds: int) -> dict[str, float]:
  """Recipe -> the seconds of its longest run, of the records that are there."""
  took: dict[str, float] = {}
  for job in todo:
    path = record_file(job.folder(output, folds))
    if path.is_file():
      took[job.recipe] = max(took.get(job.recipe, 0.0), read_record(path)["wall_seconds"])
  return took


def check(recipes: Sequence[str], data: Path | None) -> None:
  """UserError if there is no folder of patients; ConfigError for an unknown recipe."""
  if data is None:
    raise UserError("--size=patients needs --data, a folder of BraTS cases")
  for name in recipes:
    settings(Job(name, 0, 0), data, Path("cache"), CPU, folds=2)
