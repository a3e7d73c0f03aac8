"""What is said of a command line that cannot be read: one message, with the name that was meant."""

import difflib
import itertools
import os
import re
from collections.abc import Sequence

from absl import flags

from kd_jax.runtime import commands
from kd_jax.runtime.errors import UserError, did_you_mean

# Flags of earlier versions -> today's.
RENAMED_FLAGS = {"smallest_island": "min_component_mm3", "smallest_et": "min_et_mm3"}
_SETTING = re.compile(r"--?(?:no)?config\.([^=]+)")
_MODE = re.compile(r"--?mode=(.*)", re.DOTALL)
_CONFIG = re.compile(r"--?config=(.*)", re.DOTALL)


def explain(error: Exception, argv: Sequence[str], known_flags: Sequence[str]) -> str:
  """A message for what absl, ml_collections or a file of --config has raised.

  Args:
    error: what was raised.
    argv: the command line.
    known_flags: names of all flags.
  """
  from kd_jax.settings import record

  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, flags.IllegalFlagValueError) and (mode := _unknown_mode(argv)):
    return mode
  if isinstance(error, flags.UnrecognizedFlagError):
    return _unknown_flag(error.flagname, known_flags, (*_given(_MODE, argv), "")[0])
  if file := _missing_file(argv):
    return file
  settings = [match[1] for argument in argv if (match := _SETTING.match(argument))]
  for name in settings:
    if said := record.explain_unknown(name):
      return said
  if isinstance(error, AttributeError | KeyError) and settings:
    return (
      f"the file of --config holds no {', or no '.join(settings)}. Add the setting to that file, "
      "or begin with one of configs/"
    )
  return str(error)


def stray(argument: str, modes: Sequence[str]) -> str:
  """What to say of a word that is no flag, where none is expected."""
  from kd_jax.settings import presets

  mode = argument.replace("-", "_")
  if mode in modes:
    return f"what is {argument!r}? Did you mean {commands.named(mode)}?"
  if argument.partition(":")[0] in presets.DATASETS or argument.endswith(".py"):
    return f"what is {argument!r}? Did you mean --config={argument}?"
  return f"what is {argument!r}? Settings look like --config.data.fold=1, flags like --output=masks"


def _unknown_mode(argv: Sequence[str]) -> str:
  """What is wrong with --mode; "" if it is a mode."""
  parser = flags.FLAGS["mode"].parser
  assert isinstance(parser, flags.EnumParser), "--mode is one of several"
  unknown = [name for name in _given(_MODE, argv) if name not in parser.enum_values]
  return did_you_mean("mode", unknown[0], parser.enum_values) if unknown else ""


def _given(flag: re.Pattern, argv: Sequence[str]) -> list[str]:
  """The values of a flag on a command line."""
  return [match[1] for argument in argv if (match := flag.fullmatch(argument))]


def _unknown_flag(name: str, known: Sequence[str], mode: str) -> str:
  if name.startswith("config."):
    return f"--{name} needs a preset or a file of settings too, such as --config=brats21"
  bare = name.removeprefix("no")
  if now := RENAMED_FLAGS.get(name) or RENAMED_FLAGS.get(bare):
    return f"--{name} is now called --{now}"
  near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(bare, known, 1)
  begun = [flag for flag in known if flag.startswith(name)]
  near = near or (begun if len(begun) == 1 else [])
  hint = f"; did you mean --{near[0]}?" if near else f"; {commands.help_of(mode)} lists all"
  return f"unknown flag --{name}{hint}"


def _missing_file(argv: Sequence[str]) -> str:
  """What is wrong with the file of --config, if there is none and no preset is meant."""
  from kd_jax.settings import presets

  following = {a: b for a, b in itertools.pairwise(argv) if a in ("--config", "-config")}
  for value in (*_given(_CONFIG, argv), *following.values()):
    path = os.path.expanduser(value.partition(":")[0])
    if path in presets.DATASETS or os.path.isfile(path):
      continue
    folder, name = os.path.split(path)
    there = [file for file in _names(folder) if file.endswith(".py")]
    files = [os.path.join(folder, n) for n in difflib.get_close_matches(name, there, 1)]
    named = difflib.get_close_matches(name.removesuffix(".py"), presets.DATASETS, 1)
    near = files + named if folder else named + files
    hint = f"did you mean {near[0]}? " if near else ""
    known = ", ".join(presets.DATASETS)
    return f"no file {path} for --config; {hint}It is a preset ({known}) or a file of settings"
  return ""


def _names(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder or "."))
  except OSError:
    return []
