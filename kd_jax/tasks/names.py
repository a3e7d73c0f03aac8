"""File names of BraTS: which sequence a file holds, of which case, of which patient."""

import re
from typing import Literal, NamedTuple, get_args

Modality = Literal["flair", "t1", "t1ce", "t2"]
MODALITIES: tuple[str, ...] = get_args(Modality)  # their order in every array of images

# The end of a file's name, lower case -> what the file holds.
_SUFFIXES = {
  "flair": "flair",
  "t1": "t1",
  "t1ce": "t1ce",
  "t2": "t2",
  "t2f": "flair",  # the names of 2023 and 2024
  "t1n": "t1",
  "t1c": "t1ce",
  "t2w": "t2",
  "seg": "seg",
  "segm": "seg",
}
_NEW_SUFFIXES = ("t1n", "t1c", "t2w", "t2f")
_NAME = re.compile(
  rf"^(?:(?P<case>.*)[_-])?(?P<suffix>{'|'.join(_SUFFIXES)})(?P<nii>\.nii(?:\.gz)?)\Z",
  re.IGNORECASE | re.DOTALL,  # a file's name may hold line breaks
)
_NII = re.compile(r"\.nii(?:\.gz)?\Z", re.IGNORECASE)
_TIMEPOINT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d+$", re.IGNORECASE)


class ParsedName(NamedTuple):
  """What a BraTS file's name says.

  Attributes:
    case: the case's name; "" where nothing stands before the modality: there the folder's counts.
    kind: one of MODALITIES, or "seg".
    new: whether the suffix is one that 2023 introduced.
  """

  case: str
  kind: str
  new: bool


def parse_name(file_name: str) -> ParsedName | None:
  """What a BraTS file's name says, of any year; None for other names."""
  match = _NAME.match(file_name)
  if not match:
    return None
  suffix = match["suffix"].lower()
  return ParsedName(match["case"] or "", _SUFFIXES[suffix], suffix in _NEW_SUFFIXES)


def is_label_map(file_name: str) -> bool:
  """Whether a BraTS file's name says that it is a label map."""
  parsed = parse_name(file_name)
  return parsed is not None and parsed.kind == "seg"


def nifti_stem(file_name: str) -> str | None:
  """The name without .nii or .nii.gz; None where it ends with neither."""
  return _NII.sub("", file_name) if _NII.search(file_name) else None


def patient_of(name: str) -> str:
  """BraTS-GLI-<patient>-<timepoint> without its time point; any other name as it is."""
  match = _TIMEPOINT.match(name)
  return match.group(1) if match else name
