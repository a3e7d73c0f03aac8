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
from processes import family_of, is_mapped, running, shared_memory
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
  "data__workers": 2,
  "data__prepare_workers": 2,
}
# What a kill waits for; then it waits a random while longer.
MOMENTS = ["cache"] + ["start"] * 5 + ["checkpoint"] * 5 + ["loop"] * 9


def temporary(folder: Path) -> list[Path]:
  """What a killed process can leave half written, wherever it lies.

  A folder counts once: an unfinished checkpoint holds three temporary folders, one of after a
  validation four.
  """
  patterns = ("*.tmp", ".*.tmp", "tmp-*", "*orbax-checkpoint-tmp*")
  found = {path for pattern in patterns for path in folder.rglob(pattern)}
  return sorted(path for path in found if not found & set(path.parents))


def wait(process: subprocess.Popen, come: Callable[[], bool]) -> None:
  """Until the moment has come or the process is over."""
  deadline = time.monotonic() + 240
  while not come() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.002)


def kill(
  process: subprocess.Popen, moment: str, workdir: Path, cache: Path, seconds: float
) -> int | None:
  """Kills at the moment; how many child processes ended with it, None if it was over before."""
  log, before = workdir / "train.log", shared_memory()
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
  family, there = family_of(process.pid), shared_memory()
  process.kill()
  output = process.communicate()[0]
  wait_for_the_end(family, there - before)
  assert not over or process.returncode == 0, output
  return None if over else len(family)


def wait_for_the_end(family: list[int], shared: set[Path]) -> None:
  """Until no process of a killed one's family runs, and no shared memory of theirs is left.

  Shared memory of programs that run beside this test is mapped by them, or soon gone.
  """
  deadline = time.monotonic() + 60
  while left := (running(family), [p for p in shared if p.exists() and not is_mapped(p)]):
    if not any(left):
      return
    assert time.monotonic() < deadline, left
    time.sleep(0.1)


@pytest.mark.slow
def test_twenty_kills_change_nothing(place: Place):
  folder, chance = place.folder, random.Random(0)
  place.finish(place.start("undisturbed", **RUN))
  workdir, cache = folder / "killed", folder / "killed_cache"
  run = RUN | {"data__cache": cache}

  moments, kills, most, children = list(MOMENTS), [], 0, []
  chance.shuffle(moments)
  moments.sort(key=lambda moment: moment != "cache")  # there is nothing to cache later
  for moment in moments:
    seconds = chance.random()
    ended = kill(place.start("killed", **run), moment, workdir, cache, seconds)
    if ended is not None:
      children.append(ended)
      reached = checkpoint_steps(workdir) if (workdir / "checkpoints").exists() else []
      kills.append((moment, reached[-1] if reached else 0))
      most = max(most, len(temporary(folder)))
      print("killed while waiting for, last checkpoint:", *kills[-1], flush=True)
  print("temporary files at most:", most, "child processes:", children)
  assert len(kills) == len(MOMENTS), "the run was over too soon"
  assert len({step for _, step in kills}) > 5, "hardly any start had a checkpoint to go on from"
  assert sum(count >= 2 for count in children) >= 10, "hardly any kill met readers"
  # A checkpoint, what the next start writes before it removes that, and an entry of the cache for
  # each process that prepares.
  assert most <= 2, "temporary files grow"

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


@pytest.mark.slow
@pytest.mark.parametrize("work", ["prepare", "demo cases", "evaluate masks"])
def test_worker_processes_end_with_the_one_that_started_them(place: Place, work):
  flags = place.flags(None, data__cache=place.folder / f"{work} cache", data__prepare_workers=2)
  if work == "evaluate masks":
    for seg in place.folder.glob("data/*/*_seg.nii.gz"):
      target = place.folder / "masks" / seg.name.replace("_seg", "")
      target.parent.mkdir(exist_ok=True)
      shutil.copy(seg, target)
    folders = (f"--predictions={place.folder / 'masks'}", f"--truth={place.folder / 'data'}")
    flags = ["--mode=evaluate", *folders, f"--output={place.folder / 'of masks'}"]
  elif work == "demo cases":
    flags += ["--mode=prepare", f"--config.data.root={place.folder / 'demo'}"]
    flags += ["--config.data.demo_cases=50"]
  else:
    flags.append("--mode=prepare")
  process = place.main(*flags)
  wait(process, lambda: len(family_of(process.pid)) >= 3)  # Python's resource tracker is one
  family = family_of(process.pid)
  assert process.poll() is None and len(family) >= 3
  process.kill()
  process.communicate()
  wait_for_the_end(family, set())
