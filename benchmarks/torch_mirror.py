"""The same networks, losses and updates in PyTorch: what our training step is timed against.

For development only: the package never imports it. Modules carry the published parameter names, so
that `kd_jax.models.torch_names` turns the weights into ours and a test can hold the two against
each other. It covers `mtcm_kd`: channel gates, one CDSFL level or two, Dice over
the volume, KD averaged over voxels, AdamW with clipping, confidence weights that follow each step.

What our step does beside that and this one does not: the hard Dice of the logs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_jax.models import torch_names
from kd_jax.settings import presets
from kd_jax.settings.method import LossSettings
from kd_jax.settings.model import ModelSettings
from kd_jax.settings.run import Settings
from kd_jax.settings.training import OptimizerSettings
from kd_jax.tasks.labels import CLASSES, REGIONS
from kd_jax.tasks.names import MODALITIES

_SLOPE, _EPSILON, _DICE_EPSILON, _SCORE_EPSILON = 0.01, 1e-5, 1e-7, 1e-6
_VOLUME = (0, 2, 3, 4)  # batch and space of (B, C, D, H, W)


class Output(NamedTuple):
  """Logits (B, K, D, H, W); side logits and decoder features by level."""

  logits: Tensor
  side_logits: dict[str, Tensor]
  features: dict[str, Tensor]


class Outputs(NamedTuple):
  """As kd_jax.models.framework.Outputs, channels first."""

  teachers: dict[str, Output]
  fused: dict[str, Tensor]
  student: Output


# --- Networks ---------------------------------------------------------------------------------


def _act() -> nn.Module:
  return nn.LeakyReLU(_SLOPE)


def _norm(channels: int) -> nn.Module:
  return nn.GroupNorm(6 if channels % 6 == 0 else 4, channels, eps=_EPSILON)


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
  return nn.Conv3d(inputs, outputs, 3, stride, padding=1)


class ResidualBlock(nn.Module):
  def __init__(self, inputs: int, outputs: int, stride: int):
    super().__init__()
    self.conv_block = nn.Sequential(
      *(_norm(inputs), _act(), _conv3(inputs, outputs, stride)),
      *(_norm(outputs), _act(), _conv3(outputs, outputs)),
    )
    self.conv_skip = nn.Sequential(_conv3(inputs, outputs, stride), _norm(outputs))

  def forward(self, x: Tensor) -> Tensor:
    return self.conv_block(x) + self.conv_skip(x)


class ChannelGate(nn.Module):
  def __init__(self, channels: int):
    super().__init__()
    hidden = max(1, channels // 16)
    self.mlp = nn.Sequential(
      nn.Flatten(), nn.Linear(channels, hidden), _act(), nn.Linear(hidden, channels)
    )

  def forward(self, x: Tensor) -> Tensor:
    gate = self.mlp(x.mean((2, 3, 4))) + self.mlp(x.amax((2, 3, 4)))  # (B, C)
    return x * torch.sigmoid(gate)[:, :, None, None, None]


class ResUNet(nn.Module):
  def __init__(self, modalities: int, filters: tuple[int, int, int, int], side_heads: bool):
    super().__init__()
    f0, f1, f2, f3 = filters
    self.input_layer = nn.Sequential(
      _conv3(modalities, f0), nn.InstanceNorm3d(f0, eps=_EPSILON), _act(), _conv3(f0, f0)
    )
    self.input_skip = nn.Sequential(_conv3(modalities, f0))
    self.residual_conv_1 = ResidualBlock(f0, f1, 2)
    self.residual_conv_2 = ResidualBlock(f1, f2, 2)
    self.bridge = ResidualBlock(f2, f3, 2)
    for number, (deep, skip) in enumerate(((f3, f2), (f2, f1), (f1, f0)), start=1):
      self.add_module(f"upsample_{number}", nn.ConvTranspose3d(deep, deep, 2, 2))
      self.add_module(f"channel_attention_{number}", ChannelGate(deep + skip))
      self.add_module(f"up_residual_conv_{number}", ResidualBlock(deep + skip, skip, 1))
    self.output_layer = nn.Conv3d(f0, len(CLASSES), 1)
    if side_heads:
      self.output_layer_1 = nn.Conv3d(f1, len(CLASSES), 1)
      self.output_layer_2 = nn.Conv3d(f2, len(CLASSES), 1)
    self.side_heads = side_heads

  def forward(self, x: Tensor) -> Output:
    x1 = self.input_layer(x) + self.input_skip(x)
    x2 = self.residual_conv_1(x1)
    x3 = self.residual_conv_2(x2)
    d2 = self._up(1, self.bridge(x3), x3)
    d1 = self._up(2, d2, x2)
    d0 = self._up(3, d1, x1)
    sides = {}
    if self.side_heads:
      sides = {"level1": self.output_layer_1(d1), "level2": self.output_layer_2(d2)}
    return Output(self.output_layer(d0), sides, {"level1": d1, "level2": d2})

  def _up(self, number: int, x: Tensor, skip: Tensor) -> Tensor:
    x = torch.cat([self.get_submodule(f"upsample_{number}")(x), skip], 1)
    x = self.get_submodule(f"channel_attention_{number}")(x)
    return self.get_submodule(f"up_residual_conv_{number}")(x)


class Fusion(nn.Module):
  def __init__(self, teachers: int, channels: int):
    super().__init__()
    self.teachers = teachers
    for number in range(1, teachers + 1):
      self.add_module(f"channel_attention{number}", ChannelGate(channels))
      self.add_module(f"intermediate_conv{number}", nn.Conv3d(channels, len(CLASSES), 1))
    self.output_layer = nn.Conv3d(len(CLASSES), len(CLASSES), 1)

  def forward(self, features: list[Tensor]) -> Tensor:
    total = 0
    for number, feature in enumerate(features, start=1):
      gated = self.get_submodule(f"channel_attention{number}")(feature)
      total = total + self.get_submodule(f"intermediate_conv{number}")(gated)
    return self.output_layer(total)


class Mirror(nn.Module):
  """All networks; (B, M, D, H, W) images in MODALITIES order -> Outputs."""

  def __init__(self, settings: ModelSettings):
    if settings.attention != "channel" or settings.fusion_activation:
      raise ValueError("the mirror has channel gates and no activation in the fusion only")
    super().__init__()
    self.inputs = {name: _indices(modalities) for name, modalities in settings.teachers.items()}
    self.student_inputs = _indices(settings.student)
    filters = settings.teacher_filters
    self.teachers = nn.ModuleDict(
      {name: ResUNet(len(own), filters, False) for name, own in self.inputs.items()}
    )
    channels = dict(zip(("level1", "level2"), filters[1:3], strict=True))
    self.fusion = nn.ModuleDict(
      {level: Fusion(len(self.inputs), channels[level]) for level in settings.levels}
    )
    self.student = ResUNet(len(settings.student), settings.filters, True)

  def forward(self, images: Tensor) -> Outputs:
    teachers = {name: net(images[:, self.inputs[name]]) for name, net in self.teachers.items()}
    fused = {
      level: fusion([output.features[level] for output in teachers.values()])
      for level, fusion in self.fusion.items()
    }
    return Outputs(teachers, fused, self.student(images[:, self.student_inputs]))


def _indices(modalities: tuple[str, ...]) -> list[int]:
  return [MODALITIES.index(name) for name in modalities]


def to_params(mirror: Mirror) -> dict[str, Any]:
  """The mirror's weights as our nested dict of arrays."""
  network, fusion = torch_names.network_table(), torch_names.fusion_table(list(mirror.teachers))

  def convert(module: nn.Module, table: Mapping[str, torch_names.Path]) -> dict[str, Any]:
    arrays = {name: x.detach().cpu().numpy() for name, x in module.state_dict().items()}
    return torch_names.convert(arrays, table)

  teachers = {
    "networks": {name: convert(net, network) for name, net in mirror.teachers.items()},
    "fusion": {level: convert(net, fusion) for level, net in mirror.fusion.items()},
  }
  return {"teachers": teachers, "student": convert(mirror.student, network)}


