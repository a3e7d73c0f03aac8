"""A disk that is full or read-only: one clear message, and what was there stays as it was.

Predictions: test_predict.py. Demonstration cases: data/test_demo.py.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_disk import fill, read_only, small_disk
from students import make_student
from synthetic import LARGE, make_case
from test_checkpoints import DEVICE, state_of

from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
from kd_jax.data.entry import verify_entry
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.masks import evaluate_masks
from kd_jax.evaluation.students import evaluate
from kd_jax.prediction.predictor import Predictor
from kd_jax.runs.checkpoints import Checkpoints, set_aside_damaged
from kd_jax.runs.log import RunLog, read_numbers
from kd_jax.runtime import lock
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import check_folder, write_text
from kd_jax.settings.data import CacheSettings


@pytest.mark.parametrize("leave", [0, 40_000])
def test_a_checkpoint(tmp_path, leave):
  """Refused at its first file, and half-way."""
  with small_disk(tmp_path / "disk", 1000) as disk:
    checkpoints = Checkpoints(disk)
    checkpoints.save(3, state_of(3), {"best": 3}, 0.5)
    checkpoints.wait()
    fill(disk, leave)
    with pytest.raises(UserError, match=r"checkpoint of step 5 in .*: No space left on device.*"):
      checkpoints.save(5, state_of(5), {})
      checkpoints.wait()
    with pytest.raises(UserError) if not leave else pytest.raises((UserError, AssertionError)):
      checkpoints.close()
      raise AssertionError
    (disk / "filling").unlink()  # somebody makes room; the next start
    set_aside_damaged(disk, pytest.fail)
    checkpoints = Checkpoints(disk)
    assert checkpoints.steps() == [3]
    items, notes = checkpoints.restore(3, jax.eval_shape(lambda: state_of(0)), DEVICE)
    assert int(items.training["step"]) == 3 and notes == {"best": 3}
    checkpoints.save(5, state_of(5), {}, 0.6)
    checkpoints.close()
    left = {path.name for path in (disk / "checkpoints").iterdir()}
    assert left == {"5"}


REFUSED = """
import contextlib, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from kd_jax.runtime.terminal import quiet_libraries
quiet_libraries()
from test_checkpoints import state_of
from kd_jax.runs.checkpoints import Checkpoints
from kd_jax.runtime.errors import UserError
checkpoints = Checkpoints(Path(sys.argv[1]))
try:
  with contextlib.closing(checkpoints):
    checkpoints.save(5, state_of(5), {})
    checkpoints.wait()
except UserError as e:
  print("error:", e)
