"""File names: which sequence a file holds, and of which case.

BraTS names of every year are understood, those of public data sets (UPENN-GBM, UCSF-PDGM, LUMIERE,
MU-Glioma-Post), BIDS, and the words that scanners and preprocessing tools leave. A name that fits
two sequences is not understood: the user can say what it is (`parse_patterns`).
"""

import fnmatch
import json
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Modality = Literal["flair", "t1", "t1ce", "t2"]
MODALITIES: tuple[str, ...] = get_args(Modality)  # their order in every array of images
KINDS = (*MODALITIES, "seg")

Patterns = Mapping[str, tuple[str, ...]]  # kind -> patterns of file names, as a shell has them

_SEP = r"[_\-. ]"
_T1 = rf"t1(?:{_SEP}?(?:weighted|wi?))?"
# Contrast medium: gadolinium, or "Kontrastmittel".
_CONTRAST = "|".join(
  (
    rf"(?:post{_SEP}?)?(?:contrast{_SEP}?(?:enhanced)?|gado?(?:linium)?|gd|ce|\+?c|c\+)",
    r"post|km|enhanced",
  )
)
_NOT = r"pre|non?|without|wo"
_WITHOUT = rf"(?:{_NOT}){_SEP}?(?:contrast|gad|gd|ce|c)?|native|plain|n"
# As it may stand before the T1: non_ce_T1 is no ce_T1.
_NATIVE = rf"(?:{_NOT}){_SEP}?(?:contrast(?:{_SEP}?enhanced)?|gado?(?:linium)?|gd|ce){_SEP}?{_T1}"
_FLAIR = r"flair|fla|flr|fl"
# What a file holds -> the words at the end of its name, lower case.
_WORDS = {
  "t1ce": rf"{_T1}{_SEP}?(?:{_CONTRAST})|(?:ce|gd|gad){_SEP}?{_T1}|ct1w?",
  "t1": rf"{_NATIVE}|{_T1}(?:{_SEP}?(?:{_WITHOUT}))?",
  "flair": rf"(?:t2{_SEP}?w?{_SEP}?)?(?:{_FLAIR})|(?:{_FLAIR}){_SEP}?t2w?|t2f",
  "t2": rf"t2(?:{_SEP}?(?:weighted|wi?))?",
  "seg": rf"(?:tumou?r{_SEP}?)?(?:dseg|segm?|segmentation)|tumou?r{_SEP}?mask",
}
_ANY_SEQUENCE = "|".join(words for kind, words in _WORDS.items() if kind != "seg")
# Steps of preprocessing that stand after the sequence; the last two say where it was registered to.
_STEP = rf"{_SEP}(?:" + "|".join(
  (
    r"brain|bet2?|ss|(?:skull_?)?stripped|hd_?bet|synthstrip|(?:co)?reg(?:istered)?|aligned",
    r"resampled|preproc(?:essed)?|r2s",
    rf"(?:(?:to|in){_SEP}?)?(?:sri(?:24)?|mni(?:152)?|atlas)(?:{_SEP}?space)?",
    rf"(?:to|in){_SEP}?(?:{_ANY_SEQUENCE})(?:{_SEP}?space)?)",
  )
)
_ENDS = {
  kind: re.compile(
    rf"(?:(?P<case>.*?){_SEP})??(?P<word>{words})(?:{_STEP})*\Z", re.IGNORECASE | re.DOTALL
  )
  for kind, words in _WORDS.items()
}
# Two sequences side by side (T1_FLAIR, T1-T2) tell nothing; nor does a map of the brain's parts.
_SEQUENCE_BEFORE = re.compile(rf"(?:^|.*{_SEP})(?:{_ANY_SEQUENCE})\Z", re.IGNORECASE | re.DOTALL)
_OTHER_MAP = re.compile(
  rf"(?:^|.*{_SEP})(?:brain|parenchyma|tissue|vessels?|skull|csf|gm|wm)\Z",
  re.IGNORECASE | re.DOTALL,
)
# Images that no student reads; the short words may be initials elsewhere in a name.
_OTHER_IMAGE = re.compile(
  rf"(?:^|.*{_SEP})(?:(?P<any>adc|dwi|swi|dti|asl|cbv|cbf|fmri|t2star)(?:{_SEP}.*)?|"
  r"(?P<end>ct|pet|pdw?))\Z",
  re.IGNORECASE | re.DOTALL,
)
_CE_T1 = re.compile(r"ce|g", re.IGNORECASE)
_NEGATED = re.compile(rf"(?:^|.*{_SEP})(?:{_NOT})\Z", re.IGNORECASE | re.DOTALL)
_TARGET = re.compile(rf"(?:^|.*{_SEP})(?:to|in)\Z", re.IGNORECASE | re.DOTALL)
_BRAIN = re.compile(rf"{_SEP}(?:brain|bet)\Z", re.IGNORECASE)
_NEW = re.compile(r"t1n|t1c|t2w|t2f", re.IGNORECASE)  # what 2023 introduced
_NII = re.compile(r"\.nii(?:\.gz)?\Z", re.IGNORECASE)

