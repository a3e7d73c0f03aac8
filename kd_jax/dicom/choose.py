"""Which series of a folder the student reads: chosen with a reason, or refused with the list."""

from collections.abc import Sequence as Several
from pathlib import Path
from typing import NamedTuple

from kd_jax.dicom import sequence
from kd_jax.dicom.geometry import coarsest_mm, orientations
from kd_jax.dicom.sequence import Sequence
from kd_jax.dicom.series import Series, kind_of_object, number, patients, studies, text
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.names import MODALITIES

COARSE_MM = 2.5  # as for scans that are NIfTI files (data/scan_checks.py)


class Choice(NamedTuple):
  """A series, and what is to be said of the choice.

  Attributes:
    series: the one to read.
    said: lines: which series and why, a warning if there is one, and the other series.
  """

  series: Series
  said: list[str]


def choose(found: Several[Series], modality: str, asked: str, folder: Path) -> Choice:
  """The series of a modality.

  Args:
    found: all series of the folder.
    modality: what the student reads, of names.MODALITIES.
    asked: the number or UID that the user gives; "" to choose by what the headers say.
    folder: for messages.

  Raises:
    UserError: several patients, no such series, or several that are equally good; with the list.
  """
  readings = {one.uid: _read(one) for one in found}
  if asked:
    return _asked(found, readings, modality, asked, folder)
  if (count := patients(found)) > 1:
    raise UserError(
      f"{folder} holds series of {count} patients; give the folder of one, or say which series "
      "with --series=UID"
    )
  fitting = [one for one in found if readings[one.uid].kind == modality]
  certain = [one for one in fitting if not readings[one.uid].unsure]
  # Of t1, one that nothing is said of may be with contrast medium.
  fitting = certain or fitting
  if not fitting:
    raise UserError(_none(found, readings, modality, folder))
  best, why = _finest(fitting)
  if len(best) > 1:
    raise UserError(
      f"{folder} holds {len(best)} series that may be the {modality}: say which with --series="
      f"{_key(best[0], found)} (or another of these)\n{listed(best, readings, found)}"
      + _others(found, best, readings)
    )
  reason = readings[best[0].uid].because + why
  said = [f"{best[0].name}, {len(best[0].files)} images, is read as {modality}: {reason}"]
  return Choice(best[0], said + _rest(found, best[0], readings))


def _read(series: Series) -> Sequence:
  """What a series holds; without a kind if a student cannot read it, whatever it shows."""
  if other := kind_of_object(series):
    return Sequence("", other)
  if (count := orientations(series)) > 1:
    return Sequence("", f"images in {count} orientations, as a localizer has them")
  return sequence.recognise(series.first)


def _asked(
  found: Several[Series], readings: dict[str, Sequence], modality: str, asked: str, folder: Path
) -> Choice:
  chosen = [one for one in found if asked in (one.uid, one.number)]
  if not chosen:
    raise UserError(
      f"--series={asked}: {folder} has no series of that number or UID\n"
      + listed(found, readings, found)
    )
  if len(chosen) > 1:
    raise UserError(
      f"--series={asked}: {len(chosen)} series of {folder} have that number; give the UID\n"
      + listed(chosen, readings, found)
    )
  one, reading = chosen[0], readings[chosen[0].uid]
  if patients([one]) > 1:
    raise UserError(f"--series={asked}: {one.name} has images of {patients([one])} patients")
  if other := kind_of_object(one):
    raise UserError(f"--series={asked}: {one.name} is {other}; {_HOW_TO_READ}")
  said = [f"{one.name}, {len(one.files)} images, is read as {modality}: --series says so"]
  if reading.kind != modality:
    said.append(
      f"warning: {one.name} may be no {modality}: {reading.kind or 'unknown'} ({reading.because})"
    )
  return Choice(one, said + _rest(found, one, readings))


def _finest(fitting: Several[Series]) -> tuple[list[Series], str]:
  """Those to prefer: original images before derived ones, fine voxels before coarse ones."""
  best, why = list(fitting), ""
  for test, words in ((_original, "original images"), (_fine, "the finer voxels")):
    kept = [one for one in best if test(one)]
    if kept and len(kept) < len(best):
      left = ", ".join(one.name for one in best if one not in kept)
      best, why = kept, f"{why}; preferred to {left} for {words}"
  return best, why


def _original(series: Series) -> bool:
  return "DERIVED" not in text(series.first, "ImageType").upper().split("\\")


def _fine(series: Series) -> bool:
  return coarsest_mm(series) <= COARSE_MM


_HOW_TO_READ = (
  "only plain MR images are read: export the series as such, or convert it to NIfTI and give that "
  "(docs/dicom.md)"
)


def _none(
  found: Several[Series], readings: dict[str, Sequence], modality: str, folder: Path
) -> str:
  reads = f"{folder} holds no series that can be told to be {modality}"
  usable = [one for one in found if readings[one.uid].kind or readings[one.uid].unsure]
  usable.sort(key=lambda one: not readings[one.uid].unsure)  # stable
  if any(readings[one.uid].because.startswith("an enhanced") for one in found) and not usable:
    how = f": {_HOW_TO_READ}"
  elif usable:
    how = f"; if one is, say which with --series={_key(usable[0], found)}, for instance"
  else:
    how = ""
  return f"{reads}{how}\n{listed(found, readings, found)}"


# --- Lists --------------------------------------------------------------------------------------


def listed(some: Several[Series], readings: dict[str, Sequence], found: Several[Series]) -> str:
  """A line for each series: its number (and UID, where that is not enough), and what it holds.

  Args:
    some: those to list.
    found: all of the folder.
  """
  order = studies(found)
  lines = []
  for one in some:
    reading = readings[one.uid]
    place = f" of study {order.index(text(one.first, 'StudyInstanceUID')) + 1}"
    what = f"{reading.kind}: {reading.because}" if reading.kind in MODALITIES else reading.because
    uid = "" if _key(one, found) == one.number else f", --series={one.uid}"
    name = one.name + (place if len(order) > 1 else "")
    voxels = f", {coarsest_mm(one):.3g} mm" if coarsest_mm(one) else ""
    images = f"{len(one.files)} image{'s' * (len(one.files) > 1)}"
    lines.append(f"  {name}, {images}{voxels}{uid}: {what}")
  return "\n".join(lines)


def _key(one: Series, found: Several[Series]) -> str:
  """What --series takes for a series: its number, or its UID where others have the number."""
  same = [other for other in found if other.number == one.number]
  return one.number if one.number and len(same) == 1 else one.uid


def _others(found: Several[Series], chosen: Several[Series], readings: dict[str, Sequence]) -> str:
  others = [one for one in found if one not in chosen]
  return f"\nother series:\n{listed(others, readings, found)}" if others else ""


def _rest(found: Several[Series], chosen: Series, readings: dict[str, Sequence]) -> list[str]:
  """Lines on what was not chosen, and on images that are missing at the end of what was."""
  lines = []
  promised = number(chosen.first, "ImagesInAcquisition")
  if promised and promised > len(chosen.files):
    lines.append(
      f"warning: the header of {chosen.name} speaks of {promised:.0f} images, and "
      f"{len(chosen.files)} are here"
    )
  others = _others(found, [chosen], readings).strip()
  return [*lines, others] if others else lines
