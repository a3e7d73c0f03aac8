"""What files beside label maps say of their labels: predict.json and nnU-Net's dataset.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kd_jax.data.nnunet import DATASET_JSON
from kd_jax.data.own_masks import RECORD_FILE
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_json
from kd_jax.tasks import labels
from kd_jax.tasks.label_names import names_a_tumour


class Statements:
  """What such files of a set say, each read once."""

  def __init__(self, root: Path):
    self._root = root
    self._found: dict[Path, tuple[Path, str] | None] = {}

  def by(self, folder: Path) -> tuple[Path, str] | None:
    """(file, convention) that holds in a folder: of the nearest such file up to the root's parent.

    Raises:
      UserError: a broken file, or one that does not say what each label means.
    """
    if folder not in self._found:
      inside = folder != self._root and self._root in folder.parents
      self._found[folder] = _said_in(folder, records=True) or (
        self.by(folder.parent) if inside else _said_in(folder.parent, records=False)
      )
    return self._found[folder]

  def others(self, files: Iterable[Path], asked: str, flag: str) -> list[str]:
    """Warnings where such a file says otherwise than what was asked for."""
    warnings = {}
    for folder in {path.parent for path in files}:
      try:
        found = self.by(folder)
      except UserError:  # it was asked for because the file does not say it
        continue
      if found and found[1] != asked:
        warnings[found[0]] = f"{found[0]} says that the labels are {found[1]}, {flag} says {asked}"
    return list(warnings.values())


def _said_in(folder: Path, records: bool) -> tuple[Path, str] | None:
  record, dataset = folder / RECORD_FILE, folder / DATASET_JSON
  for path, usable in ((record, records), (dataset, True)):
    if not usable or not path.is_file():
      continue
    said: Any = read_json(path).get("labels")
    if not (isinstance(said, str) if path == record else names_a_tumour(said)):
      continue  # of another program, or without classes
    try:
      return path, labels.canonical(said)
    except ConfigError as e:
      raise ConfigError(f"{path}: {e}; or say what the labels mean on the command line") from e
  return None
