"""Which subjects was a student trained on, and are some of them among the cases to evaluate?

The same patient stands in several years' BraTS sets under other names: names alone would let a
student be scored on its own training scans. Subjects are matched by patient id, by the organisers'
name mapping and by what their images hold.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.brain import without_specks
from kd_jax.data.cases import Case
from kd_jax.data.preprocess import Image
from kd_jax.runtime.arrays import bounding_box
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import load_json, write_text
from kd_jax.tasks.names import MODALITIES
from kd_jax.tasks.patients import patient_of

SUBJECTS_FILE = "subjects.json"  # in a run's work directory, and beside an exported student
FORMAT = 1
_DIGEST = "sha256:"
_DOMAIN = b"kd_jax subject id\0"  # so that nobody else's table of hashed ids fits
LEFT_OUT = "--exclude_training_subjects leaves them out and scores the others"
_LISTED = 20


@dataclass(frozen=True)
class Subject:
  """One case, as far as recognising it again needs.

  Attributes:
    name: the case's name, or its digest.
    patient: the patient's id, or its digest.
    convention: of its label map, see labels.canonical.
    images: modality -> content_hash, and "MODALITY (without specks)" where it has some.
  """

  name: str
  patient: str
  convention: str
  images: dict[str, str]


def content_hash(data: np.ndarray) -> str:
  """What an image holds, whatever its header, compression, number type or padding.

  Args:
    data: (D, H, W) voxels in LPS axes.

  Returns:
    32 hex digits: SHA-256 of the non-zero bounding box's shape and float32 voxels; "" for an
    image that is zero everywhere, which matches nothing.
  """
  x = np.asarray(data, np.float32)
  box = bounding_box(x)
  if box is None:
    return ""
  crop = x[box] + np.float32(0)  # -0.0 + 0.0 = 0.0; a copy
  digest = hashlib.sha256(f"{crop.shape}".encode())
  digest.update(np.ascontiguousarray(crop, "<f4").data)
  return digest.hexdigest()[:32]


def content_hashes(images: Mapping[str, Image]) -> dict[str, str]:
  """Modality -> content_hash; and one more where an image has specks outside the brain.

  The second is that of the image without specks, so that they hide nobody.
  """
  hashes = {modality: content_hash(image.data) for modality, image in images.items()}
  for modality, image in images.items():
    clean = without_specks(image.data, image.voxel_mm)
    if clean is not image.data:
      hashes[f"{modality} (without specks)"] = content_hash(clean)
  return hashes


def subject_of(case: Case, volumes: Mapping[str, nifti.Volume]) -> Subject:
  """The subject of a case whose images (by modality; other keys are ignored) have been read."""
  images = content_hashes({m: volumes[m] for m in MODALITIES if m in volumes})
  assert case.convention is not None, f"{case.name}: scans to predict are nobody's subjects"
  return Subject(case.name, case.patient, case.convention, images)


def anonymous(subject: Subject) -> Subject:
  """A form for sharing: ids become digests, so that a clinic's ids are not published.

  Anyone who knows an id can compute its digest, so matching still works. For the same reason, ids
  that can be guessed (running numbers) are not secret. Digests stay as they are.
  """
  return replace(subject, name=_digest(subject.name), patient=_digest(subject.patient))


def write_subjects(path: Path, train: Sequence[Subject], val: Sequence[Subject]) -> None:
  """Writes the subjects that a student was trained on and selected by, as JSON."""
  content = {
    "format": FORMAT,
    "train": [asdict(subject) for subject in train],
    "val": [asdict(subject) for subject in val],
  }
  write_text(Path(path), json.dumps(content, indent=1) + "\n")


def read_subjects(path: Path) -> tuple[list[Subject], list[Subject]]:
  """(train, val) of write_subjects. UserError if the file is missing or broken."""
  try:
    content = load_json(path)
    if content["format"] != FORMAT:
      raise UserError(
        f"{path} has format {content['format']!r}, this version reads {FORMAT}; use the version "
        "of kd_jax that wrote it"
      )
    return [_subject(s) for s in content["train"]], [_subject(s) for s in content["val"]]
  except OSError as e:
    raise UserError(f"cannot read the training subjects in {path}: {e.strerror or e}") from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path} is no list of training subjects ({type(e).__name__}: {e}); take it again from "
      "where the student was trained"
    ) from e


def find_known(
  cases: Sequence[Subject],
  known: Sequence[Subject],
  mapping: Sequence[frozenset[str]] = (),
) -> dict[str, str]:
  """Which cases are known subjects, and how that shows.

  Ids are compared without regard to case, across data sets: two patients who happen to share an
  id count as one. Any image of a case may equal any image of a known subject.

  Args:
    cases, known: either may be anonymous.
    mapping: of read_name_mapping.

  Returns:
    {name of a case: the first reason found}, in the order of cases; no entry for new cases.
  """
  # Digests throughout: it is the one form that every subject can be brought to.
  known_by_id = {_digest(i): i for s in known for i in (s.patient, s.name, patient_of(s.name))}
  known_by_image = {h: (m, s) for s in known for m, h in s.images.items() if h}
  patient_with = {_digest(i): ids for ids in mapping for i in ids}

  def reason(case: Subject) -> str | None:
    own = {_digest(i): i for i in (case.patient, case.name)}
    if digest := next((d for d in own if d in known_by_id), None):
      return f"same patient id {own[digest]}"
    for digest in own:
      for other in sorted(patient_with.get(digest, ())):
        if there := known_by_id.get(_digest(other)):
          return f"same patient by the name mapping ({other if _is_digest(there) else there})"
    for modality, image in case.images.items():
      if image in known_by_image:
        other_modality, subject = known_by_image[image]
        there = "" if modality == other_modality else f", there {other_modality}"
        whose = "" if _is_digest(subject.name) else f" as {subject.name}"
        return f"the same {modality} image{whose}{there}"
    return None

  return {case.name: why for case in cases if (why := reason(case))}


def refuse(
  found: Mapping[str, str], n_cases: int, known: str = "trained on", remedy: str = LEFT_OUT
) -> UserError:
  """The error to raise for find_known's answer on n_cases cases; known: what they are known of."""
  lines = [f"  {name}: {why}" for name, why in list(found.items())[:_LISTED]]
  if len(found) > _LISTED:
    lines.append(f"  and {len(found) - _LISTED} more")
  return UserError(
    f"REFUSED: {len(found)} of {n_cases} cases are subjects that the student was {known}:\n"
    + "\n".join(lines)
    + f"\nScores on them say nothing about new patients and must not be reported. {remedy}."
  )


def _is_digest(name: str) -> bool:
  return name.startswith(_DIGEST)


def _digest(name: str) -> str:
  """An id's digest, the same in upper and lower case; a digest is its own."""
  if _is_digest(name):
    return name
  content = name.strip().lower().encode("utf-8", "backslashreplace")  # file names may be no UTF-8
  return _DIGEST + hashlib.sha256(_DOMAIN + content).hexdigest()


def _subject(fields: Mapping) -> Subject:
  """A subject read from JSON; the errors that read_subjects expects if it is none."""
  images = fields["images"]
  name, patient, convention = (fields[key] for key in ("name", "patient", "convention"))
  texts = [name, patient, convention, *images, *images.values()]
  if not all(isinstance(text, str) for text in texts):
    raise TypeError(f"{texts} are not all text")
  return Subject(name, patient, convention, dict(images))
