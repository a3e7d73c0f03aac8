"""kill -9 at any moment: the next start goes on, and the run ends as if nothing had been."""

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import Place, arrays, checkpoint_steps, numbers

# A student alone compiles in a fraction of the time; the run is long enough for 20 kills.
STEPS = 150
RUN = {
  "variant": "student_only",
  "train__epochs": 3,
  "train__steps_per_epoch": 50,
  "train__validate_every": 1,
  "train__save_every": 3,
  "train__log_every": 5,
}
# What a kill waits for; then it waits a random while longer.
MOMENTS = ["cache"] + ["start"] * 5 + ["checkpoint"] * 5 + ["loop"] * 9


def temporary(folder: Path) -> list[Path]:
  """What a killed process can leave half written, wherever it lies."""
  patterns = ("*.tmp", ".*.tmp", "tmp-*", "*orbax-checkpoint-tmp*")
  return sorted({path for pattern in patterns for path in folder.rglob(pattern)})


def wait(process: subprocess.Popen, come: Callable[[], bool]) -> None:
  """Until the moment has come or the process is over."""
  deadline = time.monotonic() + 240
  while not come() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)


def kill(
  process: subprocess.Popen, moment: str, workdir: Path, cache: Path, seconds: float
) -> bool:
  """Kills at the moment; False if the process was over before."""
  log = workdir / "train.log"
  compiled = log.read_text().count("compiled in") if log.exists() else 0
  come = {
    "start": lambda: True,
    "cache": lambda: any(cache.glob("tmp-*")),
    "checkpoint": lambda: any(workdir.glob("checkpoints/*tmp*")),
    "loop": lambda: log.exists() and log.read_text().count("compiled in") > compiled,
  }[moment]
  wait(process, come)
  time.sleep(seconds * {"start": 8, "cache": 0.01, "checkpoint": 0.05, "loop": 4}[moment])
  over = process.poll() is not None
  process.kill()
  output = process.communicate()[0]
  assert not over or process.returncode == 0, output
  return not over


@pytest.mark.slow
def test_twenty_kills_change_nothing(place: Place):
  folder, chance = place.folder, random.Random(0)
  place.finish(place.start("undisturbed", **RUN))
  workdir, cache = folder / "killed", folder / "killed_cache"
  run = RUN | {"data__cache": cache}

  moments, kills, most = list(MOMENTS), [], 0
  chance.shuffle(moments)
  moments.sort(key=lambda moment: moment != "cache")  # there is nothing to cache later
  for moment in moments:
    seconds = chance.random()
    if kill(place.start("killed", **run), moment, workdir, cache, seconds):
      reached = checkpoint_steps(workdir) if (workdir / "checkpoints").exists() else []
      kills.append((moment, reached[-1] if reached else 0))
      most = max(most, len(temporary(folder)))
      print("killed while waiting for, last checkpoint:", *kills[-1], flush=True)
  print("temporary files at most:", most)
  assert len(kills) == len(MOMENTS), "the run was over too soon"
  assert len({step for _, step in kills}) > 5, "hardly any start had a checkpoint to go on from"
  assert most <= 4, "temporary files grow"

  assert "going on from step" in place.finish(place.start("killed", **run))
  expected, actual = arrays(folder / "undisturbed", STEPS), arrays(workdir, STEPS)
  assert expected.keys() == actual.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)
  validated = [
    {x["step"]: x for x in numbers(run) if "val/score" in x}
    for run in (folder / "undisturbed", workdir)
  ]
  assert validated[0] == validated[1]
  assert not temporary(workdir) and not temporary(cache)


@pytest.mark.slow
def test_a_killed_evaluation_is_done_again(place: Place):
  folder, chance = place.folder, random.Random(1)
  if not (folder / "undisturbed").exists():
    place.finish(place.start("undisturbed", **RUN))
  flags = ("--mode=evaluate", f"--checkpoint={folder / 'undisturbed'}")
  place.finish(place.main(*flags, "--output=whole"))
  for _ in range(3):
    process = place.main(*flags, "--output=killed_scores")
    wait(process, lambda: any(folder.glob("killed_scores/*")))
    time.sleep(0.3 * chance.random())
    process.kill()
    process.communicate()
  place.finish(place.main(*flags, "--output=killed_scores"))
  killed, whole = (folder / run for run in ("killed_scores", "whole"))
  assert (killed / "scores.csv").read_text() == (whole / "scores.csv").read_text()
  killed, whole = (json.loads((run / "summary.json").read_text()) for run in (killed, whole))
  assert {**killed, "created": ""} == {**whole, "created": ""}
  names = [
    sorted(str(path.relative_to(folder / run)) for path in (folder / run).rglob("*"))
    for run in ("killed_scores", "whole")
  ]
  assert names[0] == names[1]
  shutil.rmtree(folder / "killed_scores")
