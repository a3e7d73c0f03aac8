"""What every program of the project does before its work."""

import atexit
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from kd_jax.runtime.errors import UserError

_LATER = 0.05  # seconds
_INTERRUPTED: list[bool] = []  # one entry for each Ctrl-C


def interruptible() -> None:
  """From now on Ctrl-C raises KeyboardInterrupt, and `interrupted` knows of it.

  Not before JAX is imported: its extensions crash where they are interrupted.
  """

  def note(*_: object) -> None:
    _INTERRUPTED.append(True)
    raise KeyboardInterrupt

  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)


def _interrupt_again(tell: Callable[..., object], lost: "sys.UnraisableHookArgs") -> None:
  """Raises a KeyboardInterrupt once more that was lost where nothing can be raised.

  JAX has a callback of the garbage collector; Ctrl-C may come while it runs.

  Args:
    tell: what was called before, for all else.
  """
  if lost.exc_type is not KeyboardInterrupt:
    tell(lost)
    return
  main = threading.main_thread().ident
  assert main is not None, "the main thread has begun"
  timer = threading.Timer(_LATER, signal.pthread_kill, (main, signal.SIGINT))  # wakes it, too
  timer.daemon = True
  timer.start()


def interrupted() -> bool:
  """Whether there was a Ctrl-C."""
  return bool(_INTERRUPTED)


def end_at_once(status: int) -> NoReturn:
  """Ends the program after its exit functions, without taking the interpreter down.

  A thread of XLA that still compiles would crash in an interpreter that is half gone.
  """
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def cache_folder() -> Path:
  """Where what can be made again is kept for the user; a folder that cannot be made, without one.

  A container may run as a user who has no home folder.
  """
  caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return Path(os.devnull if caches.startswith("~") else caches) / "kd_jax"


def keep_compiled() -> None:
  """Compiled programs stay in the user's cache folder, unless JAX was told of another one.

  JAX may know of one by JAX_COMPILATION_CACHE_DIR, or by jax.config in the caller's own code. Where
  the folder cannot be written they are not kept: JAX would warn of each one.
  """
  import jax

  folder = cache_folder() / "compiled"
  if getattr(jax.config, "jax_compilation_cache_dir", None) is None and writable(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder))


def writable(folder: Path) -> bool:
  """Whether files can be written in a folder, which is made if need be."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(folder, os.W_OK | os.X_OK)


def check_devices() -> None:
  """UserError if JAX has no device of the kind that it was told to use; starts the devices."""
  import jax

  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:  # without a plugin for the platform, JAX asserts
    asked = getattr(jax.config, "jax_platforms", None)
    reason = (str(e).splitlines() or ["JAX has no support for it"])[0].partition(" (set JAX")[0]
    if not asked:
      raise UserError(f"JAX can use no device: {reason}. JAX_PLATFORMS=cpu chooses the CPU") from e
    raise UserError(
      f"JAX_PLATFORMS={asked}: JAX can use no such device here ({reason}). Unset JAX_PLATFORMS to "
      "let JAX choose, or set JAX_PLATFORMS=cpu; for a GPU, install its driver and JAX for it"
    ) from e
