"""The losses of METHOD §2 as pure functions of logits, in float32 (or better).

Logits are (B, D, H, W, K), labels (B, D, H, W) class indices; every function returns a scalar.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EPSILON = 1e-7
DICE_REDUCTIONS = ("volume", "slice")
KD_REDUCTIONS = ("voxel_mean", "voxel_sum")


class Overlap(NamedTuple):
  """Soft Dice loss and soft Jaccard loss, each a scalar."""

  dice: jax.Array
  jaccard: jax.Array


def widen(x: jax.Array) -> jax.Array:
  """float32 at least: sums over voxels overflow or drown in 16 bits."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def overlap(labels: jax.Array, logits: jax.Array, reduction: str = "volume") -> Overlap:
  """1 - mean over classes (background too) of soft Dice, and of soft Jaccard.

  Args:
    labels: (B, D, H, W).
    logits: (B, D, H, W, K).
    reduction: "volume" sums over batch and space, so a class is scored once a batch; "slice", the
      published code's, sums over batch and the first two axes only, so it is scored in every slice
      of the last axis, and each slice without the class costs the full 1.
  """
  axes = {"volume": (0, 1, 2, 3), "slice": (0, 1, 2)}[reduction]
  logits = widen(logits)
  probabilities = jax.nn.softmax(logits)
  truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  intersection = jnp.sum(probabilities * truth, axes)  # (K,), or (W, K) for slices
  total = jnp.sum(probabilities, axes) + jnp.sum(truth, axes)
  dice = 2 * intersection / (total + _EPSILON)
  jaccard = intersection / (total - intersection + _EPSILON)
  return Overlap(1 - jnp.mean(dice), 1 - jnp.mean(jaccard))


def cross_entropy(labels: jax.Array, logits: jax.Array) -> jax.Array:
  """Softmax cross-entropy, the mean over voxels."""
  log_p = jax.nn.log_softmax(widen(logits))
  truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=log_p.dtype)
  return -jnp.mean(jnp.sum(truth * log_p, axis=-1))


def comb(labels: jax.Array, logits: jax.Array, reduction: str = "volume") -> jax.Array:
  """(soft Dice loss + soft Jaccard loss + cross-entropy) / 3: the paper's supervised loss."""
  dice, jaccard = overlap(labels, logits, reduction)
  return (dice + jaccard + cross_entropy(labels, logits)) / 3


def kd(
  student: jax.Array, teacher: jax.Array, temperature: float, reduction: str = "voxel_mean"
) -> jax.Array:
  """KL(softmax(teacher / T) || softmax(student / T)), no gradient to the teacher.

  Args:
    student, teacher: (B, D, H, W, K).
    temperature: T.
    reduction: "voxel_mean" is T^2 times the mean over voxels (Hinton et al., 2015, so that the
      gradient's size does not depend on T); "voxel_sum", the published code's, is T times the sum
      over voxels divided by the batch: 10^4 to 10^5 at 128^3.
  """
  log_p = jax.nn.log_softmax(widen(jax.lax.stop_gradient(teacher)) / temperature)
  log_q = jax.nn.log_softmax(widen(student) / temperature)
  divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)  # (B, D, H, W)
  if reduction == "voxel_sum":
    return temperature * jnp.sum(divergence) / student.shape[0]
  if reduction == "voxel_mean":
    return temperature**2 * jnp.mean(divergence)
  raise ValueError(f"reduction {reduction!r} is none of {KD_REDUCTIONS}")


def shrink_labels(labels: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Nearest-neighbour resize of (B, D, H, W) to (B, *shape): source index floor(i * in / out)."""
  for axis, size in enumerate(shape, start=1):
    source = (jnp.arange(size) * labels.shape[axis]) // size
    labels = jnp.take(labels, source, axis=axis)
  return labels
