"""Overlap of regions on the device, for training: confidence, logs, validation.

Scores for publication are volumetric and in the scan's own space: see metrics/volumetric.py.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.method.losses import region_mask, widen
from kd_jax.tasks.labels import REGIONS

# So that two empty masks score 1. The slice Dice of the published code uses the same number.
_EPSILON = 1e-6


def region_probability(logits: jax.Array, region: str) -> jax.Array:
  """(..., K) logits -> (...) probability of WT, TC or ET."""
  probabilities = jax.nn.softmax(widen(logits))
  return functools.reduce(operator.add, (probabilities[..., k] for k in REGIONS[region]))


def counts(predicted: jax.Array, labels: jax.Array, region: str) -> jax.Array:
  """(B, D, H, W) class indices -> (3,): voxels in the intersection, the prediction, the truth."""
  p, t = region_mask(predicted, region), region_mask(labels, region)
  return jnp.stack([jnp.sum(m, dtype=jnp.float32) for m in (p & t, p, t)])


def dice_of_counts(count: jax.Array) -> jax.Array:
  """(..., 3) counts -> (...) Dice; two empty masks score 1."""
  intersection, predicted, truth = count[..., 0], count[..., 1], count[..., 2]
  return (2 * intersection + _EPSILON) / (predicted + truth + _EPSILON)


def slice_dice(predicted: jax.Array, labels: jax.Array, region: str) -> jax.Array:
  """The published code's Dice: per slice of the first axis, empty slices scoring 1, averaged.

  An all-background prediction scores 0.6 to 0.9 with it on real cases: it is kept to reproduce the
  published confidence weights and reference scores, and is never called Dice
  (docs/method.md, "Scoring", eq. 18).

  Args:
    predicted, labels: (B, D, H, W) class indices.
  """
  p, t = region_mask(predicted, region), region_mask(labels, region)
  count = [jnp.sum(m, axis=(2, 3), dtype=jnp.float32) for m in (p & t, p, t)]  # each (B, D)
  return jnp.mean(dice_of_counts(jnp.stack(count, axis=-1)))


def score(
  logits: jax.Array, labels: jax.Array, kind: str, regions: Sequence[str] = ("WT",)
) -> jax.Array:
  """How well one network does on a batch, in [0, 1]: the mean over regions of one kind of Dice.

  Args:
    logits: (B, D, H, W, K).
    labels: (B, D, H, W).
    kind: "soft_dice" or "hard_dice", over the whole batch's volume; or "slice_dice".
    regions: WT for a T1ce student, WT and TC for a T1 student, as published.
  """
  if kind == "soft_dice":
    values = []
    for region in regions:
      p = region_probability(logits, region)
      t = region_mask(labels, region).astype(p.dtype)
      values.append(dice_of_counts(jnp.stack([jnp.sum(p * t), jnp.sum(p), jnp.sum(t)])))
  elif kind in ("hard_dice", "slice_dice"):
    predicted = jnp.argmax(logits, axis=-1)
    if kind == "hard_dice":
      values = [dice_of_counts(counts(predicted, labels, region)) for region in regions]
    else:
      values = [slice_dice(predicted, labels, region) for region in regions]
  else:
    raise ValueError(f"score {kind!r} is none of soft_dice, hard_dice, slice_dice")
  return jnp.mean(jnp.stack(values))
