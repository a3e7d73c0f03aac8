"""The attention of decoders and fusion: gates by channel and by voxel.

Arrays are channels-last, (B, D, H, W, C).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models import lanes
from kd_jax.models.blocks import Build, Conv, conv_norm, group_norm, leaky_relu
from kd_jax.models.gated import Parts, pool


class ChannelGate(nnx.Module):
  """Scales the channels by sigmoid(MLP(average pool) + MLP(max pool)), one MLP for both.

  Woo et al., CBAM, ECCV 2018, eq. 2, with LeakyReLU in the MLP (docs/method.md, "Channel gate").
  """

  def __init__(self, channels: int, build: Build):
    hidden = max(1, channels // 16)
    self.squeeze = Conv(channels, hidden, 1, build=build.packed(1))
    self.excite = Conv(hidden, channels, 1, build=build.packed(1))
    self.pack = build.packs[1]

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, C) -> the same."""
    factors = lanes.spread(self.factors((x,), jnp.zeros(x.shape[-1])), self.pack)
    return lanes.unpack(lanes.pack(x, self.pack) * factors, self.pack)

  def factors(self, parts: Parts, shift: jax.Array) -> jax.Array:
    """The gate alone, (B, 1, 1, 1, C), of what is side by side in `parts`, + shift (C,)."""
    mean, peak = pool(parts, shift, self.pack)
    return jax.nn.sigmoid(self._mlp(mean) + self._mlp(peak))

  def _mlp(self, pooled: jax.Array) -> jax.Array:
    return self.excite(leaky_relu(self.squeeze(pooled)))


class SpatialGate(nnx.Module):
  """Scales the voxels by sigmoid(LReLU(GN(conv7([max, mean] over channels)))).

  Woo et al., CBAM, ECCV 2018, eq. 3, with the normalisation of the published code
  (docs/method.md, "Spatial gate").
  """

  def __init__(self, build: Build):
    self.conv = Conv(2, 1, 7, build=build)
    self.norm = group_norm(1, groups=1, **build.of_norm)

  def __call__(self, x: jax.Array) -> jax.Array:
    pooled = jnp.concatenate(
      [jnp.max(x, axis=-1, keepdims=True), jnp.mean(x, axis=-1, keepdims=True)], axis=-1
    )  # (B, D, H, W, 2)
    return x * jax.nn.sigmoid(conv_norm(self.conv, self.norm, pooled, activate=True))


class Gate(nnx.Module):
  """The attention of decoders and fusion: a channel gate, with CBAM a spatial one too."""

  def __init__(self, attention: str, channels: int, build: Build):
    self.channel = ChannelGate(channels, build=build)
    self.spatial = SpatialGate(build=build) if attention == "cbam" else None

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.channel(x)
    return x if self.spatial is None else self.spatial(x)
