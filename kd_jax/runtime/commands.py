"""How this program was started, so that messages show commands which can be typed there.

From a checkout a mode is a flag, `python main.py --mode=predict`; the installed package's command
has it as its first word, `kd-jax predict`, and so has `python -m kd_jax predict`.
"""

import os
import sys

COMMAND = "kd-jax"


def started_as() -> str:
  """What stands before a mode on this program's command line; "" if modes are flags here."""
  program = sys.argv[0] if sys.argv else ""
  if os.path.basename(program).removesuffix(".exe") == COMMAND:
    return COMMAND
  module = os.path.join("kd_jax", "__main__.py")
  return "python -m kd_jax" if program.endswith(module) else ""


def word(mode: str) -> str:
  """A mode as kd-jax has it: cross_validate -> cross-validate."""
  return mode.replace("_", "-")


def named(mode: str) -> str:
  """How messages name a mode: "--mode=predict", or "kd-jax predict"."""
  return f"{command} {word(mode)}" if (command := started_as()) else f"--mode={mode}"


def typed(mode: str) -> str:
  """The beginning of a command that starts a mode: "python main.py --mode=predict"."""
  return named(mode) if started_as() else f"python main.py --mode={mode}"


def help_of(mode: str = "") -> str:
  """The command that shows all flags, or those of a mode."""
  command = started_as()
  return f"{command} {mode and word(mode) + ' '}--help" if command else "python main.py --help"
