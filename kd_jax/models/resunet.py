"""The 3-D residual U-Net with gated skips that teachers and student share.

Source: docs/method.md, "Networks".
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models import lanes
from kd_jax.models import remat as remat_lib
from kd_jax.models.blocks import Build, Conv, Init, Keys, ResidualBlock, Stem, Upsample
from kd_jax.models.conv_choice import ON_CPU, Convolutions
from kd_jax.models.gates import Gate
from kd_jax.models.interface import Output


class DecoderStage(nnx.Module):
  """Upsample, concatenate the encoder's feature, gate, residual block.

  Source: docs/method.md, "Decoder stage".
  """

  def __init__(self, inputs: int, skip: int, *, attention: str, build: Build):
    self.upsample = Upsample(inputs, **build.of_norm)
    self.gate = Gate(attention, inputs + skip, build=build)
    self.block = ResidualBlock(inputs + skip, skip, 1, build=build)
    # XLA for CPU computes what two readers share twice, which costs it more than the passes; XLA
    # for TPU rearranges what is not packed (compiled_for.py --device=v5e).
    helps = build.convolutions.platform == "gpu" or build.packs != (1, 1)
    self.in_one_pass = attention == "channel" and helps

  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) and (B, 2D, 2H, 2W, skip) -> (B, 2D, 2H, 2W, skip)."""
    if not self.in_one_pass:
      return self.block(self.gate(jnp.concatenate([self.upsample(x), skip], axis=-1)))
    parts = self.upsample.unbiased(x), skip
    shift = jnp.pad(self.upsample.bias[...], (0, skip.shape[-1]))
    return self.block.gated(parts, shift, self.gate.channel.factors(parts, shift))


class ResUNet(nnx.Module):
  """Three strided residual blocks down, three gated stages up, conv1 heads.

  Args:
    modalities: input channels.
    classes: output channels.
    filters: channels at full, 1/2, 1/4 and 1/8 resolution; the paper's are (32, 64, 128, 256).
    side_heads: deep-supervision heads, 0 to 2.
    attention: "channel" or "cbam".
    init: "torch" or "xavier" (see blocks).
    dtype: what is computed in.
    rngs: keys for the parameters.
    convolutions: how they are computed, see conv_choice.
  """

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
    f0, f1, f2, f3 = filters
    build = Build(init, dtype, rngs, convolutions)
    p0, p1, p2, p3 = lanes.packs(filters, convolutions.platform)
    self.stem = Stem(modalities, f0, build=build.packed(p0))
    self.down1 = ResidualBlock(f0, f1, 2, build=build.packed(p0, p1))
    self.down2 = ResidualBlock(f1, f2, 2, build=build.packed(p1, p2))
    self.bridge = ResidualBlock(f2, f3, 2, build=build.packed(p2, p3))
    self.up2 = DecoderStage(f3, f2, attention=attention, build=build.packed(p2))
    self.up1 = DecoderStage(f2, f1, attention=attention, build=build.packed(p1))
    self.up0 = DecoderStage(f1, f0, attention=attention, build=build.packed(p0))
    self.head = Conv(f0, classes, 1, build=build.packed(p0))
    sides = {"level1": (f1, p1), "level2": (f2, p2)}
    self.side_heads = nnx.Dict(
      {
        level: Conv(channels, classes, 1, build=build.packed(pack))
        for level, (channels, pack) in list(sides.items())[:side_heads]
      }
    )

  def __call__(self, x: jax.Array, remat: str = "none") -> Output:
    """x: (B, D, H, W, modalities), sides multiples of 8; remat: see remat.py."""
    run = functools.partial(remat_lib.run, remat=remat)
    x1 = run(self.stem, x)
    x2 = run(self.down1, x1)
    x3 = run(self.down2, x2)
    x4 = run(self.bridge, x3)
    d2 = run(self.up2, x4, x3)  # 1/4 resolution, f2 channels
    d1 = run(self.up1, d2, x2)  # 1/2 resolution, f1
    d0 = run(self.up0, d1, x1)  # full resolution, f0
    features = {"level1": d1, "level2": d2, "bottleneck": x4}
    side_logits = {level: head(features[level]) for level, head in self.side_heads.items()}
    return Output(self.head(d0), side_logits, features)
