"""The series of a folder, from the headers of its files; no voxel is read here.

Patients are told apart by what the headers say of them, and that is never shown.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_jax.dicom.files import is_dicom, walk_files
from kd_jax.dicom.packages import needed, unheard
from kd_jax.runtime.errors import UserError, one_line, some

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = (
  "1.2.840.10008.5.1.4.1.1.4.1",
  "1.2.840.10008.5.1.4.1.1.4.3",
  "1.2.840.10008.5.1.4.1.1.4.4",
)
_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR: a list of the other files
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TAGS = (
  *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality"),
  *("SeriesDescription", "PatientName", "PatientID", "PatientBirthDate"),
  *("ContrastBolusAgent", "ContrastBolusVolume", "ContrastBolusAgentSequence"),
  *("ScanningSequence", "MRAcquisitionType", "SliceThickness"),
  *("RepetitionTime", "EchoTime", "InversionTime", "ProtocolName", "FrameOfReferenceUID"),
  *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber"),
  *("ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "Rows", "Columns"),
  *("PixelSpacing", "ImagesInAcquisition"),
)

Header = Any  # pydicom's Dataset; pydicom is imported only when it is needed


@dataclass(frozen=True)
class Series:
  """The files of one series, each image once.

  Attributes:
    files, headers: in pairs, sorted by instance number.
  """

  files: tuple[Path, ...]
  headers: tuple[Header, ...]

  @property
  def first(self) -> Header:
    return self.headers[0]

  @property
  def uid(self) -> str:
    return text(self.first, "SeriesInstanceUID")

  @property
  def number(self) -> str:
    return text(self.first, "SeriesNumber")

  @property
  def description(self) -> str:
    return one_line(text(self.first, "SeriesDescription"))

  @property
  def name(self) -> str:
    """For lists and messages: series 7 "T1 POST"."""
    said = f"series {self.number or '(no number)'}"
    return f'{said} "{self.description}"' if self.description else said


def text(header: Header, name: str) -> str:
  """An element as text; several values are joined by a backslash, as in the file."""
  value = header.get(name)
  if value is None:
    return ""
  values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
  return "\\".join(str(v) for v in values).strip()


def number(header: Header, name: str) -> float | None:
  """An element as a number; None where it has none."""
  try:
    return float(text(header, name).split("\\")[0])
  except ValueError:
    return None


def numbers(header: Header, name: str, count: int) -> tuple[float, ...] | None:
  """An element of `count` numbers; None where it is something else."""
  try:
    values = tuple(float(v) for v in text(header, name).split("\\"))
  except ValueError:
    return None
  return values if len(values) == count else None


def read_folder(folder: Path) -> list[Series]:
  """Every series of a folder, at any depth, sorted by number.

  Raises:
    UserError: no DICOM file, or one that cannot be read.
  """
  found: dict[str, dict[Any, tuple[Path, Header]]] = {}
  broken: list[str] = []
  files = [file for file in walk_files(folder) if is_dicom(file)]
  if not files:
    raise UserError(f"{folder} holds no DICOM file")
  for file in files:
    header = _header(file)
    if header is None:
      broken.append(os.path.relpath(file, folder))
    elif text(header, "SOPClassUID") != _DIRECTORY:
      # A file that was copied twice counts once.
      one = found.setdefault(text(header, "SeriesInstanceUID"), {})
      one.setdefault((text(header, "SOPInstanceUID"), _patient(header)), (file, header))
  if broken:
    raise UserError(
      f"{folder}: {len(broken)} of {len(files)} DICOM files cannot be read, they are truncated or "
      f"damaged: {some(broken)}. Copy them again, or take them away if they belong to other series"
    )
  if not found:
    raise UserError(f"{folder} holds a DICOMDIR and no image; give the folder with its files too")
  series = [_series(list(one.values())) for one in found.values()]
  return sorted(series, key=lambda s: (number(s.first, "SeriesNumber") or 0, s.uid))


def _header(file: Path) -> Header | None:
  """What is needed of a file's header; None where it cannot be read."""
  pydicom = needed("pydicom")
  try:
    with unheard():
      header = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_TAGS)
      sop_class = text(header, "SOPClassUID")
      if sop_class == _DIRECTORY or text(header.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY:
        header.SOPClassUID = _DIRECTORY
        return header
      complete = all(text(header, f"{of}InstanceUID") for of in ("SOP", "Series", "Study"))
      for element in header:  # values are decoded when they are asked for: now
        _ = element.value
  except Exception:  # pydicom has no common base for what a broken file can raise
    return None
  # A header that ends early lacks what stands last in it.
  cut = sop_class == MR_IMAGE and header.get("Columns") is None
  return None if not complete or cut else header


def _series(members: list[tuple[Path, Header]]) -> Series:
  members.sort(key=lambda member: (number(member[1], "InstanceNumber") or 0, member[0]))
  files, headers = zip(*members, strict=True)
  return Series(files, headers)


def patients(series: Sequence[Series]) -> int:
  """How many patients there are, by their IDs, or by their names where there are no IDs."""
  return len({_patient(header) for one in series for header in one.headers})


def _patient(header: Header) -> tuple[str, ...]:
  identity = text(header, "PatientID").upper()
  if identity:
    return ("id", identity)
  name = " ".join(text(header, "PatientName").upper().replace("^", " ").split())
  return ("name", name, text(header, "PatientBirthDate"))


def studies(series: Sequence[Series]) -> list[str]:
  """UIDs of the studies, in the order of the series."""
  return list(dict.fromkeys(text(one.first, "StudyInstanceUID") for one in series))


def kind_of_object(series: Series) -> str:
  """What a series holds if it is not made of plain MR images; "" if it is."""
  sop_class, modality = text(series.first, "SOPClassUID"), text(series.first, "Modality")
  if sop_class.startswith(_SECONDARY_CAPTURE) or "SCREEN" in text(series.first, "ImageType"):
    return "a secondary capture (a picture of a screen)"
  if sop_class in ENHANCED or (sop_class == MR_IMAGE and _many_frames(series)):
    return "an enhanced (multi-frame) MR object"
  if sop_class != MR_IMAGE or modality not in ("MR", ""):
    return f"no MR images ({modality or 'of unknown modality'})"
  return ""


def _many_frames(series: Series) -> bool:
  return any((number(header, "NumberOfFrames") or 1) > 1 for header in series.headers)
