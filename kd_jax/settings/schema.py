"""What a setting is: a field of a dataclass with its type, default, range and words in one place.

  temperature: Annotated[float, Range(1e-3, 1e6), "T of every distillation term"] = 1.0

From such fields come the checks of values (`build`), the flags, the table in docs/settings.md and
the record of a run. In `Annotated` may stand: a text (what the setting means), `Range`,
`MultipleOf`, `Distinct`, `Pattern`, `Readable`, `PathName` (what is allowed), `Before` and `FREE`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from kd_jax.runtime.errors import ConfigError, did_you_mean
from kd_jax.settings.constraints import (
  Distinct,
  MultipleOf,
  OrUnset,
  PathName,
  Pattern,
  Range,
  Readable,
)


class Before(NamedTuple):
  """The value that holds for records written before the setting existed."""

  value: Any


class _Free:
  """Marks a setting that a run may change when it continues; see `FREE`."""


# Such settings change where files are, how often the program reports, how fast or how long it runs;
# not what a step computes.
FREE = _Free()
_CONSTRAINTS = (Range, OrUnset, MultipleOf, Distinct, Pattern, Readable, PathName)


class Setting(NamedTuple):
  """One setting, for tables and comparisons.

  Attributes:
    name: dotted.
    kind: its type, in words.
    default: its value in the default recipe; `REQUIRED` if it has none.
    allowed: its range or choices, in words.
    words: what it means.
    free: whether a run may change it when it continues.
  """

  name: str
  kind: str
  default: Any
  allowed: str
  words: str
  free: bool


REQUIRED = object()


# --- Values as JSON or a ConfigDict has them -> dataclasses -------------------------------------


def build(
  kind: Any, value: Any, name: str = "", *, default: Any = REQUIRED, recorded: bool = False
) -> Any:
  """A value as a setting of some type, checked.

  Args:
    kind: a dataclass, a tuple, a mapping, a plain type, or one of these within `Annotated`.
    value: what was given: plain values, lists, mappings.
    name: dotted, for messages.
    default: fields of a dataclass, and keys of a mapping with fixed keys, that are not given have
      this object's value.
    recorded: it was written by an earlier version: fields that did not exist have their `Before`.

  Raises:
    ConfigError: an unknown or missing name, another type, a value that is not allowed.
  """
  if typing.get_origin(kind) is Annotated:
    kind, *notes = typing.get_args(kind)
    built = build(kind, value, name, default=default, recorded=recorded)
    for note in notes:
      if isinstance(note, _CONSTRAINTS):
        note.check(name, built)
      if isinstance(note, PathName):
        built = note.expanded(name, built)
    return built
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build_dataclass(kind, value, name, default, recorded)
  if origin is Literal:
    if not isinstance(value, str) or value not in arguments:
      raise ConfigError(f"{name}: {did_you_mean('value', value, arguments)}")
    return value
  if origin is tuple:
    return _build_tuple(arguments, value, name)
  if origin is not None and issubclass(origin, Mapping):
    return _build_mapping(arguments[0], arguments[1], value, name, default)
  return _build_plain(kind, value, name)


def _build_plain(kind: type, value: Any, name: str) -> Any:
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    try:
      return float(value)
    except OverflowError as e:
      raise ConfigError(f"{name} is larger than any number that can be computed with") from e
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(f"{name} = {value!r}: expected a value of type {kind.__name__}")
  return value


def _build_tuple(kinds: Sequence[Any], value: Any, name: str) -> tuple:
  if isinstance(value, str) or not isinstance(value, Sequence):
    raise ConfigError(f"{name} = {value!r}: expected a list")
  if kinds[-1] is Ellipsis:
    kinds = [kinds[0]] * len(value)
  elif len(value) != len(kinds):
    raise ConfigError(f"{name} = {tuple(value)}: expected {len(kinds)} values")
  return tuple(build(kind, v, name) for kind, v in zip(kinds, value, strict=True))


def _build_mapping(key: Any, kind: Any, value: Any, name: str, default: Any) -> dict:
  if not hasattr(value, "items"):
    raise ConfigError(f"{name} = {value!r}: expected names with values")
  for k in value:
    build(key, k, f"{name}.{k}")
  fixed = typing.get_origin(key) is Literal and default is not REQUIRED
  usual = default if fixed else {}
  given = {
    k: build(kind, v, f"{name}.{k}", default=usual.get(k, REQUIRED)) for k, v in value.items()
  }
  return {**usual, **given}


def _build_dataclass(kind: Any, value: Any, name: str, default: Any, recorded: bool) -> Any:
  if not hasattr(value, "items"):
    raise ConfigError(f"{name} = {value!r}: expected a group of settings")
  prefix = f"{name}." if name else ""
  hints = typing.get_type_hints(kind, include_extras=True)
  fields = {field.name: field for field in dataclasses.fields(kind)}
  given = dict(value.items())
  if unknown := [key for key in given if key not in fields]:
    raise ConfigError(did_you_mean("setting", f"{prefix}{unknown[0]}", list(fields)))
  values = {}
  for key, field in fields.items():
    usual = default_of(field) if default is REQUIRED else getattr(default, key)
    before = [n.value for n in _notes(hints[key]) if isinstance(n, Before)] if recorded else []
    if key in given:
      values[key] = build(hints[key], given[key], prefix + key, default=usual, recorded=recorded)
    elif before:
      values[key] = before[0]
    elif usual is REQUIRED:
      raise ConfigError(f"{prefix}{key} is missing")
    else:
      values[key] = usual
  return kind(**values)


def default_of(field: dataclasses.Field) -> Any:
  """A field's default, `REQUIRED` if it has none."""
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return REQUIRED


