"""main.py many times over in forks of one process, which has imported what takes long.

python forked_main.py COMMANDS    JSON, lists of flags; prints JSON, lists of (status, output)
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax.numpy  # noqa: F401

import kd_jax.evaluation.students
import kd_jax.prediction.predict
import kd_jax.training.train  # noqa: F401
import main  # noqa: F401 - defines the flags
from kd_jax import cli


def run(flags: list[str]) -> tuple[int, str]:
  """Exit status, and what it said on both streams."""
  with tempfile.TemporaryFile() as said:
    if not (pid := os.fork()):
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
      sys.argv = ["main.py", *flags]  # where ml_collections looks for --config.x
      with contextlib.suppress(Exception):  # absl has printed it
        cli.start()
      os._exit(99)  # cli.start ends with an exit of its own
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.seek(0)
    return status, said.read().decode()


if __name__ == "__main__":
  print(json.dumps([run(flags) for flags in json.loads(sys.argv[1])]))
