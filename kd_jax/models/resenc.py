"""A U-Net with a deep residual encoder and a light decoder, in the style of nnU-Net's ResEnc.

Isensee et al., "nnU-Net Revisited", MICCAI 2024: the architecture of their ResEnc presets, which is
ResidualEncoderUNet of dynamic-network-architectures. The same layers, parameter for parameter, in
our own code; 3x3x3 kernels and stride 2 along every axis at every stage.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models import lanes
from kd_jax.models import remat as remat_lib
from kd_jax.models.blocks import (
  Build,
  Conv,
  Init,
  Keys,
  Upsample,
  conv_norm,
  instance_norm,
  leaky_relu,
)
from kd_jax.models.conv_choice import ON_CPU, Convolutions
from kd_jax.models.gated import Parts
from kd_jax.models.interface import BOTTLENECK, Output, level

BLOCKS = (1, 3, 4, 6, 6, 6, 6)  # residual blocks by stage


class ConvNorm(nnx.Module):
  """A convolution and instance norm with scale and bias; with LeakyReLU if asked for."""

  def __init__(
    self, inputs: int, outputs: int, size: int, stride: int = 1, *, bias: bool = True, build: Build
  ):
    self.conv = Conv(inputs, outputs, size, stride, bias=bias, build=build)
    self.norm = instance_norm(outputs, affine=True, **build.of_norm)

  def __call__(self, x: jax.Array | Parts, *, activate: bool = False) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, D/stride, H/stride, W/stride, outputs)."""
    return conv_norm(self.conv, self.norm, x, activate=activate)


class ResidualBlockD(nnx.Module):
  """conv3, norm, LReLU, conv3, norm; plus the skip; LReLU. The stride is on the first.

  The skip averages 2x2x2 voxels at stride 2, and has a conv1 and norm where the channels change
  (He et al., "Bag of tricks", CVPR 2019, ResNet-D).
  """

  def __init__(self, inputs: int, outputs: int, stride: int, build: Build):
    self.conv_in = ConvNorm(inputs, outputs, 3, stride, build=build)
    after = build.packed(build.packs[1])
    self.conv_out = ConvNorm(outputs, outputs, 3, build=after)
    project = inputs != outputs
    self.skip = ConvNorm(inputs, outputs, 1, bias=False, build=after) if project else None
    self.stride, self.pack = stride, build.packs[1]

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, D/stride, H/stride, W/stride, outputs)."""
    main = self.conv_out(self.conv_in(x, activate=True))
    skip = x if self.stride == 1 else mean_pool2(x)
    skip = skip if self.skip is None else self.skip(skip)
    main, skip = (lanes.pack(x.astype(main.dtype), self.pack) for x in (main, skip))
    return lanes.unpack(leaky_relu(main + skip), self.pack)


def mean_pool2(x: jax.Array) -> jax.Array:
  """(B, D, H, W, C), even sides -> (B, D/2, H/2, W/2, C), the mean of each 2x2x2 cube."""
  batch, depth, height, width, channels = x.shape
  cubes = x.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2, channels)
  return jnp.mean(cubes, axis=(2, 4, 6))


class EncoderStage(nnx.Module):
  """Residual blocks at one resolution, the first of them with the stride."""

  def __init__(self, inputs: int, outputs: int, stride: int, blocks: int, build: Build):
    first = ResidualBlockD(inputs, outputs, stride, build=build)
    after = build.packed(build.packs[1])
    others = (ResidualBlockD(outputs, outputs, 1, build=after) for _ in range(1, blocks))
    self.blocks = nnx.Dict({f"block{n}": block for n, block in enumerate((first, *others))})

  def __call__(self, x: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) -> (B, D/stride, H/stride, W/stride, outputs)."""
    for block in self.blocks.values():
      x = block(x)
    return x


class DecoderStage(nnx.Module):
  """Upsample to the encoder feature's channels, concatenate it, conv3, norm, LReLU."""

  def __init__(self, inputs: int, skip: int, build: Build):
    self.upsample = Upsample(inputs, skip, **build.of_norm)
    self.conv = ConvNorm(2 * skip, skip, 3, build=build)

  def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
    """(B, D, H, W, inputs) and (B, 2D, 2H, 2W, skip) -> (B, 2D, 2H, 2W, skip)."""
    return self.conv((self.upsample(x), skip), activate=True)


class ResEncUNet(nnx.Module):
  """Stem, residual encoder, decoder with one convolution a stage, conv1 heads.

  Args:
    modalities: input channels.
    classes: output channels.
    filters: channels by stage, 3 to 7 of them, at stride 1, 2, 4, ...; nnU-Net's ResEnc L has
      (32, 64, 128, 256, 320, 320).
    side_heads: deep-supervision heads, 0 to len(filters) - 2.
    attention: "channel" alone. This network has no gates: the setting is that of the fusion.
    init: "torch" or "xavier" (see blocks).
    dtype: what is computed in.
    rngs: keys for the parameters.
    convolutions: how they are computed, see conv_choice.

  Raises:
    ValueError: another attention.
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
    if attention != "channel":
      raise ValueError(f"attention = {attention!r}: the network resenc has no gates")
    build = Build(init, dtype, rngs, convolutions)
    packs = lanes.packs(filters, convolutions.platform)
    at = [build.packed(pack) for pack in packs]
    self.stem = ConvNorm(modalities, filters[0], 3, build=at[0])
    encoder, inputs = {}, filters[0]
    for n, (outputs, blocks) in enumerate(zip(filters, BLOCKS, strict=False)):
      stride, own = 1 if n == 0 else 2, build.packed(packs[max(n - 1, 0)], packs[n])
      encoder[f"stage{n}"] = EncoderStage(inputs, outputs, stride, blocks, build=own)
      inputs = outputs
    self.encoder = nnx.Dict(encoder)
    coarse_to_fine = range(len(filters) - 2, -1, -1)
    self.decoder = nnx.Dict(
      {f"stage{n}": DecoderStage(filters[n + 1], filters[n], build=at[n]) for n in coarse_to_fine}
    )
    self.head = Conv(filters[0], classes, 1, build=at[0])
    self.side_heads = nnx.Dict(
      {level(n): Conv(filters[n], classes, 1, build=at[n]) for n in range(1, side_heads + 1)}
    )
    self.stages = len(filters)

  def __call__(self, x: jax.Array, remat: str = "none") -> Output:
    """x: (B, D, H, W, modalities), sides multiples of 2^(stages - 1); remat: see remat.py."""
    run = functools.partial(remat_lib.run, remat=remat)
    x = self.stem(x, activate=True)
    skips = []
    for n in range(self.stages):
      x = run(self.encoder[f"stage{n}"], x)
      skips.append(x)
    features = {BOTTLENECK: x}
    for n in range(self.stages - 2, -1, -1):
      x = run(self.decoder[f"stage{n}"], x, skips[n])
      if n > 0:
        features[level(n)] = x
    side_logits = {name: head(features[name]) for name, head in self.side_heads.items()}
    return Output(self.head(x), side_logits, features)
