"""Quality control of a mask, in words: what a person should look at before the mask is used."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from kd_jax.data.case_checks import check_labels
from kd_jax.data.grid import Grid
from kd_jax.metrics.volumetric import region_mask, volume_mm3
from kd_jax.settings.constraints import Range
from kd_jax.settings.inference import RegionName
from kd_jax.tasks.labels import REGIONS

USUAL = (0.01, 0.99)  # of the training cases' volumes
FAR = 1.5  # times the usual range
_ENOUGH_CASES = 20  # of which all have a region, for its absence to be worth a word
_EDGE_MM2 = 10.0  # of a mask at an edge; less may be a voxel or two
_FACES = (("right", "left"), ("front", "back"), ("lower", "upper"))  # of the axes D, H, W
_ML = Range(0, 1e6)


@dataclass(frozen=True)
class VolumeRange:
  """The volumes of a region in the training cases that have it.

  Attributes:
    low_ml, high_ml: the usual range: the USUAL quantiles.
    cases: how many cases have the region.
    without: how many have none of it.
  """

  low_ml: Annotated[float, _ML]
  high_ml: Annotated[float, _ML]
  cases: Annotated[int, Range(0, 1 << 30)]
  without: Annotated[int, Range(0, 1 << 30)]


Volumes = Mapping[RegionName, VolumeRange]


def usual_volumes(cases: Collection[tuple[Sequence[int], float]]) -> Volumes:
  """Of training cases: (voxels of each class 0..3, mm3 of a voxel) each. {} without cases."""
  found: dict[str, VolumeRange] = {}
  for region, classes in REGIONS.items() if cases else ():
    every = [sum(voxels[c] for c in classes) * mm3 / 1000 for voxels, mm3 in cases]
    own = [ml for ml in every if ml]
    low, high = np.quantile(own, USUAL).round(3).tolist() if own else (0.0, 0.0)
    found[region] = VolumeRange(low, high, len(own), len(every) - len(own))
  return found


def joint_volumes(students: Sequence[Volumes]) -> Volumes:
  """The range that one of several students has seen. {} if one of them does not know its own."""
  if not students or not all(students):
    return {}
  together: dict[str, VolumeRange] = {}
  for region in students[0]:
    own = [volumes[region] for volumes in students if region in volumes]
    known = [v for v in own if v.cases]
    together[region] = VolumeRange(
      min((v.low_ml for v in known), default=0.0),
      max((v.high_ml for v in known), default=0.0),
      min(v.cases for v in own),
      max(v.without for v in own),
    )
  return together


def findings(
  classes: np.ndarray,
  scan: np.ndarray,
  voxel_mm: Sequence[float],
  grid: Grid,
  volumes: Volumes,
) -> list[str]:
  """What is odd about a mask, a clause each; [] if nothing is.

  Args:
    classes: (D, H, W) of the mask.
    scan: (D, H, W), 0 outside the brain.
    voxel_mm: the edges of its voxels.
    grid: where the student has looked.
    volumes: of the student's training cases.
  """
  found = []
  if odd := check_labels(classes, [scan]):
    found.append(odd.text)
  return [*found, *_at_edges(classes, scan, voxel_mm, grid), *_volumes(classes, voxel_mm, volumes)]


def _at_edges(
  classes: np.ndarray, scan: np.ndarray, voxel_mm: Sequence[float], grid: Grid
) -> list[str]:
  """Where the mask ends because the scan does, or what the student sees of it."""
  of_scan: list[str] = []
  of_window: list[str] = []
  for axis, (part, length, names) in enumerate(zip(grid.box, classes.shape, _FACES, strict=True)):
    mm2 = float(np.prod([mm for other, mm in enumerate(voxel_mm) if other != axis]))
    for name, inner, outer in zip(names, (part.start, part.stop - 1), (-1, 1), strict=True):
      here = np.moveaxis(classes, axis, 0)[inner] > 0
      beyond = inner + outer
      if 0 <= beyond < length:
        here &= np.moveaxis(scan, axis, 0)[beyond] != 0  # else the brain ends there itself
      if np.count_nonzero(here) * mm2 >= _EDGE_MM2:
        (of_window if 0 <= beyond < length else of_scan).append(name)
  lines = []
  if of_scan:
    lines.append(f"it touches the {_listed(of_scan)} edge of the scan, so tumour may be missing")
  if of_window:
    lines.append(
      f"it touches the {_listed(of_window)} edge of what the student sees of the scan, so tumour "
      "may be missing"
    )
  return lines


def _volumes(classes: np.ndarray, voxel_mm: Sequence[float], volumes: Volumes) -> list[str]:
  lines, far = [], []
  for region, usual in volumes.items():
    ml = volume_mm3(region_mask(classes, region), voxel_mm) / 1000
    if ml and not usual.cases:
      lines.append(f"it has {region}, which no training case has")
    elif ml and not usual.low_ml / FAR <= ml <= usual.high_ml * FAR:
      far.append(f"{region} {ml:.1f} ml ({usual.low_ml:.1f}-{usual.high_ml:.1f} ml)")
    elif not ml and region != "WT" and not usual.without and usual.cases >= _ENOUGH_CASES:
      lines.append(f"it has no {region}, which every training case has")
  if far:
    lines.insert(0, f"far outside of what training cases have: {', '.join(far)}")
  return lines


def _listed(names: Sequence[str]) -> str:
  return " and ".join(names)
