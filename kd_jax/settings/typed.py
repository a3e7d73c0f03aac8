"""Values as JSON has them -> the dataclasses that the code is written against, or what is wrong."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from kd_jax.runtime.errors import ConfigError, did_you_mean


def build(kind: Any, value: Any, name: str) -> Any:
  """value as kind: a dataclass, a tuple, a mapping or a plain type; errors carry the name."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, name)
  if origin is tuple:
    many = arguments[-1] is Ellipsis
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ConfigError(f"{name} = {value!r}: expected a list")
    if not many and len(value) != len(arguments):
      raise ConfigError(f"{name} = {tuple(value)}: expected {len(arguments)} values")
    kinds = [arguments[0]] * len(value) if many else arguments
    return tuple(build(k, v, name) for k, v in zip(kinds, value, strict=True))
  if origin is not None and issubclass(origin, Mapping):
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
      raise ConfigError(f"{name} = {value!r}: expected names with values")
    return {key: build(arguments[1], v, f"{name}.{key}") for key, v in value.items()}
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError as e:
      raise ConfigError(f"{name} is larger than any number that can be computed with") from e
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(f"{name} = {value!r}: expected a value of type {kind.__name__}")
  return value


def _build_dataclass(kind: type, value: Any, name: str) -> Any:
  if not isinstance(value, Mapping) and not hasattr(value, "items"):
    raise ConfigError(f"{name} = {value!r}: expected a group of settings")
  hints = typing.get_type_hints(kind)
  known = [field.name for field in dataclasses.fields(kind)]
  given = dict(value.items())
  if unknown := [key for key in given if key not in known]:
    raise ConfigError(did_you_mean("setting", f"{name}.{unknown[0]}", known))
  if missing := [key for key in known if key not in given]:
    raise ConfigError(f"{name}.{missing[0]} is missing")
  return kind(**{key: build(hints[key], given[key], f"{name}.{key}") for key in known})
