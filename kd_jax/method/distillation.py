"""What is distilled where: voxels' weights, confidence by voxel, features beside responses.

The method distils responses (losses.kd) and fused features. Here are the choices around it, and
the terms of two well-known alternatives, so that they can be compared in one harness:

- KD-Net: M. Hu et al., "Knowledge distillation from multi-modal to mono-modal segmentation
  networks", MICCAI 2020: one teacher that sees all sequences hands on soft labels and its
  bottleneck.
- ProtoKD: S. Wang et al., "Prototype knowledge distillation for medical segmentation with missing
  modality", ICASSP 2023: it hands on how similar each voxel's feature is to each class's prototype.

Both are re-implemented from their ideas on our networks: they are no replicas of their code.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.method.losses import widen
from kd_jax.tasks.labels import CLASSES

_EPSILON = 1e-7


def voxel_weights(
  where: str, labels: jax.Array, brain: jax.Array, teachers: Sequence[jax.Array]
) -> jax.Array | float:
  """How much each voxel counts in a distillation term.

  Args:
    where: "all" voxels alike; "brain", those in the brain; "agreement", the more the teachers say
      the same (1 - their Jensen-Shannon divergence over its largest value); "balanced", so that
      each class of the truth has the same weight in all, however few its voxels are.
    labels: (B, D, H, W).
    brain: (B, D, H, W) boolean.
    teachers: their logits, (B, D, H, W, K) each.

  Returns:
    (B, D, H, W), or 1.0 for "all".
  """
  if where == "all":
    return 1.0
  if where == "brain":
    return brain.astype(jnp.float32)
  if where == "agreement":
    if len(teachers) < 2:
      return jnp.ones(labels.shape, jnp.float32)
    p = jnp.stack([jax.nn.softmax(widen(lax.stop_gradient(t))) for t in teachers])
    divergence = _entropy(jnp.mean(p, 0)) - jnp.mean(_entropy(p), 0)
    return 1 - divergence / jnp.log(min(len(teachers), p.shape[-1]))
  if where == "balanced":
    truth = jax.nn.one_hot(labels, len(CLASSES), dtype=jnp.float32)
    counts = jnp.sum(truth, axis=(0, 1, 2, 3))  # (K,)
    weight = jnp.sum(truth / jnp.maximum(counts, 1), axis=-1)
    return weight / jnp.mean(weight)  # a sum over voxels stays as large as with "all"
  raise ValueError(f"where {where!r} is none of all, brain, agreement, balanced")


def certainty_shares(teachers: Mapping[str, jax.Array], total: float) -> dict[str, jax.Array]:
  """Teacher weights at each voxel, by how sure each teacher is there: total in all.

  A teacher's certainty is 1 - entropy / log K of its softmax.

  Args:
    teachers: name -> logits (B, D, H, W, K).

  Returns:
    name -> (B, D, H, W), without gradient.
  """
  sure = {}
  for name, logits in teachers.items():
    p = jax.nn.softmax(widen(lax.stop_gradient(logits)))
    sure[name] = 1 - _entropy(p) / jnp.log(p.shape[-1]) + _EPSILON
  mass = sum(sure.values())
  return {name: total * s / mass for name, s in sure.items()}


def _entropy(p: jax.Array) -> jax.Array:
  """(..., K) -> (...), nats."""
  return -jnp.sum(p * jnp.log(p + _EPSILON), axis=-1)


def enlarge(x: jax.Array) -> jax.Array:
  """(B, D, H, W, K) -> twice the size along D, H and W, trilinear, half-voxel centres."""
  for axis in (1, 2, 3):
    n = x.shape[axis]
    before = lax.slice_in_dim(x, 0, n - 1, axis=axis)
    after = lax.slice_in_dim(x, 1, n, axis=axis)
    first, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, n - 1))
    even = 0.75 * x + 0.25 * jnp.concatenate([first, before], axis)
    odd = 0.75 * x + 0.25 * jnp.concatenate([after, last], axis)
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    x = jnp.stack([even, odd], axis + 1).reshape(shape)  # (..., n, 2, ...) -> (..., 2n, ...)
  return x


def bottleneck_kd(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """KL of the channels' softmax at each voxel of the bottleneck, the mean over voxels (KD-Net).

  Args:
    student, teacher: (B, D, H, W, C), as many channels; no gradient to the teacher.
  """
  log_p = jax.nn.log_softmax(widen(lax.stop_gradient(teacher)))
  log_q = jax.nn.log_softmax(widen(student))
  return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


def prototype_kd(student: jax.Array, teacher: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean squared difference of the voxels' similarities to the classes' prototypes (ProtoKD).

  A class's prototype is its voxels' mean feature, each network's own; similarity is the cosine.
  Classes that are not there are left out.

  Args:
    student, teacher: (B, D, H, W, C) features; no gradient to the teacher.
    labels: (B, D, H, W), of the features' size.
  """
  truth = jax.nn.one_hot(labels, len(CLASSES), dtype=jnp.float32)
  there = jnp.sum(truth, axis=(0, 1, 2, 3)) > 0  # (K,)

  def similarities(features: jax.Array) -> jax.Array:  # -> (B, D, H, W, K)
    features = widen(features)
    prototypes = jnp.einsum("bdhwk,bdhwc->kc", truth, features)  # a cosine needs no division
    return jnp.einsum("bdhwc,kc->bdhwk", _unit(features), _unit(prototypes))

  gap = similarities(student) - similarities(lax.stop_gradient(teacher))
  mean = jnp.mean(gap**2, axis=(0, 1, 2, 3))  # (K,)
  return jnp.sum(jnp.where(there, mean, 0)) / jnp.maximum(jnp.sum(there), 1)


def _unit(x: jax.Array) -> jax.Array:
  return x * lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + _EPSILON)
