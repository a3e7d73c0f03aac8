"""What a setting may be: checks that configurations and shared students' model.json have in common.

Each raises a ConfigError that names the setting and what is allowed.
"""

import re
from collections.abc import Sequence

from kd_jax.models.resunet import DOWNSAMPLING
from kd_jax.prediction.postprocess import BY_VALIDATION
from kd_jax.prediction.sliding_window import MODES, PredictSettings
from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.tasks.names import MODALITIES


def one_of(name: str, value: object, known: Sequence[str]) -> None:
  """ConfigError, with the known values, for any other."""
  if value not in known:
    raise ConfigError(f"{name}: {did_you_mean('value', value, known)}")


def within(name: str, value: float, low: float, high: float) -> None:
  """ConfigError unless value lies between low and high, both included."""
  if not low <= value <= high:  # NaN fails too
    raise ConfigError(f"{name} = {value} is not between {low} and {high}")


def check_modalities(name: str, modalities: Sequence[str]) -> None:
  """What a network reads: one of MODALITIES at least, none twice. ConfigError if not."""
  for modality in modalities or ("",):
    one_of(name, modality, MODALITIES)
  if len(set(modalities)) < len(modalities):
    raise ConfigError(f"{name} = {modalities}: a modality stands there twice")


def check_patch(name: str, patch: Sequence[int]) -> None:
  """A window's sides, in voxels. ConfigError if the networks cannot take it."""
  for axis in patch:
    within(name, axis, DOWNSAMPLING, 1024)
    if axis % DOWNSAMPLING:
      raise ConfigError(f"{name} = {patch}: each side must be a multiple of {DOWNSAMPLING}")


def check_filters(name: str, filters: Sequence[int]) -> None:
  """A network's channels. ConfigError if it cannot have them."""
  for channels in filters:
    within(name, channels, 4, 4096)
    if channels % 4:
      raise ConfigError(f"{name} = {filters}: group norm needs multiples of 4")


def check_predict(prefix: str, settings: PredictSettings) -> None:
  """How volumes are looked at. ConfigError if it is impossible."""
  one_of(f"{prefix}.mode", settings.mode, MODES)
  within(f"{prefix}.overlap", settings.overlap, 0, 0.95)
  for name, value in settings.smallest._asdict().items():
    if value != BY_VALIDATION:
      within(f"{prefix}.smallest_{name}", value, 0, 1e6)


def check_name(name: str, value: str) -> None:
  """A run's name, which becomes a folder's. ConfigError if it could lead elsewhere."""
  if not re.fullmatch(r"\w[\w.,+ -]{0,99}", value):
    raise ConfigError(
      f"{name} = {value!r}: it becomes a folder's, so allowed are at most 100 letters, digits, "
      "blanks and _ . , + -, the first a letter, digit or _"
    )


def check_teacher(name: str) -> None:
  """A teacher's name, which becomes a parameter's and a curve's. ConfigError if it cannot."""
  if name == "student" or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name):
    raise ConfigError(
      f"model.teachers.{name}: a teacher cannot be named student; allowed are up to 41 letters, "
      "digits and _, the first a letter"
    )


def check_path(name: str, value: str) -> None:
  """ConfigError if it can be no path."""
  if not value or "\0" in value:
    raise ConfigError(f"{name} = {value!r}: expected a path")
