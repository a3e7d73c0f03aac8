"""Which cases a folder holds, by the names of its files and folders; and what is left over."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kd_jax.data.case_names import join_split, name_all
from kd_jax.data.file_groups import Group, group_files, is_loose_seg
from kd_jax.data.patients import read_patients
from kd_jax.data.walk import File, Folder, walk
from kd_jax.runtime import commands
from kd_jax.runtime.errors import CaseError, ConfigError, UserError, some
from kd_jax.tasks.labels import AUTO, by_name, canonical
from kd_jax.tasks.names import (
  KINDS,
  MODALITIES,
  Patterns,
  is_label_map,
  nifti_stem,
  parse_patterns,
)
from kd_jax.tasks.patients import patient_of

_LAYOUTS = (
  "expected case folders, at any depth, that hold files such as "
  "BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz (2018-2021) or "
  "BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,t1n,t1c,t2w,seg}.nii.gz (2023, 2024); other names "
  "can be explained (names: docs/names.md)"
)

_CHANNEL = re.compile(r"_[0-9]{4}\Z")  # what nnU-Net's names end with


@dataclass(frozen=True)
class Case:
  """One scan session: four images of one grid and their label map.

  Attributes:
    name: unique in the data set; what its files' names start with.
    patient: who was scanned; several time points share one patient.
    folder: where the files are.
    images: modality -> file; a modality without a file has no key.
    seg: the label map, or None.
    convention: what the numbers in seg mean, see labels.canonical; None without a seg of known
      kind.
    beside: other images of its folder, which are not read.
    unread: images of sequences that are not read.
  """

  name: str
  patient: str
  folder: Path
  images: dict[str, Path]
  seg: Path | None
  convention: str | None
  beside: tuple[Path, ...] = ()
  unread: tuple[Path, ...] = ()

  @property
  def label_map(self) -> tuple[Path, str]:
    """The label map and its convention; for cases that have one."""
    assert self.seg is not None and self.convention is not None, f"{self.name} has no label map"
    return self.seg, self.convention


@dataclass(frozen=True)
class Naming:
  """What the user says of names.

  Attributes:
    patterns: which file names mean which sequence; see names.parse_patterns.
    patients: case -> patient, for names that do not tell.
  """

  patterns: Patterns = field(default_factory=dict)
  patients: Mapping[str, str] = field(default_factory=dict)


class Found(NamedTuple):
  """What a folder holds.

  Attributes:
    cases: sorted by name.
    errors: images that belong to no case, or that cannot be told apart: somebody may miss them.
    unused: other images and label maps beside the cases.
    notes: lines on how names were understood.
  """

  cases: list[Case]
  errors: list[CaseError]
  unused: list[Path]
  notes: list[str]


def loose_case(name: str, images: dict[str, Path]) -> Case:
  """A case of loose images: its folder is the first image's, its patient follows from its name."""
  folder = next(iter(images.values())).parent
  return Case(name, patient_of(name), folder, images, None, None)


def find_cases(
  root: str | os.PathLike, labels: str = "auto", naming: Naming | None = None
) -> list[Case]:
  """All cases under root (or root itself, if it is one), sorted by name.

  Args:
    root, labels, naming: as for `search`.

  Raises:
    UserError: as `search`; no case; the first of its errors.
  """
  found = search(root, labels, naming)
  if found.errors:
    raise found.errors[0]
  if not found.cases:
    raise no_case(root)
  return found.cases


def no_case(root: str | os.PathLike) -> UserError:
  return UserError(f"no case found under {root}; {_LAYOUTS}")


def naming_of(names: str, patients: str | os.PathLike) -> Naming:
  """From the text of names.parse_patterns and the path of a table of patients; "" for neither.

  Raises:
    ConfigError: names cannot be read. UserError: the table cannot.
  """
  try:
    patterns = parse_patterns(names)
  except ValueError as e:
    raise ConfigError(f"names = {names!r}: {e}") from e
  return Naming(patterns, read_patients(patients) if patients else {})


def on_names(
  found: Found, root: str | os.PathLike, naming: Naming, table: str = "the table of patients"
) -> list[str]:
  """What is to be said of names: how they were understood, what is not read, who is in no table."""
  lines = found.notes + told_unused(found.unused, root)
  others = [case.name for case in found.cases if case.name not in naming.patients]
  if naming.patients and others:
    told = f"{table} lacks {len(others)} cases, whose names tell the patient: {some(others)}"
    lines.append(told)
  return lines


def told_unused(unused: Sequence[Path], root: str | os.PathLike) -> list[str]:
  """What to say of the files that search leaves aside."""
  names = [os.path.relpath(path, os.path.expanduser(root)) for path in unused]
  return [f"{len(names)} other files beside the cases are not read: {some(names)}"] if names else []


