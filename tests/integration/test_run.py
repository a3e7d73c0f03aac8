"""main.py as a user runs it: trained, killed, resumed, evaluated; kd_jax.train beside it."""

import ast
import csv
import json
import os
import shutil
import signal
import time
import zlib

import nibabel as nib
import numpy as np
import pytest
from program import (
  REPOSITORY,
  SETTINGS,
  STEPS,
  arrays,
  checkpoint_steps,
  numbers,
  wait_for_checkpoint,
)
from synthetic import make_case

import kd_jax
from kd_jax.runs.checkpoints import Checkpoints

TRAIN = """
import json, sys
sys.path.insert(0, sys.argv[2])
import kd_jax

if __name__ == "__main__":
  overrides = json.loads(sys.argv[1])
  workdir = kd_jax.train("quickstart:from_flair", "by_api", overrides)
  print(workdir)
"""


def test_a_run_leaves_what_the_readme_says(finished):
  for name in ("config.json", "folds.json", "metrics.jsonl", "run.json", "train.log"):
    assert (finished / name).stat().st_size > 0
  assert list((finished / "tensorboard").glob("events*"))
  assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("*orbax*tmp*"))
  (start,) = json.loads((finished / "run.json").read_text())["starts"][:1]
  assert (start["dtype"], start["remat"], start["compiler_options"]) == ("float32", "none", {})
  assert start["step_bytes"] > 1e6 and start["compile_seconds"] >= 0
  assert start["devices"]["cudnn"] is None
  head = (finished / "train.log").read_text().splitlines()[:12]
  assert any("float32 on cpu; remat none (auto, for CPU); XLA options: none" in x for x in head)
  last = numbers(finished)
  assert {x["step"] for x in last} >= {2, 4, STEPS}
  names = set().union(*last)
  for name in (
    "train/loss/student",
    "train/loss/kd/flair",
    "train/loss/cooperative/level1",
    "train/loss/side/level1/kd",
    "train/confidence/score/flair",
    "train/confidence/weight/flair",
    "train/lr/teachers",
    "train/lr/student",
    "val/dice/student/WT",
    "val/dice/flair/ET",
    "val/min_et_mm3",
    "val/min_component_mm3",
    "val/dice_postprocessed/ET",
  ):
    assert name in names, name
  assert Checkpoints(finished, read_only=True).notes(STEPS)["steps_per_epoch"] == 4
  folds = json.loads((finished / "folds.json").read_text())["folds"]
  assert sorted(name for fold in folds for name in fold) == [f"case{i}" for i in range(6)]


def test_killed_and_stopped_runs_end_as_the_uninterrupted_one(place, finished):
  check_interrupted(place, finished)


@pytest.mark.slow
def test_so_do_those_of_two_cohorts(place):
  place.finish(place.start("cohorts", model__cohorts=2))
  workdir = check_interrupted(place, place.folder / "cohorts", model__cohorts=2)
  halves = json.loads((workdir / "cohorts.json").read_text())
  assert halves == json.loads((place.folder / "cohorts/cohorts.json").read_text())
  assert {"val/dice/flair_first/WT", "val/dice/flair_second/WT"} <= set().union(*numbers(workdir))


def check_interrupted(place, finished, **settings):
  """Kills a run, stops it, lets it end, and compares; returns its work directory."""
  name = f"interrupted-{finished.name}"
  workdir = place.folder / name
  process = place.start(name, **settings)
  wait_for_checkpoint(process, workdir, 3)
  process.kill()
  process.communicate()

  process = place.start(name, **settings)
  wait_for_checkpoint(process, workdir, 8)
  process.send_signal(signal.SIGTERM)
  output, code = process.communicate(timeout=120)[0], process.returncode
  if code == 0:
    pytest.fail(f"the run was over before the signal came:\n{output}")
  assert code == 128 + signal.SIGTERM, output
  assert "stopped by SIGTERM" in output and "the checkpoint is saved" in output

  output = place.finish(place.start(name, **settings))
  assert "going on from step" in output
  expected, actual = arrays(finished, STEPS), arrays(workdir, STEPS)
  assert expected.keys() == actual.keys() and len(expected) > 100
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)
  by_step = {x["step"]: x for x in numbers(finished) if "val/score" in x}
  assert by_step == {x["step"]: x for x in numbers(workdir) if "val/score" in x}
  steps = [x["step"] for x in numbers(workdir) if "train/loss/student" in x]
  assert steps == sorted(set(steps)), "a step is recorded twice"
  return workdir


