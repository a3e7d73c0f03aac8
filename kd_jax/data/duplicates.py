"""One scan under two names: two cases of different patients that have an image in common.

Folds are split by patient, so such a pair can be trained on and validated on, or tested on.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from kd_jax.data.cases import Case
from kd_jax.data.entry import open_entry
from kd_jax.runtime.errors import UserError, some

_REMEDY = (
  "Take one of each pair out of the data folder, or say whose scans they are: data.patients, a CSV "
  "file with the columns case and patient; cases of one patient stay on one side. A run that has "
  "begun keeps its folds: start it again with another --workdir"
)


class Pair(NamedTuple):
  """Two cases, by name, and a sequence of the first that is an image of the second."""

  one: str
  other: str
  sequence: str

  def __str__(self) -> str:
    return f"{self.one} and {self.other} ({self.sequence})"


def find(cases: Sequence[Case], entries: Mapping[str, Path]) -> list[Pair]:
  """The pairs of different patients that have an image in common.

  Args:
    entries: the cache entries of the cases that have one, by name; the others are not looked at.

  Raises:
    UserError: an entry that is none.
  """
  with_image = defaultdict[str, list[tuple[Case, str]]](list)
  for case in cases:
    if case.name in entries:
      for sequence, digest in open_entry(entries[case.name]).meta["content"].items():
        with_image[digest].append((case, sequence))
  with_image.pop("", None)  # an image that is zero everywhere is nobody's
  found: dict[tuple[str, str], Pair] = {}
  for known in with_image.values():
    for (one, sequence), (other, _) in combinations(known, 2):
      if one.patient != other.patient:
        names = one.name, other.name
        found.setdefault(names, Pair(*names, sequence))
  return list(found.values())


def check(pairs: Sequence[Pair], train: Collection[str], val: Collection[str]) -> list[str]:
  """What is to be said of pairs.

  Args:
    train, val: the names of the cases of each side; both empty where no split is known.

  Raises:
    UserError: pairs with one case in training and one in validation.
  """
  across = [
    pair
    for pair in pairs
    if (pair.one in train and pair.other in val) or (pair.one in val and pair.other in train)
  ]
  if across:
    raise UserError(
      f"training and validation share images: {some(list(map(str, across)))} are the same under "
      f"the names of different patients, so validation would not be on new patients. {_REMEDY}"
    )
  if not pairs:
    return []
  return [
    f"warning: {len(pairs)} pairs of cases have the same image and count as different patients, "
    f"so a split may part them: {some(list(map(str, pairs)))}. {_REMEDY}"
  ]
