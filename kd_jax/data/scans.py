"""Which scans --input means: a file, a case, a folder of any known form, or a list of them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kd_jax.data import nnunet
from kd_jax.data.case_names import name_by_folder
from kd_jax.data.cases import Case, Naming, loose_case, search, told_unused
from kd_jax.data.own_masks import written_by_us
from kd_jax.data.walk import dead_link, look, walk
from kd_jax.runtime import commands
from kd_jax.runtime.errors import CaseError, ConfigError, UserError, some
from kd_jax.runtime.files import read_text
from kd_jax.tasks.names import (
  Patterns,
  is_label_map,
  mentioned,
  nifti_stem,
  other_image,
  parse_name,
)

_FORMS = (
  "accepted are: a NIfTI file (.nii or .nii.gz), a BraTS case folder or a folder of such cases, an "
  "nnU-Net folder such as imagesTs, a folder of NIfTI files of one modality, or a .txt file with "
  "one such path a line. Other formats must be converted to NIfTI first (docs/clinical-scans.md); "
  "--mode=predict takes a folder of DICOM files too (docs/dicom.md)"
)


_NO_CHANNEL = (
  "its name has no channel number, as those of the other files here have",
  "Name it as they are (CASE_0000.nii.gz), or move it.",
)


_RENAME_FOLDER = "rename the folder if its name is wrong, or explain the file's (docs/names.md)"


class Scans(NamedTuple):
  """What an input means.

  Attributes:
    cases: the scans, sorted by name.
    errors: what somebody may expect a mask for, and why there will be none.
    notes: lines on how names were understood, and what else lies there.
  """

  cases: list[Case]
  errors: list[CaseError]
  notes: list[str]


def find_scans(
  path: str | os.PathLike, modalities: Sequence[str], patterns: Patterns | None = None
) -> Scans:
  """The scans that a path means, sorted by name, and what there cannot be used.

  Names decide; nothing is opened but dataset.json, lists and the record of masks that were written
  here. Names are those of the path as it is given, whatever a link leads to.

  Args:
    path: a NIfTI file; a BraTS case, or a folder of cases at any depth; a folder with nnU-Net's
      CASE_0000.nii.gz; a folder of NIfTI files; or a .txt list of such paths, relative to the list.
    modalities: what the student reads, of names.MODALITIES.
    patterns: what the user says of names; see names.parse_patterns.

  Raises:
    UserError: nothing there, another kind of file, a name that says another modality than the
      student's, channels of unknown modality, or two scans of one name.
  """
  path = Path(os.path.expanduser(path))
  if path.suffix.lower() == ".txt" and os.path.isfile(path):
    found = _listed(path, modalities, patterns or {})
  else:
    found = _find(path, modalities, patterns or {})
  seen: dict[str, Case] = {}
  for scan in found.cases:
    if scan.name in ("", ".", ".."):  # as a folder's name, it would lead out of the output
      file = next(iter(scan.images.values()))
      raise UserError(f"{file}: {scan.name!r} cannot be a scan's name; rename the file")
    key = scan.name.casefold()  # some file systems see no difference between A and a
    if key in seen and seen[key].images == scan.images:
      file = next(iter(scan.images.values()))
      raise UserError(f"two scans named {scan.name} are one, {file}: {path} gives it twice")
    if key in seen:
      first, second = (next(iter(s.images.values())) for s in (seen[key], scan))
      raise UserError(
        f"two scans named {scan.name}: {first} and {second}; their masks would be one file: rename "
        "one, or predict them into different folders"
      )
    seen[key] = scan
  return found._replace(cases=sorted(found.cases, key=lambda scan: scan.name))


def _find(path: Path, modalities: Sequence[str], patterns: Patterns) -> Scans:
  if os.path.isdir(path):
    return _in_folder(path, modalities, patterns)
  if dead := dead_link(path):
    raise UserError("{}: {}. {}".format(path, *dead))
  if not os.path.exists(path):
    raise UserError(f"there is no {path} (or no permission to see it); {_FORMS}")
  if nifti_stem(path.name) is None:
    raise UserError(f"{path} is no NIfTI file by its name; {_FORMS}")
  return Scans([_single_file(path, modalities, patterns)], [], [])


def _listed(path: Path, modalities: Sequence[str], patterns: Patterns) -> Scans:
  """The scans of a text file of paths."""
  try:
    lines = read_text(path).splitlines()
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {path}: {e}; expected UTF-8 text with one path a line") from e
  scans: list[Case] = []
  errors: list[CaseError] = []
  notes: list[str] = []
  for number, line in enumerate(lines, start=1):
    line = line.strip()
    if not line or line.startswith("#"):
      continue
    try:
      found = _find(path.parent / os.path.expanduser(line), modalities, patterns)
    except UserError as e:
      raise UserError(f"{path}, line {number}: {e}") from e
    scans += found.cases
    errors += found.errors
    notes += found.notes
  if not scans and not errors:
    raise UserError(f"{path} lists no path; expected one a line")
  return Scans(scans, errors, notes)


def _single_file(path: Path, modalities: Sequence[str], patterns: Patterns) -> Case:
  modality = _only(modalities, path)
  if not _told(path, patterns) and (scan := nnunet.single_scan(path, modality)):
    return scan
  if path.name in written_by_us(path.parent):
    raise UserError(
      f"{path} is a mask or a map of {commands.named('predict')}; give the {modality} image"
    )
  try:
    parsed = parse_name(path.name, patterns)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  if is_label_map(path.name) or (parsed and parsed.kind == "seg"):
    raise UserError(f"{path} is a label map by its name; give the {modality} image it belongs to")
  kind = parsed.kind if parsed else _other_modality(path.name, modality)
  if kind not in (None, modality):
    raise UserError(
      f"{path}: by its name this is a {kind} image, and the student reads {modality}; give the "
      f"{modality} image, or rename the file if its name is wrong"
    )
  case = parsed.case if parsed else _stem(path)
  if not (parsed or mentioned(path.name)) and (other := _folder_s_modality(path.parent, modality)):
    raise UserError(f"{path}: {_finding(other, modality)}; {_RENAME_FOLDER}")
  # As in case folders, t1ce.nii.gz is named after its folder.
  return loose_case(case or name_by_folder(path.parent)[0], {modality: path})


def _other_modality(file_name: str, modality: str) -> str | None:
  """What a name speaks of that is not understood, if it does not speak of the student's."""
  if other := other_image(file_name):
    return other
  said = mentioned(file_name)
  return None if modality in said else next(iter(sorted(said)), None)


