"""An exported student: the directory is written here, and read with suspicion.

It holds no code, nothing in it is unpickled, and no path in it is followed:

  model.json           what it reads, how its input is prepared, what it was trained on, scores
  weights.safetensors  the parameters by name, float32
  subjects.json        digests of the training subjects, so that no evaluation scores them unawares
  README.md            the model card, for people; never read
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kd_jax.data.subjects import SUBJECTS_FILE, anonymous, read_subjects, write_subjects
from kd_jax.models.framework import Framework
from kd_jax.prediction.calibration import Calibration
from kd_jax.prediction.quality import Volumes
from kd_jax.prediction.student import (
  Architecture,
  Preparation,
  Student,
  check_parameters,
  flat,
  nested,
  parameter_count,
)
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_bytes, read_json, write_bytes, write_text
from kd_jax.settings import record
from kd_jax.settings.inference import InferenceSettings
from kd_jax.settings.model import check_network, check_patch, multiple
from kd_jax.settings.schema import build, plain
from kd_jax.tasks.labels import CLASSES, canonical

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "README.md"
PROGRAM = "kd_jax program"  # the "kind" of an export that is no student, see exports/
FORMAT = 2
READABLE = (1, 2)  # 1 has "predict" in place of "inference"
_EARLIER_NAMES = {"ResUNet": "resunet"}  # of networks, in files of earlier versions
_MOST_HEADER = 1 << 20  # bytes of names, shapes and notes before the numbers


def weights_of(student: Student) -> bytes:
  """The content of WEIGHTS_FILE."""
  # Contiguous: safetensors writes the bytes of a transposed view in the wrong order.
  arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in flat(student.params).items()}
  return safetensors.numpy.save(arrays, metadata={"format": "kd_jax"})


def export(student: Student, output: Path, card: str = "") -> None:
  """Writes a student as a directory, with a model card if there is one.

  UserError if another student is there already.
  """
  target = output / MODEL_FILE
  weights = weights_of(student)
  model = {
    "format": FORMAT,
    "kind": "kd_jax student",
    "name": student.name,
    "architecture": dataclasses.asdict(student.architecture),
    "classes": list(CLASSES),
    "preparation": dataclasses.asdict(student.preparation),
    "inference": dataclasses.asdict(student.inference),
    "calibration": plain(student.calibration),
    "volumes": plain(student.volumes),
    "training": student.training,
    "scores": student.scores,
    "parameters": sum(np.size(x) for x in flat(student.params).values()),
    "weights": {"file": WEIGHTS_FILE, "sha256": hashlib.sha256(weights).hexdigest()},
    "note": "Research software, not a medical device.",
  }
  if target.exists() and read_json(target).get("weights") != model["weights"]:
    raise UserError(f"{output} holds another student already; choose another --output")
  write_bytes(output / WEIGHTS_FILE, weights)
  subjects = [[anonymous(subject) for subject in part] for part in (student.train, student.val)]
  write_subjects(output / SUBJECTS_FILE, *subjects)
  if card:
    write_text(output / CARD_FILE, card)
  write_text(target, json.dumps(model, indent=1) + "\n")  # last: with it, the directory is whole


def read(folder: Path) -> Student:
  """The student of such a directory. UserError if anything in it is off."""
  path = folder / MODEL_FILE
  model = read_json(path)
  if model.get("kind") == PROGRAM:
    raise UserError(
      f"{folder} is an export for another runtime, which kd_jax cannot open; give the run or its "
      "export with --format=safetensors (programs to run this one are in examples/)"
    )
  if model.get("format") not in READABLE:
    raise UserError(
      f"{path} has format {model.get('format')!r}, this version of kd_jax reads {READABLE}; "
      "use the version that it was made with, or export the student again"
    )
  try:
    fields = dict(model["architecture"])
    fields["network"] = _EARLIER_NAMES.get(fields["network"], fields["network"])
    if model["classes"] != list(CLASSES):
      raise ValueError("classes that this version does not know")
    architecture: Architecture = build(Architecture, fields, "architecture")
    preparation: Preparation = build(Preparation, model["preparation"], "preparation")
    own = (architecture.network, architecture.filters, architecture.attention)
    check_network("architecture", *own)
    check_patch("preparation.patch", preparation.patch, multiple(architecture.filters))
    inference: InferenceSettings = build(
      InferenceSettings, _inference(model), "inference", recorded=True
    )
    calibration: Calibration = build(Calibration, model.get("calibration", {}), "calibration")
    volumes: Volumes = build(Volumes, model.get("volumes", {}), "volumes")
    framework = architecture.framework()
    name, digest = str(model["name"]), str(model["weights"]["sha256"])
    training, scores = dict(model["training"]), model["scores"]
    training["convention"] = _convention(training["convention"])
    if scores is not None:
      scores = dict(scores)
  except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as e:
    raise UserError(f"{path} is damaged or was edited: {e}") from e
  train, val = read_subjects(folder / SUBJECTS_FILE)
  return Student(
    name=name,
    source=str(folder),
    architecture=architecture,
    preparation=preparation,
    inference=inference,
    params=_read_weights(folder / WEIGHTS_FILE, digest, framework),
    training=training,
    scores=scores,
    train=train,
    val=val,
    settings={},
    calibration=calibration,
    volumes=volumes,
  )


def _convention(said: Any) -> str:
  try:
    return canonical(said)
  except ConfigError as e:
    raise ConfigError(f"training.convention: {e}") from e


def _inference(model: Mapping[str, Any]) -> Mapping[str, Any]:
  if model["format"] == 1:
    return record.modernised(model["predict"], "predict")
  return model["inference"]


def _read_weights(path: Path, digest: str, framework: Framework) -> dict[str, Any]:
  """The parameters of exactly the framework's student. UserError if anything is off."""
  most = 4 * parameter_count(framework) + _MOST_HEADER
  try:
    content = read_bytes(path, most)
    if hashlib.sha256(content).hexdigest() != digest:
      raise UserError(f"{path} is damaged: its checksum is not {MODEL_FILE}'s; copy it again")
    arrays = safetensors.numpy.load(content)
    if odd := {str(x.dtype) for x in arrays.values()} - {"float32"}:
      raise ValueError(f"expected float32, found {', '.join(sorted(odd))}")
    params = nested(arrays)
  # numpy knows not all types of safetensors, and "a" beside "a/b" is no tree.
  except (OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError) as e:
    raise UserError(f"cannot read {path}: {e}") from e
  return check_parameters(params, framework, path)
