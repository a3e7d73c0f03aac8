"""Whole validation volumes through student and teachers, on the cached grid, during training.

Scores for publication are computed in the scan's own space instead: see evaluate.py.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data.entry import open_entry
from kd_jax.metrics import volumetric
from kd_jax.models.framework import Params
from kd_jax.prediction import postprocess as too_small
from kd_jax.prediction.postprocess import NOTHING, Smallest
from kd_jax.report.slices import panel
from kd_jax.runtime import processes
from kd_jax.tasks.labels import REGIONS
from kd_jax.tasks.names import MODALITIES

Predictor = Callable[[Params, np.ndarray], np.ndarray]


class Validation(NamedTuple):
  """Means over cases.

  Attributes:
    dice: network's name -> region -> mean volumetric Dice, as predicted.
    smallest: what of the student's prediction is too small to be believed.
    cleaned: region -> the student's mean Dice without that.
    pictures: case's name -> (height, width, 3) uint8, of the student.
  """

  dice: dict[str, dict[str, float]]
  smallest: Smallest
  cleaned: dict[str, float]
  pictures: dict[str, np.ndarray]

  @property
  def score(self) -> float:
    """The student's mean over WT, TC and ET: what the best checkpoint is chosen by."""
    return float(np.mean(list(self.dice["student"].values())))


def validate(
  predict: Predictor,
  networks: Mapping[str, tuple[Params, Sequence[str]]],
  entries: Mapping[str, Path],
  smallest: Smallest = NOTHING,
  pictures: int = 0,
  progress: Callable[[int, int, str], None] | None = None,
) -> Validation:
  """Scores every network on every case.

  Args:
    predict: (parameters, volume (M, D, H, W)) -> (K, D, H, W) probabilities.
    networks: name -> (parameters, modalities), among them "student".
    entries: the cases' cache entries by name.
    smallest: mm3 each, or too_small.BY_VALIDATION to choose it here.
    pictures: how many of the cases to draw.
    progress: called with (cases done, cases in all, name).

  Several processes share the cases out; each draws its own, and all know all scores.
  """
  own = processes.share(list(entries.items()))
  islands = too_small.islands_to_try(smallest.island)
  scores, evidence, drawn = {}, {}, {}
  for done, (name, path) in enumerate(own, 1):
    entry = open_entry(path)
    truth = np.asarray(entry.labels)
    scores[name] = {}
    for network, (params, modalities) in networks.items():
      volume = entry.images[[MODALITIES.index(m) for m in modalities]]
      predicted = np.argmax(predict(params, volume), axis=0).astype(np.uint8)
      scores[name][network] = {}
      for region in REGIONS:
        masks = (volumetric.region_mask(classes, region) for classes in (predicted, truth))
        scores[name][network][region] = float(volumetric.dice(*masks))
      if network == "student":
        spacing = entry.meta["spacing_mm"]
        evidence[name] = too_small.compare(predicted, truth, spacing, islands)
        if len(drawn) < pictures:
          drawn[name] = panel(volume[0], truth, predicted)
    if progress:
      progress(done, len(own), name)
  scores, evidence = processes.union(scores), processes.union(evidence)
  means = {
    network: {
      region: float(np.mean([scores[name][network][region] for name in entries]))
      for region in REGIONS
    }
    for network in networks
  }
  cases = [too_small.Evidence(*evidence[name]) for name in entries]
  smallest, cleaned = too_small.choose(cases, *smallest)
  return Validation(means, smallest, dict(zip(REGIONS, cleaned, strict=True)), drawn)
