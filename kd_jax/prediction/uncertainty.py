"""Uncertainty of a voxel: entropy, and how much of it is that networks and mirror images differ.

The entropy of the mean probabilities is the sum of the mean of the opinions' own entropies and of
the mutual information between class and opinion (Houlsby et al. 2011; Smith and Gal, UAI 2018).
The second part is large where opinions contradict each other: there the student has learnt little.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

UNCERTAINTY = ("entropy", "mutual_information")  # maps; the second only of several opinions
_STEPS = np.float32(4096)  # a nat
INTERVAL = (0.05, 0.95)  # of the opinions' volumes


class Opinions(NamedTuple):
  """What each network says of each mirror image.

  Attributes:
    classes: (N, D, H, W) uint8, the most probable class in the opinion of each.
    entropy: (D, H, W) float32, the mean of their entropies, nats.
  """

  classes: np.ndarray
  entropy: np.ndarray


def entropy(probabilities: np.ndarray) -> np.ndarray:
  """(K, D, H, W) probabilities -> (D, H, W) float32, nats: from 0 to log K."""
  total = np.zeros(probabilities.shape[1:], np.float32)
  for p in probabilities:  # one class at a time, for memory
    total -= p * np.log(np.maximum(p, np.finfo(np.float32).tiny))
  return total


def gather(opinions: Iterable[np.ndarray]) -> tuple[np.ndarray, Opinions]:
  """The mean of all opinions, (K, D, H, W) float32, and what is kept of each.

  Args:
    opinions: (K, D, H, W) float32 each, one at least; only one of them is in memory at a time.
  """
  mean: np.ndarray | None = None
  entropies: np.ndarray | None = None
  classes = []
  for p in opinions:
    own = entropy(p)
    mean = p.copy() if mean is None else np.add(mean, p, out=mean)
    entropies = own if entropies is None else np.add(entropies, own, out=entropies)
    classes.append(np.argmax(p, axis=0).astype(np.uint8))
  assert mean is not None and entropies is not None, "no opinion"
  return mean / len(classes), Opinions(np.stack(classes), entropies / len(classes))


def interval(opinions: Sequence[float], joint: float) -> tuple[float, float]:
  """Between which values nine tenths of the opinions lie, interpolated, and joint, that of all.

  (A mask of mean probabilities may be smaller than that of each opinion, where they mark different
  places, each for itself.)
  """
  low, high = np.quantile(opinions, INTERVAL)
  return min(float(low), joint), max(float(high), joint)


def rounded(x: np.ndarray) -> np.ndarray:
  """A map in steps of 1/4096 nats, in place: a file of it is less than half as large."""
  return np.divide(np.rint(np.multiply(x, _STEPS, out=x), out=x), _STEPS, out=x)