def _folder_s_modality(folder: Path, modality: str) -> str | None:
  """What a folder of images is called after (flair/P1.nii.gz), if that is not the student's."""
  return _other_modality(os.path.basename(os.path.abspath(folder)), modality)


def _finding(other: str, modality: str) -> str:
  return f"by its folder's name this is a {other} image, and the student reads {modality}"


def _only(modalities: Sequence[str], path: Path) -> str:
  """The student's one modality, where a file's name need not say what it is."""
  if len(modalities) > 1:
    raise UserError(
      f"{path}: the student reads {' and '.join(modalities)}, and names must tell which file is "
      "which; give BraTS case folders, or an nnU-Net folder with its dataset.json"
    )
  return modalities[0]


def _in_folder(folder: Path, modalities: Sequence[str], patterns: Patterns) -> Scans:
  ours = written_by_us(folder)
  files = [path for name, path in look(folder)[0].files if name not in ours and name == path.name]
  images = [file for file in files if not is_label_map(file.name)]
  found = search(folder, naming=Naming(patterns), wanted=modalities)
  # A label map alone is no case of the folder itself: loose files may lie beside it.
  cases = [case for case in found.cases if case.images or case.folder != folder]
  known = nnunet.described(folder)
  channels = [file for file in images if nnunet.channel_of(file)]
  # Without a dataset.json and a channel 0, the numbers count scans: scan_0001, scan_0002.
  numbered = not any(nnunet.channel_of(file).number == 0 for file in channels)  # type: ignore[union-attr]
  told = any(_told(file, patterns) for file in images)
  if (
    channels
    and not told
    and (known or not (numbered or any(case.folder == folder for case in cases)))
  ):
    scans, errors = nnunet.find_channels(folder, channels, known, modalities)
    return Scans(scans, errors + _others(folder, set(channels), *_NO_CHANNEL), [])
  if cases:
    scans, errors = _brats_scans(cases, modalities)
    return Scans(scans, errors + found.errors, found.notes + told_unused(found.unused, folder))
  if images:
    return _loose(folder, images, modalities, patterns)
  inner = [name for name in ("imagesTs", "imagesTr") if os.path.isdir(folder / name)]
  hint = f"; for an nnU-Net data set give {folder / inner[0]}" if inner else ""
  if found.errors:
    hint += "; what lies there cannot be used: " + some(
      [f"{os.path.relpath(error.file, folder)} ({error.finding})" for error in found.errors]
    )
  raise UserError(f"no scan found in {folder}{hint}; {_FORMS}")


