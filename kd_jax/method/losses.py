"""The losses of the method as pure functions of logits, in float32 (or better).

Sources: docs/method.md, "Supervised loss" and docs/method.md, "Knowledge distillation loss".

Logits are (B, D, H, W, K), labels (B, D, H, W) class indices; every function returns a scalar
unless it says otherwise. Targets are the classes, background too, or the nested regions WT, TC and
ET, whose probabilities are sums of the softmax's: BraTS ranks regions, and nested by construction
they need no rule for an ET outside the TC.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.tasks.labels import REGIONS

_EPSILON = 1e-7


class Overlap(NamedTuple):
  """Soft Dice loss and soft Jaccard loss, each a scalar."""

  dice: jax.Array
  jaccard: jax.Array


class LogProbabilities(NamedTuple):
  """Of each region and of its complement, (..., R) each, in the order that was asked for."""

  inside: jax.Array
  outside: jax.Array


def widen(x: jax.Array) -> jax.Array:
  """float32 at least: sums over voxels overflow or drown in 16 bits."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def region_log_probabilities(
  logits: jax.Array, regions: Sequence[str] = tuple(REGIONS)
) -> LogProbabilities:
  """(..., K) logits, float32 -> log probabilities of regions and of their complements."""
  log_p = jax.nn.log_softmax(logits)

  def of(classes: np.ndarray) -> jax.Array:  # (K,) boolean; a mask, for a gather is slow on CPU
    return jax.nn.logsumexp(log_p, axis=-1, where=classes)

  masks = [np.isin(np.arange(logits.shape[-1]), REGIONS[region]) for region in regions]
  inside, outside = [of(mask) for mask in masks], [of(~mask) for mask in masks]
  return LogProbabilities(jnp.stack(inside, axis=-1), jnp.stack(outside, axis=-1))


def region_mask(labels: jax.Array, region: str) -> jax.Array:
  """Class indices of any shape -> a boolean mask of WT, TC or ET."""
  return jnp.isin(labels, jnp.asarray(REGIONS[region], labels.dtype))


def region_truth(labels: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
  """(...) class indices -> (..., 3): 1 where a voxel belongs to WT, TC, ET."""
  return jnp.stack([region_mask(labels, region) for region in REGIONS], axis=-1).astype(dtype)


def overlap(
  labels: jax.Array, logits: jax.Array, reduction: str = "volume", targets: str = "classes"
) -> Overlap:
  """1 - mean over targets of soft Dice, and of soft Jaccard.

  Source: docs/method.md, "Supervised loss", eq. 7.

  Args:
    labels: (B, D, H, W).
    logits: (B, D, H, W, K).
    reduction: "volume" sums over batch and space, so a target is scored once a batch; "sample"
      over space alone, and leaves out of the mean what a sample does not have; "slice", the
      published code's, sums over batch and the first two axes only, so a target is scored in every
      slice of the last axis, and each slice without it costs the full 1.
    targets: "classes" or "regions".
  """
  axes = {"volume": (0, 1, 2, 3), "sample": (1, 2, 3), "slice": (0, 1, 2)}[reduction]
  logits = widen(logits)
  if targets == "regions":
    probabilities = jnp.exp(region_log_probabilities(logits).inside)
    truth = region_truth(labels, logits.dtype)
  else:
    probabilities = jax.nn.softmax(logits)
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  intersection = jnp.sum(probabilities * truth, axes)  # (K,); (W, K) for slices, (B, K) for samples
  size = jnp.sum(truth, axes)
  total = jnp.sum(probabilities, axes) + size
  dice = 2 * intersection / (total + _EPSILON)
  jaccard = intersection / (total - intersection + _EPSILON)
  if reduction != "sample":
    return Overlap(1 - jnp.mean(dice), 1 - jnp.mean(jaccard))
  there = size > 0
  count = jnp.maximum(jnp.sum(there), 1)
  return Overlap(*(1 - jnp.sum(jnp.where(there, x, 0)) / count for x in (dice, jaccard)))


def cross_entropy(labels: jax.Array, logits: jax.Array, targets: str = "classes") -> jax.Array:
  """Softmax cross-entropy, the mean over voxels; of regions, binary and the mean over regions."""
  if targets == "regions":
    log_p = region_log_probabilities(widen(logits))
    truth = region_truth(labels, log_p.inside.dtype)
    return -jnp.mean(truth * log_p.inside + (1 - truth) * log_p.outside)
  log_classes = jax.nn.log_softmax(widen(logits))
  truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=log_classes.dtype)
  return -jnp.mean(jnp.sum(truth * log_classes, axis=-1))


