"""What every program of the project does before its work."""

import os
from pathlib import Path


def keep_compiled() -> None:
  """Compiled programs stay in the user's cache folder, unless JAX was told of another one.

  JAX may know of one by JAX_COMPILATION_CACHE_DIR, or by jax.config in the caller's own code.
  """
  import jax

  if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(caches / "kd_jax" / "compiled"))
