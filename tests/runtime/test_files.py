"""Files appear whole or not at all, and killed processes' leavings do not grow."""

import os
import socket
import subprocess
import sys
import time

import pytest

from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json, sweep, write_bytes, write_text

HOST = socket.gethostname()


@pytest.fixture
def dead():
  """The number of a process that is gone."""
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


@pytest.mark.parametrize("written", [True, False], ids=["written again", "swept"])
def test_what_killed_processes_left_of_a_file_goes(tmp_path, dead, written):
  target = tmp_path / "a[1].json"
  gone = tmp_path / f".{target.name}.{HOST}-{dead}.tmp"
  old = tmp_path / f".{target.name}.elsewhere-{dead}.tmp"
  stay = [
    tmp_path / f".{target.name}.{HOST}-{os.getppid()}.tmp",  # under way
    tmp_path / f".{target.name}.another-host-{dead}.tmp",  # perhaps under way
    tmp_path / f".other.json.{HOST}-{dead}.tmp",
    tmp_path / f".{target.name}.mine.tmp",
  ]
  for path in (gone, old, *stay):
    path.write_text("half")
  for path in (old, stay[0]):  # of this machine's processes the clock says nothing: it may jump
    os.utime(path, (time.time() - 7200,) * 2)
  if written:
    write_text(target, "{}")
    assert read_json(target) == {}
    target.unlink()
  else:
    sweep(target)
  assert sorted(tmp_path.iterdir()) == sorted(stay)


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
  target = tmp_path / "file"
  write_bytes(target, b"old")

  def replace(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", replace)
  with pytest.raises(UserError, match=f"cannot write {target}: No space left on device"):
    write_bytes(target, b"new")
  assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
