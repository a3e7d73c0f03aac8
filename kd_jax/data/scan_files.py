"""Which files belong to a scan, read or not: nothing may be written over them."""

import os
from pathlib import Path

from kd_jax.data.cases import Case
from kd_jax.data.nnunet import channel_of
from kd_jax.tasks.names import parse_name


def files_of(case: Case) -> list[Path]:
  """All images and the label map of a case, as far as they were looked for."""
  return [*case.images.values(), *case.unread, *([case.seg] if case.seg else [])]


def is_of(case: Case, path: Path) -> bool:
  """Whether a file that is there is one of a case: known as such, or beside it and of its name.

  (A scan may be given as one file, without those beside it.)
  """
  if not path.exists():
    return False
  if any(file.exists() and os.path.samefile(file, path) for file in files_of(case)):
    return True
  name, here = _case_in(path), os.path.realpath(path.parent)
  beside = (file for file in case.images.values() if os.path.realpath(file.parent) == here)
  return name is not None and any(_case_in(file) == name for file in beside)


def _case_in(path: Path) -> str | None:
  """The case that a file's name tells, if the name says too which of its files it is."""
  told = parse_name(path.name) or channel_of(path)
  return told.case if told else None
