"""What a run was made with: versions, source, settings of the machine; one record a start."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_jax import __version__
from kd_jax.runs.layout import RUN_FILE
from kd_jax.runtime import versions
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json, write_text

_PREFIXES = ("JAX_", "XLA_", "CUDA_VISIBLE", "TPU_", "TF_CUDNN", "NVIDIA_TF32")


def record(workdir: Path, **more: Any) -> dict[str, Any]:
  """Adds this start to the work directory's run.json.

  Args:
    workdir: of the run.
    more: what else is to be in the record.

  Returns:
    The record.
  """
  path = workdir / RUN_FILE
  try:
    starts = read_json(path)["starts"] if path.exists() else []
  except (UserError, KeyError):  # edited or spoilt: it is no reason to stop
    starts = []
  started = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **more, **environment()}
  write_text(path, json.dumps({"starts": [*starts, started]}, indent=1) + "\n")
  return started


def amend(workdir: Path, **more: Any) -> None:
  """Adds to the record of the latest start what was not known then; see `record`."""
  path = workdir / RUN_FILE
  try:
    starts = read_json(path)["starts"]
    starts[-1] |= more
  except (UserError, KeyError, IndexError, TypeError):  # spoilt meanwhile: no reason to stop
    return
  write_text(path, json.dumps({"starts": starts}, indent=1) + "\n")


def source(record: Mapping[str, Any]) -> str:
  """The record's commit in words."""
  git = record["git"]
  if git is None:
    return "not from a git repository"
  return f"commit {git['commit'][:12]}" + " with changes" * git["modified"]


def environment() -> dict[str, Any]:
  """What the numbers of a run can depend on beside its settings."""
  return {
    "command": sys.argv,
    "kd_jax": __version__,
    "git": git_state(Path(__file__).parent),
    "python": platform.python_version(),
    "packages": versions.packages(),
    "host": socket.gethostname(),
    "system": platform.platform(),
    "devices": versions.devices(),
    "environment": _matching(os.environ),
  }


def git_state(folder: Path) -> dict[str, Any] | None:
  """The commit that the folder's files belong to, and whether any file differs from it.

  None where they belong to none: an installed package, or no git.
  """

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", "__init__.py")  # a venv may lie in another repository
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": bool(changed)}
  except (OSError, subprocess.SubprocessError):
    return None


def _matching(environment: Mapping[str, str]) -> dict[str, str]:
  return {k: v for k, v in sorted(environment.items()) if k.startswith(_PREFIXES)}
