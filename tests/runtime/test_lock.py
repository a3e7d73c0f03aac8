"""Two runs never work in one directory, and a dead one leaves no lock."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from kd_jax.runtime import lock
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.terminal import Terminal
from kd_jax.settings import presets
from kd_jax.training.train import train

HOLD = """
import pathlib, sys, time
from kd_jax.runtime import lock
with lock.held(pathlib.Path(sys.argv[1]), print):
  print("held", flush=True)
  time.sleep(60)
"""


def silent(text):
  pytest.fail(text)


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_run_is_told_who_is_there_and_a_killed_one_leaves_no_lock(tmp_path, holder):
  named = rf"{tmp_path} \(process {holder.pid} on {socket.gethostname()}, since 20"
  with pytest.raises(UserError, match=named), lock.held(tmp_path, silent):
    pytest.fail("two runs in one directory")
  os.kill(holder.pid, signal.SIGKILL)
  holder.wait()
  with lock.held(tmp_path, silent):
    pass
  with lock.held(tmp_path, silent):  # and again
    pass


def test_other_directories_are_free(tmp_path, holder):
  with lock.held(tmp_path / "other", silent):
    pass


def test_a_run_that_ends_with_an_error_lets_go(tmp_path):
  with pytest.raises(ValueError), lock.held(tmp_path, silent):
    raise ValueError
  with lock.held(tmp_path, silent):
    pass


@pytest.mark.parametrize("there", ["nothing", "parent", "folder"])
def test_a_run_that_ends_before_it_has_written_leaves_nothing(tmp_path, there):
  workdir = tmp_path / "runs" / "one"
  made = {"nothing": tmp_path, "parent": workdir.parent, "folder": workdir}[there]
  made.mkdir(parents=True, exist_ok=True)
  with pytest.raises(ValueError), lock.held(workdir, silent):
    raise ValueError
  assert made.is_dir() and not list(made.iterdir())


def test_a_run_that_ends_after_it_has_written_leaves_all(tmp_path):
  with pytest.raises(ValueError), lock.held(tmp_path / "run", silent):
    (tmp_path / "run" / "config.json").touch()
    raise ValueError
  assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [lock.LOCK_FILE, "config.json"]


def test_a_child_process_does_not_keep_the_lock(tmp_path):
  with lock.held(tmp_path, silent):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
  try:
    with lock.held(tmp_path, silent):
      pass
  finally:
    child.kill()
    child.wait()


def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, "flock", flock)
  told = []
  with lock.held(tmp_path, told.append):
    pass
  assert len(told) == 1 and str(tmp_path) in told[0] and "no locks" in told[0]


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / "file").touch()
  with (
    pytest.raises(UserError, match="cannot write in the work directory"),
    lock.held(tmp_path / "file" / "run", silent),
  ):
    pass


def test_training_holds_its_directory(tmp_path, holder):
  """Before it reads or writes anything."""
  settings = presets.settings("quickstart", {"data.batch": 8})  # as many as there are devices
  with pytest.raises(UserError, match="another run works in"):
    train(settings, tmp_path, Terminal())
  assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK_FILE]