# --- Losses -----------------------------------------------------------------------------------


def dice_jaccard_ce(labels: Tensor, logits: Tensor) -> Tensor:
  """(soft Dice loss + soft Jaccard loss + cross-entropy) / 3; labels (B, D, H, W)."""
  log_p = F.log_softmax(logits.float(), 1)
  p, truth = log_p.exp(), F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
  intersection = (p * truth).sum(_VOLUME)
  total = p.sum(_VOLUME) + truth.sum(_VOLUME)
  dice = (2 * intersection / (total + _DICE_EPSILON)).mean()
  jaccard = (intersection / (total - intersection + _DICE_EPSILON)).mean()
  return (1 - dice + 1 - jaccard + F.nll_loss(log_p, labels)) / 3


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
  """T^2 times the voxels' mean KL divergence, no gradient to the teacher."""
  log_p = F.log_softmax(teacher.detach().float() / temperature, 1)
  log_q = F.log_softmax(student.float() / temperature, 1)
  return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def objective(
  outputs: Outputs, labels: Tensor, weights: Mapping[str, Tensor], settings: LossSettings
) -> tuple[Tensor, Tensor]:
  """(teachers' loss, student's loss) as kd_jax.method.objective has them after `kd_from_epoch`."""
  if settings != dataclasses.replace(
    presets.settings("brats21:mtcm_kd").loss,
    temperature=settings.temperature,
    kd_from_epoch=settings.kd_from_epoch,
  ):
    raise ValueError("the mirror has the terms of the variant mtcm_kd only")

  def supervised(logits: Tensor) -> Tensor:
    stride = labels.shape[1] // logits.shape[2]
    return dice_jaccard_ce(labels[:, ::stride, ::stride, ::stride], logits)

  own = outputs.student
  teachers = sum(supervised(output.logits) for output in outputs.teachers.values())
  student = settings.supervised * supervised(own.logits)
  for name, output in outputs.teachers.items():
    student = student + weights[name] * kd(own.logits, output.logits, settings.temperature)
  for level, fused in outputs.fused.items():
    teachers = teachers + settings.cooperative[level] * supervised(fused)
    of_side, side = settings.side[level], own.side_logits[level]
    student = student + of_side.total * (
      of_side.supervised * supervised(side) + of_side.kd * kd(side, fused, settings.temperature)
    )
  return teachers, student


