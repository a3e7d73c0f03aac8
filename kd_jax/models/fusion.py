"""CDSFL: cooperative deep supervision fusion learning, one module a level.

Source: docs/method.md, "CDSFL".
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models.blocks import Build, Conv, Keys, leaky_relu
from kd_jax.models.conv_choice import ON_CPU, Convolutions
from kd_jax.models.gates import Gate


class Fusion(nnx.Module):
  """Fuses the teachers' decoder features of one resolution into one set of logits.

  Each teacher's feature passes its own gate and its own conv1 to the classes; they are summed and
  pass a last conv1 (docs/method.md, "CDSFL", eq. 6).

  Args:
    teachers: the names of the teachers whose features are fused.
    channels: of each feature.
    classes: of the logits.
    attention: "channel" or "cbam".
    activation: LeakyReLU before the last convolution, as the paper's figure draws it; the published
      code has none, and neither have we by default.
    pack: voxels of a feature that share a row, see lanes.
  """

  def __init__(
    self,
    teachers: Sequence[str],
    channels: int,
    classes: int,
    *,
    attention: str = "channel",
    activation: bool = False,
    dtype: Any = jnp.float32,
    rngs: Keys,
    convolutions: Convolutions = ON_CPU,
    pack: int = 1,
  ):
    build = Build("torch", dtype, rngs, convolutions).packed(pack)
    self.gates = nnx.Dict({name: Gate(attention, channels, build=build) for name in teachers})
    self.projections = nnx.Dict(
      {name: Conv(channels, classes, 1, build=build) for name in teachers}
    )
    self.head = Conv(classes, classes, 1, build=build)
    self.activation = activation

  def __call__(self, features: Mapping[str, jax.Array]) -> jax.Array:
    """features: one (B, D, H, W, channels) by teacher's name -> (B, D, H, W, classes)."""
    each = (self.projections[name](gate(features[name])) for name, gate in self.gates.items())
    fused = functools.reduce(operator.add, each)
    return self.head(leaky_relu(fused) if self.activation else fused)
