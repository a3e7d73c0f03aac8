"""Whole volumes through one network: windows that overlap, weighted and summed on the device.

All volumes of a run lie on a canvas of one size, and the number of windows is data, so that one
program serves every case.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kd_jax.data.labels import CLASSES
from kd_jax.models.resunet import DOWNSAMPLING

MODES = ("sliding", "whole")
Network = Callable[
  [dict, jax.Array], jax.Array
]  # params, (B, D, H, W, M) -> (B, D, H, W, K) logits
Triple = tuple[int, int, int]

_SIGMA = 1 / 8  # of the window's side, as in nnU-Net


@dataclass(frozen=True)
class PredictSettings:
  """How whole volumes are predicted.

  Attributes:
    mode: "sliding", windows of the training patch's size; or "whole", one window a volume.
    overlap: the share of a window's side that the next one covers again, at least.
  """

  mode: str = "sliding"
  overlap: float = 0.5


class Plan(NamedTuple):
  """The shapes of one run's predictions: canvas (D, H, W), window (d, h, w)."""

  canvas: Triple
  window: Triple
  overlap: float


def plan(shapes: Sequence[Triple], patch: Triple, settings: PredictSettings) -> Plan:
  """A canvas that holds every one of the volumes, and the window that passes over it."""
  largest = [max(shape[axis] for shape in shapes) for axis in range(3)]
  if settings.mode == "whole":
    window = tuple(-(-n // DOWNSAMPLING) * DOWNSAMPLING for n in largest)
    return Plan(window, window, 0.0)
  # A volume smaller than the patch needs no more than itself: less work, the same result.
  window = tuple(
    min(p, -(-n // DOWNSAMPLING) * DOWNSAMPLING) for n, p in zip(largest, patch, strict=True)
  )
  canvas = tuple(max(n, w) for n, w in zip(largest, window, strict=True))
  return Plan(canvas, window, settings.overlap)


def window_starts(shape: Triple, window: Triple, overlap: float) -> np.ndarray:
  """(N, 3) int32: where windows begin, evenly spread, so that they cover shape without a gap."""
  axes = []
  for n, w in zip(shape, window, strict=True):
    last = max(n - w, 0)
    steps = int(np.ceil(last / max(1, int(w * (1 - overlap)))))
    axes.append(np.rint(np.linspace(0, last, steps + 1)).astype(int))
  return np.asarray(list(itertools.product(*axes)), np.int32)


def make_predictor(network: Network, plan: Plan) -> Callable[[dict, np.ndarray], jax.Array]:
  """A function (params, volume (M, D, H, W)) -> (K, D, H, W) class probabilities, float32.

  Args:
    network: logits of a batch of windows.
    plan: as `plan` has it for all volumes that will come.
  """
  weight = _gaussian(plan.window)
  # A number of windows no volume exceeds: the loop runs over those that are used.
  capacity = len(window_starts(plan.canvas, plan.window, plan.overlap))

  @jax.jit
  def predict(params: dict, canvas: jax.Array, starts: jax.Array, count: jax.Array) -> jax.Array:
    def one_window(i, total):
      origin = starts[i]
      x = lax.dynamic_slice(canvas, (*origin, 0), (*plan.window, canvas.shape[-1]))
      logits = network(params, x[None])[0].astype(jnp.float32)  # (d, h, w, K)
      part = jax.nn.softmax(logits) * weight[..., None]
      old = lax.dynamic_slice(total, (*origin, 0), part.shape)
      return lax.dynamic_update_slice(total, old + part, (*origin, 0))

    total = jnp.zeros((*plan.canvas, len(CLASSES)), jnp.float32)
    total = lax.fori_loop(0, count, one_window, total)
    mass = jnp.sum(total, axis=-1, keepdims=True)  # probabilities sum to 1: this is the weight
    return jnp.moveaxis(total / jnp.maximum(mass, 1e-12), -1, 0)  # (K, D, H, W)

  def predict_volume(params: dict, volume: np.ndarray) -> jax.Array:
    shape = volume.shape[1:]
    starts = window_starts(shape, plan.window, plan.overlap)
    padded = np.zeros((capacity, 3), np.int32)
    padded[: len(starts)] = starts
    canvas = np.zeros((*plan.canvas, len(volume)), np.float32)
    canvas[tuple(map(slice, shape))] = np.moveaxis(volume, 0, -1)
    probabilities = predict(params, canvas, padded, np.int32(len(starts)))
    return probabilities[(slice(None), *map(slice, shape))]

  return predict_volume


def _gaussian(window: Triple) -> np.ndarray:
  """(d, h, w) float32: high in the middle of a window, where a network sees most around a voxel."""
  weight = np.ones((1, 1, 1))
  for axis, n in enumerate(window):
    offset = np.arange(n) - (n - 1) / 2
    line = np.exp(-0.5 * (offset / (n * _SIGMA)) ** 2)
    weight = weight * np.expand_dims(line, tuple(a for a in range(3) if a != axis))
  return np.maximum(weight, 1e-3).astype(np.float32)