def _notes(kind: Any) -> tuple:
  return typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ()


# --- Dataclasses -> plain values, tables --------------------------------------------------------


def plain(value: Any) -> Any:
  """Settings as JSON has them: dicts, lists, numbers, texts."""
  if dataclasses.is_dataclass(value):
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {key: plain(v) for key, v in value.items()}
  return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def walk(kind: Any, default: Any = REQUIRED, prefix: str = "") -> Iterator[Setting]:
  """Every setting of a dataclass and of the dataclasses within it, in their order."""
  hints = typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    usual = default_of(field) if default is REQUIRED else getattr(default, field.name)
    hint, name = hints[field.name], prefix + field.name
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if dataclasses.is_dataclass(inner):
      yield from walk(inner, usual, f"{name}.")
      continue
    words = next((n for n in _notes(hint) if isinstance(n, str)), "")
    yield Setting(name, _kind(inner), usual, _allowed(hint), words, FREE in _notes(hint))


def _kind(kind: Any) -> str:
  """A type in words."""
  if typing.get_origin(kind) is Annotated:
    kind = typing.get_args(kind)[0]
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is Literal:
    return "choice"
  if origin is tuple:
    count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
    return f"{count}{_kind(arguments[0])}s".replace("texts", "names")
  if origin is not None:
    return f"name -> {_kind(arguments[1])}"
  names = {"float": "number", "int": "whole number", "str": "text", "bool": "yes or no"}
  return names.get(kind.__name__, kind.__name__)


def _allowed(kind: Any) -> str:
  """What is allowed, in words; the choices of a Literal at any depth."""
  own = [str(n) for n in _notes(kind) if isinstance(n, _CONSTRAINTS)]
  inner = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
  if typing.get_origin(inner) is Literal:
    own.insert(0, ", ".join(f"`{choice}`" for choice in typing.get_args(inner)))
  elif isinstance(inner, types.GenericAlias) or typing.get_origin(inner) is not None:
    parts = [_allowed(part) for part in typing.get_args(inner) if part is not Ellipsis]
    own = [*dict.fromkeys(part for part in parts if part), *own]
  return "; ".join(part for part in own if part)
