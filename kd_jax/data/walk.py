"""What lies in a folder and below it: images, links that lead nowhere, files of other formats."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.tasks.names import nifti_stem

# Images that are no NIfTI files: somebody may expect a mask for them.
_FOREIGN = re.compile(
  r"\.(dcm|ima|nrrd|nhdr|mha|mhd|mgh|mgz|hdr|img|mnc|nii\.(zip|bz2|xz|zst))\Z", re.I
)
# What else a link may be to without being missed.
_NO_IMAGE = re.compile(
  r"\.(txt|json|csv|tsv|md|pdf|log|bvec|bval|xml|html?|png|jpe?g|xlsx?|mat)\Z", re.I
)


class File(NamedTuple):
  """An image: the name to judge it by, and where it is."""

  name: str
  path: Path


class Folder(NamedTuple):
  """One folder.

  Attributes:
    path: as it was reached from the root.
    files: its NIfTI files by name, links to nowhere among them: reading says what is wrong.
    broken: what cannot be an image, and no folder to look into either.
    foreign: its images of other formats.
    again: folders in it that are links to one that was read already.
  """

  path: Path
  files: list[File]
  broken: list[CaseError]
  foreign: list[Path]
  again: list[Path]


def walk(root: Path) -> list[Folder]:
  """Every folder at and under root; links are followed, each folder is visited once.

  Raises:
    UserError: a folder that cannot be read.
  """
  found: dict[Path, Folder] = {}
  seen, waiting = set(), [root]
  while waiting:
    path = waiting.pop()
    real = os.path.realpath(path)
    if real in seen:
      above = Path(os.path.realpath(path.parent))
      if Path(real) not in (above, *above.parents):  # a link back up hides nothing
        found[path.parent].again.append(path)
      continue
    seen.add(real)
    folder, inner = look(path)
    found[path] = folder
    waiting += reversed(inner)
  return list(found.values())


def look(path: Path) -> tuple[Folder, list[Path]]:
  """A folder's content, and the folders in it. UserError if it cannot be read."""
  folder, inner = Folder(path, [], [], [], []), []
  for entry in sorted(visible(path)):
    mode, nifti = _mode(entry), nifti_stem(entry.name) is not None
    if stat.S_ISDIR(mode) and nifti:
      _look_into_file(entry, folder)
    elif stat.S_ISDIR(mode):
      inner.append(entry)
    elif nifti and (mode == 0 or stat.S_ISREG(mode)):
      folder.files.append(File(entry.name, entry))
    elif nifti:
      finding = "it is no regular file"
      folder.broken.append(CaseError(entry.name, entry, finding, "Take it away."))
    elif (dead := dead_link(entry)) and not _NO_IMAGE.search(entry.name):
      folder.broken.append(CaseError(entry.name, entry, *dead))
    elif _FOREIGN.search(entry.name):
      folder.foreign.append(entry)
  return folder, inner


def _look_into_file(entry: Path, folder: Folder) -> None:
  """A folder with a file's name: some copies hold X_flair.nii as a folder around one file."""
  inside = [inner for inner in sorted(visible(entry)) if nifti_stem(inner.name) is not None]
  files = [inner for inner in inside if _mode(inner) == 0 or stat.S_ISREG(_mode(inner))]
  folder.files.extend(File(entry.name, inner) for inner in files)
  if not files:
    finding, remedy = "a folder with an image's name and no image in it", "Take it away."
    folder.broken.append(CaseError(entry.name, entry, finding, remedy))


def visible(folder: Path) -> list[Path]:
  """A folder's entries, in no order, without hidden ones. UserError if it cannot be read."""
  try:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]  # "._x" too
  except PermissionError as e:
    raise UserError(f"cannot read the folder {folder}; check its permissions") from e
  except OSError as e:  # a path that is too long, a folder that has just gone
    raise UserError(f"cannot read the folder {folder}: {e.strerror or e}") from e


def dead_link(path: str | os.PathLike) -> tuple[str, str] | None:
  """(finding, remedy) for a link whose target is not there; None for all else."""
  if os.path.exists(path) or not os.path.islink(path):
    return None
  finding = f"a link to {os.readlink(os.fspath(path))}, which is not there"
  remedy = "Fetch the content (git annex get, datalad get), mount its disk, or remove the link."
  return finding, remedy


def _mode(entry: Path) -> int:
  """What an entry is, as stat has it; 0 for a link to nowhere. UserError if it cannot be told."""
  try:
    return os.stat(entry).st_mode
  except OSError as e:
    if e.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
      return 0
    raise UserError(f"cannot look at {entry}: {e.strerror}; correct it, or take it away") from e
