"""Errors that a user can act on.

Each message names the file or the setting, what was wrong and what to do about it. `main.py`
prints them without a traceback and exits with status 1; everything else is a bug and keeps its
traceback.
"""

import difflib
import re
from collections.abc import Sequence

# Control characters but line breaks and tabs, marks that turn the reading direction, and bytes of
# file names that are no UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
  """Something that the user can put right: a setting, a path, a broken file."""


class ConfigError(UserError):
  """A setting that is unknown, out of range or at odds with another one."""


class CaseError(UserError):
  """A case that cannot be used.

  Attributes:
    case: the case's name.
    file: the file at fault (a path as text), or "" where the whole case is.
    finding: what is wrong with it.
    remedy: what the user can do about it.
  """

  def __init__(self, case: str, file: object, finding: str, remedy: str):
    self.case, self.file, self.finding, self.remedy = case, str(file), finding, remedy
    super().__init__(case, self.file, finding, remedy)  # all arguments: it survives pickling

  @property
  def reason(self) -> str:
    """What is wrong and what to do, without the case's name."""
    where = f"{self.finding} ({self.file})" if self.file else self.finding
    return f"{where}. {self.remedy}" if self.remedy else where

  def __str__(self) -> str:
    where = f" ({one_line(self.file)})" if self.file else ""
    return f"case {one_line(self.case)}{where}: {self.finding}. {self.remedy}"


def printable(text: str) -> str:
  """Text that cannot steer a terminal: file names may hold anything. Escapes stand instead."""
  return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
  """As printable, for a place that holds one line, such as a table's cell."""
  return printable(text).replace("\n", "\\n")


def did_you_mean(what: str, name: object, known: Sequence[str]) -> str:
  """A message for an unknown name: the nearest known one first, then all of them."""
  last = str(name).rpartition(".")[2]
  near = difflib.get_close_matches(last, known, 1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  return f"unknown {what} {name!r}; {hint}known: {', '.join(known)}"


def some(names: Sequence[str]) -> str:
  """Up to ten names, and how many more there are."""
  return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
