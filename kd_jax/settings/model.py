"""Settings of the networks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, NamedTuple, get_args

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.constraints import Distinct, Pattern, Range
from kd_jax.settings.schema import Before
from kd_jax.tasks.names import MODALITIES, Modality

# Deep supervision and fusion: level k has the resolution 1 / 2^k.
FusionLevel = Literal["level1", "level2"]
FUSION_LEVELS: tuple[FusionLevel, ...] = get_args(FusionLevel)
Level = Literal[FusionLevel, "level3", "level4", "level5"]
LEVELS: tuple[str, ...] = get_args(Level)
Network = Literal["resunet", "resenc"]
SAME: Final = "same"  # teachers of the student's kind of network
Attention = Literal["channel", "cbam"]
Modalities = Annotated[tuple[Modality, ...], Distinct("modality")]
Filters = Annotated[
  tuple[Annotated[int, Range(4, 4096)], ...], "channels at full, 1/2, 1/4, ... resolution"
]


class Accepts(NamedTuple):
  """What a network can be built from.

  Attributes:
    stages: how many numbers `filters` may have.
    multiple_of: what each of them must be a multiple of, and the reason, for messages.
    attentions: the values of `attention` that it takes.
  """

  stages: range
  multiple_of: tuple[int, str]
  attentions: tuple[str, ...]


ACCEPTS: dict[str, Accepts] = {
  "resunet": Accepts(range(4, 5), (4, "group norm"), ("channel", "cbam")),
  "resenc": Accepts(range(3, 8), (1, ""), ("channel",)),
}
_TeacherName = Annotated[
  str,
  Pattern(
    r"(?!student$)[A-Za-z][A-Za-z0-9_]{0,40}",
    "a teacher cannot be named student; allowed are up to 41 letters, digits and _, the first a "
    "letter",
  ),
]


def _teachers() -> dict[str, tuple[Modality, ...]]:
  own: tuple[Modality, ...] = ("flair", "t2", "t1")
  return {modality: (modality, "t1ce") for modality in own}


def multiple(filters: Sequence[int]) -> int:
  """What the sides of a network's input must be multiples of: each stage but the first halves."""
  return 2 ** (len(filters) - 1)


def check_patch(name: str, patch: Sequence[int], multiple: int) -> None:
  """ConfigError if networks that need such multiples cannot take a window of this size."""
  if any(side % multiple for side in patch):
    raise ConfigError(f"{name} = {tuple(patch)}: each side must be a multiple of {multiple}")


def check_network(section: str, network: str, filters: Sequence[int], attention: str) -> None:
  """ConfigError if a kind of network cannot be built from these settings."""
  accepts = ACCEPTS[network]
  if len(filters) not in accepts.stages:
    few, many = accepts.stages[0], accepts.stages[-1]
    wanted = f"{few}" if few == many else f"{few} to {many}"
    raise ConfigError(
      f"{section}.filters = {filters}: expected {wanted} values for the network {network}"
    )
  n, reason = accepts.multiple_of
  if any(channels % n for channels in filters):
    raise ConfigError(f"{section}.filters = {filters}: {reason} needs multiples of {n}")
  if attention not in accepts.attentions:
    raise ConfigError(
      f'{section}.attention = "{attention}": the network {network} has no such gates; '
      f"set it to {' or '.join(accepts.attentions)}, or choose another network"
    )


@dataclass(frozen=True)
class ModelSettings:
  """Everything that fixes the networks' shapes."""

  student: Annotated[Modalities, "what the student reads"] = ("t1ce",)
  teachers: Annotated[
    Mapping[_TeacherName, Modalities], "what each teacher reads; none for a student alone"
  ] = field(default_factory=_teachers)
  cohorts: Annotated[
    int,
    Range(1, 2),
    "2: two sets of these teachers, each trained on half of the patients; of a case the student "
    "hears those who have not trained on it. 1 is the published method",
  ] = 1
  network: Annotated[
    Network,
    Before("resunet"),
    "`resunet`: the published residual U-Net; `resenc`: nnU-Net's residual encoder U-Net",
  ] = "resunet"
  teacher_network: Annotated[
    Literal["same", Network], Before("same"), "the teachers' network; `same` as the student's"
  ] = SAME
  filters: Filters = (32, 64, 128, 256)
  teacher_width: Annotated[
    float,
    Range(1 / 64, 8),
    Before(1.0),
    "the teachers' channels: so many times `filters`, rounded up to multiples of 4",
  ] = 0.5
  fusion_levels: Annotated[
    int, Range(0, len(FUSION_LEVELS)), "CDSFL at half, and quarter, resolution"
  ] = 1
  attention: Annotated[Attention, "`channel` gates, or `cbam`: with spatial gates after them"] = (
    "channel"
  )
  fusion_activation: Annotated[bool, "an activation before the fusion's last convolution"] = False
  fusion_detached: Annotated[
    bool, "the fusion's loss does not reach the teachers: they do not learn from each other"
  ] = False
  teacher_side_heads: Annotated[
    int, Range(0, len(LEVELS)), "deep-supervision heads of each teacher, from level 1 on"
  ] = 0
  dtype: Annotated[
    Literal["auto", "float32", "bfloat16", "float64"],
    "what is computed in; `auto` is bfloat16 on GPU and TPU and float32 on CPU; parameters stay "
    "float32",
  ] = "auto"

  @property
  def sequences(self) -> tuple[Modality, ...]:
    """What the networks read together, in MODALITIES order: what a case must have."""
    read = {*self.student, *(name for own in self.teachers.values() for name in own)}
    return tuple(name for name in MODALITIES if name in read)

  @property
  def levels(self) -> tuple[FusionLevel, ...]:
    """The levels that have a fusion module."""
    return FUSION_LEVELS[: self.fusion_levels] if self.teachers else ()

  @property
  def teacher_kind(self) -> Network:
    """The teachers' network, by its name."""
    return self.network if self.teacher_network == SAME else self.teacher_network

  @property
  def teacher_filters(self) -> tuple[int, ...]:
    """The teachers' channels by resolution: whole multiples of 4, which every network can have."""
    if self.teacher_width == 1:
      return self.filters
    return tuple(4 * math.ceil(channels * self.teacher_width / 4) for channels in self.filters)

  @property
  def multiple(self) -> int:
    """What each side of a patch must be a multiple of, so that every network can take it."""
    return multiple(self.filters)
