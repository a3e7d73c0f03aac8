"""What students say of a case: on their grid, and back in the scan's own space.

Maps of a whole scan are made one at a time, when they are asked for: a large scan has hundreds of
millions of voxels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kd_jax.data import grid as grids
from kd_jax.data import nifti
from kd_jax.data.preprocess import Image
from kd_jax.metrics.volumetric import region_mask, volume_mm3
from kd_jax.prediction.calibration import NONE, Calibration, expected_dice, with_temperature
from kd_jax.prediction.postprocess import postprocess
from kd_jax.prediction.uncertainty import UNCERTAINTY, Opinions, entropy, rounded
from kd_jax.settings.inference import MinimumSizes
from kd_jax.tasks.labels import REGIONS


class Prepared(NamedTuple):
  """A case as the network reads it.

  Attributes:
    images: (M, *grid.shape).
    grid: where that lies in the scan.
    reference: the scan, of the first modality.
  """

  images: np.ndarray
  grid: grids.Grid
  reference: Image


class Prediction(NamedTuple):
  """What the students say of a case.

  Attributes:
    probabilities: (K, *grid.shape), of the classes.
    prepared: what they read.
    minimum_sizes: for postprocessing.
    calibration: how the regions' probabilities are to be read.
    opinions: what each network and mirror image says, if that was asked for.
  """

  probabilities: np.ndarray
  prepared: Prepared
  minimum_sizes: MinimumSizes
  calibration: Calibration = NONE
  opinions: Opinions | None = None

  @property
  def scan(self) -> nifti.Volume:
    """The scan in its file's form; for cases that were read from files."""
    scan = self.prepared.reference
    assert isinstance(scan, nifti.Volume), "this case was not read from a file"
    return scan

  def classes(self) -> np.ndarray:
    """(D, H, W) uint8 classes in the scan's space, postprocessed."""
    grid = self.prepared.grid
    box = grids.from_grid(self.probabilities, grid.cropped)  # outside it, all is background
    classes = np.zeros(grid.native_shape, np.uint8)
    classes[grid.box] = np.argmax(box, axis=0)
    return postprocess(classes, self.minimum_sizes, self.prepared.reference.voxel_mm)

  def regions(self) -> dict[str, np.ndarray]:
    """Region -> (D, H, W) float32 probability in the scan's space, calibrated."""
    return {region: self.whole(self.region(region)) for region in REGIONS}

  def region(self, region: str, *, calibrated: bool = True) -> np.ndarray:
    """The probability of a region in the scan's voxels, but only in the grid's box, float32."""
    p = self.probabilities[list(REGIONS[region])].sum(axis=0)
    box = grids.from_grid(p[None], self.prepared.grid.cropped)[0]
    np.clip(box, 0, 1, out=box)  # sums of float32 may be 1e-7 beyond
    return with_temperature(box, self.calibration.of(region)) if calibrated else box

  def whole(self, box: np.ndarray) -> np.ndarray:
    """A map of the grid's box as one of the scan, (D, H, W) of box's type, 0 outside."""
    grid = self.prepared.grid
    native = np.zeros(grid.native_shape, box.dtype)
    native[grid.box] = box
    return native

  def expected_dice(self, classes: np.ndarray) -> dict[str, float]:
    """Region -> the Dice that a mask may be expected to have; see calibration.expected_dice.

    Args:
      classes: (D, H, W), of this case in the scan's space.
    """
    box = classes[self.prepared.grid.box]
    return {r: expected_dice(self.region(r), region_mask(box, r)) for r in REGIONS}

  def volumes_mm3(self) -> dict[str, list[float]]:
    """Region -> its volume by each network and mirror image, postprocessed; on the grid."""
    assert self.opinions is not None, "predicted without opinions"
    grid, scan = self.prepared.grid, self.prepared.reference
    sides = zip(scan.voxel_mm, grid.size, grid.shape, strict=True)
    voxel_mm = [mm * n / m for mm, n, m in sides]
    found: dict[str, list[float]] = {region: [] for region in REGIONS}
    for opinion in self.opinions.classes:
      classes = postprocess(opinion, self.minimum_sizes, voxel_mm)
      for region, volumes in found.items():
        volumes.append(volume_mm3(region_mask(classes, region), voxel_mm))
    return found

  def uncertainty(self) -> Iterator[tuple[str, np.ndarray]]:
    """Maps of how sure the students are, by name, each (D, H, W) float32 in the scan's space, nats.

    "entropy": of the classes. "mutual_information": the part of it by which networks and mirror
    images differ; only where there is more than one.
    """
    total = entropy(self.probabilities)
    yield UNCERTAINTY[0], self._native(total)
    if self.opinions is not None and len(self.opinions.classes) > 1:
      # Rounding may make it negative.
      yield UNCERTAINTY[1], self._native(np.maximum(total - self.opinions.entropy, 0))

  def _native(self, x: np.ndarray) -> np.ndarray:
    """A map of the grid, (*grid.shape), in the scan's space; 0 outside the box."""
    return rounded(grids.from_grid(x[None], self.prepared.grid)[0])
