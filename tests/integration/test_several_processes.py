"""main.py in two processes that find each other: together they do what one does alone."""

import json
import signal
import socket
import subprocess
import time

import nibabel as nib
import numpy as np
import pytest
from program import STEPS, Place, arrays, checkpoint_steps, numbers, wait_for_checkpoint

# Sums in another order, twelve steps of Adam; and what turns over a threshold after that.
CLOSE = {"train/loss/": 2e-3, "val/dice/student/WT": 2e-2}


def two(place: Place, *flags: str) -> list[subprocess.Popen]:
  """main.py twice, with the same flags."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    coordinator = f"--coordinator=localhost:{s.getsockname()[1]}"
  together = (coordinator, "--processes=2")
  return [place.main(*flags, *together, f"--process={i}") for i in range(2)]


def finish(place: Place, processes: list[subprocess.Popen], code: int = 0) -> list[str]:
  return [place.finish(process, code) for process in processes]


# A student alone compiles in a fraction of the time; what teachers add is tested on meshes.
VARIANT = "student_only"


@pytest.fixture(scope="module")
def finished(place):
  """A run by one process."""
  place.finish(place.main(*place.flags("alone", VARIANT)))
  return place.folder / "alone"


@pytest.fixture(scope="module")
def shared(place, finished):
  """A run of which each third is done by two processes, one, and two again."""

  def flags(epochs: int) -> list[str]:
    return place.flags("shared_run", VARIANT, train__epochs=epochs)

  outputs = finish(place, two(place, *flags(1)))
  place.finish(place.main(*flags(2)))
  outputs += finish(place, two(place, *flags(3)))
  return place.folder / "shared_run", outputs


def test_the_same_run_on_any_number_of_processes(finished, shared):
  workdir, _ = shared
  expected, actual = numbers(finished), numbers(workdir)
  assert [x["step"] for x in actual if "train/loss/student" in x][-1] == STEPS
  for names, close in CLOSE.items():
    pairs = _by_step(expected, names), _by_step(actual, names)
    together = pairs[0].keys() & pairs[1].keys()
    assert len(together) >= 2
    for key in together:
      assert pairs[1][key] == pytest.approx(pairs[0][key], rel=close, abs=close), key
  ours, theirs = arrays(workdir, STEPS), arrays(finished, STEPS)
  assert ours.keys() == theirs.keys()
  moved = np.concatenate([np.ravel(ours[k] - theirs[k]) for k in ours if "params" in k])
  assert np.sqrt(np.mean(moved**2)) < 1e-3


def _by_step(lines, prefix):
  return {(x["step"], n): v for x in lines for n, v in x.items() if n.startswith(prefix)}


def test_one_process_speaks_and_writes_for_both(shared):
  workdir, outputs = shared
  assert "training and" in outputs[0] and "going on from step 8" in outputs[2]
  for silent in (outputs[1], outputs[3]):
    assert "loss" not in silent
  steps = [x["step"] for x in numbers(workdir) if "train/loss/student" in x]
  assert steps == sorted(set(steps)), "a step is recorded twice"
  assert len(list(workdir.glob("tensorboard/events*"))) == 3  # one a start


@pytest.mark.slow
def test_one_is_told_to_stop_and_all_save_and_stop(place, shared):
  workdir, _ = shared
  pair = two(place, *place.flags("shared_run", VARIANT, train__epochs=1000))
  wait_for_checkpoint(pair[0], workdir, STEPS + 3)
  pair[1].send_signal(signal.SIGTERM)
  outputs = finish(place, pair, 128 + signal.SIGTERM)
  stopped = checkpoint_steps(workdir)[-1]
  assert f"stopped by another process after step {stopped}" in outputs[0]
  assert STEPS < stopped < 4000


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_one_is_killed_and_the_other_stops_and_both_start_again(place, lost):
  """Within JAX's heartbeat of 100 s, at once where a collective notices first."""
  name = f"lost{lost}"
  workdir = place.folder / name
  pair = two(place, *place.flags(name, VARIANT, train__epochs=100_000))
  wait_for_checkpoint(pair[0], workdir, 3)
  pair[lost].kill()
  began = time.monotonic()
  output = pair[1 - lost].communicate(timeout=150)[0]
  print(f"process {lost} lost: the other ended after {time.monotonic() - began:.1f} s:\n", output)
  assert pair[1 - lost].returncode not in (0, None)
  assert "Start all of them again" in output or "JAX distributed service" in output
  reached = checkpoint_steps(workdir)[-1]
  outputs = finish(place, two(place, *place.flags(name, VARIANT, train__epochs=reached // 4 + 2)))
  assert f"going on from step {reached}" in outputs[0]


def test_evaluation_is_shared_out(place, finished):
  flags = ("--mode=evaluate", f"--checkpoint={finished}")
  place.finish(place.main(*flags, "--output=one"))
  finish(place, two(place, *flags, "--output=two"))
  scores = [(place.folder / name / "scores.csv").read_text() for name in ("one", "two")]
  assert scores[0] == scores[1] and len(scores[0].splitlines()) == 3
  summaries = [
    json.loads((place.folder / name / "summary.json").read_text()) for name in ("one", "two")
  ]
  assert summaries[0]["regions"] == summaries[1]["regions"]
  assert (place.folder / "two" / "report.html").stat().st_size > 0


@pytest.mark.slow
def test_prediction_is_shared_out_and_bad_scans_are_told_once(place, finished):
  scans = place.folder / "scans"
  scans.mkdir()
  for i in range(3):
    (scans / f"s{i}.nii.gz").symlink_to(place.folder / "data" / f"case{i}" / f"case{i}_t1ce.nii.gz")
  (scans / "s3.nii.gz").write_bytes(b"no scan")
  flags = ("--mode=predict", f"--checkpoint={finished}", f"--input={scans}")
  place.finish(place.main(*flags, "--output=masks_one"), 1)
  outputs = finish(place, two(place, *flags, "--output=masks_two"), 1)
  assert "1 of 4 cases could not be done" in outputs[0]
  assert "s3" in outputs[0] and "written: 3 masks" in outputs[0]
  assert "written" not in outputs[1]
  for i in range(3):
    one, other = (
      np.asarray(nib.load(place.folder / f"masks_{name}" / f"s{i}.nii.gz").dataobj)
      for name in ("one", "two")
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_preparing_is_shared_out(place):
  flags = place.flags(None, data__cache=place.folder / "cache2")
  outputs = finish(place, two(place, "--mode=prepare", *flags))
  assert "6 of 6 cases are ready" in outputs[0]
  alone = {path.name for path in (place.folder / "cache").glob("*") if path.is_dir()}
  assert {path.name for path in (place.folder / "cache2").glob("*") if path.is_dir()} == alone


@pytest.mark.slow
def test_work_for_one_process_is_refused(place, finished):
  flags = ("--mode=export_student", f"--checkpoint={finished}", "--output=nothing")
  outputs = finish(place, two(place, *flags), 1)
  assert all("is work for one process" in output for output in outputs)
