"""The ablation as a command: without JAX where it needs none, its runs, and one small run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quick import FLAGS
from runs import make_data

from benchmarks import ablation
from benchmarks.ablations import recipes, records, runs
from kd_jax.runtime.errors import UserError

ROOT = Path(ablation.__file__).parents[1]
WITHOUT_JAX = """
import sys
from pathlib import Path
from benchmarks import ablation
from benchmarks.ablations import recipes, records, tables
print(tables.text_of(tables.summary_of(Path(sys.argv[1]), ["student_only", "as_wide"], [0])))
assert not [name for name in sys.modules if name.partition(".")[0] in ("jax", "jaxlib")]
"""


def test_a_table_needs_no_jax():
  command = [sys.executable, "-c", WITHOUT_JAX, ROOT / "benchmarks" / "records" / "400-steps"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "Dice against student_only" in done.stdout


WRITES_A_RECORD = """
import pathlib, sys
output, name, seed = sys.argv[1].removeprefix("--output="), *sys.argv[-2:]
print(*sys.argv[1:])
if name == "cdsfl" and seed == "1":
  sys.exit("no more memory")
pathlib.Path(output, name, f"seed{seed}.json").write_text("{}")
"""


def test_what_has_no_record_is_run_seed_by_seed_until_one_fails(tmp_path, monkeypatch, capsys):
  (tmp_path / "command.py").write_text(WRITES_A_RECORD)
  monkeypatch.setattr(runs, "COMMAND", tmp_path / "command.py")
  (tmp_path / "best").mkdir()
  (tmp_path / "best" / "seed1.json").write_text("{}")
  flags, after = [f"--output={tmp_path}", "--epochs=3"], []
  with pytest.raises(UserError, match=r"cdsfl, seed 1 ended.* 1:[^$]*no more memory"):
    runs.run_all(tmp_path, ["best", "cdsfl"], range(2), flags, lambda: after.append(0))
  shown = [line.partition("; ")[0] for line in capsys.readouterr().out.splitlines()]
  assert shown == ["[1/3] best, seed 0", "[2/3] cdsfl, seed 0", "[3/3] cdsfl, seed 1"]
  log = (tmp_path / "cdsfl" / "seed0" / "terminal.log").read_text()
  assert log.split() == [*flags, "--one", "cdsfl", "0"]
  assert len(after) == 2  # a table after every run that ends well


SAVES_WHEN_TOLD = """
import pathlib, signal, sys, time

def save(*_):
  pathlib.Path(sys.argv[1]).write_text("saved")
  sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(100)
"""


def test_a_run_whose_time_is_over_saves_and_is_no_failure(tmp_path, monkeypatch):
  (tmp_path / "command.py").write_text(SAVES_WHEN_TOLD)
  monkeypatch.setattr(runs, "COMMAND", tmp_path / "command.py")
  assert not runs.run_process(tmp_path / "run", [str(tmp_path / "checkpoint")], "best", 3.0)
  assert (tmp_path / "run" / "terminal.log").read_text() == "training\n"
  assert (tmp_path / "checkpoint").read_text() == "saved"


# The command itself, at the smallest size that trains.
TINY = """
import runpy, sys
sys.path.insert(0, {root!r})
from benchmarks.ablations.recipes import SIZES
SIZES["cpu"] = SIZES["cpu"]._replace(settings={settings!r})
sys.argv[0] = {command!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_one_run_whose_cases_another_process_reads(tmp_path):
  """As --size=gpu has it: nothing but the command's own start prepares the reader's process."""
  settings = {
    "data.cache": str(tmp_path / "cache"),
    "data.patch": (16, 16, 16),
    "data.folds": 3,
    "data.workers": 1,
    "model.filters": (4, 4, 8, 8),
    "train.epochs": 1,
    "train.steps_per_epoch": 2,
  }
  data = make_data(tmp_path / "data", cases=3)
  test = make_data(tmp_path / "test", cases=1, first=3)
  code = TINY.format(root=str(ROOT), settings=settings, command=ablation.__file__)
  flags = [f"--data={data}", f"--test={test}", f"--output={tmp_path / 'runs'}"]
  command = [sys.executable, "-c", code, *flags, "--one", recipes.ALONE, "0"]
  # One device, as users have it.
  env = os.environ | {"XLA_FLAGS": FLAGS}
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  record = records.read_record(tmp_path / "runs" / recipes.ALONE / "seed0.json")
  assert (record["steps"], list(record["scores"])) == (2, ["case3"])
  assert list(record["cleaned"]) == ["case3"]
