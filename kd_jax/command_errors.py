"""What is said of a command line that cannot be read: one message, with the name that was meant."""

import difflib
import itertools
import os
import re
from collections.abc import Sequence

from absl import flags

from kd_jax.runtime.errors import UserError

# Flags of earlier versions -> today's.
RENAMED_FLAGS = {"smallest_island": "min_component_mm3", "smallest_et": "min_et_mm3"}
_SETTING = re.compile(r"--?(?:no)?config\.([^=]+)")
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
  if isinstance(error, flags.UnrecognizedFlagError):
    return _unknown_flag(error.flagname, known_flags)
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


def _unknown_flag(name: str, known: Sequence[str]) -> str:
  if name.startswith("config."):
    return f"--{name} needs a file of settings too, such as --config=configs/brats21.py"
  bare = name.removeprefix("no")
  if now := RENAMED_FLAGS.get(name) or RENAMED_FLAGS.get(bare):
    return f"--{name} is now called --{now}"
  near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(bare, known, 1)
  hint = f"; did you mean --{near[0]}?" if near else "; python main.py --help lists all"
  return f"unknown flag --{name}{hint}"


def _missing_file(argv: Sequence[str]) -> str:
  """What is wrong with the file of --config, if there is none."""
  following = {a: b for a, b in itertools.pairwise(argv) if a in ("--config", "-config")}
  given = [match[1] for argument in argv if (match := _CONFIG.match(argument))]
  for value in (*given, *following.values()):
    path = os.path.expanduser(value.partition(":")[0])
    if os.path.isfile(path):
      continue
    folder = os.path.dirname(path)
    there = [name for name in _names(folder) if name.endswith(".py")]
    near = difflib.get_close_matches(os.path.basename(path), there, 1)
    hint = f"did you mean {os.path.join(folder, near[0])}? " if near else ""
    return f"no file {path} for --config; {hint}It is one of configs/, or your own copy of one"
  return ""


def _names(folder: str) -> list[str]:
  try:
    return sorted(os.listdir(folder or "."))
  except OSError:
    return []