def test_the_interface_trains_as_the_command_line_does(place, finished):
  """The same settings: every number is the same, of the log and of the checkpoints."""
  overrides = {
    name: ast.literal_eval(value) if str(value).startswith("(") else value
    for name, value in SETTINGS.items()
  } | {"data.root": str(place.folder / "data"), "data.cache": str(place.folder / "cache")}
  script = place.folder / "train.py"
  script.write_text(TRAIN)
  output = place.finish(place.python(str(script), json.dumps(overrides), str(REPOSITORY)))
  assert "step 12/12" in output and output.splitlines()[-1] == "by_api"
  own = place.folder / "by_api"
  assert numbers(own) == numbers(finished)
  mine, theirs = arrays(own, STEPS), arrays(finished, STEPS)
  assert mine.keys() == theirs.keys()
  assert all((mine[name] == theirs[name]).all() for name in mine)
  assert kd_jax.load(own).describe()["students"][0]["training"]["step"] == 12


def test_a_finished_run_has_nothing_left_to_do(place, finished):
  before = arrays(finished, STEPS)
  assert "nothing left to do" in place.finish(place.start("finished"))
  for path, value in arrays(finished, STEPS).items():
    np.testing.assert_array_equal(before[path], value)


def test_resuming_with_other_settings_says_what_differs(place, finished):
  output = place.finish(place.start("finished", loss__temperature=3.0, train__log_every=1), 1)
  assert "loss.temperature: was 1.0, now 3.0" in output
  assert "log_every" not in output and "Traceback" not in output


def test_evaluate_scores_in_native_space(place, finished):
  output = place.finish(place.main("--mode=evaluate", f"--workdir={finished}"))
  assert "not comparable" in output
  folder = finished / "evaluation" / "val"
  summary = json.loads((folder / "summary.json").read_text())
  val = json.loads((finished / "folds.json").read_text())["folds"][0]
  with (folder / "scores.csv").open() as f:
    rows = list(csv.DictReader(f))
  assert [row["case"] for row in rows] == sorted(val)
  assert summary["data"]["cases"] == len(val) and summary["data"]["split"] == "val"
  for region in ("WT", "TC", "ET"):
    mean = np.mean([float(row[f"dice_{region}"]) for row in rows])
    assert summary["regions"][region]["dice"]["mean"] == pytest.approx(mean, abs=1e-6)


def test_from_a_run_to_a_mask(place, finished):
  """Exported, predicted with, looked at: nothing but the directory is needed."""
  shared, masks = place.folder / "shared", place.folder / "masks"
  place.finish(place.main("--mode=export", f"--checkpoint={finished}", f"--output={shared}"))
  source = place.folder / "data" / "case0" / "case0_t1ce.nii.gz"
  flags = (f"--input={source}", f"--output={masks}", "--labels=brats2021", "--mirror")
  output = place.finish(place.main("--mode=predict", f"--checkpoint={shared}", *flags))
  assert "does not look" in output or "warning" in output  # a very small brain
  mask, scan = nib.load(masks / "case0.nii.gz"), nib.load(source)
  assert mask.shape == scan.shape and (mask.affine == scan.affine).all()
  assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
  output = place.finish(place.main("--mode=predict", f"--checkpoint={shared}", *flags))
  assert "1 of 1 cases are finished already" in output


