"""What the numbers in a set's label maps mean: by what files say, by names and by contents.

Names alone do not tell: cases of 2021 that were given the names of 2023 keep ET = 4. So all label
maps of a set are looked at before any is read as classes, and one line says what was decided.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kd_jax.data import label_anatomy as anatomy
from kd_jax.data.cases import Case
from kd_jax.data.label_contents import Contents, contents_of
from kd_jax.data.label_statements import Statements
from kd_jax.runtime.errors import ConfigError, some
from kd_jax.tasks import labels
from kd_jax.tasks.label_names import CLASSES

_YEARS = ("brats2018", "brats2023", "brats2024")


class Reading(NamedTuple):
  """How a set's label maps are to be read.

  Attributes:
    conventions: name -> convention.
    lines: what was decided, and why.
    warnings: what speaks against it.
    dropped: name -> label that is read as no tumour -> voxels.
    labels: all that occur, but 0.
  """

  conventions: dict[str, str]
  lines: list[str]
  warnings: list[str]
  dropped: dict[str, dict[int, int]]
  labels: set[int]

  def dropped_in(self, names: Collection[str]) -> dict[str, dict[str, int]]:
    """Label that is read as no tumour -> {"cases": how many have it, "voxels": of all of them}."""
    found: dict[str, dict[str, int]] = {}
    for own in (own for name, own in self.dropped.items() if name in names):
      for label, voxels in own.items():
        count = found.setdefault(str(label), {"cases": 0, "voxels": 0})
        count["cases"] += 1
        count["voxels"] += voxels
    return found

  def notes(self, names: Collection[str]) -> list[str]:
    """Sentences that belong to what is made of these label maps."""
    return self.warnings + [
      f"label {label} is read as no tumour: {n['voxels']} voxels in {_count(n['cases'])}"
      for label, n in self.dropped_in(names).items()
    ]


class _Group(NamedTuple):
  """Label maps that one decision is made for.

  Attributes:
    by_name: the convention that names suggest, or None.
    said_by: the file that says what the labels mean, or None.
    said: the convention that it says.
  """

  by_name: str | None
  said_by: Path | None = None
  said: str | None = None


def settle(
  cases: Sequence[Case],
  root: Path,
  asked: str,
  flag: str,
  progress: Callable[..., None],
  tell: Callable[[str], None],
  memory: Path | None = None,
) -> tuple[list[Case], Reading]:
  """Cases with the convention that their label maps are to be read in; see `decide`.

  Args:
    cases: as find_cases has them.
    tell: called with each line of the reading.
  """
  files = {case.name: case.seg for case in cases if case.seg}
  by_name = {case.name: case.convention for case in cases}
  reading = decide(files, by_name, Path(os.path.expanduser(root)), asked, flag, progress, memory)
  for line in (*reading.lines, *(f"warning: {note}" for note in reading.notes(files))):
    tell(line)
  found = by_name | reading.conventions
  return [replace(case, convention=found[case.name]) for case in cases], reading


def decide(
  files: Mapping[str, Path],
  by_name: Mapping[str, str | None],
  root: Path,
  asked: str,
  flag: str,
  progress: Callable[..., None],
  memory: Path | None = None,
  truths: Reading | None = None,
) -> Reading:
  """How a set's label maps are to be read.

  What is asked for holds; else what predict.json or dataset.json beside the files says; else names
  and contents, one decision for all files whose names are of one kind.

  Args:
    files: name -> label map.
    by_name: name -> the convention that its names suggest, or None.
    root: the set's folder.
    asked: a convention, or "auto".
    flag: the flag or setting that says it, for messages; "" if there is none.
    progress: see label_contents.contents_of.
    memory: see label_contents.contents_of.
    truths: these are predictions, and by_name holds the conventions of their truths, which are
      read so.

  Raises:
    ConfigError: it cannot be told, or the convention makes a class vanish; the message names the
      readings that are possible.
    UserError: a broken predict.json or dataset.json.
  """
  contents = contents_of(files, progress, memory)
  groups: dict[_Group, list[str]] = {}
  said = Statements(root)
  for name, path in files.items():
    if asked != labels.AUTO:
      key = _Group(asked)
    else:
      found = said.by(path.parent)
      key = _Group(None, *found) if found else _Group(by_name.get(name))
    groups.setdefault(key, []).append(name)
  there = {label for one in contents.values() for label in one.voxels}
  reading = Reading({}, [], [], {}, there)
  for group, names in groups.items():
    own = {name: contents[name] for name in names if name in contents}
    if asked != labels.AUTO:
      convention, why = asked, ""
    elif group.said:
      convention, why = group.said, f"{group.said_by} says so"
    else:
      convention, why = _judge(group.by_name, own, flag, truths)
    _check_vanishing(convention, own, flag)
    _add(reading, names, own, convention, why, flag)
  if asked != labels.AUTO:
    reading.warnings.extend(said.others(files.values(), asked, flag))
  return reading


# --- What names and contents say --------------------------------------------------------------


def _judge(
  name_says: str | None, own: Mapping[str, Contents], flag: str, truths: Reading | None
) -> tuple[str, str]:
  """(convention, why) of label maps that no file speaks of."""
  there = {label for contents in own.values() for label in contents.voxels}
  if there == {1} and not (truths and truths.labels == {1}):
    raise ConfigError(
      f"the label maps ({some(list(own))}) hold no label but 1: if they are whole tumours, they "
      "cannot be used, as NCR, ED and ET are not told apart; if 1 is NCR, "
      f"{_say(flag, *_YEARS[:2])}"
    )
  if name_says == "brats-ped":
    return _judge_children(there, flag, truths)
  if name_says is not None and name_says not in _YEARS:
    return name_says, "as the truths are"
  if not own:
    return name_says or "brats2023", "by names, as none of them can be read as a label map"
  by = "as the truths are" if truths else "by names and contents"
  if not there & {3, 4}:
    return name_says or "brats2023", f"{by}; no label map has ET (neither a 3 nor a 4)"
  if 3 not in there:
    why = by if name_says == "brats2018" else "they have a 4 and no 3, as those of 2018-2021"
    return "brats2018", why
  if 4 not in there:
    if name_says in ("brats2023", "brats2024"):
      return name_says, by
    return "brats2023", "they have a 3 and no 4, as those of 2023"
  if name_says == "brats2018":
    return "brats2018", by  # where a 3 is an error, which is found case by case
  if any(contents.voxels.keys() >= {3, 4} for contents in own.values()):
    return "brats2024", by if name_says == "brats2024" else "they have 3 and 4, as those of 2024"
  threes, fours = ([n for n, c in own.items() if label in c.voxels] for label in (3, 4))
  raise ConfigError(
    f"two label conventions lie in one folder: {len(threes)} label maps have a 3 and no 4 "
    f"({some(threes)}), {len(fours)} have a 4 and no 3 ({some(fours)}). If 4 is ET in the latter "
    f"(2018-2021), put them into a folder of their own; if 4 is the resection cavity (2024), "
    f"{_say(flag, 'brats2024')}"
  )


def _judge_children(there: set[int], flag: str, truths: Reading | None) -> tuple[str, str]:
  """As _judge, of the two conventions of BraTS-PED. With truths, it is theirs that is later."""
  if truths:
    if 3 in there and 4 in truths.labels - there:  # cysts without any oedema, or ET
      raise ConfigError(
        "the truths are BraTS-PED's with ET = 1 and ED = 4, and these masks have a 3 and no 4, as "
        f"those of 2023 with ET = 3; {_say(flag, 'brats2023', 'brats-ped')}"
      )
    return "brats-ped", "as the truths are"
  if 4 in there or not there:
    return "brats-ped", "by names and contents"
  raise ConfigError(
    "the names are BraTS-PED's, whose label maps have ET = 3 in 2023 and ET = 1 later, and no "
    "label map has the 4 that only the later ones have; "
    f"{_say(flag, 'brats2023', 'brats-ped')}"
  )


def _check_vanishing(convention: str, own: Mapping[str, Contents], flag: str) -> None:
  """ConfigError where ET would be read as the cavity of 2024."""
  there = {label for contents in own.values() for label in contents.voxels}
  if convention == "brats2024" and 4 in there and 3 not in there:
    with_it = [name for name, contents in own.items() if 4 in contents.voxels]
    in_full = '\'{"NCR": 1, "ED": 2, "ET": 3, "background": [0, 4]}\''
    raise ConfigError(
      "label 4 would vanish: brats2024 reads it as the resection cavity, and none of the label "
      f"maps has a 3 (4 is in {some(with_it)}). If 4 is ET, {_say(flag, 'brats2018')}; if it is "
      f"the cavity and no case has ET, {_say(flag, in_full)}"
    )


def _add(
  reading: Reading,
  names: Sequence[str],
  own: Mapping[str, Contents],
  convention: str,
  why: str,
  flag: str,
) -> None:
  """Adds a group's part to the reading."""
  reading.conventions.update(dict.fromkeys(names, convention))
  what = f"the labels of {_count(len(names))} are read as {convention}"
  if why:
    otherwise = f"; {flag} chooses another" if flag else ""
    reading.lines.append(f"{what} ({labels.meaning(convention)}): {why}{otherwise}")
  there = {label for contents in own.values() for label in contents.voxels}
  no_tumour = labels.labels_of(convention, CLASSES.index("background"))
  for name, contents in own.items():
    dropped = {label: n for label, n in contents.voxels.items() if label in no_tumour}
    if dropped:
      reading.dropped[name] = dropped
  if there == {1}:
    reading.warnings.append(f"{what}, and hold no label but 1: whole tumours would be read as NCR")
  elif alone := [name for name, contents in own.items() if contents.voxels.keys() == {1}]:
    reading.warnings.append(
      f"{_count(len(alone))} of {len(names)} ({some(alone)}) hold no label but 1: make sure that "
      "these are no masks of whole tumours, which are read as one class"
    )
  if contradiction := anatomy.contradiction(convention, list(own.values())):
    reading.warnings.append(f"{what}, but {contradiction}; {_say(flag)}" if flag else contradiction)


def _say(flag: str, *values: str) -> str:
  """How to state a convention."""
  if not flag:
    return "put them into folders of their own"
  if values:
    return f"say {' or '.join(f'{flag}={value}' for value in values)}"
  return f"check {flag} (msd: 1 = ED, 2 = NCR, 3 = ET; brats-ped; or a mapping, {labels.EXAMPLE})"


def _count(maps: int) -> str:
  return f"{maps} label map{'s' * (maps > 1)}"