def dice_jaccard_ce(
  labels: jax.Array, logits: jax.Array, reduction: str = "volume", targets: str = "classes"
) -> jax.Array:
  """(soft Dice loss + soft Jaccard loss + cross-entropy) / 3: the paper's supervised loss.

  Source: docs/method.md, "Supervised loss", eq. 8.
  """
  dice, jaccard = overlap(labels, logits, reduction, targets)
  return (dice + jaccard + cross_entropy(labels, logits, targets)) / 3


def kd(
  student: jax.Array,
  teacher: jax.Array,
  temperature: float,
  reduction: str = "voxel_mean",
  weight: jax.Array | float = 1.0,
  teacher_weight: jax.Array | float = 1.0,
) -> jax.Array:
  """KL(softmax(teacher / T) || softmax(student / T)), no gradient to the teacher.

  Source: docs/method.md, "Knowledge distillation loss", eq. 9 to 11.

  Args:
    student, teacher: (B, D, H, W, K).
    temperature: T.
    reduction: "voxel_mean" is T^2 times the mean over voxels (Hinton et al., 2015, so that the
      gradient's size does not depend on T); "voxel_sum", the published code's, is T times the sum
      over voxels divided by the batch: 10^4 to 10^5 at 128^3.
    weight: of each voxel in that mean, (B, D, H, W), or one for all.
    teacher_weight: of the teacher at each voxel, (B, D, H, W); it scales and is in no mean.
  """
  log_p = jax.nn.log_softmax(widen(jax.lax.stop_gradient(teacher)) / temperature)
  log_q = jax.nn.log_softmax(widen(student) / temperature)
  divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)  # (B, D, H, W)
  return _reduce(teacher_weight * divergence, temperature, reduction, weight)


def region_kd(
  student: jax.Array,
  teacher: jax.Array,
  temperature: float,
  reduction: str = "voxel_mean",
  weight: jax.Array | float = 1.0,
  regions: Sequence[str] = tuple(REGIONS),
) -> jax.Array:
  """As `kd`, but of each of these regions against its complement: (R,).

  Source: docs/method.md, "Knowledge distillation loss", eq. 12.
  """
  t = region_log_probabilities(widen(jax.lax.stop_gradient(teacher)) / temperature, regions)
  s = region_log_probabilities(widen(student) / temperature, regions)
  divergence = jnp.exp(t.inside) * (t.inside - s.inside)
  divergence += jnp.exp(t.outside) * (t.outside - s.outside)  # (B, D, H, W, R)
  each = [divergence[..., r] for r in range(divergence.shape[-1])]
  return jnp.stack([_reduce(d, temperature, reduction, weight) for d in each])


def _reduce(
  divergence: jax.Array, temperature: float, reduction: str, weight: jax.Array | float
) -> jax.Array:
  """(B, D, H, W) -> ()."""
  if reduction == "voxel_sum":
    return temperature * jnp.sum(weight * divergence) / divergence.shape[0]
  if reduction == "voxel_mean":
    if isinstance(weight, float):
      return temperature**2 * weight * jnp.mean(divergence)
    mass = jnp.maximum(jnp.sum(weight), _EPSILON)
    return temperature**2 * jnp.sum(weight * divergence) / mass
  raise ValueError(f"reduction {reduction!r} is none of voxel_mean, voxel_sum")


def shrink_labels(labels: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Nearest-neighbour resize of (B, D, H, W) to (B, *shape): source index floor(i * in / out).

  Source: docs/method.md, "Notation", eq. 1.
  """
  for axis, size in enumerate(shape, start=1):
    source = (jnp.arange(size) * labels.shape[axis]) // size
    labels = jnp.take(labels, source, axis=axis)
  return labels