def spoil(entry):
  """Makes a cached case's images NaN, its checksum too: else it would be made again."""
  images, meta = np.load(entry / "images.npy"), json.loads((entry / "meta.json").read_text())
  images[:] = np.nan
  np.save(entry / "images.npy", images)
  meta["crc32"]["images"] = zlib.crc32(images)
  (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.slow
def test_steps_that_are_not_finite_are_left_out_as_often_as_is_allowed(place, finished):
  cache, workdir = place.folder / "partly_bad_cache", place.folder / "skipping"
  shutil.copytree(place.folder / "cache", cache)
  train = set(json.loads((finished / "folds.json").read_text())["folds"][1])
  for entry in cache.glob("*/meta.json"):
    if json.loads(entry.read_text())["case"] in train:
      spoil(entry.parent)
  settings = {"variant": "student_only", "data__cache": cache, "train__log_every": 1}
  output = place.finish(place.start("skipping", train__skip_nonfinite=2, **settings), 1)
  assert "is left out: loss/" in output and "(2 of 2 at most)" in output
  assert "after 2 such steps that were left out" in output
  output = place.finish(place.start("skipping", train__skip_nonfinite=100, **settings))
  assert all(np.isfinite(x).all() for x in arrays(workdir, STEPS).values())
  skipped = [x["train/skipped"] for x in numbers(workdir) if "train/skipped" in x]
  assert len(skipped) == STEPS and skipped == sorted(skipped) and 2 < skipped[-1] < STEPS


@pytest.mark.slow
def test_reading_processes_change_no_parameter(place, finished):
  place.finish(place.start("workers", data__workers=2))
  expected, actual = arrays(finished, STEPS), arrays(place.folder / "workers", STEPS)
  assert expected.keys() == actual.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_stops_a_run_with_readers_as_one_without(place, number):
  """As a terminal sends Ctrl-C, and a scheduler SIGTERM: the reading processes get it too."""
  name = f"group-{number.name}"
  settings = {"variant": "student_only", "data__workers": 2, "train__epochs": 300}
  own_group = (
    "import os, sys; os.setsid(); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
  )
  main = str(REPOSITORY / "main.py")
  process = place.python("-c", own_group, main, *place.flags(name, **settings))
  wait_for_checkpoint(process, place.folder / name, 3)
  os.killpg(process.pid, number)
  output = place.finish(process, 128 + number)
  assert f"stopped by {number.name}" in output and "the checkpoint is saved" in output
  with pytest.raises(ProcessLookupError):  # nothing of the group is left
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
      os.killpg(process.pid, 0)
      time.sleep(0.1)


def test_a_non_finite_loss_stops_the_run_and_names_the_term(place, finished):
  """A cache that has gone bad under a run."""
  cache, workdir = place.folder / "bad_cache", place.folder / "diverged"
  shutil.copytree(place.folder / "cache", cache)
  settings = {"variant": "student_only", "data__cache": cache, "train__log_every": 50}
  process = place.start("diverged", **settings)
  wait_for_checkpoint(process, workdir, 3)
  process.kill()
  process.communicate()
  kept = checkpoint_steps(workdir)[-1]
  for entry in cache.glob("*/meta.json"):
    spoil(entry.parent)

  output = place.finish(place.start("diverged", **settings), 1)
  assert f"error: step {kept + 1}: loss/" in output and "is nan" in output
  assert f"The checkpoint of step {kept}" in output and "Traceback" not in output
  assert checkpoint_steps(workdir)[-1] == kept
  assert all(np.isfinite(x).all() for x in arrays(workdir, kept).values())


def test_bad_cases_are_listed_and_can_be_left_out(place, finished):
  bad = make_case(place.folder / "bad" / "case9", seed=9)
  for i in range(6):
    (place.folder / "bad" / f"case{i}").symlink_to(place.folder / "data" / f"case{i}")
  (bad / "case9_t1ce.nii.gz").unlink()
  root = place.folder / "bad"
  output = place.finish(place.start(None, "--mode=prepare", data__root=root), 1)
  assert "case9" in output and "no t1ce image" in output and "skip_bad_cases" in output
  settings = {"data__root": root, "data__skip_bad_cases": True, "train__epochs": 1}
  settings["variant"] = "student_only"  # it reads T1ce, too
  output = place.finish(place.start("bad_run", **settings))
  assert "left out, as you asked" in output and "case9" in output
