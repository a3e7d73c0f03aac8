"""main.py as a user runs it, on a small run of six cases."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from quick import FLAGS
from synthetic import LARGE, make_case

REPOSITORY = Path(__file__).parents[2]
STEPS = 12
SETTINGS = {
  "data.demo_cases": 0,
  "data.spacing": 3.0,
  "data.patch": "(16,16,16)",
  "data.prepare_workers": 1,
  "model.filters": "(4,4,8,8)",
  "optim.teachers.schedule": "constant",  # so that a run can be ended early and taken up again
  "optim.student.schedule": "constant",
  "train.epochs": 3,
  "train.steps_per_epoch": 4,
  "train.validate_every": 2,
  "train.save_every": 3,
  "train.log_every": 2,
}


class Place:
  """A folder with data and a cache; any number of work directories."""

  def __init__(self, folder: Path):
    self.folder = folder
    for i in range(6):
      make_case(folder / "data" / f"case{i}", seed=i, affine=LARGE)

  def start(self, workdir: str | None, *flags: str, **settings) -> subprocess.Popen:
    """main.py on the run in workdir; settings override those above."""
    return self.main(*self.flags(workdir, **settings), *flags)

  def flags(self, workdir: str | None, variant: str = "from_flair", **settings) -> list[str]:
    overrides = SETTINGS | {"data.root": self.folder / "data", "data.cache": self.folder / "cache"}
    overrides |= {name.replace("__", "."): value for name, value in settings.items()}
    return [
      f"--config={REPOSITORY}/configs/quickstart.py:{variant}",
      *([f"--workdir={self.folder / workdir}"] if workdir else []),
      *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]

  def main(self, *flags: str) -> subprocess.Popen:
    return self.python(str(REPOSITORY / "main.py"), *flags)

  def python(self, *arguments: str) -> subprocess.Popen:
    # One device, as users have it.
    return subprocess.Popen(
      [sys.executable, *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=self.folder,
      env=os.environ | {"XLA_FLAGS": FLAGS},
    )

  def finish(self, process: subprocess.Popen, code: int = 0) -> str:
    try:
      output = process.communicate(timeout=600)[0]
    finally:  # on a time-out it would go on working beside all other tests
      process.kill()
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def wait_for_checkpoint(process: subprocess.Popen, workdir: Path, step: int) -> None:
  deadline = time.monotonic() + 240
  while not (workdir / "checkpoints" / str(step)).exists():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline, "no checkpoint"
    time.sleep(0.02)


def checkpoint_steps(workdir: Path) -> list[int]:
  """Of complete checkpoints: a killed process may leave one under a temporary name."""
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """Every number of a checkpoint, by its path."""
  found, device = {}, jax.sharding.SingleDeviceSharding(jax.devices()[0])
  for item in ("networks", "training"):
    folder = (workdir / "checkpoints" / str(step) / item).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
      here = jax.tree.map(  # whatever devices it was written on
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        checkpointer.metadata(folder).item_metadata.tree,
      )
      tree = checkpointer.restore(folder, here)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
  return found


def numbers(workdir: Path) -> list[dict]:
  """metrics.jsonl without what depends on the clock."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  clock = ("seconds", "samples_per_second", "memory")
  return [{k: v for k, v in x.items() if not any(word in k for word in clock)} for x in lines]
