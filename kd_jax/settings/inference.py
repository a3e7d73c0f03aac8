"""Settings of inference: how whole volumes are predicted and postprocessed."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from kd_jax.settings.constraints import OrUnset, Pattern, Range
from kd_jax.settings.schema import FREE, Before
from kd_jax.tasks.labels import REGIONS

BY_VALIDATION = -1.0  # in a run's settings: the threshold that is best on its validation cases
RegionName = Annotated[str, Pattern("|".join(REGIONS), f"known are {', '.join(REGIONS)}")]
_MM3 = OrUnset(BY_VALIDATION, Range(0, 1e6))


class MinimumSizes(NamedTuple):
  """mm3 below which a connected component of WT is removed, and all ET of a case becomes core."""

  component_mm3: float = 0.0
  et_mm3: float = 0.0


@dataclass(frozen=True)
class InferenceSettings:
  """How whole volumes are predicted."""

  window: Annotated[
    Literal["sliding", "whole", "auto"],
    "windows of the training patch's size; one window a volume; or `whole` where memory allows",
  ] = "sliding"
  overlap: Annotated[
    float, Range(0, 0.95), "share of a window's side that the next one covers again, at least"
  ] = 0.5
  mirror: Annotated[bool, "average over all eight mirror images"] = False
  min_component_mm3: Annotated[
    float,
    _MM3,
    FREE,
    Before(0.0),
    "mm3: a smaller connected component of WT becomes background; 0 keeps all, -1 takes what is "
    "best on validation",
  ] = BY_VALIDATION
  min_et_mm3: Annotated[
    float,
    _MM3,
    FREE,
    Before(0.0),
    "mm3: less ET than that in a case becomes core; 0 keeps all, -1 takes what is best on "
    "validation",
  ] = BY_VALIDATION
  calibrate: Annotated[
    bool,
    FREE,
    "fit one temperature a region (WT, TC, ET) on validation, and give probabilities with it; "
    "masks stay as they are",
  ] = True

  @property
  def minimum_sizes(self) -> MinimumSizes:
    return MinimumSizes(self.min_component_mm3, self.min_et_mm3)
