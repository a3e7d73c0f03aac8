"""What values a setting may have: ranges, multiples, patterns; each checks, and has its words."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import at_home


class Range(NamedTuple):
  """A number between two others, both included."""

  low: float
  high: float

  def check(self, name: str, value: float) -> None:
    if not self.low <= value <= self.high:  # NaN fails too
      raise ConfigError(f"{name} = {value} is not between {self.low} and {self.high}")

  def __str__(self) -> str:
    low, high = (f"{x:,}" if isinstance(x, int) else f"{x:g}" for x in self)
    return f"{low} to {high}"


class OrUnset(NamedTuple):
  """A number within a range, or one value that stands for something else."""

  unset: float
  range: Range

  def check(self, name: str, value: float) -> None:
    if value != self.unset:
      self.range.check(name, value)

  def __str__(self) -> str:
    return f"{self.range} or {self.unset:g}"


class MultipleOf(NamedTuple):
  """A multiple of n; why: a clause for the message."""

  n: int
  why: str

  def check(self, name: str, value: int) -> None:
    if value % self.n:
      raise ConfigError(f"{name} = {value}: {self.why} needs multiples of {self.n}")

  def __str__(self) -> str:
    return f"multiples of {self.n}"


class Distinct(NamedTuple):
  """A list with one entry at least, none twice; what: the entries, in one word."""

  what: str

  def check(self, name: str, value: Sequence[object]) -> None:
    if not value:
      raise ConfigError(f"{name} is empty: name one {self.what} at least")
    if len(set(value)) < len(value):
      raise ConfigError(f"{name} = {value}: a {self.what} stands there twice")

  def __str__(self) -> str:
    return "one or more"


class Pattern(NamedTuple):
  """A text that matches in full; words: what is allowed, for the message."""

  regex: str
  words: str

  def check(self, name: str, value: str) -> None:
    if not re.fullmatch(self.regex, value):
      raise ConfigError(f"{name} = {value!r}: {self.words}")

  def __str__(self) -> str:
    return ""


class Readable(NamedTuple):
  """A text that a function can read; it raises a ValueError with what is expected."""

  read: Callable[[str], object]

  def check(self, name: str, value: str) -> None:
    try:
      self.read(value)
    except ValueError as e:
      raise ConfigError(f"{name} = {value!r}: {e}") from e

  def __str__(self) -> str:
    return ""


class PathName(NamedTuple):
  """A path, in which ~ is the home folder; empty: whether there may be none."""

  empty: bool = False

  def check(self, name: str, value: str) -> None:
    if "\0" in value or not (value or self.empty):
      raise ConfigError(f"{name} = {value!r}: expected a path")

  def expanded(self, name: str, value: str) -> str:
    """The path as programs use it. ConfigError if no home folder is known."""
    try:
      return str(at_home(value)) if value.startswith("~") else value
    except UserError as e:
      raise ConfigError(f"{name} = {e}") from e

  def __str__(self) -> str:
    return ""
