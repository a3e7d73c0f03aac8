"""Files that appear complete or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

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
    with contextlib.suppress(OSError):  # what went wrong above is what is told
      temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
  write_bytes(path, content.encode())


def read_json(path: Path) -> dict[str, Any]:
  """A JSON file that holds an object. UserError if it cannot be read."""
  try:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
      raise ValueError("no JSON object")
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {path}: {e}") from e
  return content
