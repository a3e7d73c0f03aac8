"""Which cases a folder holds: the file names of every BraTS year, recognised by themselves."""

import errno
import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from kd_jax.runtime.errors import ConfigError, UserError, did_you_mean
from kd_jax.tasks.labels import CONVENTIONS
from kd_jax.tasks.names import MODALITIES, nifti_stem, parse_name, patient_of

_LAYOUTS = (
  "expected case folders, at any depth, that hold files such as "
  "BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz (2018-2021) or "
  "BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,t1n,t1c,t2w,seg}.nii.gz (2023, 2024)"
)


@dataclass(frozen=True)
class Case:
  """One scan session: four images of one grid and their label map.

  Attributes:
    name: unique in the data set; what its files' names start with.
    patient: who was scanned; several time points share one patient.
    folder: where the files are.
    images: modality -> file; a modality without a file has no key.
    seg: the label map, or None.
    convention: what the numbers in seg mean, a key of labels.CONVENTIONS; None without a seg of
      known kind.
  """

  name: str
  patient: str
  folder: Path
  images: dict[str, Path]
  seg: Path | None
  convention: str | None

  @property
  def label_map(self) -> tuple[Path, str]:
    """The label map and its convention; for cases that have one."""
    assert self.seg is not None and self.convention is not None, f"{self.name} has no label map"
    return self.seg, self.convention


def loose_case(name: str, images: dict[str, Path]) -> Case:
  """A case of loose images: its folder is the first image's, its patient follows from its name."""
  folder = next(iter(images.values())).parent
  return Case(name, patient_of(name), folder, images, None, None)


def find_cases(root: str | os.PathLike, labels: str = "auto") -> list[Case]:
  """All cases under root (or root itself, if it is one), sorted by name.

  Args:
    root: a folder; symbolic links are followed, each folder is visited once.
    labels: the label convention of all cases, or "auto": BraTS-GLI-* as brats2024 (which reads
      2023's labels too), other cases with 2023's file names as brats2023, the rest as brats2018.

  Raises:
    UserError: no such folder, no case in it, two files for one modality, two cases of one name.
    ConfigError: an unknown convention.
  """
  if labels != "auto" and labels not in CONVENTIONS:
    raise ConfigError(did_you_mean("label convention", labels, ("auto", *CONVENTIONS)))
  root = Path(os.path.expanduser(root))
  if not os.path.isdir(root):
    raise UserError(f"no data folder {root}; {_LAYOUTS}")
  found = cases_under(root, labels)
  if not found:
    raise UserError(f"no case found under {root}; {_LAYOUTS}")
  return found


def cases_under(root: Path, labels: str = "auto") -> list[Case]:
  """As find_cases, of a folder that exists; no case is no error."""
  found: dict[str, Case] = {}
  for folder, files in _folders(root):
    for case in _cases_of(folder, files, labels):
      if case.name in found:
        raise UserError(
          f"two cases named {case.name}: in {found[case.name].folder} and {case.folder}; "
          "remove or rename one of them"
        )
      found[case.name] = case
  return [found[name] for name in sorted(found)]


def _folders(root: Path) -> list[tuple[Path, list[tuple[str, Path]]]]:
  """Every folder under root with its NIfTI files as (name to judge it by, path)."""
  found, seen, waiting = [], set(), [root]
  while waiting:
    folder = waiting.pop()
    real = os.path.realpath(folder)
    if real in seen:  # a link back up, or to a folder that was visited already
      continue
    seen.add(real)
    files = []
    for entry in sorted(visible(folder)):
      mode = _mode(entry)
      if stat.S_ISDIR(mode):
        if (
          nifti_stem(entry.name) is not None
        ):  # a copy that holds X_flair.nii as a folder around one file
          inside = [inner for inner in visible(entry) if nifti_stem(inner.name) is not None]
          files += [(entry.name, inner) for inner in inside if stat.S_ISREG(_mode(inner))]
        else:
          waiting.append(entry)
      elif nifti_stem(entry.name) is not None and stat.S_ISREG(mode):
        files.append((entry.name, entry))
    found.append((folder, files))
  return found


def _mode(entry: Path) -> int:
  """What an entry is, as stat has it; 0 for a link to nowhere. UserError if it cannot be told."""
  try:
    return os.stat(entry).st_mode
  except OSError as e:
    if e.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
      return 0
    raise UserError(f"cannot look at {entry}: {e.strerror}; correct it, or take it away") from e


def visible(folder: Path) -> list[Path]:
  """A folder's entries, in no order, without hidden ones. UserError if it cannot be read."""
  try:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]  # "._x" too
  except PermissionError as e:
    raise UserError(f"cannot read the folder {folder}; check its permissions") from e
  except OSError as e:  # a path that is too long, a folder that has just gone
    raise UserError(f"cannot read the folder {folder}: {e.strerror or e}") from e


def _cases_of(folder: Path, files: list[tuple[str, Path]], labels: str) -> list[Case]:
  """The cases of one folder: files grouped by what stands before the modality."""
  groups: dict[str, dict[str, Path]] = defaultdict(dict)
  new_names = set()
  for file_name, path in files:
    parsed = parse_name(file_name)
    if not parsed:
      continue
    name, kind = parsed.case or _own_name(folder), parsed.kind
    if kind in groups[name]:
      raise UserError(
        f"two {kind} files for case {name}: {groups[name][kind]} and {path}; keep one"
      )
    groups[name][kind] = path
    if parsed.new:
      new_names.add(name)

  _adopt_odd_seg(groups, files)
  return [
    Case(
      name=name,
      patient=patient_of(name),
      folder=folder,
      images={modality: kinds[modality] for modality in MODALITIES if modality in kinds},
      seg=kinds.get("seg"),
      convention=_convention(name, name in new_names) if labels == "auto" else labels,
    )
    for name, kinds in groups.items()
    # A label map alone is a prediction or a loose file, unless the folder is named after it.
    if set(kinds) - {"seg"} or name == _own_name(folder)
  ]


def _own_name(folder: Path) -> str:
  return os.path.basename(os.path.realpath(folder))


def _adopt_odd_seg(groups: dict[str, dict[str, Path]], files: list[tuple[str, Path]]) -> None:
  """Give a folder's only case without a seg the label map that goes by another name.

  A common copy of 2020 has W39_1998.09.19_Segm.nii as the label map of BraTS20_Training_355.
  """
  with_images = [name for name, kinds in groups.items() if set(kinds) - {"seg"}]
  if len(with_images) != 1 or "seg" in groups[with_images[0]]:
    return
  odd = [path for name, path in files if re.search(r"segm?$", nifti_stem(name) or "", re.I)]
  if len(odd) > 1:
    raise UserError(
      f"two seg files for case {with_images[0]}: {odd[0]} and {odd[1]}; keep one, "
      f"or name it {with_images[0]}_seg.nii.gz"
    )
  if odd:
    groups[with_images[0]]["seg"] = odd[0]


def _convention(name: str, new_names: bool) -> str:
  if name.lower().startswith("brats-gli"):
    return "brats2024"
  return "brats2023" if new_names else "brats2018"
