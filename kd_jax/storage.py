"""Files that appear complete or not at all."""

import os
from pathlib import Path

from kd_jax.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
  """Writes under a temporary name beside the target, then renames. UserError if it cannot."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, path)
  except OSError as e:
    raise UserError(f"cannot write {path}: {e.strerror or e}") from e
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
  write_bytes(path, content.encode())
