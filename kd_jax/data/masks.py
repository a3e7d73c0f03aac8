"""Folders of segmentations: the case of each, by its name."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kd_jax.data.own_masks import written_by_us
from kd_jax.data.walk import walk
from kd_jax.runtime.errors import UserError

TRUTH = ("truth", "gt", "ground_truth", "groundtruth", "label", "labels", "seg", "segm", "mask")
PREDICTION = ("prediction", "predicted", "pred", "segmentation", "seg", "mask")
_NII = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)
# What --mode=predict leaves beside a mask, with --probabilities and with --uncertainty.
_MAP = re.compile(r"_(WT|TC|ET|entropy|mutual_information)$")


def find_masks(root: Path, words: tuple[str, ...]) -> dict[str, Path]:
  """Case -> segmentation file, for every one under root.

  CASE.nii.gz, CASE_WORD.nii.gz and CASE/WORD.nii.gz are understood, with .nii too.

  Args:
    root: a folder.
    words: TRUTH or PREDICTION; a file named only by another role's word is left aside.

  Raises:
    UserError: no such folder, none in it, two files for one case, a link to nowhere.
  """
  if not os.path.isdir(root):
    raise UserError(f"no folder {root}")
  others = set(TRUTH + PREDICTION) - set(words)
  ending = re.compile(rf"[_-]({'|'.join(words)})$", re.IGNORECASE)
  found: dict[str, Path] = {}
  for path in _label_maps(root):
    stem = _NII.sub("", path.name)
    if stem.lower() in others:
      continue
    name = path.parent.name if stem.lower() in words else ending.sub("", stem)
    if name in found:
      raise UserError(f"two segmentations of {name}: {found[name]} and {path}; keep one")
    found[name] = path
  if not found:
    raise UserError(
      f"no segmentation under {root}; expected CASE.nii.gz, CASE_{words[0]}.nii.gz or "
      f"CASE/{words[0]}.nii.gz"
    )
  maps = {name for name in found if _MAP.search(name) and _MAP.sub("", name) in found}
  return {name: found[name] for name in sorted(found.keys() - maps)}


def _label_maps(root: Path) -> Iterator[Path]:
  """Every image under root; where masks lie beside their scans, the masks."""
  for folder in walk(root):
    if folder.broken:
      raise folder.broken[0]
    ours = written_by_us(folder.path)
    yield from (path for name, path in folder.files if not ours or name in ours)
