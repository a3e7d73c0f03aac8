"""What is written of a case: a mask, and what was asked for beside it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kd_jax.prediction.prediction import Prediction
from kd_jax.tasks import labels


@dataclass(frozen=True)
class Output:
  """What to write.

  Attributes:
    folder: where.
    convention: what the numbers in the masks mean, see labels.canonical.
    probabilities: write maps of WT, TC and ET too.
    overwrite: replace files that this program has not written, or that were changed since.
    uncertainty: names of the maps of uncertainty to write, see Predictor.uncertainty_maps.
    onto: brings a prediction to the space that the files are to have; None for the scan's own.
    dicom: makes a DICOM segmentation of (D, H, W) classes in that space; None writes none.
  """

  folder: Path
  convention: str
  probabilities: bool = False
  overwrite: bool = False
  uncertainty: Sequence[str] = ()
  onto: Callable[[Prediction], Prediction] | None = None
  dicom: Callable[[np.ndarray], bytes] | None = None

  def mask(self, name: str) -> Path:
    return self.folder / f"{name}.nii.gz"

  def map(self, name: str, what: str) -> Path:
    """Of a region's probability, or of uncertainty."""
    return self.folder / f"{name}_{what}.nii.gz"

  def segmentation(self, name: str) -> Path:
    return self.folder / f"{name}.dcm"

  def files(self, name: str) -> list[Path]:
    """All files of a case."""
    maps = (*(labels.REGIONS if self.probabilities else ()), *self.uncertainty)
    files = [self.mask(name), *(self.map(name, what) for what in maps)]
    return files + ([self.segmentation(name)] if self.dicom else [])

  def arrays(
    self, name: str, prediction: Prediction, classes: np.ndarray
  ) -> Iterator[tuple[Path, np.ndarray]]:
    """The NIfTI files of a case with what is in them, (D, H, W) each; one is in memory at a time.

    Args:
      classes: (D, H, W), the mask.
    """
    yield self.mask(name), labels.from_classes(classes, self.convention)
    for region in labels.REGIONS if self.probabilities else ():
      yield self.map(name, region), prediction.whole(prediction.region(region))
    for what, x in prediction.uncertainty() if self.uncertainty else ():
      yield self.map(name, what), x
