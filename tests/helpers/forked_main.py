"""main.py many times over in forks of one process, which has imported what takes long.

python forked_main.py COMMANDS          JSON, lists of words; prints JSON, lists of (status, output)
python forked_main.py COMMANDS kd-jax   of the installed command instead of main.py
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax.numpy  # noqa: F401
import ml_collections.config_flags  # noqa: F401

import kd_jax.evaluation.students
import kd_jax.prediction.predict
import kd_jax.training.train  # noqa: F401
from kd_jax import cli, command
from kd_jax.runtime import startup


def run(program: str, words: list[str]) -> tuple[int, str]:
  """Exit status, and what it said on both streams."""
  with tempfile.TemporaryFile() as said:
    if not (pid := os.fork()):
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
      sys.argv = [program, *words]  # where ml_collections looks for --config.x
      status = 99
      with contextlib.suppress(Exception):  # absl has printed it
        status = exit_status(program)
      startup.end_at_once(status)  # to take such an interpreter down takes most of a second
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.seek(0)
    return status, said.read().decode()


def exit_status(program: str) -> int:
  """Of a command line; its last words are said."""
  try:
    if program == "kd-jax":
      command.start(sys.argv)
    import main  # noqa: F401 - defines the flags

    cli.start()
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
      return 1
    return end.code or 0
  return 99  # each ends with an exit of its own


if __name__ == "__main__":
  program = (*sys.argv[2:], "main.py")[0]
  print(json.dumps([run(program, words) for words in json.loads(sys.argv[1])]))
