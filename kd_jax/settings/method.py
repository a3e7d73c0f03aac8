"""Settings of the method: the losses and their weights, and the teachers' confidence weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from kd_jax.settings.constraints import Distinct, Range
from kd_jax.settings.model import FusionLevel, Level
from kd_jax.tasks.labels import Region

WEIGHT = Range(0, 1e6)
Weight = Annotated[float, WEIGHT]
Regions = Annotated[tuple[Region, ...], Distinct("region")]
Targets = Literal["classes", "regions"]
DiceReduction = Literal["volume", "sample", "slice"]
KdReduction = Literal["voxel_mean", "voxel_sum"]
KdWhere = Literal["all", "brain", "agreement", "balanced"]


@dataclass(frozen=True)
class SideWeights:
  """Deep supervision of the student at one level: total * (supervised * loss + kd * KD)."""

  total: Annotated[float, WEIGHT, "of the whole level"]
  supervised: Annotated[float, WEIGHT, "of the supervised loss"]
  kd: Annotated[float, WEIGHT, "of the distillation from the fused logits"]


def _side() -> dict[FusionLevel, SideWeights]:
  return {"level1": SideWeights(0.10, 0.7, 0.3), "level2": SideWeights(0.03, 0.6, 0.4)}


@dataclass(frozen=True)
class LossSettings:
  """What the networks are trained on: docs/method.md, "Objective"."""

  dice_reduction: Annotated[
    DiceReduction, "what Dice sums over: the batch's volume, each sample, or slices as published"
  ] = "volume"
  targets: Annotated[Targets, "what the supervised losses are taken over"] = "classes"
  kd_reduction: Annotated[
    KdReduction, "T^2 times the mean over voxels, or T times their sum as published"
  ] = "voxel_mean"
  kd_targets: Annotated[
    Targets, "distil the classes' softmax, or each region against its complement"
  ] = "regions"
  kd_regions: Annotated[Regions, "which regions are distilled, with `regions`"] = ("WT",)
  kd_where: Annotated[
    KdWhere,
    "voxels that count: all, those in the brain, the more the teachers agree, or each class of the "
    "truth with the same weight",
  ] = "all"
  temperature: Annotated[float, Range(1e-3, 1e6), "T of every distillation term"] = 1.0
  supervised: Annotated[
    float, WEIGHT, "of the student's own supervised loss once distillation has begun"
  ] = 1.0
  cooperative: Annotated[
    Mapping[FusionLevel, Weight], "of the fused logits' supervised loss, by level"
  ] = field(default_factory=lambda: {"level1": 0.08, "level2": 0.05})
  side: Annotated[
    Mapping[FusionLevel, SideWeights],
    "the student's deep supervision by level: total * (supervised * loss + kd * distillation)",
  ] = field(default_factory=_side)
  deep_supervision: Annotated[
    Mapping[Level, Weight],
    "of a supervised loss by level, for every network with a head there; beside `side`",
  ] = field(default_factory=lambda: {"level1": 0.0, "level2": 0.0})
  fused_teacher: Annotated[
    float, WEIGHT, "of the level 1 fused logits, enlarged, as one more teacher"
  ] = 0.0
  bottleneck: Annotated[float, WEIGHT, "of KD-Net's term on the bottleneck"] = 0.0
  prototype: Annotated[float, WEIGHT, "of ProtoKD's term on class prototypes"] = 0.0
  kd_from_epoch: Annotated[
    int, Range(0, 1 << 30), "first epoch (from 0) with distillation; before it, supervised only"
  ] = 1
  kd_ramp_epochs: Annotated[
    float, WEIGHT, "epochs from there until distillation has its full weight, linearly"
  ] = 3.0

  @property
  def features(self) -> tuple[str, ...]:
    """The features of the networks that a loss asks for, by their names in models/interface.py."""
    asked = {"bottleneck": self.bottleneck, "level1": self.prototype}
    return tuple(name for name, weight in asked.items() if weight)


@dataclass(frozen=True)
class ConfidenceSettings:
  """How much the student learns from each teacher: docs/method.md, "Confidence weights"."""

  total: Annotated[float, WEIGHT, "sum of all teacher weights"] = 0.5
  score: Annotated[
    Literal["soft_dice", "hard_dice", "slice_dice"], "what a teacher is scored by"
  ] = "soft_dice"
  regions: Annotated[Regions, "whose mean Dice is the score, with by `teacher`"] = ("WT",)
  by: Annotated[
    Literal["teacher", "region", "voxel"],
    "one weight a teacher; one a teacher and region; or by how sure a teacher is of each voxel",
  ] = "teacher"
  update: Annotated[
    Literal["epoch", "ema", "batch"],
    "scores are averaged over the epoch before (as published), exponentially, or not at all",
  ] = "ema"
  ema_decay: Annotated[float, Range(0, 0.999999), "per step, with `ema`"] = 0.99
  above_student: Annotated[bool, "learn only from teachers that score above the student"] = False
