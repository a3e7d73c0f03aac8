"""Are the intensities of generated cases, voxel by voxel, those of patients?

  python benchmarks/contrast.py --data=/data/BraTS2021 --cases=50
  python benchmarks/contrast.py --data=A,B --demo=runs/demo

For each sequence and label: how many standard deviations of the tumour-free brain the label's
mean lies above the brain's, and how well its voxels are told from the brain's and from those of a
shell around the tumour by their intensity alone (area under the ROC curve; 0.5 is not at all).
Intensities are means over 3 mm. The generator's contrasts (kd_jax/data/demo/phantom.py) are
settled by this comparison and not by anyone's scores.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

from kd_jax.data import nifti
from kd_jax.data.cases import Case, find_cases
from kd_jax.runtime.terminal import table
from kd_jax.tasks.labels import CLASSES, to_classes
from kd_jax.tasks.names import MODALITIES

_FEWEST = 20  # voxels of 3 mm


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--data", required=True, help="folders of cases, with commas")
  parser.add_argument("--demo", help="another such list, to stand beside it")
  parser.add_argument("--cases", type=int, default=12, help="of each list, at most")
  arguments = parser.parse_args()
  lists = [arguments.data] + ([arguments.demo] if arguments.demo else [])
  found = [_measure(folders, arguments.cases) for folders in lists]
  rows = []
  for modality in MODALITIES:
    for name in CLASSES[1:]:
      own = [values.get((modality, name), []) for values in found]
      rows.append([modality, name, *(cell for values in own for cell in _cells(values))])
  head = ["cases", "mean, sd of brain", "AUC brain", "AUC shell"]
  print(table(["sequence", "label", *(f"{h}" for _ in lists for h in head)], rows))


def _measure(folders: str, most: int) -> dict[tuple[str, str], list[tuple[float, ...]]]:
  cases = [case for folder in folders.split(",") for case in find_cases(Path(folder))][:most]
  found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
  for number, case in enumerate(cases, 1):
    print(f"{case.name} ({number}/{len(cases)})", file=sys.stderr, flush=True)
    for key, values in contrasts(case).items():
      found.setdefault(key, []).append(values)
  return found


def contrasts(case: Case) -> dict[tuple[str, str], tuple[float, float, float]]:
  """(modality, label) -> the three numbers of one case, where it has enough voxels."""
  third = (slice(1, None, 3),) * 3
  classes = to_classes(nifti.read(case.seg).data, case.convention)[third]
  tumour = classes > 0
  near = ndimage.binary_dilation(tumour, iterations=3)
  shell = near & ~ndimage.binary_dilation(tumour, iterations=1)
  found = {}
  for modality, path in case.images.items():
    x = nifti.read(path).data.astype(np.float32)
    inside = ndimage.uniform_filter((x != 0).astype(np.float32), 3)[third] > 0.99
    x = ndimage.uniform_filter(x, 3)[third]
    brain = x[inside & ~tumour]
    for number, name in enumerate(CLASSES[1:], 1):
      label = x[inside & (classes == number)]
      if min(len(label), (inside & shell).sum()) >= _FEWEST:
        level = (label.mean() - brain.mean()) / brain.std()
        found[modality, name] = level, auc(label, brain), auc(label, x[inside & shell])
  return found


def auc(a: np.ndarray, b: np.ndarray) -> float:
  """The share of pairs of (n,) and (m,) values in which a's is the larger, ties half."""
  b = np.sort(b)
  below = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
  return float(below.mean() / (2 * len(b)))


def _cells(values: list[tuple[float, ...]]) -> list[str]:
  if not values:
    return ["0", "", "", ""]
  mean, sd = np.mean(values, 0), np.std(values, 0)
  return [str(len(values)), *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, sd, strict=True))]


if __name__ == "__main__":
  main()
