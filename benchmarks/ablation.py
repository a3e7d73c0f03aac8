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

A row's differences to the student alone (or to --against=RECIPE) are paired by case, each case's
scores averaged over the seeds that both have: the interval says what other cases might have given,
the sd over seeds what another start might have.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

from benchmarks import common
from benchmarks.ablations.recipes import ALONE, RECIPES, SIZES, settings_of
from benchmarks.ablations.tables import write_tables
from kd_jax.runtime.errors import UserError


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
  parser.add_argument("--table", action="store_true", help="only the table of what is finished")
  parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
  return parser.parse_args()


def ablate(arguments: argparse.Namespace) -> None:
  """One run with --one; else all that are missing, unless --table, and the table.

  Raises:
    UserError: flags that exclude each other, unknown recipes, settings that are not allowed, a
      failed run, records that do not belong in one table.
  """
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


if __name__ == "__main__":
  main()
