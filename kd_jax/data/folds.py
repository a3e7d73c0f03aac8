"""Cross-validation folds: by patient, the same whatever the order of the cases, kept in a file.

Three forms of JSON are understood: our own {"seed": 20, "folds": [[names], ...]}, where fold k is
validated on folds[k]; nnU-Net's splits_final.json, a list of {"train": [names], "val": [names]};
and one explicit {"train": [names], "val": [names]}.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_jax.data.cases import Case
from kd_jax.runtime.errors import ConfigError, UserError, some
from kd_jax.runtime.files import load_json, write_text

Folds = dict | list


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


def read_or_make(
  path: str | os.PathLike,
  cases: Sequence[Case],
  folds: int = 5,
  seed: int = 20,
  given: str | os.PathLike | None = None,
) -> Folds:
  """The folds of a work directory: read back from path, or made (or copied from given) and kept.

  Raises:
    UserError: a file that is not one of the three forms or does not fit the cases, or a path
      that was written with another given file, seed or number of folds.
  """
  path = Path(path)
  stored = read(path) if path.exists() else None
  wanted = read(Path(given)) if given is not None else None
  if stored is not None and wanted is not None and stored != wanted:
    raise UserError(
      f"{path} holds other folds than {given}; a run keeps the folds that it began with: "
      "use a new work directory, or leave the file out"
    )
  if stored is not None and wanted is None and isinstance(stored, dict) and "seed" in stored:
    had = (len(stored["folds"]), stored["seed"])
    if had != (folds, seed):
      raise UserError(
        f"{path} was made with {had[0]} folds and seed {had[1]}, not {folds} and {seed}; "
        "use a new work directory, or those settings"
      )
  result = next((f for f in (stored, wanted) if f is not None), None)
  if result is None:
    result = make_folds(cases, folds, seed)
  else:
    _check(result, cases, path if stored is not None else given)
  if stored is None:
    write_text(path, json.dumps(result, indent=1) + "\n")
  return result


def split(folds: Folds, fold: int) -> tuple[list[str], list[str]]:
  """(train names, val names) of a fold, each sorted. ConfigError if there is no such fold."""
  splits = _splits(folds)
  if not 0 <= fold < len(splits):
    raise ConfigError(f"fold = {fold}: there are folds 0 to {len(splits) - 1}")
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
  pairs = [folds] if isinstance(folds, dict) else folds
  return [(pair["train"], pair["val"]) for pair in pairs]


def count(folds: Folds) -> int:
  """How many folds there are."""
  return len(_splits(folds))


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
  except OSError as e:
    raise UserError(f"cannot read the folds in {path}: {e.strerror}") from e
  except (ValueError, KeyError, TypeError):
    well_formed = False
  if not well_formed:
    raise UserError(
      f'{path} holds no folds; expected JSON of the form {{"folds": [[names], ...]}}, '
      '[{"train": [names], "val": [names]}, ...] or {"train": [names], "val": [names]}, '
      "with no list empty"
    )
  return folds


def _check(folds: Folds, cases: Sequence[Case], source: object) -> None:
  patients = {case.name: case.patient for case in cases}
  splits = _splits(folds)
  listed = {name for pair in splits for names in pair for name in names}
  if unknown := sorted(listed - set(patients)):
    raise UserError(
      f"{source} names cases that are not in the data: {some(unknown)}; "
      "correct the file, or the data folder"
    )
  if left_out := sorted(set(patients) - listed):
    raise UserError(
      f"cases that are in no fold of {source}: {some(left_out)}; add them to the file, or "
      "take them out of the data folder"
    )
  for k, (train, val) in enumerate(splits):
    counts = Counter(train) | Counter(val)  # the larger of the two
    if twice := sorted(name for name, n in counts.items() if n > 1):
      raise UserError(f"{source} lists cases twice in fold {k}: {some(twice)}; keep one of each")
    if both := sorted({patients[name] for name in train} & {patients[name] for name in val}):
      raise UserError(
        f"{source} has patients in both training and validation of fold {k}: {some(both)}; "
        "move all cases of a patient to one side"
      )
