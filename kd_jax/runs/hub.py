"""Students on the Hugging Face Hub: hf://OWNER/NAME@REVISION.

What is fetched is kept where huggingface-hub keeps it, so that a second call needs no network, and
HF_HUB_OFFLINE=1 asks for none. Only the files of an exported student are fetched: JSON, safetensors
and the model card. They are read with the same suspicion as any other exported student.
"""

import re
from pathlib import Path
from typing import NamedTuple

from kd_jax.prediction.student_directory import CARD_FILE, MODEL_FILE, SUBJECTS_FILE, WEIGHTS_FILE
from kd_jax.runtime.errors import ConfigError, UserError

PREFIX = "hf://"
INSTALL = "pip install 'kd_jax[hub]' (or: pip install huggingface-hub)"
_NEEDED = (MODEL_FILE, WEIGHTS_FILE, SUBJECTS_FILE)
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"hf://({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


class Fetched(NamedTuple):
  """A folder on this machine, and what it is a copy of: hf://OWNER/NAME@COMMIT."""

  folder: Path
  source: str


def fetch(reference: str) -> Fetched:
  """A student's folder, fetched if it is not here yet.

  Args:
    reference: hf://OWNER/NAME, with @ and a branch, tag or commit; without one, the main branch.

  Raises:
    ConfigError: what is no such reference.
    UserError: huggingface-hub is not installed, there is no such student or revision, or it is not
      here and cannot be fetched.
  """
  parts = _REFERENCE.fullmatch(reference)
  if parts is None:
    raise ConfigError(f"{reference}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
  name, revision = parts[1], parts[2]
  try:
    import huggingface_hub
  except ImportError as e:
    raise UserError(f"{reference} needs the package huggingface-hub: {INSTALL}") from e
  try:
    folder = Path(
      huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=[*_NEEDED, CARD_FILE], library_name="kd_jax"
      )
    )
  except Exception as e:  # of whatever it makes its requests with
    raise UserError(_explain(reference, e)) from e
  if missing := [file for file in _NEEDED if not (folder / file).is_file()]:
    raise UserError(
      f"{reference} is no whole student: {missing[0]} is missing in {folder}. If it is there on "
      "huggingface.co, remove that folder and fetch it again; else it is no export of kd_jax"
    )
  return Fetched(folder, f"{PREFIX}{name}@{folder.name}")


def _explain(reference: str, error: Exception) -> str:
  from huggingface_hub import constants, errors

  if isinstance(error, errors.GatedRepoError):
    return f"{reference} is given on request: ask for it on huggingface.co, then: hf auth login"
  if isinstance(error, errors.RevisionNotFoundError):
    return f"{reference}: there is no such revision; see its branches and tags on huggingface.co"
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f"{reference}: there is no such model on huggingface.co, or it is private (hf auth login). "
      f"A folder of this machine is given without {PREFIX}"
    )
  if isinstance(error, errors.LocalEntryNotFoundError):
    if constants.HF_HUB_OFFLINE:
      why = "HF_HUB_OFFLINE is set: unset it"
    else:
      why = "huggingface.co cannot be reached: connect this machine"
    return (
      f"{reference} is not on this machine, and {why} once to fetch it, or copy the student's "
      "folder here and give its path"
    )
  return f"{reference} cannot be fetched: {type(error).__name__}: {error}"
