"""The flags of the command line, as a process of its own reads them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# What --config holds, as main.py has it.
PROGRAM = """
import json, sys
import main
from kd_jax import cli, command_flags
cli.parse_flags(sys.argv)
print(json.dumps(command_flags.config().to_dict()))
"""


def config(*flags: str) -> subprocess.CompletedProcess:
  file = f"--config={REPOSITORY / 'configs' / 'quickstart.py'}"
  command = [sys.executable, "-c", PROGRAM, file, *flags]
  return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_of_a_setting_given_twice_the_last_value_counts():
  done = config(
    *("--config.model.filters=(4,8,8,8)", "--config.model.filters=(4,8,8,16)"),
    *("--config.data.patch=16,16,16", "--config.data.patch", "[32,32,32]"),
    *("--config.loss.kd_regions=('WT','TC')", "--config.loss.kd_regions=ET"),
    *("--config.model.student=('flair',)", "--config.model.student=('t1','t1ce')"),
    *("--config.train.epochs=2", "--config.train.epochs=3"),
    *("--config.name=one", "--config.name=two"),
    *("--config.data.skip_bad_cases", "--noconfig.data.skip_bad_cases"),
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert found["model"]["filters"] == [4, 8, 8, 16]
  assert found["data"]["patch"] == [32, 32, 32]
  assert found["loss"]["kd_regions"] == ["ET"]
  assert found["model"]["student"] == ["t1", "t1ce"]
  assert (found["train"]["epochs"], found["name"]) == (3, "two")
  assert found["data"]["skip_bad_cases"] is False


@pytest.mark.parametrize("value", ["(4,8", "4 8 8 8"])
def test_what_is_no_tuple_is_named(value):
  done = config(f"--config.model.filters={value}")
  assert done.returncode == 1
  assert "error:" in done.stderr and "config.model.filters" in done.stderr
  assert "Traceback" not in done.stderr