# BIDS: sub-LABEL[_ses-LABEL][_ENTITY-LABEL ...]_SUFFIX
_BIDS = re.compile(
  r"(?P<case>sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)(?P<entities>(?:_[A-Za-z]+-[A-Za-z0-9+.]+)*)"
  r"_(?P<suffix>T1w|T2w|FLAIR|dseg|T1|T2)\Z",
  re.IGNORECASE,
)
# Labels have no separators: acq-noce, acq-space and acq-postop speak of no contrast medium.
_BIDS_CONTRAST = re.compile(
  rf"_(?:ce-(?!no|pre|without|native)[a-z0-9]+|acq-(?![a-z0-9]*(?:{_NOT})(?:contrast|gad|gd|ce))"
  r"(?:[a-z0-9]*(?:post(?!er|op|proc)|contrast|gad|gd)|(?:[a-z0-9]*(?:t1w?|mpr(?:age)?|3d))?ce"
  r"(?=_|\Z|t1|mpr|[23]d))[a-z0-9]*)(?:_|\Z)",
  re.IGNORECASE,
)


class ParsedName(NamedTuple):
  """What a file's name says.

  Attributes:
    case: the case's name; "" where nothing stands before the sequence: there the folder's counts.
    kind: one of MODALITIES, or "seg".
    new: whether the sequence's word is one that BraTS 2023 introduced.
  """

  case: str
  kind: str
  new: bool


def parse_name(
  file_name: str, patterns: Patterns | None = None, *, told_only: bool = False
) -> ParsedName | None:
  """What a NIfTI file's name says; None where it says nothing, or two things.

  Args:
    patterns: what the user says of names; it goes before everything else. There, the case is what
      the pattern's first * stands for.
    told_only: nothing but the patterns counts.

  Raises:
    ValueError: two kinds have a pattern that fits.
  """
  stem = nifti_stem(file_name)
  if stem is None:
    return None
  if told := _told(file_name, stem, patterns or {}):
    return told
  if told_only:
    return None
  if match := _BIDS.match(stem):
    return _parse_bids(match)
  for kind, pattern in _ENDS.items():
    match = pattern.match(stem)
    if not match or _TARGET.match(match["case"] or ""):  # X_t2_to_t1ce is a t2
      continue
    case, word = match["case"] or "", match["word"]
    if kind == "t1ce" and _CE_T1.match(word) and _NEGATED.match(case):  # non_ce_t1
      continue
    if (_OTHER_MAP if kind == "seg" else _SEQUENCE_BEFORE).match(case):
      return None
    return ParsedName(_BRAIN.sub("", case), kind, bool(_NEW.fullmatch(word)))
  return None