def _brats_scans(
  cases: Sequence[Case], modalities: Sequence[str]
) -> tuple[list[Case], list[CaseError]]:
  scans, errors = [], []
  for case in cases:
    missing = [m for m in modalities if m not in case.images]
    if missing:
      file_name = f"{case.name}_{missing[0]}.nii.gz"
      errors.append(nnunet.lacking(case.name, case.folder, missing, file_name, case.beside))
    else:
      images = {m: case.images[m] for m in modalities}
      unread = tuple(path for m, path in case.images.items() if m not in images)
      convention = case.convention if case.seg else None
      scans.append(replace(case, images=images, unread=unread, convention=convention))
  return scans, errors


def _loose(
  folder: Path, images: Sequence[Path], modalities: Sequence[str], patterns: Patterns
) -> Scans:
  """A folder of files of one modality, whatever their names."""
  modality = _only(modalities, folder)
  if known := nnunet.described(folder):  # raises, where the student's is not among its channels
    nnunet.numbers(folder, {}, known, modalities)
  if modality in patterns:  # then what does not fit is something else
    given = " and ".join(patterns[modality])
    files = some([file.name for file in images])
    raise UserError(f"{given} of the names given fits no file of {folder}, which holds {files}")
  scans, errors = [], []
  for file in images:
    if other := _other_modality(file.name, modality):
      finding = f"by its name this is a {other} image, and the student reads {modality}"
      remedy = f"Give the {modality} image, or rename the file if its name is wrong."
      errors.append(CaseError(_stem(file), file, finding, remedy))
    elif not mentioned(file.name) and (other := _folder_s_modality(folder, modality)):
      remedy = _RENAME_FOLDER.capitalize() + "."
      errors.append(CaseError(_stem(file), file, _finding(other, modality), remedy))
    else:
      scans.append(loose_case(_stem(file), {modality: file}))
  remedy = "Give its folder, too, or move it: of this one, only the files themselves are read."
  return Scans(
    scans, errors + _others(folder, set(images), "it lies in a folder below", remedy), []
  )


def _told(file: Path, patterns: Patterns) -> bool:
  """Whether the user says what a file's name means."""
  try:
    return parse_name(file.name, patterns, told_only=True) is not None
  except ValueError as e:
    raise ConfigError(str(e)) from e


def _others(folder: Path, used: set[Path], finding: str, remedy: str) -> list[CaseError]:
  """Images that are not among those used, here and in folders below."""
  errors: list[CaseError] = []
  for place in walk(folder):
    ours = written_by_us(place.path)
    errors += place.broken
    for name, path in place.files:
      if path not in used and name not in ours and not is_label_map(name):
        errors.append(CaseError(_stem(Path(name)), path, finding, remedy))
  return errors


def _stem(file: Path) -> str:
  stem = nifti_stem(file.name)
  assert stem is not None  # the caller has checked the name
  return stem
