"""--mode=export: students as a directory to hand on, for kd_jax or for another runtime."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kd_jax import __version__
from kd_jax.data.brain import GAP_MM, PART_SHARE, THICK_MM
from kd_jax.exports import model_card, onnx_program, stablehlo
from kd_jax.exports.program import INPUTS, OUTPUTS
from kd_jax.prediction import student_directory
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.sliding_window import LEAST_WEIGHT, SIGMA
from kd_jax.prediction.student import Student
from kd_jax.prediction.student_directory import CARD_FILE, MODEL_FILE, PROGRAM, WEIGHTS_FILE
from kd_jax.runtime.errors import ConfigError, UserError, did_you_mean
from kd_jax.runtime.files import read_json, write_bytes, write_text
from kd_jax.tasks.labels import CLASSES, REGIONS, labels_of, meaning

FORMAT = 1  # of a program's model.json
_ENCODERS = {"stablehlo": stablehlo, "onnx": onnx_program}
FORMATS = ("safetensors", *_ENCODERS)


def export(
  students: Sequence[Student],
  output: Path,
  form: str,
  licence: str | None,
  tell: Callable[[str], None],
) -> None:
  """Writes the directory, model.json last: with it, the directory is whole.

  Args:
    students: those whose probabilities are averaged; one for "safetensors".
    form: one of FORMATS.
    licence: of the weights, as the model card states it; None where none is stated.
    tell: called with what the user should know.

  Raises:
    ConfigError: an unknown format, a licence that is no identifier, or several students for
      "safetensors".
    UserError: another export is there already, or a package is missing.
  """
  if form not in FORMATS:
    raise ConfigError(did_you_mean("--format", form, FORMATS))
  licence = model_card.checked(licence)
  predictor = Predictor(students)
  settings = predictor.settings
  if form == "safetensors" and len(students) > 1:
    raise ConfigError(
      "--format=safetensors takes one student (predict averages several directories); the other "
      "formats hold several in one program"
    )
  keep = (output / CARD_FILE).exists()  # its owner may have added to it
  if form == "safetensors":
    digests = {WEIGHTS_FILE: _sha256(student_directory.weights_of(students[0]))}
    card = model_card.write(students, settings, licence, digests, form)
    student_directory.export(students[0], output, "" if keep else card)
  else:
    encoder, target = _ENCODERS[form], output / MODEL_FILE
    own = identity(students, form)
    if target.exists() and read_json(target).get("identity") != own:
      raise UserError(f"{output} holds another export already; choose another --output")
    content, said = encoder.encode(students)
    digests = {encoder.FILE: _sha256(content)}
    head = {"format": FORMAT, "kind": PROGRAM, "kd_jax": __version__, "identity": own}
    program = {"file": encoder.FILE, "sha256": digests[encoder.FILE], "runtime": form, **said}
    model = {**head, "program": program, **describe(students, predictor)}
    write_bytes(output / encoder.FILE, content)
    if not keep:
      write_text(output / CARD_FILE, model_card.write(students, settings, licence, digests, form))
    write_text(target, json.dumps(model, indent=1) + "\n")
  if keep:
    tell(f"{output / CARD_FILE} was there and stays; remove it to have a new model card written")
  elif licence is None:
    tell("the model card states no licence of the weights; --license=cc-by-4.0 would, for example")


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def identity(students: Sequence[Student], form: str) -> dict[str, Any]:
  """What must agree for an export to be written over another one."""
  return {"runtime": form, "weights": [student.digest() for student in students]}


def describe(students: Sequence[Student], predictor: Predictor) -> dict[str, Any]:
  """All that a caller of the program has to do before and after it; see docs/exports.md."""
  first, settings = students[0], predictor.settings
  preparation, convention = first.preparation, first.training["convention"]
  window = list(preparation.patch)
  shape = ["batch", len(first.architecture.modalities)]
  return {
    "sequences": list(first.architecture.modalities),
    "axes": "LPS: the index grows towards the patient's left, back and head",
    "grid": preparation.grid,
    "spacing_mm": preparation.spacing,
    "normalisation": preparation.normalise,
    "brain": {"gap_mm": GAP_MM, "part_share": PART_SHARE, "thick_mm": THICK_MM},
    "window": window,
    "overlap": settings.overlap,
    "mirror": settings.mirror,
    "weight": {"sigma": SIGMA, "least": LEAST_WEIGHT},
    "postprocessing": {
      "min_component_mm3": settings.min_component_mm3,
      "min_et_mm3": settings.min_et_mm3,
    },
    "temperatures": {region: predictor.calibration.of(region) for region in REGIONS},
    "inputs": dict(zip(INPUTS, ([*shape, *window], shape, shape), strict=True)),
    "outputs": {
      OUTPUTS[0]: ["batch", len(CLASSES), *window],
      OUTPUTS[1]: ["batch", len(REGIONS), *window],
    },
    "classes": list(CLASSES),
    "regions": {region: list(classes) for region, classes in REGIONS.items()},
    "labels": {
      "convention": convention,
      "meaning": meaning(convention),
      "values": [labels_of(convention, cls)[0] for cls in range(len(CLASSES))],
    },
    "students": [
      {
        "name": student.name,
        "weights_sha256": student.digest(),
        "training": student.training,
        "scores": student.scores,
      }
      for student in students
    ],
    "note": "Research software, not a medical device.",
  }
