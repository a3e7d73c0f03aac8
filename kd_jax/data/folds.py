"""Cross-validation folds: by patient, the same whatever the order of the cases.

Three forms of JSON are understood: our own {"seed": 20, "folds": [[names], ...]}, where fold k is
validated on folds[k]; nnU-Net's splits_final.json, a list of {"train": [names], "val": [names]};
and one explicit {"train": [names], "val": [names]}. The last two may name "test" cases too.

What a fold neither trains nor validates on is its hold-out: unseen by its student.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.cases import Case
from kd_jax.runtime.errors import ConfigError, UserError, some
from kd_jax.runtime.files import load_json
from kd_jax.tasks.names import nifti_stem, parse_name

Folds = dict | list
_LISTS = ("train", "val", "test")  # of a fold; "test" need not be there


def make_folds(cases: Sequence[Case], folds: int = 5, seed: int = 20) -> dict:
  """Patients dealt to folds as scikit-learn's KFold(folds, shuffle, seed) deals the sorted list.

  Returns:
    {"seed": seed, "folds": [[case names], ...]}, ready for JSON.

  Raises:
    ConfigError: fewer than two folds. UserError: fewer patients than folds.
  """
  if folds < 2:
    raise ConfigError(f"folds = {folds}: cross-validation needs at least 2")
  names: dict[str, list[str]] = {}
  for case in cases:
    names.setdefault(case.patient, []).append(case.name)
  patients = sorted(names)
  if len(patients) < folds:
    raise UserError(
      f"{len(patients)} patients cannot fill {folds} folds; set folds to at most {len(patients)}, "
      "or give a file with an explicit train and val list"
    )
  order = np.arange(len(patients))
  np.random.RandomState(seed).shuffle(order)
  dealt = [sorted(patients[i] for i in part) for part in np.array_split(order, folds)]
  return {
    "seed": seed,
    "folds": [[name for patient in part for name in sorted(names[patient])] for part in dealt],
  }


def decide(
  cases: Sequence[Case],
  folds: int = 5,
  seed: int = 20,
  *,
  stored: Path | None = None,
  given: Path | None = None,
) -> Folds:
  """The folds of a run; nothing is written.

  Args:
    cases: all cases of the data; those that no fold names are a hold-out.
    folds, seed: of folds to make.
    stored: the file that the run began with, if it has begun.
    given: a file to use instead of making folds.

  Raises:
    UserError: a file that is not one of the three forms or does not fit the cases, or a stored
      one that was made with another given file, seed or number of folds.
  """
  kept = None if stored is None else check_same(stored, folds, seed, given)
  wanted = None if given is None else read(given)
  for source, found in ((stored, kept), (given, wanted)):
    if found is not None:
      _check(found, cases, source)
      return found
  return make_folds(cases, folds, seed)


def check_same(stored: Path, folds: int, seed: int, given: Path | None) -> Folds:
  """The folds that a run began with. UserError if it was split in another way; args as decide's."""
  kept = read(stored)
  if given is not None and kept != read(given):
    raise UserError(
      f"{stored} holds other folds than {given}; a run keeps the folds that it began with: "
      "use a new work directory, or leave the file out"
    )
  if given is None and isinstance(kept, dict) and "seed" in kept:
    had = (len(kept["folds"]), kept["seed"])
    if had != (folds, seed):
      raise UserError(
        f"{stored} was made with {had[0]} folds and seed {had[1]}, not {folds} and {seed}; "
        "use a new work directory, or those settings"
      )
  return kept


def split(folds: Folds, fold: int) -> tuple[list[str], list[str]]:
  """(train names, val names) of a fold, each sorted. ConfigError if there is no such fold."""
  splits = _splits(folds)
  if not 0 <= fold < len(splits):
    there = f"are folds 0 to {len(splits) - 1}" if len(splits) > 1 else "is only fold 0"
    raise ConfigError(f"data.fold = {fold}: there {there}")
  train, val = splits[fold]
  return sorted(train), sorted(val)


def _splits(folds: Folds) -> list[tuple[list[str], list[str]]]:
  """Any of the three forms as (train, val) pairs."""
  if isinstance(folds, dict) and "folds" in folds:
    parts = folds["folds"]
    return [
      ([name for j, other in enumerate(parts) if j != k for name in other], part)
      for k, part in enumerate(parts)
    ]
  return [(pair["train"], pair["val"]) for pair in _pairs(folds)]


def count(folds: Folds) -> int:
  """How many folds there are."""
  return len(_splits(folds))


