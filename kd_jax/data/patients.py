"""Tables of who is who: cases and patients, and the organisers' ids of several years."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_user_text
from kd_jax.tasks.patients import patient_of

_ADVICE = "open it in a spreadsheet program and save it as CSV"


def read_patients(path: str | os.PathLike) -> dict[str, str]:
  """Case -> patient, from a CSV file with the columns "case" and "patient"; others are ignored.

  Raises:
    UserError: no such file, no such columns, an empty cell, or a case with two patients.
  """
  path = Path(os.path.expanduser(path))
  rows = _read_rows(path, "table of patients")
  head = [cell.strip().lower() for cell in rows[0]] if rows else []
  if "case" not in head or "patient" not in head:
    raise UserError(
      f"{path} has no columns 'case' and 'patient', but {', '.join(head)[:200] or 'nothing'}"
    )
  columns = head.index("case"), head.index("patient")
  patients: dict[str, str] = {}
  for number, row in enumerate(rows[1:], 2):
    case, patient = (row[i].strip() if i < len(row) else "" for i in columns)
    if not case or not patient:
      raise UserError(f"{path}, row {number}: a case or a patient is missing")
    if patients.setdefault(case, patient) != patient:
      raise UserError(f"{path}: case {case} has two patients, {patients[case]} and {patient}")
  return patients


def read_name_mapping(path: Path) -> list[frozenset[str]]:
  """Who is who across the years, from a name_mapping.csv of BraTS.

  Each row of the columns whose header holds "brats" or "subject" is one patient's ids; rows that
  share an id are merged. A cell without a digit (empty, NA, Not available, Training) is no id.

  Returns:
    One set of lower-case ids for each patient with two ids or more; where a name has a time
    point (BraTS-GLI-00000-000), the patient's id (brats-gli-00000) is there beside it.

  Raises:
    UserError: not a CSV file, or no two such columns.
  """
  path = Path(os.path.expanduser(path))
  rows = _read_rows(path, "name mapping")
  head = rows[0] if rows else []
  columns = [i for i, h in enumerate(head) if "brats" in h.lower() or "subject" in h.lower()]
  if len(columns) < 2:
    raise UserError(
      f"{path} has no two columns of subject ids (headers with 'BraTS' or 'subject', such as "
      f"BraTS_2019_subject_ID), but {', '.join(head)[:200] or 'nothing'}"
    )
  patient_with: dict[str, frozenset[str]] = {}  # id -> all ids of that patient, so far
  for row in rows[1:]:
    cells = [row[i].strip().lower() for i in columns if i < len(row)]
    ids = {name for name in cells if any(c.isdigit() for c in name)}
    ids |= {patient_of(name) for name in ids}  # so that a patient's time points are merged too
    merged = frozenset(ids.union(*(patient_with.get(name, ()) for name in ids)))
    patient_with.update(dict.fromkeys(merged, merged))
  return [ids for ids in dict.fromkeys(patient_with.values()) if len(ids) > 1]


def _read_rows(path: Path, what: str) -> Sequence[Sequence[str]]:
  """The rows of a CSV file that are not empty. UserError if it is none."""
  if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
    raise UserError(f"{path} is a spreadsheet, not a CSV file; {_ADVICE}")
  text = read_user_text(path, what, f"{_ADVICE}, encoded as UTF-8")
  first = next((line for line in text.splitlines() if line.strip()), "")
  separator = max(",;\t", key=first.count)  # spreadsheets of some languages write semicolons
  reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
  try:
    return [row for row in reader if any(row)]
  except csv.Error as e:  # a stray quote must not swallow the rest of the patients
    raise UserError(f"{path}, line {reader.line_num}: {e}; {_ADVICE} again") from e
