"""The smallest network that gives what any network gives: for tests of what stands above networks.

It compiles in a tenth of the time of a real one. Two convolutions, and averages for the levels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models.blocks import Build, Conv, Init, Keys, instance_norm, leaky_relu
from kd_jax.models.conv_choice import ON_CPU, Convolutions
from kd_jax.models.interface import BOTTLENECK, NetworkKind, Output, level, unet_features

NAME = "tiny"


def _halved(x: jax.Array) -> jax.Array:
  """(B, D, H, W, C) -> (B, D/2, H/2, W/2, C): means of 2x2x2 voxels."""
  b, d, h, w, c = x.shape
  return x.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4, 6))


class Tiny(nnx.Module):
  """conv3, instance norm, LReLU, conv3; each level is an average of the one above, and a conv1."""

  def __init__(
    self,
    modalities: int,
    classes: int,
    filters: Sequence[int],
    *,
    side_heads: int = 0,
    attention: str = "channel",
    init: Init = "torch",
    dtype: Any = jnp.float32,
    rngs: Keys,
    convolutions: Convolutions = ON_CPU,
  ):
    build = Build(init, dtype, rngs, convolutions)
    self.conv_in = Conv(modalities, filters[0], 3, build=build)
    self.norm = instance_norm(filters[0], dtype=dtype, rngs=rngs)
    self.conv_out = Conv(filters[0], filters[0], 3, build=build)
    features = unet_features(filters)
    channels = [filters[0], *(feature.channels for feature in features.values())]
    pairs = zip(features, channels, channels[1:], strict=False)
    self.levels = nnx.Dict({name: Conv(a, b, 1, build=build) for name, a, b in pairs})
    self.head = Conv(filters[0], classes, 1, build=build)
    names = [level(n) for n in range(1, side_heads + 1)]
    self.side_heads = nnx.Dict(
      {name: Conv(features[name].channels, classes, 1, build=build) for name in names}
    )

  def __call__(self, x: jax.Array, remat: str = "none") -> Output:
    """x: (B, D, H, W, modalities)."""
    x = full = self.conv_out(leaky_relu(self.norm(self.conv_in(x))))
    features = {}
    for name in [level(n) for n in range(1, len(self.levels))] + [BOTTLENECK]:
      x = features[name] = leaky_relu(self.levels[name](_halved(x)))
    sides = {name: head(features[name]) for name, head in self.side_heads.items()}
    return Output(self.head(full), sides, features)


KIND = NetworkKind(build=Tiny, bytes_per_channel=1)
