"""Ctrl-C, wherever it comes; compiled programs, where there is no home folder."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from kd_jax.runtime import startup

LOST = """
import gc, signal, time
from kd_jax.runtime import startup, terminal

startup.interruptible()
terminal.quiet_libraries()
once = [signal.SIGINT]
gc.callbacks.append(lambda *_: once and signal.raise_signal(once.pop()))
try:
  gc.collect()
  time.sleep(20)
except KeyboardInterrupt:
  print("interrupted", not once, startup.interrupted())
"""


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost():
  """There, Python prints an exception and goes on."""
  done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=True)
  assert (done.stdout, done.stderr) == ("interrupted True True\n", "")


@pytest.fixture
def compiled(monkeypatch):
  """Keeps compiled programs as a start does that was told of no folder; gives the folder."""
  for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
    monkeypatch.delenv(name, raising=False)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)

  def keep() -> str | None:
    startup.keep_compiled()
    return jax.config.jax_compilation_cache_dir

  yield keep
  jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_at_home(compiled, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert compiled() == str(tmp_path / ".cache" / "kd_jax" / "compiled")
  assert os.path.isdir(compiled())


def test_a_home_that_cannot_be_written_keeps_none(compiled, monkeypatch):
  monkeypatch.setenv("HOME", "/proc/nowhere")
  assert compiled() is None


def test_a_user_without_a_home_keeps_none(compiled, monkeypatch):
  def unknown(_):
    raise KeyError

  monkeypatch.delenv("HOME")
  monkeypatch.setattr(pwd, "getpwuid", unknown)
  assert compiled() is None
  assert not startup.writable(startup.cache_folder()) and not Path("~").exists()
