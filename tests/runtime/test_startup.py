"""Ctrl-C, wherever it comes."""

import subprocess
import sys

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
