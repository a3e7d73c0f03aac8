"""What a training step takes of a device's memory, and which `train.remat` fits: told beforehand.

The estimate is the training state, what the forward pass keeps (traced, not compiled; under "norms"
and "stages" that is what convolutions give, in whatever form they are computed), and a margin for
the gradients on their way back and the losses. The margin was fitted to XLA's account of whole
steps, compiled for an H200 without one (jax 0.10.2, 28 November 2026; 128^3, filters 32..256,
bfloat16, channels last, one 3-D convolution each). GB, and in brackets the estimate:

  step                     none           norms          stages
  student_only, batch 1    3.27  (3.37)   2.29  (2.35)   1.90  (1.96)
  student_only, batch 2    6.37  (6.55)   4.13  (4.50)
  mtcm_kd, batch 1        11.65 (12.79)   7.03  (7.12)   5.47  (5.56)
  default, batch 1         8.20  (8.18)   4.43  (4.85)
  default, batch 2        16.12 (16.07)   8.85  (9.37)
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework, Params, compute_dtype
from kd_jax.models.remat import REMATS
from kd_jax.runtime import processes
from kd_jax.runtime.memory import memory_limit
from kd_jax.settings.run import Settings
from kd_jax.tasks.labels import CLASSES

AUTO = "auto"
SAVES_MORE = (
  "train.accumulate computes the batch in parts, a smaller data.batch or data.patch or more "
  "devices to a volume (train.spatial_shards) take less"
)
_SHARE = 0.95  # of the limit that is filled: a pool of memory is never used to its last byte


class Margin(NamedTuple):
  """What a step takes beside its state and what is kept, where it takes most.

  Attributes:
    maps: arrays of the first level's size.
    logits: arrays of the size of each network's logits, in float32.
  """

  maps: float
  logits: float


_MARGINS = {
  "none": Margin(1.5, 3.0),  # where the backward pass begins
  "norms": Margin(5.5, 3.5),  # within it
  "stages": Margin(5.5, 19.5),
}


class Choice(NamedTuple):
  """What to compile.

  Attributes:
    remats: of REMATS; the first one, or if its program does not fit, the next.
    limit: bytes of the smallest device; None where none tells.
    line: for people.
  """

  remats: tuple[str, ...]
  limit: int | None
  line: str


def choose(
  settings: Settings, convolutions: Convolutions, mesh: Mapping[str, int], state: float
) -> Choice:
  """What train.remat means on these devices; all processes decide alike.

  Args:
    settings: of the run.
    convolutions: how they are computed.
    mesh: its axes' sizes, "data" and "space".
    state: bytes of the training state, which every device has a copy of.
  """
  asked = settings.train.remat
  if asked != AUTO:
    return Choice((asked,), _smallest(memory_limit()), f"remat {asked}")
  if convolutions.platform == "cpu":  # XLA for CPU undoes recomputation
    return Choice(("none",), None, "remat none (auto, for CPU)")
  return first_that_fits(settings, convolutions, mesh, state, _smallest(memory_limit()))


def first_that_fits(
  settings: Settings,
  convolutions: Convolutions,
  mesh: Mapping[str, int],
  state: float,
  limit: int | None,
) -> Choice:
  """Of REMATS, by the estimate; the last one if none fits. See `choose`."""
  if limit is None:
    return Choice(REMATS, None, "remat none (auto: the device does not tell its memory)")
  kept = functools.cache(functools.partial(kept_bytes, settings, convolutions=convolutions))
  itemsize = compute_dtype(settings.model, convolutions.platform).itemsize
  for remat in REMATS:
    needed = step_bytes(settings, itemsize, mesh, state, remat, kept)
    if fits := needed <= _SHARE * limit:
      break
  line = f"remat {remat} (auto: about {needed / 1e9:.1f} of {limit / 1e9:.1f} GB)"
  if not fits:
    line += f"; that may be too much: {SAVES_MORE}"
  return Choice(REMATS[REMATS.index(remat) :], limit, line)


def step_bytes(
  settings: Settings,
  itemsize: int,
  mesh: Mapping[str, int],
  state: float,
  remat: str,
  kept: Callable[[str], int],
) -> float:
  """About what a step takes of each device, see the head of this file.

  Args:
    itemsize: of a number that the networks compute with.
    kept: remat -> `kept_bytes`.
  """
  model, train, data = settings.model, settings.train, settings.data
  voxels = data.batch * math.prod(data.patch)
  level = voxels / train.accumulate * max(model.filters[0], model.teacher_filters[0]) * itemsize
  logits = voxels * len(CLASSES) * 4 * (1 + model.cohorts * len(model.teachers))
  margin = _MARGINS[remat]
  activations = kept(remat) + margin.maps * level + margin.logits * logits
  states = state * (2 if train.skip_nonfinite else 1)
  return states + activations / (mesh["data"] * mesh["space"])


def kept_bytes(settings: Settings, remat: str, convolutions: Convolutions) -> int:
  """What the networks' forward pass keeps for their backward pass, as JAX traces it.

  Of the whole batch, or of a part of it where train.accumulate has parts; on all devices together.
  """
  framework = Framework(settings.model, remat, convolutions)
  samples = settings.data.batch // settings.train.accumulate
  images = jax.ShapeDtypeStruct((samples, 4, *settings.data.patch), jnp.float32)

  def backward(params: Params, images: jax.Array):
    return jax.vjp(lambda params: framework(params, images), params)[1]

  params = jax.eval_shape(framework.init, jax.random.key(0))
  residuals = jax.tree.leaves(jax.eval_shape(backward, params, images))
  return sum(x.size * x.dtype.itemsize for x in residuals)


def _smallest(limit: int | None) -> int | None:
  limits = processes.gather(limit)
  return None if None in limits else min(limits)
