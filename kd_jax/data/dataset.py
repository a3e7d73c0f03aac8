"""From settings to cases that are ready to train on: found, prepared, split into folds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from kd_jax.data import cache, conventions, duplicates, folds
from kd_jax.data.cases import Case, Found, Naming, naming_of, no_case, on_names, search
from kd_jax.data.demo import writer as demo
from kd_jax.data.label_contents import MEMORY_FILE
from kd_jax.runtime import commands, processes
from kd_jax.runtime.errors import CaseError, UserError, some
from kd_jax.runtime.terminal import error_table
from kd_jax.settings.data import DataSettings
from kd_jax.tasks.patients import unjoined

# label -> (done, total, name of the latest) -> None: what shows progress, e.g. RunLog.progress.
Progress = Callable[[str], Callable[..., None]]


@dataclass(frozen=True)
class Choice:
  """The cases that a run works with, before any of them is prepared.

  Attributes:
    cases: all that lie under the root.
    folds: as they are to be kept.
    train, val: names of the cases of the settings' fold.
    bad: what is no case, or cannot be told apart.
    lines: what is to be said of names, of label maps, and of the cases that are in neither.
  """

  cases: list[Case]
  folds: folds.Folds
  train: list[str]
  val: list[str]
  bad: list[CaseError]
  lines: list[str]


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


def choose(settings: DataSettings, stored: Path | None, progress: Progress) -> Choice:
  """The cases of the settings' fold, checked as far as names and patients go.

  Args:
    settings: of the data.
    stored: the folds that the run began with; None if it has not begun.
    progress: for the demonstration cases, if these are to be written first.

  Raises:
    ConfigError: no such fold.
    UserError: no cases, what is no case (unless it may be skipped), or folds that do not fit.
  """
  _read_given(settings)  # an error before any work
  found, lines = find(settings, progress)
  if found.errors and not settings.skip_bad_cases:
    raise bad_cases_error(found.errors)
  kept, train, val, on_folds = _split(found.cases, settings, stored)
  cases, on_labels = settle(settings, found.cases, progress)
  return Choice(cases, kept, train, val, found.errors, lines + on_folds + on_labels)


def _read_given(settings: DataSettings) -> Path | None:
  """The settings' own file of folds, after a first look into it."""
  if not settings.folds_file:
    return None
  given = Path(settings.folds_file)
  folds.split(folds.read(given), settings.fold)
  return given


def _split(
  cases: Sequence[Case], settings: DataSettings, stored: Path | None
) -> tuple[folds.Folds, list[str], list[str], list[str]]:
  """The folds, the names to train and to validate on, and what is to be said of the others."""
  given = _read_given(settings)
  kept = folds.decide(cases, settings.folds, settings.folds_seed, stored=stored, given=given)
  train, val = folds.split(kept, settings.fold)
  known = folds.known_patients(kept, settings.fold, cases)
  source = stored or given or "the folds"
  if known and not stored:
    raise UserError(
      f"{source} leaves out cases of patients that fold {settings.fold} trains or validates on: "
      f"{some(known)}; move all cases of a patient to one side, or take them out of the data folder"
    )
  left = [c.name for c in folds.holdout(kept, settings.fold, cases) if c.name not in known]
  place = f"of {len(cases)} cases are not in fold {settings.fold} of {source}"
  lines = []
  if left:
    lines.append(
      f"hold-out: {len(left)} {place}, so they are neither trained nor validated on: {some(left)}; "
      f"{commands.named('evaluate')} --split=holdout scores them. To train on cases that were "
      "added since the run began, start again with another --workdir"
    )
  if known:
    lines.append(
      f"warning: {len(known)} {place}; they are left out and are no hold-out, because it has other "
      f"cases of their patients: {some(known)}"
    )
  return kept, train, val, lines


def find(settings: DataSettings, progress: Progress) -> tuple[Found, list[str]]:
  """What lies under the root, and what is to be said of its names. UserError if there is no case.

  Demonstration cases are written first, if there are to be any.
  """
  if settings.demo_cases:
    with processes.first_before_others():  # who find nothing left to write
      report = progress("writing demonstration cases")
      root, workers = Path(settings.root), settings.prepare_workers or None
      demo.write_dataset(root, settings.demo_cases, settings.demo_seed, workers, report)
  naming = naming_of(settings.names, settings.patients)
  found = under_root(settings, naming)
  return found, _on_names(found, naming, settings)


def under_root(settings: DataSettings, naming: Naming | None = None) -> Found:
  """What lies under the root. UserError if there is no case."""
  naming = naming or naming_of(settings.names, settings.patients)
  found = search(settings.root, settings.labels, naming)
  if not found.cases:
    raise found.errors[0] if found.errors else no_case(settings.root)
  return found


