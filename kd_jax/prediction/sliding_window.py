"""Whole volumes through one or more networks: windows that overlap, weighted and summed.

A volume is padded to one of few shapes (buckets), and the number of windows is data, so that one
program serves (nearly) every case; what it says of a case does not depend on the other cases.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kd_jax.data.grid import PAPER_SHAPE, Triple
from kd_jax.runtime.compiler_options import Options
from kd_jax.settings.inference import InferenceSettings
from kd_jax.tasks.labels import CLASSES

Network = Callable[
  [dict, jax.Array], jax.Array
]  # params, (B, D, H, W, M) -> (B, D, H, W, K) logits
Member = tuple[Network, dict]

# Boxes for skull-stripped adult brains: one that holds most (all seven of BraTS 2018 to 2023 that
# it was settled by, 122-142 x 154-171 x 128-146 voxels), and one that holds nearly every other.
BRAIN_BOXES_MM = ((144.0, 176.0, 152.0), (160.0, 192.0, 160.0))
SIGMA = 1 / 8  # of the weight, in the window's sides, as in nnU-Net
LEAST_WEIGHT = 1e-3
_FLIPS = 8  # mirror images, of three axes
_COARSE = 32  # voxels: sides beyond the boxes are multiples of this, so that they are few


class Plan(NamedTuple):
  """Shapes of a program: padded volume (D, H, W), window (d, h, w); the windows' overlap."""

  padded: Triple
  window: Triple
  overlap: float


@dataclass(frozen=True)
class Shapes:
  """What the shapes of windows and padded volumes are chosen by.

  Attributes:
    patch: voxels a side that the networks were trained on.
    buckets: shapes that hold a usual brain, and a large one.
    multiple: what each side of a window must be a multiple of, for the networks.
    voxel_bytes: device memory that a network takes, a voxel of its window.
    memory: bytes of device memory; None where it is not known.
  """

  patch: Triple
  buckets: tuple[Triple, ...]
  multiple: int
  voxel_bytes: float = 0.0
  memory: float | None = None


def shapes(
  patch: Triple,
  spacing: float,
  grid: str,
  voxel_bytes: float = 0.0,
  memory: float | None = None,
  *,
  multiple: int,
) -> Shapes:
  """For volumes on a grid ("brain" at `spacing` mm, or "paper"); see Shapes for the rest."""
  buckets = tuple(_triple(_up(round(mm / spacing), multiple) for mm in b) for b in BRAIN_BOXES_MM)
  boxes = (PAPER_SHAPE,) if grid == "paper" else buckets
  return Shapes(patch, boxes, multiple, voxel_bytes, memory)


def plan(shape: Triple, shapes: Shapes, settings: InferenceSettings) -> Plan:
  """The window for a volume of this shape, and a padded shape that holds it and most others."""
  *others, largest = shapes.buckets
  bucket = next((h for h in others if all(map(operator.le, shape, h))), largest)
  multiple, coarse = shapes.multiple, math.lcm(shapes.multiple, _COARSE)
  whole = _triple(
    _up(n, multiple) if n <= h // 2 else h if n <= h else _up(n, coarse)
    for n, h in zip(shape, bucket, strict=True)
  )
  fits = shapes.memory is not None and np.prod(whole) * shapes.voxel_bytes <= shapes.memory
  if settings.window == "whole" or (settings.window == "auto" and fits):
    return Plan(whole, whole, 0.0)
  # Padding costs memory but no work, so that few shapes are enough.
  padded = _triple(
    max(patch, h if n <= h else _up(n, 64))
    for n, patch, h in zip(shape, shapes.patch, largest, strict=True)
  )
  return Plan(padded, shapes.patch, settings.overlap)


def window_starts(shape: Triple, window: Triple, overlap: float) -> np.ndarray:
  """(N, 3) int32: where windows begin, evenly spread, so that they cover shape without a gap."""
  axes = []
  for n, w in zip(shape, window, strict=True):
    last = max(n - w, 0)
    steps = int(np.ceil(last / max(1, int(w * (1 - overlap)))))
    axes.append(np.rint(np.linspace(0, last, steps + 1)).astype(int))
  return np.asarray(list(itertools.product(*axes)), np.int32)


def predict(
  members: Sequence[Member],
  volume: np.ndarray,
  shapes: Shapes,
  settings: InferenceSettings,
  options: Options = (),
) -> np.ndarray:
  """Class probabilities of a volume, the mean over all members.

  Args:
    members: (network, its parameters); members of one architecture should share the network, so
      that they share one program too.
    volume: (M, D, H, W), the members' modalities on their grid.
    options: for the compiler.

  Returns:
    (K, D, H, W) float32.
  """
  placed = _place(volume, shapes, settings)
  program, total = compiled_with(options), 0.0
  for network, params in members:
    total += program(params, *placed.arrays, network, placed.plan, settings.mirror)
  return np.asarray(total)[(slice(None), *placed.box)] / len(members)


