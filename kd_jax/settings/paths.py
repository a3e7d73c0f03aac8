"""Settings that are paths."""

from typing import NamedTuple

from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import at_home


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