def listed(folds: Folds) -> set[str]:
  """All cases that some fold names."""
  used = {name for pair in _splits(folds) for side in pair for name in side}
  return used | {name for pair in _pairs(folds) for name in pair.get("test", ())}


def holdout(folds: Folds, fold: int, cases: Sequence[Case]) -> list[Case]:
  """The cases that a fold neither trains nor validates on."""
  used = {name for side in split(folds, fold) for name in side}
  return [case for case in cases if case.name not in used]


def validated_twice(folds: Folds) -> list[str]:
  """The cases that more than one fold validates on."""
  counts = Counter(name for _, val in _splits(folds) for name in set(val))
  return sorted(name for name, n in counts.items() if n > 1)


def known_patients(folds: Folds, fold: int, cases: Sequence[Case]) -> list[str]:
  """The cases of a fold's hold-out whose patients it trains or validates on: they are not unseen.

  Returns:
    Their names.
  """
  used = {name for side in split(folds, fold) for name in side}
  seen = {case.patient for case in cases if case.name in used}
  return [case.name for case in holdout(folds, fold, cases) if case.patient in seen]


def _pairs(folds: Folds) -> list[dict[str, list[str]]]:
  """The folds that are written out; none in our own form."""
  if isinstance(folds, dict):
    return [] if "folds" in folds else [folds]
  return folds


def read(path: Path) -> Folds:
  """A folds file in any of the three forms. UserError if it is none."""
  try:
    folds = load_json(path)
    splits = _splits(folds)
    well_formed = bool(splits) and all(
      isinstance(names, list) and names and all(isinstance(name, str) for name in names)
      for pair in splits
      for names in pair
    )
    tests = [pair.get("test", []) for pair in _pairs(folds)]
    well_formed &= all(isinstance(t, list) and all(isinstance(n, str) for n in t) for t in tests)
  except OSError as e:
    raise UserError(f"cannot read the folds in {path}: {e.strerror}") from e
  except (ValueError, KeyError, TypeError, AttributeError):
    well_formed = False
  if not well_formed:
    raise UserError(
      f'{path} holds no folds; expected JSON of the form {{"folds": [[names], ...]}}, '
      '[{"train": [names], "val": [names]}, ...] or {"train": [names], "val": [names]}, '
      "with no list empty"
    )
  allowed = _LISTS if _pairs(folds) else ("seed", "folds")
  groups = _pairs(folds) or [folds]
  if unknown := [key for group in groups for key in group if key not in allowed]:
    raise UserError(
      f"{path} has an entry {unknown[0]!r}, which is not understood; take it out (known here: "
      f"{', '.join(allowed)}). Cases that are in no list are a hold-out"
    )
  return folds


def _check(folds: Folds, cases: Sequence[Case], source: object) -> None:
  """UserError for names that are no cases, and for patients on two sides of a fold."""
  patients = {case.name: case.patient for case in cases}
  if unknown := sorted(listed(folds) - set(patients)):
    raise UserError(
      f"{source} names cases that are not in the data: {some(unknown)}; "
      f"{_spelling(unknown, list(patients))}"
    )
  tests = [pair.get("test", []) for pair in _pairs(folds)] or [[]] * count(folds)
  for k, ((train, val), test) in enumerate(zip(_splits(folds), tests, strict=True)):
    counts = Counter(train) | Counter(val) | Counter(test)  # the largest of the three
    if twice := sorted(name for name, n in counts.items() if n > 1):
      raise UserError(f"{source} lists cases twice in fold {k}: {some(twice)}; keep one of each")
    sides = {"training": train, "validation": val, "test": test}
    there = {what: {patients[name] for name in side} for what, side in sides.items()}
    for one, other in (("training", "validation"), ("training", "test"), ("validation", "test")):
      if both := sorted(there[one] & there[other]):
        raise UserError(
          f"{source} has patients in both {one} and {other} of fold {k}: {some(both)}; "
          "move all cases of a patient to one side"
        )


def _spelling(unknown: Sequence[str], known: Sequence[str]) -> str:
  """How to write names that are no cases, where that shows; else what cases there are."""
  by_name = {name.casefold(): name for name in known}
  for name in unknown:
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].strip()
    stem = nifti_stem(last) or last
    parsed = parse_name(f"{stem}.nii")
    for part in (last, stem, re.sub(r"_\d{4}$", "", stem), parsed.case if parsed else ""):
      if meant := by_name.get(part.casefold()):
        return f"a case goes by its name alone: write {meant!r} for {name!r}"
  return (
    f"correct the file, or the data folder; it has {len(known)} cases, such as "
    f"{', '.join(sorted(known)[:3])}"
  )
