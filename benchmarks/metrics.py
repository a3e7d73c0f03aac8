"""How long do the scores of one case take? Prints a table: a row a pair of masks.

  python benchmarks/metrics.py [folder] [--repeat N]

folder has one folder a pair, with truth.nii.gz and prediction.nii.gz (classes 0..3). Without it, or
where it is missing, masks of 240x240x155 are generated. One thread does all the work.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kd_jax.data import nifti
from kd_jax.metrics import volumetric
from kd_jax.metrics.case import score_case
from kd_jax.metrics.lesions import lesion_scores
from kd_jax.metrics.surface import crop, surface_pair
from kd_jax.tasks.labels import REGIONS

SCORE_PAIRS = Path(__file__).parents[2] / "shared" / "scores"
SHAPE = (240, 240, 155)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", type=Path, default=SCORE_PAIRS)
  parser.add_argument("--repeat", type=int, default=5, help="the fastest of so many runs counts")
  arguments = parser.parse_args()
  print(f"{'pair':24}{'lesions':>12}{'surface/ms':>12}{'lesions/ms':>12}{'all/ms':>9}")
  for name, predicted, truth, voxel_mm in pairs(arguments.folder):
    surfaces, lesions, components = 0.0, 0.0, 0
    for region in REGIONS:
      masks = [volumetric.region_mask(classes, region) for classes in (predicted, truth)]
      box = crop(*masks)
      masks = [np.ascontiguousarray(mask[box]) for mask in masks]
      ms, pair = fastest(surface_pair, arguments.repeat, *masks, voxel_mm)
      surfaces += ms
      ms, scores = fastest(lesion_scores, arguments.repeat, *masks, voxel_mm, pair)
      lesions += ms
      components += scores.found + scores.missed + scores.false
    total, _ = fastest(score_case, arguments.repeat, predicted, truth, voxel_mm)
    print(f"{name:24}{components:12d}{surfaces:12.0f}{lesions:12.0f}{total:9.0f}", flush=True)


def pairs(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple]]:
  """(name, predicted classes, true classes, voxel_mm) of each pair."""
  found = sorted(folder.glob("*/prediction.nii.gz"))
  for path in found:
    predicted, truth = nifti.read(path), nifti.read(path.with_name("truth.nii.gz"))
    classes = (volume.data.astype(np.uint8) for volume in (predicted, truth))
    yield path.parent.name, *classes, truth.voxel_mm
  if not found:
    truth = tumour((120, 120, 80), 30)
    yield "generated, 1 component", tumour((122, 119, 80), 29), truth, (1.0, 1.0, 1.0)
    yield (
      "generated, 91 components",
      with_small_balls(tumour((122, 119, 80), 29)),
      truth,
      (1.0, 1.0, 1.0),
    )


def tumour(centre: tuple[int, int, int], radius: float) -> np.ndarray:
  """Classes of three nested balls: oedema, enhancing tumour, necrotic core."""
  grid = np.indices(SHAPE, np.float32)
  r = np.sqrt(sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)))
  return np.select([r < 0.4 * radius, r < 0.6 * radius, r < radius], [1, 3, 2]).astype(np.uint8)


def with_small_balls(classes: np.ndarray) -> np.ndarray:
  """The same with 90 small balls of each class, far and near."""
  rng = np.random.default_rng(0)
  classes = classes.copy()
  for cls in (1, 2, 3) * 30:
    centre, r = rng.integers(30, 120, 3), int(rng.integers(1, 6))
    around = np.indices((2 * r + 1,) * 3) - r
    box = tuple(slice(c - r, c + r + 1) for c in centre)
    classes[box][(around**2).sum(axis=0) <= r * r] = cls
  return classes


def fastest(function: Callable, repeat: int, *arguments) -> tuple[float, Any]:
  """(ms, result) of the fastest call, in processor time: other programs do not count."""
  best, result = np.inf, None
  for _ in range(repeat):
    start = time.process_time()
    result = function(*arguments)
    best = min(best, time.process_time() - start)
  return 1000 * best, result


if __name__ == "__main__":
  main()