def soft_dice(logits: Tensor, labels: Tensor, regions: tuple[str, ...]) -> Tensor:
  """The mean over regions of soft Dice over the batch's volume: a teacher's score."""
  probabilities, scores = F.softmax(logits.float(), 1), []
  for region in regions:
    p = sum(probabilities[:, k] for k in REGIONS[region])
    t = sum(labels == k for k in REGIONS[region])
    numerator = 2 * (p * t).sum() + _SCORE_EPSILON
    scores.append(numerator / (p.sum() + t.sum() + _SCORE_EPSILON))
  return torch.stack(scores).mean()


# --- The step ---------------------------------------------------------------------------------


def kinds(device: str) -> dict[str, dict[str, bool]]:
  """Name -> keywords of make_step, the fastest first; torch.compile where there is CUDA."""
  compiled = {"torch compile": {"channels_last": True, "compiled": True}}
  return {
    **(compiled if device == "cuda" else {}),
    "torch channels last": {"channels_last": True},
    "torch eager": {},
  }


def make_step(
  settings: Settings,
  batch: Mapping[str, Any],
  device: str,
  *,
  dtype: torch.dtype,
  channels_last: bool = False,
  compiled: bool = False,
  net: Mirror | None = None,
) -> Callable[[], None]:
  """A function that does one training step on a batch that never changes, and waits for its end.

  Args:
    settings: of the run; networks, losses, confidence and optimisers are taken from it.
    batch: {"image": (B, M, D, H, W), "label": (B, D, H, W)} NumPy arrays.
    device: "cpu" or "cuda".
    dtype: torch.bfloat16 computes under autocast.
    channels_last: parameters and volumes are laid out so.
    compiled: by torch.compile.
    net: what to train; fresh if None.
  """
  torch.backends.cuda.matmul.allow_tf32 = True  # as JAX's default has it, and cuDNN's
  torch.backends.cudnn.benchmark = True
  mirror = (net or Mirror(settings.model)).to(device)
  images = torch.from_numpy(batch["image"]).to(device).float()
  labels = torch.from_numpy(batch["label"]).to(device).long()
  if channels_last:
    mirror = mirror.to(memory_format=torch.channels_last_3d)
    images = images.contiguous(memory_format=torch.channels_last_3d)
  groups = {
    "teachers": [*mirror.teachers.parameters(), *mirror.fusion.parameters()],
    "student": list(mirror.student.parameters()),
  }
  optimizers = {name: _adam(group, settings.optim.groups[name]) for name, group in groups.items()}
  average = [parameter.detach().clone() for parameter in groups["student"]]
  names, confidence = list(mirror.teachers), settings.confidence
  scores = torch.full((len(names),), 1.0, device=device)

  def loss_fn(images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
      outputs = mirror(images)
    by_name = dict(zip(names, weights.unbind(), strict=True))
    teachers, student = objective(outputs, labels, by_name, settings.loss)
    with torch.no_grad():
      found = [soft_dice(o.logits, labels, confidence.regions) for o in outputs.teachers.values()]
    return teachers + student, torch.stack(found)

  if compiled:
    loss_fn = torch.compile(loss_fn)

  def step() -> None:
    total, found = loss_fn(images, labels, confidence.total * scores / scores.sum())
    total.backward()
    for name, optimizer in optimizers.items():
      if limit := settings.optim.groups[name].clip_norm:
        nn.utils.clip_grad_norm_(groups[name], limit)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
      scores.lerp_(found, 1 - confidence.ema_decay)
      torch._foreach_lerp_(average, groups["student"], 1 - settings.optim.ema_decay)
    if device == "cuda":
      torch.cuda.synchronize()

  return step


def _adam(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
  return torch.optim.AdamW(
    parameters,
    settings.learning_rate,
    (settings.beta1, settings.beta2),
    settings.epsilon,
    settings.weight_decay,
    fused=True,
  )
