"""Were the lesions found, one by one? The lesion-wise scores of BraTS 2023, with glioma's settings.

After the organisers' description (A. Saluja et al., "BraTS 2023 lesion-wise performance metrics"):

- A lesion of the truth is all that lies in one 26-connected component of the *dilated* truth
  (3 times, by a voxel's faces and edges): components up to 6 voxels apart are one lesion.
- A component of the prediction (26-connected) belongs to each lesion whose dilation it touches. One
  that touches none is false, however small it is.
- Lesions of at most 50 mm3 are left out, with the components that belong to them only.
- The score is the sum over the lesions kept, divided by how many they and the false components are.
  A lesion that was missed and a false component count with Dice 0 and HD95 374 mm.

The dilation is in voxels and the volume in mm3, as in the organisers' code; BraTS has 1 mm voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from kd_jax.metrics.surface import Surface, SurfacePair, hd95_mm, surface_pair
from kd_jax.runtime.arrays import label_sizes

DILATIONS = 3
IGNORED_MM3 = 50.0
PENALTY_MM = 374.0
_TOUCHING = np.ones((3, 3, 3), bool)  # 26-connectivity
_ROUNDING_MM3 = 1e-3  # 50 voxels of 1.000001 mm are 50 mm3


@dataclass(frozen=True)
class LesionScores:
  """found, missed: lesions of the truth; false: components of the prediction; dice; hd95_mm."""

  found: int
  missed: int
  false: int
  dice: float
  hd95_mm: float


def lesion_scores(
  predicted: np.ndarray,
  truth: np.ndarray,
  voxel_mm: Sequence[float],
  pair: SurfacePair | None = None,
) -> LesionScores:
  """Lesion-wise scores of two (D, H, W) boolean masks; see the module.

  The crop of both (surface.crop) gives the same scores, faster.

  Args:
    voxel_mm: edges of a voxel.
    pair: surface_pair of the same arguments, if it is there already.

  Returns:
    Dice 1 and HD95 0 where there is neither a lesion to keep nor a false component.
  """
  if pair is None:
    pair = surface_pair(predicted, truth, voxel_mm)
  # A frame of background, after growing: so that each surface point has voxels all around.
  predicted, truth, grown = (np.pad(m, 1) for m in (predicted, truth, dilate(truth, DILATIONS)))
  component, components = ndimage.label(predicted, _TOUCHING)
  grown, lesions = ndimage.label(grown, _TOUCHING)
  lesion = np.where(truth, grown, 0)

  belongs = np.zeros((lesions + 1, components + 1), bool)  # row and column 0: background
  belongs[grown[predicted], component[predicted]] = True
  belongs = belongs[1:, 1:]  # (lesions, components)
  voxels = label_sizes(lesion[truth], lesions)
  kept = voxels * np.prod(voxel_mm) > IGNORED_MM3 + _ROUNDING_MM3
  found = kept & belongs.any(axis=1)
  false = int(np.count_nonzero(~belongs.any(axis=0)))

  both = label_sizes(lesion[predicted & truth], lesions)
  dice = 2 * both / (voxels + belongs @ label_sizes(component[predicted], components))
  of_predicted, of_truth = _at(component, pair.predicted), _at(lesion, pair.truth)
  hd95 = [
    hd95_mm(pair.subset(belongs[i][of_predicted - 1], of_truth == i + 1), PENALTY_MM)
    for i in np.flatnonzero(found)
  ]

  n_found, n_missed = int(np.count_nonzero(found)), int(np.count_nonzero(kept & ~found))
  total = n_found + n_missed + false
  return LesionScores(
    found=n_found,
    missed=n_missed,
    false=false,
    dice=float(dice[found].sum() / total) if total else 1.0,
    hd95_mm=(sum(hd95) + PENALTY_MM * (n_missed + false)) / total if total else 0.0,
  )


def dilate(mask: np.ndarray, times: int) -> np.ndarray:
  """A (D, H, W) boolean mask grown so many times by the neighbours across faces and edges (18)."""
  for _ in range(times):
    # The 18 neighbours are the 3x3 squares in the three planes: several times as fast as scipy's.
    d, h = _widen(mask, 0), _widen(mask, 1)
    mask = _widen(d, 1) | _widen(d, 2) | _widen(h, 2)
  return mask


def _widen(mask: np.ndarray, axis: int) -> np.ndarray:
  """One voxel to both sides along an axis."""
  wide = mask.copy()
  source, target = np.moveaxis(mask, axis, 0), np.moveaxis(wide, axis, 0)
  target[1:] |= source[:-1]
  target[:-1] |= source[1:]
  return wide


def _at(labels: np.ndarray, surface: Surface) -> np.ndarray:
  """(N,) the label that a surface's points lie on, from (D + 2, H + 2, W + 2) framed labels.

  The voxels around a corner touch each other, so those in the mask have one label; outside is 0.
  """
  first = np.ravel_multi_index(tuple(surface.corners.T), labels.shape)  # (i - 1, ...), framed
  others = np.asarray(np.ravel_multi_index(np.indices((2, 2, 2)).reshape(3, 8), labels.shape))
  found = np.zeros(len(first), labels.dtype)
  for step in others:
    np.maximum(found, labels.ravel()[first + step], out=found)
  return found
