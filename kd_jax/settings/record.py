"""config.json, the record of a run's settings: written, read (earlier versions too), compared."""

import difflib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_json, write_text
from kd_jax.settings import schema
from kd_jax.settings.run import Settings, parse, to_dict

# Dotted names of earlier versions -> today's; sections first.
RENAMED = {
  "predict": "inference",
  "optim.cohort": "optim.teachers",
  "data.tumour": "data.foreground_oversampling",
  "train.space": "train.spatial_shards",
  "train.pictures": "train.preview_cases",
  "inference.mode": "inference.window",
  "inference.smallest_island": "inference.min_component_mm3",
  "inference.smallest_et": "inference.min_et_mm3",
}


def write(path: Path, settings: Settings) -> None:
  write_text(path, json.dumps(to_dict(settings), indent=1) + "\n")


def read(path: Path) -> Settings:
  """The settings of a work directory.

  Raises:
    UserError: there is no such file, or it was written by a version that is not understood.
  """
  try:
    raw = read_json(path)
  except UserError as e:
    if not os.path.exists(path):
      raise UserError(f"{path.parent} is no work directory: it has no {path.name}") from e
    raise
  try:
    return parse(modernised(raw), recorded=True)
  except ConfigError as e:
    raise UserError(
      f"{path} was written by another version of kd_jax: {e}. Use that version (its number is in "
      "the run's train.log), or export the student there"
    ) from e


def modernised(raw: Mapping[str, Any], section: str = "") -> dict[str, Any]:
  """Plain settings of an earlier version under today's names.

  Args:
    raw: all sections, or what one section holds.
    section: the name of that section.
  """
  if section:
    return modernised({section: raw})[RENAMED.get(section, section)]
  new = json.loads(json.dumps(raw))
  for old_name, new_name in RENAMED.items():
    *path, old = old_name.split(".")
    group: Any = new
    for part in path:
      group = group.get(part) if isinstance(group, dict) else None
    if isinstance(group, dict) and old in group:
      group.setdefault(new_name.rpartition(".")[2], group.pop(old))
  return new


def explain_unknown(name: str) -> str:
  """What to say of a dotted name that is no setting, a renamed one perhaps; "" if it is one."""
  settings = {setting.name: setting.kind for setting in schema.walk(Settings)}
  groups = {name[:i] for name in settings for i, letter in enumerate(name) if letter == "."}
  tables = [n for n, kind in settings.items() if "->" in kind]  # their keys are names too
  if name in settings or name in groups or any(name.startswith(f"{t}.") for t in tables):
    return ""
  now = name
  for old, new in RENAMED.items():
    if now == old or now.startswith(f"{old}."):
      now = new + now.removeprefix(old)
  if now != name and now in settings.keys() | groups:
    return f"the setting {name} is now called {now}"
  last = name.rpartition(".")[2]
  near = [known for known in settings if known.rpartition(".")[2] == last]
  near = near if 0 < len(near) < 4 else _similar(name, settings)
  hint = f"did you mean {' or '.join(near)}?" if near else "python -m kd_jax.settings.run lists all"
  return f"unknown setting {name}; {hint}"


def _similar(name: str, settings: Collection[str]) -> list[str]:
  """Up to one setting that was meant: a group's name in common (train.lr) makes none similar."""
  return difflib.get_close_matches(name, settings, 1, cutoff=0.75)


def differences(old: Settings, new: Settings) -> dict[str, tuple[Any, Any]]:
  """Settings that differ, by dotted name -> (old, new)."""
  flat_old, flat_new = _flatten(to_dict(old)), _flatten(to_dict(new))
  return {
    name: (flat_old.get(name), flat_new.get(name))
    for name in sorted(flat_old.keys() | flat_new.keys())
    if flat_old.get(name) != flat_new.get(name)
  }


def check_resumable(old: Settings, new: Settings, workdir: Path) -> list[str]:
  """What a continued run has changed, as lines.

  Raises:
    ConfigError: it changed what may not change.
  """
  free = {setting.name for setting in schema.walk(Settings) if setting.free}
  lines: list[str] = []
  forbidden: list[str] = []
  for name, (was, now) in differences(old, new).items():
    (lines if name in free else forbidden).append(f"{name}: was {was!r}, now {now!r}")
  if forbidden:
    raise ConfigError(
      f"{workdir} holds a run with other settings, which cannot change half-way:\n  "
      + "\n  ".join(forbidden)
      + "\nGive the settings that the run began with, or another --workdir."
    )
  return lines


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in settings.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f"{prefix}{key}.") or {f"{prefix}{key}": {}}
    else:
      flat[prefix + key] = value
  return flat
