"""Settings of optimisers, and of how long and on how many devices a run trains."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from kd_jax.runtime import compiler_options
from kd_jax.settings.constraints import Range, Readable
from kd_jax.settings.schema import FREE

GROUPS = ("teachers", "student")  # of parameters: each has an optimiser
SHARE, DECAY, POSITIVE, COUNT = (
  Range(0, 1),
  Range(0, 0.999999),
  Range(1, 1 << 30),
  Range(0, 1 << 30),
)
CompilerOptions = Annotated[
  str,
  Readable(compiler_options.read),
  FREE,
  "what XLA is told: `auto` (kd_jax/runtime/compiler_options.py), `none`, or "
  "`xla_NAME=value,xla_NAME=value` beside those of `auto`",
]


@dataclass(frozen=True)
class PlateauSettings:
  """Lower the learning rate when the validation score stops rising (schedule `plateau`)."""

  factor: Annotated[float, SHARE, "what the learning rate is multiplied by"] = 0.1
  patience: Annotated[int, COUNT, "validations without a better score before that"] = 5
  from_epoch: Annotated[int, COUNT, "first epoch (from 0) whose validation counts"] = 0


@dataclass(frozen=True)
class OptimizerSettings:
  """One group's optimiser.

  `sgd` has Nesterov's momentum beta1 and the decay in the gradient; nnU-Net's is learning_rate
  0.01, beta1 0.99, weight_decay 3e-5, schedule `poly`.
  """

  algorithm: Annotated[
    Literal["adamw", "sgd"], "AdamW (Adam where weight_decay is 0), or SGD with Nesterov's momentum"
  ] = "adamw"
  learning_rate: Annotated[float, Range(0, 1e3), "the schedule's highest"] = 5e-4
  schedule: Annotated[
    Literal["constant", "warmup_cosine", "poly", "plateau"], "of the learning rate"
  ] = "warmup_cosine"
  warmup: Annotated[float, SHARE, "share of all steps in which `warmup_cosine` and `poly` rise"] = (
    0.02
  )
  final: Annotated[
    float, SHARE, "share of learning_rate that `warmup_cosine` and `poly` end with"
  ] = 0.0
  power: Annotated[float, Range(0, 1e6), "of `poly`"] = 0.9
  beta1: Annotated[float, DECAY, "of AdamW; the momentum of SGD"] = 0.9
  beta2: Annotated[float, DECAY, "of AdamW"] = 0.999
  epsilon: Annotated[float, Range(1e-12, 1e6), "of AdamW"] = 1e-8
  weight_decay: Annotated[float, Range(0, 1e6), "of AdamW and SGD"] = 1e-5
  clip_norm: Annotated[
    float, Range(0, 1e6), "largest gradient norm of the group; 0 for no clipping"
  ] = 12.0
  plateau: PlateauSettings = field(default_factory=PlateauSettings)


@dataclass(frozen=True)
class OptimSettings:
  """The optimisers of both groups, and the average of the student's parameters."""

  teachers: OptimizerSettings = field(default_factory=OptimizerSettings)
  student: OptimizerSettings = field(default_factory=OptimizerSettings)
  ema_decay: Annotated[
    float, DECAY, "of the exponential average of the student's parameters; 0 for none"
  ] = 0.999

  @property
  def groups(self) -> dict[str, OptimizerSettings]:
    return {group: getattr(self, group) for group in GROUPS}


@dataclass(frozen=True)
class TrainSettings:
  """How long, on how many devices, and how often the program saves and validates."""

  epochs: Annotated[int, POSITIVE, FREE, "in all"] = 300
  steps_per_epoch: Annotated[int, COUNT, "0 for one pass over the training cases"] = 250
  spatial_shards: Annotated[
    int, POSITIVE, FREE, "devices that share one volume; the rest of them share the batch"
  ] = 1
  accumulate: Annotated[
    int, POSITIVE, FREE, "parts of a batch that are computed one after the other, to save memory"
  ] = 1
  remat: Annotated[
    Literal["auto", "none", "norms", "stages"],
    FREE,
    "what is computed again in the backward pass instead of kept, to save memory; `auto` is the "
    "first that fits into the device",
  ] = "auto"
  compiler_options: CompilerOptions = "auto"
  autotune: Annotated[
    bool,
    FREE,
    "measure at the start which form of each convolution is fastest on this device (about a minute "
    "on a GPU), instead of going by the times that were measured elsewhere",
  ] = False
  skip_nonfinite: Annotated[
    int,
    COUNT,
    FREE,
    "steps of a run that may be left out because a loss or gradient was NaN or infinite; one more "
    "stops it",
  ] = 0
  log_every: Annotated[int, POSITIVE, FREE, "steps between two lines of the log"] = 10
  save_every: Annotated[int, POSITIVE, FREE, "steps between two checkpoints"] = 250
  keep: Annotated[int, POSITIVE, FREE, "latest checkpoints kept, beside the best"] = 2
  validate_every: Annotated[int, POSITIVE, "epochs between two validations"] = 10
  validate_cases: Annotated[
    int, COUNT, "validation cases scored in training, evenly spread; 0 for all"
  ] = 40
  preview_cases: Annotated[int, COUNT, FREE, "validation cases drawn for TensorBoard"] = 3
