"""The benchmark of the input pipeline: its rates, its account of memory, and a tiny run."""

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_case

from benchmarks import input_pipeline, process_memory
from kd_jax.runtime.errors import ConfigError, UserError

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


def test_the_first_case_of_each_worker_does_not_count():
  assert input_pipeline.rate([10, 11, 12, 13], workers=1) == pytest.approx(1)
  assert input_pipeline.rate([10, 11, 12, 13], workers=2) == pytest.approx(1)
  assert input_pipeline.rate([10, 20], workers=2) == pytest.approx(0.1)  # hardly a second each
  assert input_pipeline.rate([4], workers=1) == pytest.approx(0.25)


# --- The step ---------------------------------------------------------------------------------


def result(*rows, side=128):
  return {"settings": {"side": side}, "rows": list(rows)}


OURS = {"program": "kd_jax", "samples_per_second": 3.0}
DOES_NOT_FIT = {"program": "kd_jax", "note": "does not fit"}


def test_the_fastest_of_our_steps_counts():
  faster = OURS | {"samples_per_second": 5.0}
  theirs = {"program": "torch eager", "samples_per_second": 9.0}
  found = result(OURS, faster, theirs, DOES_NOT_FIT)
  assert input_pipeline.step_rate(found, 128, "it.json") == 5.0


@pytest.mark.parametrize(
  ("found", "message"),
  [
    (result(OURS, side=32), r"32\^3, this is 128\^3"),
    (result(DOES_NOT_FIT), "no measured step"),
    ({"rows": [OURS]}, "no result of"),
    ({"settings": {"side": 128}, "rows": {"grain": []}}, "no result of"),
  ],
)
def test_other_results_are_refused(found, message):
  with pytest.raises(UserError, match=rf"it\.json.*{message}"):
    input_pipeline.step_rate(found, 128, "it.json")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--batches=0"], "--batches=0"),
    (["--step-seconds=-1"], "--step-seconds=-1"),
    (["--workers", "2", "-1"], "--workers"),
    (["--step-seconds=1", "--step-json=a.json"], "give one"),
  ],
)
def test_impossible_arguments(arguments, message):
  with pytest.raises(ConfigError, match=message):
    input_pipeline._arguments(arguments)


# --- Memory -----------------------------------------------------------------------------------


@needs_proc
def test_children_of_children_belong_to_the_family():
  sleep = "import time; print(0, flush=True); time.sleep(60)"
  code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
  child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
  family = []
  try:
    child.stdout.readline()  # the grandchild runs
    family = process_memory.family(os.getpid())
    grandchildren = process_memory.family(child.pid)[1:]
    assert {os.getpid(), child.pid, *grandchildren} <= set(family)
    assert len(grandchildren) == 1
    assert os.getppid() not in family
  finally:
    for pid in reversed(process_memory.family(child.pid)):
      os.kill(pid, 9)
    child.wait()
    child.stdout.close()


@needs_proc
def test_what_is_taken_and_what_is_mapped_are_told_apart(tmp_path):
  np.save(tmp_path / "x.npy", np.ones(40_000_000, np.uint8))
  before = process_memory.family_memory()
  # A map of its own: np.ones may be given pages of the heap that this process held before.
  taken = mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  np.frombuffer(taken, np.uint8).fill(1)
  mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
  assert mapped[::1024].sum() > 0  # every page
  after = process_memory.family_memory()
  assert after.own_mb - before.own_mb == pytest.approx(60, abs=15)
  assert after.mapped_mb - before.mapped_mb == pytest.approx(40, abs=15)
  assert after.processes == before.processes
  taken.close()


# --- A run ------------------------------------------------------------------------------------


def test_a_tiny_run(tmp_path, capsys):
  for seed, name in enumerate("ABC"):
    make_case(tmp_path / "data" / name, seed=seed)
  step = tmp_path / "step.json"
  step.write_text(json.dumps(result(OURS, side=8)))
  arguments = ["--cases=2", "--patch=8", "--batch=1", "--batches=3", "--workers", "0", "1"]
  paths = {"data": tmp_path / "data", "step-json": step, "json": tmp_path / "result.json"}
  arguments += [f"--{name}={path}" for name, path in paths.items()]
  input_pipeline.run(input_pipeline._arguments(arguments))

  found = json.loads(paths["json"].read_text())
  assert found["settings"]["cases"] == 2
  assert found["settings"]["native_shape"] == [14, 16, 12]
  assert found["settings"]["entry_mb"] > 4 * 10**3 * 2 / 1e6  # four images of float16
  for row in found["rows"]["prepare"]:
    assert row["cases"] == 2
    assert 0 < row["first_seconds"] <= row["seconds"]
    assert 0 < row["again_ms_per_case"] < 1e3 * row["seconds"]  # nothing was made again
    assert row["cases_per_minute"] > 0
  here, elsewhere = found["rows"]["grain"]
  for row in (here, elsewhere):
    assert row["samples_per_second"] == pytest.approx(3 / row["seconds"])
    assert row["times_the_step"] == pytest.approx(row["samples_per_second"] / 3.0)
    if row["after"]:
      assert row["after"]["own_mb"] - row["before"]["own_mb"] == pytest.approx(row["growth_mb"])
  assert elsewhere["first_seconds"] > here["first_seconds"]  # a process has to start
  if here["after"]:
    assert elsewhere["after"]["processes"] > here["after"]["processes"]
    assert elsewhere["after"]["own_mb"] > here["after"]["own_mb"] + 20

  lines = capsys.readouterr().out.splitlines()
  assert set(lines[-3]) == {"-", " "}  # two rows end the output
  assert [line.split()[0] for line in lines[-2:]] == ["0", "1"]