"""


@pytest.mark.parametrize("leave", [0, 40_000])
def test_a_checkpoint_that_is_refused_is_one_line(tmp_path, leave):
  """Orbax logged the tracebacks of all its threads: 470 lines."""
  tests = Path(__file__).parents[1]
  with small_disk(tmp_path / "disk", 1000) as disk:
    (disk / "checkpoints").mkdir()
    fill(disk, leave)
    paths = [str(disk), str(tests / "runs"), str(tests / "helpers")]
    done = subprocess.run(
      [sys.executable, "-c", REFUSED, *paths],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=True,
      cwd=tests.parent,
      timeout=300,
    )
  lines = done.stdout.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: cannot write the checkpoint of step 5")
  assert "No space left on device" in lines[0]


def test_a_place_for_results_is_tried_before_the_work(tmp_path):
  check_folder(tmp_path / "new" / "deep")
  assert not (tmp_path / "new").exists()
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=r"cannot write in .*file/x \(.*another place with --output"):
    check_folder(tmp_path / "file" / "x")
  with small_disk(tmp_path / "disk", 100) as disk:
    fill(disk)
    with pytest.raises(UserError, match="No space left on device"):
      check_folder(disk / "scores")
    (disk / "filling").unlink()
    check_folder(disk / "scores")
    read_only(disk)
    for folder in (disk, disk / "scores"):
      with pytest.raises(UserError, match=r"Read-only file system.*--output"):
        check_folder(folder)


@pytest.mark.parametrize("of", ["students", "masks"])
def test_an_evaluation_of_a_read_only_run_says_so_before_it_scores(tmp_path, terminal, of):
  make_case(tmp_path / "data" / "A", affine=LARGE)

  class Unused(Predictor):
    def load(self, case, warn):
      raise AssertionError("nothing may be read before the place is tried")

  with small_disk(tmp_path / "disk", 1000) as disk:
    read_only(disk)
    with pytest.raises(UserError, match=r"cannot write in .*scores.*--output"):
      if of == "students":
        predictor = Unused([make_student()])
        evaluate(predictor, Choice(data_root=tmp_path / "data"), disk / "scores", terminal)
      else:
        truth = tmp_path / "data"
        evaluate_masks(truth, truth, ("auto", "auto"), disk / "scores", terminal)


def test_the_logs(tmp_path, terminal):
  """TensorBoard's events too: their writer must not wait for ever for what cannot be written."""
  with small_disk(tmp_path / "disk", 200) as disk:
    log = RunLog(disk, terminal, 0)
    log.scalars(1, {"loss": 1.0})
    fill(disk)
    pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8)
    writers = {
      "line": lambda: log.line("x" * 5000),
      "scalars": lambda: log.scalars(2, {f"loss/{i}": 1.0 for i in range(500)}),
      "picture": lambda: [log.picture(2, "p", pixels) for _ in range(9)],
    }
    for name, write in writers.items():
      with pytest.raises(UserError, match=r"cannot write the logs in .*: No space left"):
        write()
        pytest.fail(name)
    log.close()
    (disk / "filling").unlink()
    log = RunLog(disk, terminal, 1)
    log.scalars(2, {"loss": 0.5})
    log.close()
    assert read_numbers(disk) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_the_cache(tmp_path):
  for name in "ABC":
    make_case(tmp_path / "data" / name, seed=ord(name))
  cases = find_cases(tmp_path / "data")
  with small_disk(tmp_path / "disk", 200) as disk:  # room for two
    with pytest.raises(
      UserError, match=r"cannot write the cache in .*: (No space left|the disk is full)"
    ):
      prepare(cases, disk, CacheSettings(spacing=3.0), workers=1)
    entries = [path for path in disk.iterdir() if path.is_dir()]
    assert 1 <= len(entries) < 3 and not list(disk.glob("*tmp*"))
    for path in entries:
      verify_entry(path)


def test_a_small_file(tmp_path):
  with small_disk(tmp_path / "disk", 100) as disk:
    write_text(disk / "a.json", "old")
    fill(disk)
    with pytest.raises(UserError, match=r"cannot write .*a.json: No space left on device"):
      write_text(disk / "a.json", "x" * 10_000)
    assert (disk / "a.json").read_text() == "old"
    assert {path.name for path in disk.iterdir()} == {"a.json", "filling"}


def test_a_read_only_place(tmp_path, terminal):
  make_case(tmp_path / "data" / "A")
  with small_disk(tmp_path / "disk", 1000) as disk:
    checkpoints = Checkpoints(disk)
    checkpoints.save(3, state_of(3), {}, 0.5)
    checkpoints.wait()
    read_only(disk)
    with pytest.raises(UserError, match=r"step 5 in .*: Read-only file system"):
      checkpoints.save(5, state_of(5), {})
      checkpoints.wait()
    refusals = {
      "work directory": lambda: lock.held(disk / "run", pytest.fail).__enter__(),
      "cannot write the logs": lambda: RunLog(disk / "run", terminal, 0),
      "the cache": lambda: prepare(
        find_cases(tmp_path / "data"), disk / "cache", CacheSettings(spacing=3.0), workers=1
      ),
    }
    for message, act in refusals.items():
      with pytest.raises(UserError, match=f"{message}.*: Read-only file system"):
        act()
    reader = Checkpoints(disk, read_only=True)  # for prediction it is good enough
    assert reader.restore_student(3)[0]
