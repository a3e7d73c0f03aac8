"""nnU-Net's folders: CASE_0000.nii.gz, CASE_0001.nii.gz, ... and the dataset.json about them."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kd_jax.data.case_checks import told_beside
from kd_jax.data.cases import Case, loose_case
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.files import load_json
from kd_jax.tasks.names import mentioned, parse_name

_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>[0-9]{4})\.nii(?:\.gz)?\Z", re.I | re.DOTALL)
DATASET_JSON = "dataset.json"


class Channel(NamedTuple):
  """What a file's name says: whose it is, and its number."""

  case: str
  number: int


class Described(NamedTuple):
  """A dataset.json.

  Attributes:
    path: where it is.
    names: number of a channel -> its name.
  """

  path: Path
  names: dict[int, str]


def channel_of(path: Path) -> Channel | None:
  """None for a file that is not named as nnU-Net has it."""
  match = _CHANNEL.match(path.name)
  return Channel(match["case"], int(match["channel"])) if match else None


def described(folder: Path) -> Described | None:
  """channel_names (nnU-Net v2) or modality (v1) of the folder's or its parent's dataset.json."""
  for place in (folder, Path(os.path.abspath(folder)).parent):
    path = place / DATASET_JSON
    if not os.path.isfile(path):
      continue
    try:
      content = load_json(path)
      names = content["channel_names"] if "channel_names" in content else content["modality"]
      return Described(path, {int(channel): str(name) for channel, name in names.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
      raise UserError(
        f'{path} has no usable "channel_names" ({type(e).__name__}: {e}); expected for instance '
        '{"channel_names": {"0": "T1ce"}}'
      ) from e
  return None


def modality_of(name: str) -> str | None:
  """The modality that a channel's name means: T1-Gd, T2 FLAIR, t1n."""
  parsed = parse_name(f"{name.strip()}.nii")
  return parsed.kind if parsed and not parsed.case and parsed.kind != "seg" else None


def single_scan(path: Path, modality: str) -> Case | None:
  """A file that is given alone, if a dataset.json or its neighbours say what its number means.

  Raises:
    UserError: it is a channel of another modality, or nobody says of which.
  """
  channel = channel_of(path)
  if channel is None:
    return None
  known = described(path.parent)
  if known is None:
    beside = {
      c.number for c in map(channel_of, path.parent.glob("*.nii*")) if c and c.case == channel.case
    }
    if len(beside) > 1:
      raise _unnamed(path.parent, sorted(beside))
    return None
  name = known.names.get(channel.number)
  found = modality_of(name) if name is not None else None
  if found == modality:
    return loose_case(channel.case, {modality: path})
  wanted = [number for number, other in known.names.items() if modality_of(other) == modality]
  hint = f"; give {channel.case}_{wanted[0]:04}.nii.gz" if wanted else ""
  raise UserError(
    f"{path}: channel {channel.number:04} is {name or 'not named'} by {known.path}, and the "
    f"student reads {modality}{hint}"
  )


def find_channels(
  folder: Path, files: Sequence[Path], known: Described | None, modalities: Sequence[str]
) -> tuple[list[Case], list[CaseError]]:
  """The scans of a folder.

  Args:
    files: those of its files that have a channel.
    known: what dataset.json says.
    modalities: what the student reads.

  Raises:
    UserError: two files for one channel, or modalities that no channel is said to hold.
  """
  groups: dict[str, dict[int, Path]] = defaultdict(dict)
  for file in files:
    channel = channel_of(file)
    assert channel is not None, "the caller has checked the names"
    group = groups[channel.case]
    if channel.number in group:
      raise UserError(f"two files for one channel: {group[channel.number]} and {file}; keep one")
    group[channel.number] = file
  number_of = numbers(folder, groups, known, modalities)

  scans, errors = [], []
  for case, group in groups.items():
    missing = [m for m in modalities if number_of[m] not in group]
    said = mentioned(case) or mentioned(os.path.basename(os.path.abspath(folder)))
    if missing:
      errors.append(lacking(case, folder, missing, f"{case}_{number_of[missing[0]]:04}.nii.gz"))
    elif known is None and said and modalities[0] not in said:
      by = f"by its name or its folder's this is a {min(said)} image"
      finding = f"{by}, and the student reads {modalities[0]}"
      remedy = f"Rename it if its name is wrong, or say what it is in a {DATASET_JSON}."
      errors.append(CaseError(case, group[0], finding, remedy))
    else:
      scans.append(loose_case(case, {m: group[number_of[m]] for m in modalities}))
  return scans, errors


def lacking(
  name: str, where: Path, missing: Sequence[str], file_name: str, beside: Sequence[Path] = ()
) -> CaseError:
  """What to say of a case that lacks some modalities; beside: files that were not understood."""
  remedy = f"The student reads {', '.join(missing)}: add it, named for instance {file_name}."
  return CaseError(name, where, f"no {' and no '.join(missing)} image{told_beside(beside)}", remedy)


def numbers(
  folder: Path,
  groups: dict[str, dict[int, Path]],
  known: Described | None,
  modalities: Sequence[str],
) -> dict[str, int]:
  """Modality -> channel, with all that the student reads."""
  if known is None:
    used = sorted({channel for group in groups.values() for channel in group})
    if used != [0] or len(modalities) > 1:
      raise _unnamed(folder, used)
    return {modalities[0]: 0}
  number_of: dict[str, int] = {}
  for number, name in known.names.items():
    modality = modality_of(name)
    if modality in number_of:
      raise UserError(f"{known.path} names two channels {modality}; correct it")
    if modality:
      number_of[modality] = number
  for modality in modalities:
    if modality not in number_of:
      said = ", ".join(f"{number}: {name}" for number, name in known.names.items())
      raise UserError(
        f"the student reads {modality}, and {known.path} has no such channel ({said}); if one of "
        f"them is {modality}, correct its name there"
      )
  return number_of


def _unnamed(folder: Path, used: Sequence[int]) -> UserError:
  example = json.dumps({"channel_names": {"0": "FLAIR", "1": "T1ce"}})
  return UserError(
    f"{folder} has files of channels {used[0]:04} to {used[-1]:04} and no {DATASET_JSON} that says "
    f"what they are; put one there or beside the folder, such as {example} (if the numbers count "
    "scans instead, rename the files)"
  )
