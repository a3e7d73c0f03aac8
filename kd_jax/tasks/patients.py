"""Whose scan a case is, by its name: several time points are one patient.

Public data sets write the time point behind the patient. Known forms are joined; others only look
like time points, and are told (`unjoined`): two patients must not become one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

_SEP = r"[_\-. ]"
_DATE = (
  r"(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|"
  r"(?:[0-3]\d[-_.][01]\d|[01]\d[-_.][0-3]\d)[-_.](?:19|20)\d\d"
)
# A time point in words, with its number.
_POINT = (
  rf"(?:ses(?:sion)?|visit|week|month|time{_SEP}?point|tp|time|fu|follow{_SEP}?up|baseline|"
  rf"(?:pre|post|intra){_SEP}?op)(?:{_SEP}?\d+[a-z]?(?:{_SEP}\d+)*)?|ses-[a-z0-9]+"
)
_TIME_POINT = re.compile(rf"(?:{_DATE}|{_POINT})\Z", re.IGNORECASE)
_PATIENT = [
  re.compile(pattern, re.IGNORECASE | re.DOTALL)
  for pattern in (
    r"(BraTS[-_][A-Za-z]+[-_]\d+)[-_]\d+",
    r"(UPENN[-_]GBM[-_]\d+)_\d+",
    r"(UCSF[-_]PDGM[-_]\d+)_FU\w*",
    r"(sub-[A-Za-z0-9]+)(?:_.*)?",  # BIDS
    rf"(.*?[A-Za-z0-9]){_SEP}(?:{_POINT})(?:{_SEP}(?:{_DATE}))?",
    rf"(.*?[A-Za-z0-9]){_SEP}(?:{_DATE})(?:[T_\-. ]?\d{{1,6}})?",  # with an hour, or a number
  )
]
# What may be a time point, or may be a part of a patient's name.
_STAGE = (
  rf"(?:pre|post){_SEP}?(?:rt|ct|chemo|treatment|surgery)?|before|after|early|late|first|last|"
  r"initial|primary|recurren(?:t|ce)|relapse|progression|"
  rf"\d{{1,3}}{_SEP}?(?:d|w|m|mo|y|days?|weeks?|months?|years?)|(?:19|20)\d\d(?:[-_.][01]\d)?"
)
_NUMBERED = re.compile(
  rf"(.*?[A-Za-z0-9])(?:(?:{_SEP}|(?<=\d))[a-z]|{_SEP}(?:[a-z]{{0,5}}\d{{1,3}}|(?:{_STAGE}){_SEP}?\d?))\Z",
  re.I | re.DOTALL,
)
_MOST_POINTS = 9  # more names that differ by a number only are a list of patients


def patient_of(name: str) -> str:
  """A case's name without its time point; where it has none of a known form, as it is."""
  for pattern in _PATIENT:
    if match := pattern.fullmatch(name):
      return match[1]
  return name


def likely_patient(patient: str) -> str | None:
  """What stands before what may be a time point: A of A_2 and of A_pre. None for other names."""
  match = _NUMBERED.fullmatch(patient)
  return match[1] if match else None


def is_time_point(folder_name: str) -> bool:
  """Whether a folder's name is a date, a session, a visit: not an id of its own."""
  return _TIME_POINT.match(folder_name) is not None


def unjoined(patients: Iterable[str]) -> list[list[str]]:
  """Groups of patients whose names differ as time points might: A_1 and A_2, B_pre and B_post, or
  C and C_2.

  Running numbers behind one word (Case_1, Case_2, ...) are no such group.
  """
  groups: dict[str, list[str]] = defaultdict(list)
  names = sorted(set(patients))
  for name in names:
    if before := likely_patient(name):
      groups[before].append(name)
  if list(groups.values()) == [names]:  # one word before all numbers
    return []
  for name in names:
    if name in groups:
      groups[name].insert(0, name)
  return [group for group in groups.values() if 1 < len(group) <= _MOST_POINTS]
