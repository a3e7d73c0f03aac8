"""Names of cases and of patients, from names of files and, where those do not tell, of folders."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from kd_jax.data.file_groups import Group
from kd_jax.runtime.errors import some
from kd_jax.tasks.names import names_a_sequence
from kd_jax.tasks.patients import is_time_point, patient_of

# Folders that say nothing of whose scan they hold.
_GENERIC = frozenset(
  (
    *(
      "anat",
      "brain",
      "derivatives",
      "image",
      "images",
      "mr",
      "mri",
      "nifti",
      "nifti_files",
      "nii",
    ),
    *("preproc", "preprocessed", "registered", "scans", "skull_stripped"),
  )
)


def name_by_folder(folder: Path, root: Path | None = None) -> tuple[str, str]:
  """(case, patient) of images without a name of their own: P01/2019-01-02 is P01's.

  The path counts as it was given: a link's target would undo a pseudonym.
  """
  parts = _own_parts(_place(folder, root))
  return "_".join(part.name for part in parts), patient_of(parts[0].name)


def join_split(groups: Sequence[Group], root: Path) -> list[Group]:
  """Joins cases whose images lie in a folder each: P1/t1/t1.nii.gz and P1/flair/flair.nii.gz."""
  together: dict[tuple[str, Path], list[Group]] = defaultdict(list)
  for group in groups:
    group.place = _place(group.folder, root)
    together[group.key, group.place].append(group)
  joined = []
  for several in together.values():
    kinds = [kind for group in several for kind in group.kinds]
    if len(several) > 1 and len(set(kinds)) == len(kinds):
      first = several[0]
      for group in several[1:]:
        first.kinds |= group.kinds
        first.new |= group.new
      first.folder = first.place
      joined.append(first)
    else:  # T1 and T2 are time points, where both hold the same sequences
      for group in several if len(several) > 1 else ():
        group.inside = Path(os.path.abspath(group.folder)).relative_to(group.place).parts
      joined += several
  return joined


def name_all(groups: Sequence[Group], root: Path) -> list[str]:
  """Sets every case's name and patient; names are unique. Returns lines on what was done.

  Args:
    groups: of join_split.
  """
  by_folder = [group for group in groups if not group.key]
  for group in groups:
    here = Path(os.path.abspath(group.folder))
    if group.key:
      group.name, group.patient = group.key, patient_of(group.key)
      group.above = here.parent if here.name == group.key else here
    else:
      parts = _own_parts(group.place)
      group.name = "_".join((*(part.name for part in parts), *group.inside))
      group.patient, group.above = patient_of(parts[0].name), parts[0].parent
  higher = _look_higher(by_folder)
  changed: list[Group] = []
  while twice := _twice(groups):
    changed += twice
    for group in twice:
      part, group.above = group.above.name, group.above.parent
      later = group.key and is_time_point(part)
      group.name = f"{group.name}_{part}" if later else f"{part}_{group.name}"
  _share_patients(groups, root)
  notes = []
  if patients := sorted({group.patient for group in higher}):
    notes.append(
      f"folders' names repeat; patients are named after the folders above: {some(patients)}"
    )
  if names := sorted({group.name for group in changed}):
    notes.append(f"{len(names)} names repeat and got their folders' too: {some(names)}")
  return notes


def _twice(groups: Sequence[Group]) -> list[Group]:
  """Those whose name another one has, as long as there are folders to tell them apart."""
  count = Counter(group.name for group in groups)
  return [group for group in groups if count[group.name] > 1 and group.above.name]


def _look_higher(groups: Sequence[Group]) -> list[Group]:
  """Names cases and patients after the folders above where those have more names: P1/a, P2/a.

  Where they have fewer (site/P1, other/P1), names stay. Returns those that were renamed.
  """
  count = Counter(group.name for group in groups)
  depths = {len(group.above.parts) for group in groups if count[group.name] > 1}
  renamed: list[Group] = []
  for depth in depths:
    level = [group for group in groups if len(group.above.parts) == depth]
    if len({group.above for group in level}) < len({group.name for group in level}):
      continue
    for group in level:
      group.name, group.patient = f"{group.above.name}_{group.name}", patient_of(group.above.name)
      group.above = group.above.parent
    renamed += level
  return renamed


def _share_patients(groups: Sequence[Group], root: Path) -> None:
  """What lies below a folder with one case (other versions of it, a segmentation's own copies) is
  of the same patient."""
  count = Counter(group.folder for group in groups)
  homes = {g.folder: g for g in groups if count[g.folder] == 1 and g.folder != root}
  for group in groups:
    outer = next((homes[place] for place in group.folder.parents if place in homes), None)
    if outer:
      group.patient = outer.patient


# --- Folders ----------------------------------------------------------------------------------


def _place(folder: Path, root: Path | None) -> Path:
  """The folder of the whole case: above anat/, NIFTI/ and folders that hold one sequence.

  Of a file that is given alone (no root), only what stands below a time point is left out.
  """
  here = Path(os.path.abspath(folder))
  top = root and Path(os.path.abspath(root))
  while _says_nothing(here.name) and (
    top in here.parents if top else is_time_point(here.parent.name)
  ):
    here = here.parent
  return here


def _says_nothing(folder_name: str) -> bool:
  """Whether a folder's name is no case's: a word for images, or a sequence."""
  return folder_name.lower() in _GENERIC or names_a_sequence(folder_name)


def _own_parts(folder: Path) -> list[Path]:
  """The folders whose names tell whose scan it is, the patient's first."""
  here = folder
  parts: list[Path] = []
  while here.name:
    parts.insert(0, here)
    if not is_time_point(here.name):
      break
    here = here.parent
  return parts or [Path("case")]