def search(
  root: str | os.PathLike,
  labels: str = "auto",
  naming: Naming | None = None,
  wanted: Sequence[str] = KINDS,
) -> Found:
  """All cases under root (or root itself, if it is one), and what is left over.

  Args:
    root: a folder; symbolic links are followed, each folder is visited once. Names are those of
      the path as it is given, whatever a link leads to.
    labels: the label convention of all cases, or "auto": by names only, BraTS-GLI-* as brats2024
      (which reads 2023's labels too), other cases with 2023's file names as brats2023, the rest as
      brats2018. What the label maps hold may say otherwise: conventions.settle looks.
    naming: what the user says of names.
    wanted: of names.KINDS; two files of another kind are no error.

  Raises:
    UserError: no such folder, one that cannot be read, or a table of patients for other cases.
    ConfigError: an unknown convention; patterns of two sequences that fit one file.
  """
  labels = canonical(labels, auto=True)
  root = Path(os.path.expanduser(root))
  if not os.path.isdir(root):
    raise UserError(f"no data folder {root}; {_LAYOUTS}")
  naming = naming or Naming()
  groups: list[Group] = []
  errors: list[CaseError] = []
  unused: list[Path] = []
  leftovers: list[tuple[Folder, list[Group], list[File]]] = []
  for folder in walk(root):
    own, rest, bad = group_files(folder, naming.patterns, root, wanted)
    groups += own
    errors += bad
    leftovers.append((folder, own, rest))
  groups = join_split(groups, root)
  unused += [group.kinds["seg"] for group in groups if is_loose_seg(group)]
  groups = [group for group in groups if not is_loose_seg(group)]
  notes = name_all(groups, root) + _told_again(
    [f for folder, _, _ in leftovers for f in folder.again]
  )
  homes = _homes(groups, root)
  for folder, own, rest in leftovers:
    beside, missed = _leftover(folder, own, rest, homes)
    unused += beside
    errors += missed
  cases = [_case(group, labels) for group in groups]
  if cases and naming.patients and not any(case.name in naming.patients for case in cases):
    raise UserError(
      f"the table of patients names no case of {root}: it has {some(sorted(naming.patients)[:3])}, "
      f"the cases are called {some(sorted(case.name for case in cases)[:3])}; correct its names"
    )
  cases = [
    replace(case, patient=naming.patients.get(case.name, case.patient), beside=beside)
    for case, beside in zip(cases, _beside(cases, unused), strict=True)
  ]
  return Found(sorted(cases, key=lambda case: case.name), errors, unused, notes)


def _beside(cases: Sequence[Case], unused: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
  """Of each case, what its folder holds besides; where cases share one, names tell whose."""
  count, there = Counter(case.folder for case in cases), defaultdict(list)
  for path in unused:
    there[path.parent].append(path)
  for case in cases:
    own = case.name if count[case.folder] > 1 else ""
    yield tuple(path for path in there[case.folder] if path.name.startswith(own))


def _told_again(folders: Sequence[Path]) -> list[str]:
  if not folders:
    return []
  names = some([path.name for path in folders])
  return [f"{len(folders)} folders are links to folders that are read already: {names}"]


def _homes(groups: Sequence[Group], root: Path) -> set[Path]:
  """Folders that hold one case alone: what else lies there belongs to it."""
  here = Path(os.path.abspath(root))
  count = Counter(group.place for group in groups)
  alone = [group for group in groups if count[group.place] == 1]
  return {g.place for g in alone if g.place != here or g.key in ("", here.name)}


def _case(group: Group, labels: str) -> Case:
  kinds = group.kinds
  return Case(
    name=group.name,
    patient=group.patient,
    folder=group.folder,
    images={modality: kinds[modality] for modality in MODALITIES if modality in kinds},
    seg=kinds.get("seg"),
    convention=by_name(group.name, group.new) if labels == AUTO else labels,
  )


# --- What is left over ------------------------------------------------------------------------


def _leftover(
  folder: Folder, groups: Sequence[Group], rest: Sequence[File], homes: set[Path]
) -> tuple[list[Path], list[CaseError]]:
  """Files beside the cases that belong to them, and files that somebody may miss.

  Args:
    groups: the folder's own.
    homes: folders that hold one case alone.
  """
  here = Path(os.path.abspath(folder.path))
  whole = here in homes or (not groups and any(place in homes for place in here.parents))
  belonging, missed = [], []
  for name, path in rest:
    stem = nifti_stem(name) or name
    near = any(
      group.key and re.match(rf"{re.escape(group.key)}([_.\- ]|$)", stem) for group in groups
    )
    if whole or near or is_label_map(name):
      belonging.append(path)
    else:
      missed.append(CaseError(stem, path, *not_understood(stem)))
  if folder.foreign and not whole:
    kinds = sorted({"".join(path.suffixes[-1:]) for path in folder.foreign})
    finding = f"{len(folder.foreign)} images of another format ({', '.join(kinds)})"
    remedy = "Convert them to NIfTI (DICOM with dcm2niix), or move them."
    missed.append(CaseError(folder.path.name, folder.foreign[0], finding, remedy))
  return belonging, missed


def not_understood(stem: str, modality: str = "t1ce") -> tuple[str, str]:
  """(finding, remedy) for an image whose name says nothing."""
  finding = "its name does not say which sequence it is"
  if _CHANNEL.search(stem):
    return finding, (
      f"Only {commands.named('predict')} reads nnU-Net's channels. Elsewhere give each case a "
      "folder, of links for instance: CASE/CASE_t1ce.nii.gz, ..., CASE/CASE_seg.nii.gz "
      "(docs/names.md)."
    )
  remedy = (
    f"Rename it ({stem}_{modality}.nii.gz if it is a {modality}), explain it "
    f'(names=\'{{"{modality}": "*post*"}}\', docs/names.md), or move it.'
  )
  return finding, remedy
