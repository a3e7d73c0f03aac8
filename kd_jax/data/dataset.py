"""From settings to cases that are ready to train on: found, prepared, split into folds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

from kd_jax.data import cache, folds
from kd_jax.data.cases import Case, Found, naming_of, no_case, search, told_unused
from kd_jax.data.demo import writer as demo
from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, UserError, some
from kd_jax.runtime.terminal import error_table
from kd_jax.settings.data import DataSettings
from kd_jax.tasks.patients import unjoined

# label -> (done, total, name of the latest) -> None: what shows progress, e.g. RunLog.progress.
Progress = Callable[[str], Callable[..., None]]


@dataclass(frozen=True)
class Dataset:
  """The cases of one fold.

  Attributes:
    cases: all that can be used, by name.
    entries: their cache entries, by name.
    train, val: names.
    bad: what is wrong with the cases that were left out.
  """

  cases: dict[str, Case]
  entries: dict[str, Path]
  train: list[str]
  val: list[str]
  bad: list[CaseError]


def prepare(
  settings: DataSettings, progress: Progress, tell: Callable[[str], None] | None = None
) -> tuple[list[Case], dict[str, Path], list[CaseError]]:
  """Every case under the root, the cache entries of the good ones, what is wrong with the rest.

  Several processes share the cases out.
  """
  workers = settings.prepare_workers or None
  if settings.demo_cases:
    with processes.first_before_others():  # who find nothing left to write
      report = progress("writing demonstration cases")
      root = Path(settings.root)
      demo.write_dataset(root, settings.demo_cases, settings.demo_seed, workers, report)
  found = find_all(settings, tell)
  cases = found.cases
  own, bad = cache.prepare(
    processes.share(cases),
    settings.cache,
    settings.cache_settings,
    workers,
    progress("preparing cases"),
    tell,
  )
  ready = processes.union({name: str(path) for name, path in own.items()})
  entries = {case.name: Path(ready[case.name]) for case in cases if case.name in ready}
  if missing := [path for path in entries.values() if not path.exists()]:
    raise UserError(
      f"process {jax.process_index()} cannot see {missing[0]}, which another one wrote: data.cache "
      "must lie where all processes see it"
    )
  return cases, entries, found.errors + processes.all_errors(bad)


def find_all(settings: DataSettings, tell: Callable[[str], None] | None = None) -> Found:
  """What is under the root, told where names may have been misunderstood. UserError if no case."""
  naming = naming_of(settings.names, settings.patients)
  found = search(settings.root, settings.labels, naming)
  if not found.cases:
    raise found.errors[0] if found.errors else no_case(settings.root)
  unknown = [case.patient for case in found.cases if case.name not in naming.patients]
  if tell and processes.first():
    for line in found.notes + told_unused(found.unused, settings.root):
      tell(line)
    if groups := unjoined(unknown):
      tell(
        f"warning: {sum(map(len, groups))} cases have names that look like time points, and count "
        f"as patients of their own: {some([name for names in groups for name in names])}. If they "
        "are not, say whose they are: data.patients, a CSV file with the columns case and patient"
      )
    if naming.patients and (
      missing := [c.name for c in found.cases if c.name not in naming.patients]
    ):
      tell(
        f"{settings.patients} lacks {len(missing)} cases, whose names tell the patient: "
        f"{some(missing)}"
      )
  return found


def report(settings: DataSettings, progress: Progress, tell: Callable[[str], None]) -> None:
  """--mode=prepare: fills the cache and tells what came of it. UserError if cases are bad."""
  cases, entries, bad = prepare(settings, progress, tell)
  tell(f"{len(entries)} of {len(cases)} cases are ready in {settings.cache}")
  if bad and not settings.skip_bad_cases:
    raise bad_cases_error(bad)
  if bad:
    tell(f"left out, as you asked:\n{error_table(bad)}")


def open_dataset(
  settings: DataSettings,
  folds_path: Path,
  progress: Progress,
  tell: Callable[[str], None] | None = None,
) -> Dataset:
  """The cases of the settings' fold; prepares what is missing, keeps the folds in a file.

  Raises:
    UserError: cases that cannot be used (unless they may be skipped), or none left.
  """
  cases, entries, bad = prepare(settings, progress, tell)
  if bad and not settings.skip_bad_cases:
    raise bad_cases_error(bad)
  given = settings.folds_file or None
  with processes.first_before_others():
    kept = folds.read_or_make(folds_path, cases, settings.folds, settings.folds_seed, given)
  train, val = (
    [name for name in names if name in entries] for names in folds.split(kept, settings.fold)
  )
  for side, names in (("training", train), ("validation", val)):
    if not names:
      raise UserError(f"no usable case is left for {side} in fold {settings.fold}")
  by_name = {case.name: case for case in cases if case.name in entries}
  return Dataset(by_name, entries, train, val, bad)


def bad_cases_error(bad: list[CaseError]) -> UserError:
  names = len({error.case for error in bad})
  return UserError(
    f"{names} case{'s' * (names > 1)} cannot be used:\n\n{error_table(bad)}\n\n"
    "Mend them, or go on without them: --config.data.skip_bad_cases=True"
  )


def spread(names: list[str], count: int) -> list[str]:
  """count of the names, evenly spread over the list; all of them for 0."""
  if not count or count >= len(names):
    return list(names)
  return [names[math.floor((i + 0.5) * len(names) / count)] for i in range(count)]