def _parse_bids(match: re.Match[str]) -> ParsedName:
  suffix = match["suffix"].lower()
  kind = {"t1w": "t1", "t2w": "t2", "dseg": "seg"}.get(suffix, suffix)
  if kind == "t1" and _BIDS_CONTRAST.search(match["entities"]):
    kind = "t1ce"
  return ParsedName(match["case"], kind, False)


def is_label_map(file_name: str) -> bool:
  """Whether a file's name says that it is a label map, of a tumour or of something else."""
  return label_map_of(file_name) is not None


def label_map_of(file_name: str) -> str | None:
  """What stands before the word that says "label map"; None for other names."""
  match = _ENDS["seg"].match(nifti_stem(file_name) or "")
  return (match["case"] or "") if match else None


def names_a_sequence(folder_name: str) -> bool:
  """Whether a folder's name is a sequence's, or "seg", and nothing else."""
  parsed = parse_name(f"{folder_name}.nii")
  return parsed is not None and not parsed.case


def nifti_stem(file_name: str) -> str | None:
  """The name without .nii or .nii.gz; None where it ends with neither."""
  return _NII.sub("", file_name) if _NII.search(file_name) else None


def other_image(file_name: str) -> str | None:
  """The word of an image that no student reads: P1_adc_to_t1ce.nii.gz has adc."""
  match = _OTHER_IMAGE.match(nifti_stem(file_name) or file_name)
  return (match["any"] or match["end"]).lower() if match else None


def mentioned(file_name: str) -> set[str]:
  """The sequences whose words stand anywhere in a name: axial_T2_tse.nii.gz has t2."""
  stem = nifti_stem(file_name) or file_name
  found, rest = set(), stem
  order = (("t1", _NATIVE), *((kind, _WORDS[kind]) for kind in ("t1ce", "flair", "t1", "t2")))
  for kind, words in order:  # what holds another's word comes first
    word = re.compile(rf"(?:^|(?<={_SEP}))(?:{words})(?={_SEP}|\Z)", re.IGNORECASE)
    rest, count = word.subn("", rest)
    if count:
      found.add(kind)
  return found


# --- What the user says of names ----------------------------------------------------------------


def parse_patterns(text: str) -> dict[str, tuple[str, ...]]:
  """{"t1ce": "*post*", "t2": ["*t2*", "*tse*"]} in JSON: which file names mean which sequence.

  Raises:
    ValueError: other text; the message says what is expected.
  """
  if not text.strip():
    return {}
  form = f'expected JSON such as {{"t1ce": "*post*"}}, with keys of {", ".join(KINDS)}'
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{form} ({e})") from e
  if not isinstance(content, dict):
    raise ValueError(form)
  patterns = {}
  for kind, value in content.items():
    several = [value] if isinstance(value, str) else value
    if kind not in KINDS or not isinstance(several, list) or not several:
      raise ValueError(form)
    if not all(isinstance(pattern, str) and pattern for pattern in several):
      raise ValueError(form)
    patterns[kind] = tuple(several)
  return patterns


def _told(file_name: str, stem: str, patterns: Patterns) -> ParsedName | None:
  found: dict[str, str] = {}
  for kind, several in patterns.items():
    for pattern in several:
      match = _match(pattern, file_name, stem)
      if match is not None:
        found.setdefault(kind, match)
  if len(found) > 1:
    raise ValueError(f"{file_name}: the names given fit {' and '.join(found)}; make them narrower")
  for kind, case in found.items():
    return ParsedName(case, kind, False)
  return None


def _match(pattern: str, file_name: str, stem: str) -> str | None:
  """What the first * stands for, if the pattern fits the name with or without its ending."""
  if pattern.startswith("*"):
    head, tail = "(.*?)", pattern[1:]
  else:
    head, tail = "()", pattern
  # translate gives (?s:...)\Z
  regex = re.compile(head + fnmatch.translate(tail), re.IGNORECASE | re.DOTALL)
  match = regex.match(stem) or regex.match(file_name)
  return re.sub(rf"{_SEP}+\Z", "", match[1]) if match else None
