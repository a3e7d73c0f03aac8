"""Whole validation volumes through student and teachers, on the cached grid, during training.

Scores for publication are computed in the scan's own space instead: see evaluation/students.py.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data.entry import open_entry
from kd_jax.metrics import volumetric
from kd_jax.models.framework import Params
from kd_jax.prediction import calibration, postprocess
from kd_jax.prediction.calibration import Calibration, Histogram
from kd_jax.prediction.postprocess import NO_POSTPROCESSING, MinimumSizes
from kd_jax.report.slices import enlarged, panel
from kd_jax.runtime import processes
from kd_jax.tasks.labels import REGIONS
from kd_jax.tasks.names import MODALITIES

Predictor = Callable[[str, Params, np.ndarray], np.ndarray]


class Validation(NamedTuple):
  """Means over cases.

  Attributes:
    dice: network's name -> region -> mean volumetric Dice, as predicted.
    minimum_sizes: the thresholds of the student's postprocessing.
    postprocessed: region -> the student's mean Dice with them.
    pictures: case's name -> (height, width, 3) uint8, of the student.
    calibration: of the student's probabilities; NONE if it was not asked for.
    evidence: region -> the histogram of all cases that it was fitted on.
  """

  dice: dict[str, dict[str, float]]
  minimum_sizes: MinimumSizes
  postprocessed: dict[str, float]
  pictures: dict[str, np.ndarray]
  calibration: Calibration
  evidence: dict[str, Histogram]

  @property
  def score(self) -> float:
    """The student's mean over WT, TC and ET: what the best checkpoint is chosen by."""
    return float(np.mean(list(self.dice["student"].values())))


def validate(
  predict: Predictor,
  networks: Mapping[str, tuple[Params, Sequence[str]]],
  entries: Mapping[str, Path],
  minimum_sizes: MinimumSizes = NO_POSTPROCESSING,
  pictures: int = 0,
  calibrate: bool = False,
  progress: Callable[[int, int, str], None] | None = None,
) -> Validation:
  """Scores every network on every case.

  Args:
    predict: (network's name, its parameters, volume (M, D, H, W)) -> (K, D, H, W) probabilities.
    networks: name -> (parameters, modalities), among them "student".
    entries: the cases' cache entries by name.
    minimum_sizes: mm3 each, or BY_VALIDATION to choose them here.
    pictures: how many of the cases to draw.
    calibrate: fit the student's temperatures.
    progress: called with (cases done, cases in all, name).

  Several processes share the cases out; each draws its own, and all know all scores.
  """
  own = processes.share(list(entries.items()))
  sizes = postprocess.component_sizes_to_try(minimum_sizes.component_mm3)
  scores: dict[str, dict[str, dict[str, float]]] = {}
  evidence: dict[str, postprocess.Evidence] = {}
  histograms: dict[str, dict[str, list]] = {}
  drawn: dict[str, np.ndarray] = {}
  for done, (name, path) in enumerate(own, 1):
    entry = open_entry(path)
    truth = np.asarray(entry.labels)
    scores[name] = {}
    for network, (params, modalities) in networks.items():
      volume = entry.images[[MODALITIES.index(m) for m in modalities]]
      probabilities = predict(network, params, volume)
      predicted = np.argmax(probabilities, axis=0).astype(np.uint8)
      scores[name][network] = {}
      for region in REGIONS:
        masks = (volumetric.region_mask(classes, region) for classes in (predicted, truth))
        scores[name][network][region] = float(volumetric.dice(*masks))
      if network == "student":
        spacing = entry.meta["spacing_mm"]
        evidence[name] = postprocess.evidence_of(predicted, truth, spacing, sizes)
        if calibrate:
          histograms[name] = _histograms(probabilities, truth)
        if len(drawn) < pictures:
          drawn[name] = enlarged(panel(volume[0], truth, predicted))
    if progress:
      progress(done, len(own), name)
  scores, evidence = processes.union(scores), processes.union(evidence)
  histograms = processes.union(histograms)
  means = {
    network: {
      region: float(np.mean([scores[name][network][region] for name in entries]))
      for region in REGIONS
    }
    for network in networks
  }
  cases = [postprocess.Evidence(*evidence[name]) for name in entries]
  chosen, dice = postprocess.choose(cases, minimum_sizes)
  counts = [{r: np.asarray(histograms[n][r]) for r in REGIONS} for n in entries if calibrate]
  return Validation(
    dice=means,
    minimum_sizes=chosen,
    postprocessed=dict(zip(REGIONS, dice, strict=True)),
    pictures=drawn,
    calibration=calibration.fit(counts),
    evidence={r: np.sum([case[r] for case in counts], axis=0) for r in REGIONS if counts},
  )


def _histograms(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, list]:
  """Region -> what calibration has to know of a case, as JSON can hold it."""
  return {
    region: calibration.histogram(
      probabilities[list(classes)].sum(axis=0), volumetric.region_mask(truth, region)
    ).tolist()
    for region, classes in REGIONS.items()
  }
