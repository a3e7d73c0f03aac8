"""Settings that must be in place before JAX starts: eight fake devices for the mesh tests, and one
folder of compiled programs for all processes of a test run.
"""

import io
import os
import shutil
import signal
import tempfile

import pytest
import rich.console
from quick import STEADY, as_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  [
    as_flags(STEADY),
    os.environ.get("XLA_FLAGS", ""),  # the last one counts
    "--xla_force_host_platform_device_count=8",
  ]
)
_OWN_CACHE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else xdist's workers have it from their parent
  _OWN_CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="kd_jax-tests-")
# A suite that a shell started in the background ignores Ctrl-C, and so would what its tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
  if _OWN_CACHE:
    shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture
def terminal():
  """A Terminal of 300 columns that nobody sees; what it was told: terminal.console.file."""
  from kd_jax.runtime.terminal import Terminal  # with JAX, once the settings above are in place

  terminal = Terminal()
  terminal.console = rich.console.Console(file=io.StringIO(), width=300)
  return terminal


@pytest.fixture(scope="module")
def tiny():
  """The name of the smallest network (helpers/tiny.py); model.network may be that meanwhile."""
  from tiny import KIND, NAME

  from kd_jax.models.networks import NETWORKS

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(NETWORKS, NAME, KIND)
    yield NAME
