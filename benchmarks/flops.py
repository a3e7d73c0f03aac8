"""The floating-point operations of the networks, counted from the shapes of their kernels."""

import dataclasses
import math

import jax

from kd_jax.models.framework import Framework
from kd_jax.settings.model import ModelSettings

_HALVINGS = {  # of the resolution that a kernel's outputs have
  **{"stem": 0, "down1": 1, "down2": 2, "bridge": 3, "up2": 2, "up1": 1, "up0": 0, "head": 0},
  **{"level1": 1, "level2": 2},
}


def forward_flops(settings: ModelSettings, patch: tuple[int, int, int]) -> int:
  """Two for each multiply-add of all networks' convolutions, for one sample forward.

  Zeros that pad count as numbers; norms, activations and losses (a few percent) do not count.
  """
  params = jax.eval_shape(Framework(settings).init, jax.random.key(0))
  total = 0
  for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = [key.key for key in keys]
    if path[-1] == "kernel":
      total += 2 * math.prod(leaf.shape) * _positions(path, patch)
  return total


def step_flops(settings: ModelSettings, patch: tuple[int, int, int]) -> int:
  """As `forward_flops`, for one sample in a training step.

  Backward costs twice as much as forward: one such product for the inputs' gradients, one for the
  kernels'. A second cohort of teachers goes forward alone.
  """
  once = dataclasses.replace(settings, cohorts=1)
  forward = forward_flops(once, patch)
  student = forward_flops(dataclasses.replace(once, teachers={}), patch)
  return 3 * forward + (settings.cohorts - 1) * (forward - student)


def _positions(path: list[str], patch: tuple[int, int, int]) -> int:
  """At how many positions a kernel multiplies with all of its numbers."""
  if "channel" in path:
    return 2  # a gate's MLP sees the mean and the maximum
  halvings = next(_HALVINGS[name] for name in path if name in _HALVINGS)
  if "upsample" in path:
    halvings += 1  # each input voxel becomes a cube of its own
  return math.prod(side >> halvings for side in patch)
