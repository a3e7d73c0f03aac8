"""Files of one folder, grouped into cases by what stands before the sequence in their names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kd_jax.data.own_masks import written_by_us
from kd_jax.data.walk import File, Folder
from kd_jax.runtime.errors import CaseError, ConfigError
from kd_jax.tasks.names import ParsedName, Patterns, label_map_of, names_a_sequence, parse_name


@dataclass
class Group:
  """Files that share what stands before the sequence in their names.

  Attributes:
    key: that; "" where there is nothing.
    kinds: modality, or "seg" -> file.
    new: whether a file has a name that 2023 introduced.
    name, patient: see case_names.name_all.
    above: the folder whose name comes before the case's, where names repeat.
    place: the folder of the whole case, where images lie in a folder each.
    inside: names of the folders below `place`, where these tell cases apart.
  """

  key: str
  folder: Path
  kinds: dict[str, Path] = field(default_factory=dict)
  new: bool = False
  name: str = ""
  patient: str = ""
  above: Path = Path()
  place: Path = Path()
  inside: tuple[str, ...] = ()


def group_files(
  folder: Folder, patterns: Patterns, root: Path, wanted: Sequence[str]
) -> tuple[list[Group], list[File], list[CaseError]]:
  """A folder's cases, the files that are in none, and files that cannot be told apart."""
  groups: dict[str, Group] = {}
  errors, rest, twice = [], [], set()
  for file, parsed in _parse_all(folder, patterns, root):
    if not parsed:
      rest.append(file)
      continue
    group = groups.setdefault(parsed.case, Group(parsed.case, folder.path))
    group.new |= parsed.new
    if parsed.kind in group.kinds and parsed.kind in wanted:
      twice.add(parsed.case)
      name = parsed.case or os.path.basename(os.path.abspath(folder.path))
      names = sorted(path.name for path in (group.kinds[parsed.kind], file.path))
      finding = f"two {parsed.kind} files: {' and '.join(names)}"
      remedy = "Keep one of them."
      errors.append(CaseError(name, file.path, finding, remedy))
    group.kinds[parsed.kind] = file.path
  rest = [file for file in rest if not _adopt_own_seg(groups, file)]
  _adopt_odd_seg(groups, errors, folder.path == root)
  kept = []
  apart = names_a_sequence(folder.path.name)  # it may be a case's, whose images lie elsewhere
  for key, group in groups.items():
    if is_loose_seg(group) and not apart:
      rest += [File(path.name, path) for path in group.kinds.values()]
    elif key not in twice:
      kept.append(group)
  return kept, rest, errors + folder.broken


def is_loose_seg(group: Group) -> bool:
  """A label map alone is a prediction or a loose file, unless the folder is named after it."""
  return set(group.kinds) == {"seg"} and group.key not in ("", group.folder.name)


def _parse_all(
  folder: Folder, patterns: Patterns, root: Path
) -> list[tuple[File, ParsedName | None]]:
  """What each file's name says; those that predict wrote are left aside.

  Where the user's patterns speak and a folder has one file of each sequence, all are one case's.
  """
  own_masks = written_by_us(folder.path)
  files = [file for file in folder.files if file.name not in own_masks]
  try:
    told = [parse_name(file.name, patterns, told_only=True) for file in files]
  except ValueError as e:
    raise ConfigError(f"{folder.path}: {e}") from e
  parsed = [known or parse_name(file.name) for file, known in zip(files, told, strict=True)]
  kinds = [name.kind for name in parsed if name]
  if any(told) and folder.path != root and len(set(kinds)) == len(kinds):
    keys = {name.case for name, known in zip(parsed, told, strict=True) if name and not known}
    key = keys.pop() if len(keys) == 1 else ""
    parsed = [
      name and (name._replace(case=key) if known else name)
      for name, known in zip(parsed, told, strict=True)
    ]
  return list(zip(files, parsed, strict=True))


def _adopt_own_seg(groups: dict[str, Group], file: File) -> bool:
  """Give a case called "brain" its brain_seg.nii.gz, which elsewhere is a map of brains."""
  group = groups.get(label_map_of(file.name) or "")
  if group is None or "seg" in group.kinds:
    return False
  group.kinds["seg"] = file.path
  return True


def _adopt_odd_seg(groups: dict[str, Group], errors: list[CaseError], top: bool) -> None:
  """Give a folder's only case without a seg the label map that goes by another name.

  A common copy of 2020 has W39_1998.09.19_Segm.nii as the label map of BraTS20_Training_355. At the
  top, unless that is the case's own folder, it is another case's: all may lie there.
  """
  with_images = [group for group in groups.values() if set(group.kinds) - {"seg"}]
  if len(with_images) != 1 or "seg" in with_images[0].kinds:
    return
  (case,) = with_images
  if top and case.key not in ("", os.path.basename(os.path.abspath(case.folder))):
    return
  odd = [group for group in groups.values() if group is not case]
  if len(odd) == 1:
    case.kinds["seg"] = odd[0].kinds["seg"]
    del groups[odd[0].key]
  elif odd:
    first, second = (group.kinds["seg"] for group in odd[:2])
    finding = f"two seg files: {first.name} and {second.name}"
    remedy = f"Keep one, or name it {case.key}_seg.nii.gz."
    errors.append(CaseError(case.key or case.folder.name, second, finding, remedy))
    del groups[case.key]
