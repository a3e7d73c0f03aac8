"""A trained student: its network, how a scan becomes its input, who it was trained on."""

import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import flax
import jax
import numpy as np

from kd_jax.data.subjects import Subject
from kd_jax.models.framework import Framework
from kd_jax.models.interface import NetworkKind
from kd_jax.models.networks import NETWORKS
from kd_jax.prediction.calibration import NONE, Calibration
from kd_jax.prediction.quality import Volumes
from kd_jax.runtime.errors import UserError
from kd_jax.settings.data import GridKind, Normalisation, Patch, Spacing
from kd_jax.settings.inference import InferenceSettings
from kd_jax.settings.model import Attention, Filters, Modalities, ModelSettings, Network
from kd_jax.settings.schema import Before


@dataclass(frozen=True)
class Architecture:
  """What fixes a student's network; the fields are settings of the model."""

  modalities: Modalities
  filters: Filters
  attention: Attention
  network: Annotated[Network, Before("resunet")] = "resunet"

  @property
  def kind(self) -> NetworkKind:
    return NETWORKS[self.network]

  @functools.cache  # noqa: B019 - equal architectures share one object, and with it their programs
  def framework(self) -> Framework:
    """The network's structure; computes in bfloat16 on GPU and TPU, in float32 on CPU."""
    return Framework(self.settings())

  def settings(self) -> ModelSettings:
    """Those of a model that has this student alone."""
    return ModelSettings(
      student=self.modalities,
      teachers={},
      filters=self.filters,
      fusion_levels=0,
      attention=self.attention,
      dtype="auto",
      network=self.network,
    )


@dataclass(frozen=True)
class Preparation:
  """How a scan becomes the network's input; the fields are settings of the data."""

  grid: GridKind
  normalise: Normalisation
  spacing: Spacing
  patch: Patch


@dataclass(frozen=True)
class Student:
  """One student.

  Attributes:
    name: of the run.
    source: the path it was opened from.
    architecture, preparation: see there.
    inference: how it is meant to predict whole volumes.
    params: its network's parameters, nested.
    training: facts for people: data set, conventions, cases, step, teachers, ...
    scores: what an evaluation found, or None.
    train, val: the subjects it was trained on, and those its checkpoint was chosen by.
    settings: the run's settings as plain values; {} if they are not known.
    calibration: of its probabilities, by validation.
    volumes: the regions' volumes in its training cases; {} if they are not known.
  """

  name: str
  source: str
  architecture: Architecture
  preparation: Preparation
  inference: InferenceSettings
  params: dict[str, Any]
  training: dict[str, Any]
  scores: dict[str, Any] | None
  train: list[Subject]
  val: list[Subject]
  settings: dict[str, Any]
  calibration: Calibration = NONE
  volumes: Volumes = field(default_factory=dict)

  def digest(self) -> str:
    """SHA-256 of all parameters: the same for a run and for what was exported from it."""
    digest = hashlib.sha256()
    for name, array in sorted(flat(self.params).items()):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


def parameter_count(framework: Framework) -> int:
  """Of the framework's student, with its side heads."""
  return sum(math.prod(shape) for shape in _shapes(framework).values())


@functools.cache
def _shapes(framework: Framework) -> dict[str, tuple[int, ...]]:
  """Of the student's parameters, by name; nothing is computed."""
  abstract = jax.eval_shape(framework.init, jax.random.key(0))["student"]
  return {name: x.shape for name, x in flat(abstract).items()}


def check_parameters(params: dict[str, Any], framework: Framework, source: object) -> dict:
  """params, if names and shapes are those of the framework's student. UserError if not."""
  wanted = {k: v for k, v in _shapes(framework).items() if not k.startswith("side_heads/")}
  found = {k: v.shape for k, v in flat(params).items() if not k.startswith("side_heads/")}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise UserError(
        f"{source} does not fit its network: {name} is {found.get(name, 'missing')}, "
        f"expected {wanted.get(name, 'no such parameter')}"
      )
  for name, array in flat(params).items():
    if not np.isfinite(array).all():
      raise UserError(f"{source}: the parameter {name} holds NaN or infinite numbers")
  return {name: part for name, part in params.items() if name != "side_heads"}


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(params, sep="/")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.unflatten_dict(dict(flat), sep="/")