def _on_names(found: Found, naming: Naming, settings: DataSettings) -> list[str]:
  """What is to be said where names may have been misunderstood."""
  lines = on_names(found, settings.root, naming, settings.patients)
  others = (case.patient for case in found.cases if case.name not in naming.patients)
  if groups := unjoined(others):
    lines.append(
      f"warning: {sum(map(len, groups))} cases have names that look like time points, and count "
      f"as patients of their own: {some([name for names in groups for name in names])}. If they "
      "are not, say whose they are: data.patients, a CSV file with the columns case and patient"
    )
  return lines


def settle(
  settings: DataSettings, cases: Sequence[Case], progress: Progress
) -> tuple[list[Case], list[str]]:
  """The cases with the conventions of their label maps, and what is to be said of these."""
  lines: list[str] = []
  settled, _ = conventions.settle(
    cases,
    Path(settings.root),
    settings.labels,
    "--config.data.labels",
    progress("looking at the labels"),
    lines.append,
    Path(settings.cache) / MEMORY_FILE,
  )
  return settled, lines


def prepare(
  settings: DataSettings,
  sequences: tuple[str, ...],
  cases: Sequence[Case],
  progress: Progress,
  tell: Callable[[str], None] | None = None,
) -> tuple[dict[str, Path], list[CaseError]]:
  """The cache entries of the good cases by name, and what is wrong with the rest.

  Several processes share the cases out.

  Args:
    sequences: what networks read; a case that lacks one is not good.
  """
  own, bad = cache.prepare(
    processes.share(cases),
    settings.cache,
    settings.cache_settings(sequences),
    settings.prepare_workers or None,
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
  return entries, processes.all_errors(bad)


def report(
  settings: DataSettings,
  sequences: tuple[str, ...],
  progress: Progress,
  tell: Callable[[str], None],
) -> None:
  """--mode=prepare: fills the cache and tells what came of it.

  Raises:
    UserError: cases are bad, or a file of folds parts two that are one scan.
  """
  _read_given(settings)
  found, lines = find(settings, progress)
  train, val = list[str](), list[str]()
  if settings.folds_file:
    _, train, val, _ = _split(found.cases, settings, None)
  cases, on_labels = settle(settings, found.cases, progress)
  for line in lines + on_labels if processes.first() else ():
    tell(line)
  entries, bad = prepare(settings, sequences, cases, progress, tell)
  bad = found.errors + bad
  tell(f"{len(entries)} of {len(cases)} cases are ready in {settings.cache}")
  if bad and not settings.skip_bad_cases:
    raise bad_cases_error(bad, _nowhere(sequences, cases))
  twice = duplicates.check(duplicates.find(cases, entries), train, val)
  for line in twice if processes.first() else ():
    tell(line)
  if bad:
    tell(f"left out, as you asked:\n{error_table(bad)}")


def open_dataset(
  settings: DataSettings,
  sequences: tuple[str, ...],
  choice: Choice,
  progress: Progress,
  tell: Callable[[str], None] | None = None,
) -> Dataset:
  """The cases of the settings' fold; prepares what is missing, of all cases that some fold names.

  Args:
    sequences: what networks read; a case that lacks one cannot be used.

  Raises:
    UserError: cases that cannot be used (unless they may be skipped), or none left; one scan in
      training and in validation, under the names of two patients.
  """
  listed = folds.listed(choice.folds)
  cases = [case for case in choice.cases if case.name in listed]
  entries, bad = prepare(settings, sequences, cases, progress, tell)
  bad = choice.bad + bad
  if bad and not settings.skip_bad_cases:
    raise bad_cases_error(bad, _nowhere(sequences, cases))
  train, val = ([name for name in side if name in entries] for side in (choice.train, choice.val))
  for side, names in (("training", train), ("validation", val)):
    if not names:
      raise UserError(f"no usable case is left for {side} in fold {settings.fold}")
  for line in duplicates.check(duplicates.find(cases, entries), train, val):
    if tell:
      tell(line)
  by_name = {case.name: case for case in cases if case.name in entries}
  return Dataset(by_name, entries, train, val, bad)


def bad_cases_error(bad: list[CaseError], nowhere: Sequence[str] = ()) -> UserError:
  """What is wrong with cases; nowhere: sequences that are read and that no case has."""
  names = len({error.case for error in bad})
  remedy = "Mend them, or go on without them: --config.data.skip_bad_cases=True"
  if nowhere:
    remedy = (
      f"No case has {' or '.join(nowhere)}. Mend them, or choose what is read (docs/presets.md): "
      "student_only reads the student's sequence alone, from_flair, from_t2 and from_t1 one more"
    )
  return UserError(
    f"{names} case{'s' * (names > 1)} cannot be used:\n\n{error_table(bad)}\n\n{remedy}"
  )


def _nowhere(sequences: Sequence[str], cases: Sequence[Case]) -> list[str]:
  return [name for name in sequences if not any(name in case.images for case in cases)]


def spread(names: list[str], count: int) -> list[str]:
  """count of the names, evenly spread over the list; all of them for 0."""
  if not count or count >= len(names):
    return list(names)
  return [names[math.floor((i + 0.5) * len(names) / count)] for i in range(count)]