def opinions(
  members: Sequence[Member],
  volume: np.ndarray,
  shapes: Shapes,
  settings: InferenceSettings,
  options: Options = (),
) -> Iterator[np.ndarray]:
  """What `predict` is the mean of: each member's probabilities of each mirror image, turned back.

  Yields:
    (K, D, H, W) float32, one after the other; of the volume as it is alone if nothing is mirrored.
  """
  placed = _place(volume, shapes, settings)
  program = compiled_with(options)
  images = [np.int32(i) for i in range(_FLIPS)] if settings.mirror else [None]
  for network, params in members:
    for image in images:
      p = program(params, *placed.arrays, network, placed.plan, False, image)
      yield np.asarray(p)[(slice(None), *placed.box)]


class _Placed(NamedTuple):
  """A volume as the program takes it.

  Attributes:
    plan: its shapes.
    arrays: padded (D, H, W, M) on the device, starts (N, 3), how many of the starts are in use.
    box: where the volume lies in padded.
  """

  plan: Plan
  arrays: tuple[jax.Array, np.ndarray, np.int32]
  box: tuple[slice, ...]


def _place(volume: np.ndarray, shapes: Shapes, settings: InferenceSettings) -> _Placed:
  shape = volume.shape[1:]
  chosen = plan(shape, shapes, settings)
  starts = window_starts(shape, chosen.window, chosen.overlap)
  # No volume of this padded shape has more windows: the loop runs over those in use.
  capacity = len(window_starts(chosen.padded, chosen.window, chosen.overlap))
  all_starts = np.zeros((capacity, 3), np.int32)
  all_starts[: len(starts)] = starts
  # Smaller than a window, a volume lies in its middle, as in training.
  offset = [max(w - n, 0) // 2 for n, w in zip(shape, chosen.window, strict=True)]
  box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
  padded = np.zeros((*chosen.padded, len(volume)), np.float32)
  padded[box] = np.moveaxis(volume, 0, -1)
  return _Placed(chosen, (jnp.asarray(padded), all_starts, np.int32(len(starts))), box)


@functools.cache
def compiled_with(options: Options) -> jax.stages.Wrapped:
  """The program of `predict`; as long as options stay the same, so do its compiled forms."""
  return jax.jit(
    _predict, static_argnames=("network", "plan", "mirror"), compiler_options=dict(options)
  )


def _predict(
  params: dict,
  padded: jax.Array,
  starts: jax.Array,
  count: jax.Array,
  network: Network,
  plan: Plan,
  mirror: bool,
  image: jax.Array | None = None,
) -> jax.Array:
  """padded (*plan.padded, M), the first count of starts (N, 3) -> (K, *plan.padded) float32.

  image: the mirror image whose probabilities are asked for, instead of the mean over all.
  """
  weight = _gaussian(plan.window)[..., None]

  def probabilities(x: jax.Array) -> jax.Array:  # (d, h, w, M) -> (d, h, w, K)
    return jax.nn.softmax(network(params, x[None])[0].astype(jnp.float32))

  def of_image(x: jax.Array) -> jax.Array:
    return probabilities(x) if image is None else _flip(probabilities(_flip(x, image)), image)

  def one_window(i, total):
    origin = starts[i]
    x = lax.dynamic_slice(padded, (*origin, 0), (*plan.window, padded.shape[-1]))
    part = weight * (_mirrored(probabilities, x) if mirror else of_image(x))
    old = lax.dynamic_slice(total, (*origin, 0), part.shape)
    return lax.dynamic_update_slice(total, old + part, (*origin, 0))

  total = jnp.zeros((*plan.padded, len(CLASSES)), jnp.float32)
  total = lax.fori_loop(0, count, one_window, total)
  mass = jnp.sum(total, axis=-1, keepdims=True)  # probabilities sum to 1: this is the weight
  return jnp.moveaxis(total / jnp.maximum(mass, 1e-12), -1, 0)


def _mirrored(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """The mean of f over all mirror images of (d, h, w, M), each turned back; f is compiled once."""

  def add(i: jax.Array, total: jax.Array) -> jax.Array:
    return total + _flip(f(_flip(x, i)), i)

  zeros = jnp.zeros(jax.eval_shape(f, x).shape, jnp.float32)
  return lax.fori_loop(0, _FLIPS, add, zeros) / _FLIPS


def _flip(x: jax.Array, image: jax.Array) -> jax.Array:
  """(d, h, w, C) to a mirror image, and back: each bit of image (0 to 7) is an axis."""
  for axis in range(3):
    x = jnp.where((image >> axis) & 1, jnp.flip(x, axis), x)
  return x


def _triple(sides: Iterable[int]) -> Triple:
  d, h, w = sides
  return d, h, w


def _up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _gaussian(window: Triple) -> np.ndarray:
  """(d, h, w) float32: high in the middle of a window, where a network sees most around a voxel."""
  weight = np.ones((1, 1, 1))
  for axis, n in enumerate(window):
    offset = np.arange(n) - (n - 1) / 2
    line = np.exp(-0.5 * (offset / (n * SIGMA)) ** 2)
    weight = weight * np.expand_dims(line, tuple(a for a in range(3) if a != axis))
  return np.maximum(weight, LEAST_WEIGHT).astype(np.float32)
