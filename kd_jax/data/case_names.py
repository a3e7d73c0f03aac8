"""Names of cases and of patients, from names of files and, where those do not tell, of folders."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data.file_groups import Group
from kd_jax.runtime.errors import some
from kd_jax.tasks.patients import is_time_point, patient_of

# Folders that say nothing of whose scan they hold.
_GENERIC = frozenset(
  [
    "anat",
    "nifti",
    "nii",
    "nifti_files",
    "images",
    "image",
    "mri",
    "mr",
    "scans",
    "preprocessed",
    "preproc",
    "registered",
    "brain",
    "skull_stripped",
    "derivatives",
  ]
)


def name_by_folder(folder: Path, root: Path | None = None) -> tuple[str, str]:
  """(case, patient) of images without a name of their own: P01/2019-01-02 is P01's.

  The path counts as it was given: a link's target would undo a pseudonym.
  """
  parts = _own_parts(folder, root)
  return "_".join(part.name for part in parts), patient_of(parts[0].name)


def _own_parts(folder: Path, root: Path | None) -> list[Path]:
  """The folders whose names tell whose scan it is, the patient's first."""
  here = Path(os.path.abspath(folder))
  parts: list[Path] = []
  top = root and Path(os.path.abspath(root))
  while (
    here.name.lower() in _GENERIC
    and here.parent.name
    and (is_time_point(here.parent.name) or (top in here.parents))
  ):
    here = here.parent
  while here.name:
    parts.insert(0, here)
    if not is_time_point(here.name):
      break
    here = here.parent
  return parts or [Path("case")]


def name_all(groups: Sequence[Group], root: Path) -> list[str]:
  """Sets every case's name and patient; names are unique. Returns lines on what was done."""
  by_folder = [group for group in groups if not group.key]
  for group in groups:
    here = Path(os.path.abspath(group.folder))
    if group.key:
      group.name, group.patient = group.key, patient_of(group.key)
      group.above = here.parent if here.name == group.key else here
    else:
      group.name, group.patient = name_by_folder(here, root)
      group.above = _own_parts(here, root)[0].parent
  notes = []
  if len({group.name for group in by_folder}) < len(by_folder) and _look_higher(by_folder):
    patients = sorted({group.patient for group in by_folder})
    notes.append(
      f"folders' names repeat; patients are named after the folders above: {some(patients)}"
    )
  changed: list[Group] = []
  while twice := _twice(groups):
    changed += twice
    for group in twice:
      part, group.above = group.above.name, group.above.parent
      later = group.key and is_time_point(part)
      group.name = f"{group.name}_{part}" if later else f"{part}_{group.name}"
  if names := sorted({group.name for group in changed}):
    notes.append(f"{len(names)} names repeat and got their folders' too: {some(names)}")
  return notes


def _twice(groups: Sequence[Group]) -> list[Group]:
  """Those whose name another one has, as long as there are folders to tell them apart."""
  count = Counter(group.name for group in groups)
  return [group for group in groups if count[group.name] > 1 and group.above.name]


def _look_higher(groups: Sequence[Group]) -> bool:
  """Names cases and patients after the folders above where those have more names: P1/a, P2/a.

  Where they have fewer (site/P1, other/P1), names stay; gives False.
  """
  parents = {group.above for group in groups}
  higher = len(parents) >= len({group.name for group in groups})
  if higher:
    for group in groups:
      group.name, group.patient = f"{group.above.name}_{group.name}", patient_of(group.above.name)
      group.above = group.above.parent
  return higher
