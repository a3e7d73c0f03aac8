"""Whether the files of a folder are still what was written: their SHA-256 beside them."""

import hashlib
import json
from pathlib import Path

from kd_jax.runtime.files import write_text

CHECKSUMS_FILE = "sha256.json"


def write(folder: Path) -> None:
  """Notes the checksums of all files in the folder's subfolders. UserError if it cannot."""
  sums = {file: _sha256(folder / file) for file in _files(folder)}
  write_text(folder / CHECKSUMS_FILE, json.dumps(sums, indent=1) + "\n")


def damage(folder: Path) -> str:
  """What is wrong with the folder's files; "" if nothing, or if no checksums were written."""
  path = folder / CHECKSUMS_FILE
  try:
    sums = json.loads(path.read_text())
    files = list(sums.items())
  except FileNotFoundError:
    return ""
  except (OSError, ValueError, AttributeError) as e:
    return f"{path.name} cannot be read: {e}"
  for file, expected in files:
    try:
      if _sha256(folder / file) != expected:
        return f"{file} is not what was written"
    except OSError as e:
      return f"{file}: {e.strerror or e}"
  return ""


def _files(folder: Path) -> list[str]:
  return sorted(str(path.relative_to(folder)) for path in folder.glob("*/**/*") if path.is_file())


def _sha256(path: Path) -> str:
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()
