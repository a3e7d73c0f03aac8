"""Which scans --input means: a file, a case, a folder of any known form, or a list of them."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kd_jax.data.cases import Case, cases_under, loose_case, visible
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.files import load_json, read_text
from kd_jax.tasks.names import is_label_map, nifti_stem, parse_name

_FORMS = (
  "accepted are: a NIfTI file (.nii or .nii.gz), a BraTS case folder or a folder of such cases, an "
  "nnU-Net folder such as imagesTs, a folder of NIfTI files of one modality, or a .txt file with "
  "one such path a line. Other formats must be converted to NIfTI first, DICOM for instance with "
  "dcm2niix (docs/clinical-scans.md)"
)

# nnU-Net
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>[0-9]{4})\.nii(?:\.gz)?\Z", re.I | re.DOTALL)
_DATASET_JSON = "dataset.json"

# A channel's name in an nnU-Net dataset.json, its letters and digits in lower case -> modality.
_CHANNEL_NAMES = {
  "flair": ("flair", "t2flair", "t2f", "flr", "fla"),
  "t1": ("t1", "t1n", "t1w", "t1native", "t1pre"),
  "t1ce": ("t1ce", "t1c", "t1gd", "t1wgd", "t1post", "t1wce", "t1wpost", "t1contrast"),
  "t2": ("t2", "t2w"),
}
_MODALITY_OF = {alias: m for m, aliases in _CHANNEL_NAMES.items() for alias in aliases}


def find_scans(
  path: str | os.PathLike, modalities: Sequence[str]
) -> tuple[list[Case], list[CaseError]]:
  """The scans that a path means, sorted by name, and the cases there that cannot be used.

  Names of files decide; none is opened but dataset.json and lists. Where some files have BraTS
  names, files of other names are no scans (a case folder may hold a brain mask).

  Args:
    path: a NIfTI file; a BraTS case, or a folder of cases at any depth; a folder with nnU-Net's
      CASE_0000.nii.gz; a folder of NIfTI files; or a .txt list of such paths, relative to the list.
    modalities: what the student reads, keys of cases.MODALITIES.

  Raises:
    UserError: nothing there, another kind of file, a name that says another modality than the
      student's, channels of unknown modality, or two scans of one name.
  """
  path = Path(os.path.expanduser(path))
  if path.suffix.lower() == ".txt" and os.path.isfile(path):
    scans, errors = _listed(path, modalities)
  else:
    scans, errors = _find(path, modalities)
  seen: dict[str, Case] = {}
  for scan in scans:
    if scan.name in ("", ".", ".."):  # as a folder's name, it would lead out of the output
      file = next(iter(scan.images.values()))
      raise UserError(f"{file}: {scan.name!r} cannot be a scan's name; rename the file")
    key = scan.name.casefold()  # some file systems see no difference between A and a
    if key in seen:
      first, second = (next(iter(s.images.values())) for s in (seen[key], scan))
      raise UserError(
        f"two scans named {scan.name}: {first} and {second}; their masks would be one file: rename "
        "one, or predict them into different folders"
      )
    seen[key] = scan
  return sorted(scans, key=lambda scan: scan.name), errors


def _find(path: Path, modalities: Sequence[str]) -> tuple[list[Case], list[CaseError]]:
  if os.path.isdir(path):
    return _in_folder(path, modalities)
  if not os.path.exists(path):
    raise UserError(f"there is no {path} (or no permission to see it); {_FORMS}")
  if nifti_stem(path.name) is None:
    raise UserError(f"{path} is no NIfTI file by its name; {_FORMS}")
  return [_single_file(path, modalities)], []


def _listed(path: Path, modalities: Sequence[str]) -> tuple[list[Case], list[CaseError]]:
  """The scans of a text file of paths."""
  try:
    lines = read_text(path).splitlines()
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {path}: {e}; expected UTF-8 text with one path a line") from e
  scans, errors = [], []
  for number, line in enumerate(lines, start=1):
    line = line.strip()
    if not line or line.startswith("#"):
      continue
    try:
      found, bad = _find(path.parent / os.path.expanduser(line), modalities)
    except UserError as e:
      raise UserError(f"{path}, line {number}: {e}") from e
    scans += found
    errors += bad
  if not scans and not errors:
    raise UserError(f"{path} lists no path; expected one a line")
  return scans, errors


def _single_file(path: Path, modalities: Sequence[str]) -> Case:
  modality = _only(modalities, path)
  parsed = parse_name(path.name)
  case, kind = (parsed.case, parsed.kind) if parsed else (nifti_stem(path.name), modality)
  if kind == "seg":
    raise UserError(f"{path} is a label map by its name; give the {modality} image it belongs to")
  if kind != modality:
    raise UserError(
      f"{path}: by its name this is a {kind} image, and the student reads {modality}; give the "
      f"{modality} image, or rename the file if its name is wrong"
    )
  # As in case folders, t1ce.nii.gz is named after its folder.
  folder = os.path.basename(os.path.dirname(os.path.realpath(path)))
  return loose_case(case or folder or modality, {modality: path})


def _only(modalities: Sequence[str], path: Path) -> str:
  """The student's one modality, where a file's name need not say what it is."""
  if len(modalities) > 1:
    raise UserError(
      f"{path}: the student reads {' and '.join(modalities)}, and names must tell which file is "
      "which; give BraTS case folders, or an nnU-Net folder with its dataset.json"
    )
  return modalities[0]


def _in_folder(folder: Path, modalities: Sequence[str]) -> tuple[list[Case], list[CaseError]]:
  # A link that leads nowhere stays in: reading it fails under the scan's name.
  files = [f for f in visible(folder) if nifti_stem(f.name) is not None]
  files = sorted(f for f in files if not os.path.isdir(f))
  images = [f for f in files if not is_label_map(f.name)]
  channels = [match for f in images if (match := _CHANNEL.match(f.name))]
  if images and len(channels) == len(images):
    names = _channel_names(folder)
    # Without a channel 0, the numbers count scans: scan_0001.nii.gz, scan_0002.nii.gz.
    if names is not None or any(int(match["channel"]) == 0 for match in channels):
      return _nnunet_scans(folder, images, names, modalities)
  # A label map alone is no case of the folder itself: loose files may lie beside it.
  if cases := [case for case in cases_under(folder) if case.images or case.folder != folder]:
    scans, errors = _brats_scans(cases, modalities)
    return scans, errors + _strays(images, cases, modalities)
  if images:
    modality = _only(modalities, folder)
    return [loose_case(_stem(f), {modality: f}) for f in images], []
  inner = [name for name in ("imagesTs", "imagesTr") if os.path.isdir(folder / name)]
  hint = f"; for an nnU-Net data set give {folder / inner[0]}" if inner else ""
  raise UserError(f"no scan found in {folder}{hint}; {_FORMS}")


def _brats_scans(
  cases: Sequence[Case], modalities: Sequence[str]
) -> tuple[list[Case], list[CaseError]]:
  scans, errors = [], []
  for case in cases:
    missing = [m for m in modalities if m not in case.images]
    if missing:
      errors.append(_lacking(case.name, case.folder, missing, f"{case.name}_{missing[0]}.nii.gz"))
    else:
      images = {m: case.images[m] for m in modalities}
      scans.append(replace(case, images=images, convention=case.convention if case.seg else None))
  return scans, errors


def _strays(
  images: Sequence[Path], cases: Sequence[Case], modalities: Sequence[str]
) -> list[CaseError]:
  """Files beside cases that belong to none of them: their owner may expect a mask for each."""
  errors = []
  for file in images:
    stem = _stem(file)
    belongs = any(re.match(rf"{re.escape(case.name)}([_.-]|$)", stem) for case in cases)
    if parse_name(file.name) or belongs:
      continue
    finding = "its name does not end with a modality, while others in the folder do"
    remedy = f"Rename it to {stem}_{modalities[0]}.nii.gz if it is such a scan, else move it."
    errors.append(CaseError(stem, file, finding, remedy))
  return errors


def _stem(file: Path) -> str:
  stem = nifti_stem(file.name)
  assert stem is not None  # the caller has checked the name
  return stem


def _lacking(name: str, where: Path, missing: Sequence[str], file_name: str) -> CaseError:
  remedy = f"The student reads {', '.join(missing)}: add it, named for instance {file_name}."
  return CaseError(name, where, f"no {' and no '.join(missing)} image", remedy)


def _nnunet_scans(
  folder: Path, files: Sequence[Path], names: dict[int, str] | None, modalities: Sequence[str]
) -> tuple[list[Case], list[CaseError]]:
  """The scans of CASE_0000.nii.gz, CASE_0001.nii.gz, ...; names is what dataset.json says."""
  groups: dict[str, dict[int, Path]] = defaultdict(dict)
  for file in files:
    match = _CHANNEL.match(file.name)
    assert match is not None  # the caller has checked the names
    group, channel = groups[match["case"]], int(match["channel"])
    if channel in group:
      raise UserError(f"two files for one channel: {group[channel]} and {file}; keep one")
    group[channel] = file
  channel_of = _channels(folder, groups, names, modalities)

  scans, errors = [], []
  for case, group in groups.items():
    missing = [m for m in modalities if channel_of[m] not in group]
    if missing:
      file_name = f"{case}_{channel_of[missing[0]]:04}.nii.gz"
      errors.append(_lacking(case, folder, missing, file_name))
    else:
      scans.append(loose_case(case, {m: group[channel_of[m]] for m in modalities}))
  return scans, errors


def _channels(
  folder: Path,
  groups: dict[str, dict[int, Path]],
  names: dict[int, str] | None,
  modalities: Sequence[str],
) -> dict[str, int]:
  """Modality -> channel, with all that the student reads."""
  if names is None:
    used = sorted({channel for group in groups.values() for channel in group})
    if used != [0]:
      example = json.dumps({"channel_names": {"0": "FLAIR", "1": "T1ce"}})
      raise UserError(
        f"{folder} has files of channels {used[0]:04} to {used[-1]:04} and no {_DATASET_JSON} that "
        f"says what they are; put one there or beside the folder, such as {example} (if the "
        "numbers count scans instead, rename the files)"
      )
    return {_only(modalities, folder): 0}
  channel_of: dict[str, int] = {}
  for channel, name in names.items():
    modality = _MODALITY_OF.get(re.sub(r"[^a-z0-9]", "", name.lower()))
    if modality in channel_of:
      raise UserError(f"{_DATASET_JSON} of {folder} names two channels {modality}; correct it")
    if modality:
      channel_of[modality] = channel
  for modality in modalities:
    if modality not in channel_of:
      said = ", ".join(f"{channel}: {name}" for channel, name in names.items())
      raise UserError(
        f"the student reads {modality}, and {_DATASET_JSON} of {folder} has no such channel "
        f"({said}); if one of them is {modality}, correct its name there"
      )
  return channel_of


def _channel_names(folder: Path) -> dict[int, str] | None:
  """channel_names (nnU-Net v2) or modality (v1) of the folder's or its parent's dataset.json."""
  for place in (folder, Path(os.path.realpath(folder)).parent):
    path = place / _DATASET_JSON
    if not os.path.isfile(path):
      continue
    try:
      content = load_json(path)
      names = content["channel_names"] if "channel_names" in content else content["modality"]
      return {int(channel): str(name) for channel, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
      raise UserError(
        f'{path} has no usable "channel_names" ({type(e).__name__}: {e}); expected for instance '
        '{"channel_names": {"0": "T1ce"}}'
      ) from e
  return None
