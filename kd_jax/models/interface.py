"""What any network gives and needs: all that training, losses, prediction and export know of it.

Arrays are (B, D, H, W, C). D, H and W are the left-right, front-back and feet-head axes, as in LPS:
an index increases towards the patient's left, back and head (docs/architecture.md, "Axes").

Names. "level1", "level2", ... are a decoder's features and the heads on them: "levelN" has stride
2^N to the input. "bottleneck" is the deepest feature. A network's list of channels, `filters`, has
one number a resolution: filters[N] at stride 2^N, the last at the bottleneck.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from flax import nnx

BOTTLENECK = "bottleneck"


class Output(NamedTuple):
  """What a network gives.

  Attributes:
    logits: (B, D, H, W, classes), at full resolution.
    side_logits: by level, from the deep-supervision heads: (B, D/s, H/s, W/s, classes) at stride s.
      Empty for networks without such heads.
    features: by name, (B, D/s, H/s, W/s, C): the decoder's at each level, before the heads, and
      "bottleneck", the encoder's last. Stride and channels: NetworkKind.features.
  """

  logits: jax.Array
  side_logits: dict[str, jax.Array]
  features: dict[str, jax.Array]


class Feature(NamedTuple):
  """The place of a feature: voxels of the input to one of its own, and its channels."""

  stride: int
  channels: int


def level(number: int) -> str:
  """The name of the level at stride 2^number."""
  return f"level{number}"


def number(level: str) -> int:
  """And back: "level3" -> 3."""
  return int(level.removeprefix("level"))


def stride(level: str) -> int:
  """The stride of a level: "level3" -> 8."""
  return 2 ** number(level)


def unet_features(filters: Sequence[int]) -> dict[str, Feature]:
  """Of a U-Net that halves the resolution len(filters) - 1 times, by name, finest first.

  Full resolution, where the logits are, is no level.
  """
  last = len(filters) - 1
  features = {level(n): Feature(stride(level(n)), filters[n]) for n in range(1, last)}
  return features | {BOTTLENECK: Feature(2**last, filters[last])}


class NetworkKind(NamedTuple):
  """One kind of network: how it is built, what it needs.

  Attributes:
    build: (modalities, classes, filters, *, side_heads, attention, init, dtype, rngs, convolutions)
      -> a module that maps (x (B, D, H, W, modalities), remat) to Output. side_heads: how many,
      from level1 on; their parameters are its "side_heads" and drawn last, so that the rest does
      not depend on them. init: "torch" or "xavier", see blocks.py; convolutions: see
      conv_choice.py; remat: see remat.py.
    bytes_per_channel: device memory in bytes that prediction takes, a voxel of its input and
      channel of the first level.
    features: filters -> its features by name, without building anything.
  """

  build: Callable[..., nnx.Module]
  bytes_per_channel: float
  features: Callable[[Sequence[int]], dict[str, Feature]] = unet_features

  def levels(self, filters: Sequence[int]) -> tuple[str, ...]:
    """The levels that can have a side head and be fused, finest first."""
    return tuple(name for name in self.features(filters) if name != BOTTLENECK)

  def multiple(self, filters: Sequence[int]) -> int:
    """What each side of its input must be a multiple of, in voxels."""
    return self.features(filters)[BOTTLENECK].stride
