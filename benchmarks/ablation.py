"""What does each part of the recipe give? Students side by side, several seeds each.

  python benchmarks/ablation.py --size=cpu                          # demonstration data, hours
  python benchmarks/ablation.py --size=gpu --data=/data/BraTS2021   # full size, any BraTS folder

Every recipe is trained with every seed on the same training cases, and no other case is used: no
checkpoint is chosen, the last one's averaged student is scored. Students are scored as
--mode=evaluate does it, in the scans' own space: on the cases of --test, with generated data on
further generated ones, else on the validation fold. With cases other than the validation fold's,
that fold chooses the minimum component sizes of the postprocessing, and a second table has the
scores after it. May be stopped and started again: a run that is finished leaves
OUTPUT/RECIPE/seedN.json, and is not run again. The table (ablation.md, ablation.json) is written
after every run. It needs these records alone; those of the tables in docs/accuracy.md are kept in
benchmarks/records:

  python benchmarks/ablation.py --table --output=benchmarks/records/400-steps

Where cases are few, every one can be scored out of fold: a student is trained for each fold, and
with as many folds as patients one is left out at a time:

  python benchmarks/ablation.py --size=gpu --data=/data/seven --folds=7

Whether teachers help on patients, and where goes what they know, is asked by a size of its own: all
scores are out of fold, and the student is trained alone for as long as the default takes, too. It
makes the most of few minutes:

  python benchmarks/ablation.py --size=patients --data=DIR --minutes=9

A row's differences to the student alone (or to --against=RECIPE) are paired by case, each case's
scores averaged over the seeds that both have: the interval says what other cases might have given,
the sd over seeds what another start might have.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

from benchmarks import common
from benchmarks.ablations import patients
from benchmarks.ablations.patient_tables import write_tables as write_patient_tables
from benchmarks.ablations.recipes import ALONE, RECIPES, SIZES, settings_of
from benchmarks.ablations.tables import write_tables
from kd_jax.runtime.errors import UserError

OF_PATIENTS = ("spacing", "filters", "minutes", "kept_aside", "equal_time")  # flags


def main() -> None:
  arguments = _arguments()
  common.command(lambda: ablate(arguments))


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--size", choices=SIZES, default="cpu")
  parser.add_argument("--data", type=Path, help="a folder of BraTS cases; none: demonstration data")
  parser.add_argument("--test", type=Path, help="a folder of cases to score on; none: see above")
  parser.add_argument("--recipes", help="with commas; none: those that the size can afford")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--epochs", type=int, help="none: those of the size")
  parser.add_argument(
    "--folds", type=int, help="train on each of so many folds, score every case out of fold"
  )
  parser.add_argument("--against", default=ALONE, help="the recipe that the others are compared to")
  parser.add_argument("--output", type=Path, help="none: runs/ablation-SIZE")
  parser.add_argument("--spacing", type=float, choices=(2.0, 3.0), help="mm; patients only")
  parser.add_argument("--filters", help="of all networks, such as 16,32,64,128; patients only")
  parser.add_argument(
    "--minutes", type=float, help="run as many as fit, most telling first; patients only"
  )
  parser.add_argument(
    "--kept-aside", type=Path, help="a folder of patients to score all students on; patients only"
  )
  parser.add_argument(
    "--equal-time", choices=("measured", "flops"), help="how it is found; patients only"
  )
  parser.add_argument("--table", action="store_true", help="only the table of what is finished")
  parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
  parser.add_argument("--fold", type=int, help=argparse.SUPPRESS)
  return parser.parse_args()


def ablate(arguments: argparse.Namespace) -> None:
  """One run with --one; else all that are missing, unless --table, and the table.

  Raises:
    UserError: flags that exclude each other, unknown recipes, settings that are not allowed, a
      failed run, records that do not belong in one table.
  """
  if arguments.size == "patients":
    _ablate_patients(arguments)
    return
  if given := [name for name in OF_PATIENTS if getattr(arguments, name)]:
    raise UserError(f"--{given[0].replace('_', '-')} belongs to --size=patients")
  # With JAX: the processes that read a run's cases import this file again, and do without.
  from benchmarks.ablations import runs

  size, test = SIZES[arguments.size], arguments.test
  output = arguments.output or Path(f"runs/ablation-{arguments.size}")
  if arguments.folds and test:
    raise UserError("--folds scores every case out of fold; leave --test out, or --folds")
  given = (arguments.data, arguments.epochs, arguments.folds)
  if arguments.one:
    name, seed = arguments.one[0], int(arguments.one[1])
    settings, folder = settings_of(size, name, seed, *given), output / name / f"seed{seed}"
    if arguments.folds:
      runs.run_folds(settings, folder)
    else:
      runs.run(settings, folder, test)
    return
  usual = list(RECIPES) if arguments.table else list(size.recipes)
  recipes = arguments.recipes.split(",") if arguments.recipes else usual
  seeds, against = range(arguments.seeds), arguments.against
  for name in [*recipes, against]:
    settings_of(size, name, 0, *given)  # refused before the first run
  write = functools.partial(write_tables, output, recipes, seeds, against)
  if not arguments.table:
    if not (arguments.data or test or arguments.folds) and size.test_cases:
      test = runs.generate_test_cases(size)
    passed_on = {"size": arguments.size, "output": output, "data": arguments.data, "test": test}
    passed_on |= {"epochs": arguments.epochs, "folds": arguments.folds}
    flags = [f"--{flag}={value}" for flag, value in passed_on.items() if value]
    runs.run_all(output, recipes, seeds, flags, after_each=write)
  print(write())


def _ablate_patients(arguments: argparse.Namespace) -> None:
  """As `ablate`, of --size=patients."""
  size, output = SIZES["patients"], arguments.output or Path("runs/ablation-patients")
  if arguments.test:
    raise UserError("--size=patients scores out of fold; --kept-aside takes other patients")
  folds = arguments.folds or size.settings["data.folds"]
  if arguments.one:
    from benchmarks.ablations import patient_runs

    filters = [int(n) for n in arguments.filters.split(",")] if arguments.filters else None
    machine = patient_runs.machine(arguments.spacing, filters, arguments.epochs)
    job = patients.Job(arguments.one[0], int(arguments.one[1]), arguments.fold)
    measured = arguments.equal_time != "flops"
    patient_runs.run(job, arguments.data, output, machine, folds, arguments.kept_aside, measured)
    return
  usual = [*RECIPES, patients.EQUAL_TIME] if arguments.table else patients.USUAL
  recipes = arguments.recipes.split(",") if arguments.recipes else usual
  seeds = range(arguments.seeds)
  write = functools.partial(write_patient_tables, output, recipes, seeds, folds, arguments.against)
  if not arguments.table:
    _run_patients(arguments, output, folds, recipes, write)
  print(write())


def _run_patients(
  arguments: argparse.Namespace,
  output: Path,
  folds: int,
  recipes: Sequence[str],
  write: Callable[[], str],
) -> None:
  """What has no record yet, as many as fit into the time, each in a process of its own."""
  from benchmarks.ablations import runs

  patients.check([*recipes, arguments.against], arguments.data)
  passed_on = ("size", "data", "epochs", "spacing", "filters", "kept_aside", "equal_time")
  given = {name: getattr(arguments, name) for name in passed_on} | {"output": output}
  flags = [f"--{name.replace('_', '-')}={x}" for name, x in (given | {"folds": folds}).items() if x]

  def run(job: patients.Job, seconds: float | None) -> bool:
    own = [*flags, f"--fold={job.fold}", "--one", job.recipe, str(job.seed)]
    what = f"{job.recipe}, seed {job.seed}, fold {job.fold}"
    ended = runs.run_process(job.folder(output, folds), own, what, seconds)
    write()
    return ended

  def done(job: patients.Job) -> bool:
    return patients.is_done(job, output, folds, bool(arguments.kept_aside))

  def trained(job: patients.Job) -> bool:
    return patients.is_done(job, output, folds, kept_aside=False)

  todo = patients.jobs(recipes, range(arguments.seeds), folds)
  took = patients.times_of(todo, output, folds)
  patients.run_all(todo, done, run, arguments.minutes, took, trained)


if __name__ == "__main__":
  main()
