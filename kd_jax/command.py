"""The words of kd-jax: a mode first, then its flags; or a question (--help, --version)."""

import contextlib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from kd_jax import cli, command_flags, command_help
from kd_jax.runtime import commands
from kd_jax.runtime.errors import did_you_mean, printable

HELP = ("--help", "-help", "-h", "-?")
_VERSION = ("--version", "-version", "-V")
_MODE = re.compile(r"--?mode(?:=(.*))?")


def start(argv: Sequence[str]) -> None:
  """Runs a command line, or answers it.

  Args:
    argv: the program and its words, as sys.argv.
  """
  words = list(argv[1:])
  first = words[0] if words else ""
  if not words:
    print(command_help.overview(), file=sys.stderr)
    sys.exit(1)
  if first in HELP or first == "help":
    named = [word for word in words[1:] if word not in HELP]
    _show(command_help.of_mode(_mode(named[0])) if named else command_help.overview())
  if first in _VERSION:
    from kd_jax.runtime import versions

    _show(versions.report())
  mode = _mode(first) if not first.startswith("-") else _without_mode(words)
  flags = words[1:]
  if any(word in HELP for word in _before_dashes(flags)):
    _show(command_help.of_mode(mode))
  if any(_MODE.fullmatch(word) for word in _before_dashes(flags)):
    _refuse(f"the mode is the first word of {commands.COMMAND}; leave --mode out")
  command_flags.define(list(cli.MODES))
  cli.start([argv[0], f"--mode={mode}", *flags])


def _mode(word: str) -> str:
  """The mode that a word names, with hyphens or underscores; ends the program if there is none."""
  name = word.replace("-", "_")
  if name in cli.MODES:
    return name
  _refuse(did_you_mean("mode", word, [commands.word(mode) for mode in cli.MODES]))


def _without_mode(words: Sequence[str]) -> NoReturn:
  """Refuses a command line that begins with a flag."""
  given = [word.replace("-", "_") for word in words]
  given += [found[1] for word in words if (found := _MODE.fullmatch(word)) and found[1]]
  mode = next((commands.word(word) for word in given if word in cli.MODES), "train")
  _refuse(f"the mode comes first and its flags after it, such as {commands.COMMAND} {mode} ...")


def _before_dashes(words: Sequence[str]) -> Sequence[str]:
  """The words that may be flags: up to "--"."""
  return words[: words.index("--")] if "--" in words else words


def _show(text: str) -> NoReturn:
  with contextlib.suppress(BrokenPipeError):  # of kd-jax --help | head
    print(text, flush=True)
  sys.exit()


def _refuse(finding: str) -> NoReturn:
  sys.exit(printable(f"error: {finding}"))
