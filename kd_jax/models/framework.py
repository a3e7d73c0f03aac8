"""Teachers, fusion and student: built from the configuration, run together, taken apart again.

Parameters are a nested dict of arrays with two groups, one for each optimiser:

  {"cohort": {"teachers": {name: ...}, "fusion": {level: ...}}, "student": ...}

An empty group has no key: no "fusion" at 0 levels, an empty "cohort" without teachers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models.blocks import Keys
from kd_jax.models.fusion import Fusion
from kd_jax.models.resunet import LEVELS, Output, ResUNet
from kd_jax.tasks.labels import CLASSES
from kd_jax.tasks.names import MODALITIES

Params = dict[str, Any]
ATTENTIONS = ("channel", "cbam")
DTYPES = ("auto", "float32", "bfloat16", "float64")


@dataclass(frozen=True)
class FrameworkSpec:
  """Everything that fixes the networks' shapes.

  Attributes:
    student: the input modalities of the student.
    teachers: name -> input modalities; empty for a student alone.
    filters: channels at full, 1/2, 1/4, 1/8 resolution.
    fusion_levels: CDSFL levels, 0 to 2; 0 without teachers.
    attention: "channel" or "cbam".
    fusion_activation: an activation before the fusion's last convolution.
    fusion_detached: the fusion's loss does not reach the teachers: they no longer learn from each
      other.
    teacher_side_heads: deep-supervision heads of each teacher, 0 to 2.
    dtype: what is computed in, one of DTYPES; "auto" is bfloat16 on GPU and TPU and float32 on CPU.
      Parameters stay float32.
  """

  student: tuple[str, ...]
  teachers: Mapping[str, tuple[str, ...]]
  filters: tuple[int, int, int, int]
  fusion_levels: int = 1
  attention: str = "channel"
  fusion_activation: bool = False
  fusion_detached: bool = False
  teacher_side_heads: int = 0
  dtype: str = "float32"

  @property
  def compute_dtype(self) -> jnp.dtype:
    automatic = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(automatic if self.dtype == "auto" else self.dtype)

  @property
  def levels(self) -> tuple[str, ...]:
    return LEVELS[: self.fusion_levels] if self.teachers else ()


class Cohort(nnx.Module):
  """The teachers and the fusion modules through which they learn from each other."""

  def __init__(self, spec: FrameworkSpec, rngs: Keys):
    self.teachers = nnx.Dict(
      {
        name: _network(spec, modalities, rngs, side_heads=spec.teacher_side_heads)
        for name, modalities in spec.teachers.items()
      }
    )
    channels = dict(zip(LEVELS, spec.filters[1:3], strict=True))
    self.fusion = nnx.Dict(
      {
        level: Fusion(
          tuple(spec.teachers),
          channels[level],
          len(CLASSES),
          attention=spec.attention,
          activation=spec.fusion_activation,
          dtype=spec.compute_dtype,
          rngs=rngs,
        )
        for level in spec.levels
      }
    )


def _network(spec: FrameworkSpec, modalities: Sequence[str], rngs: Keys, **options) -> ResUNet:
  return ResUNet(
    len(modalities),
    len(CLASSES),
    spec.filters,
    attention=spec.attention,
    dtype=spec.compute_dtype,
    rngs=rngs,
    **options,
  )


class Outputs(NamedTuple):
  """One joint forward pass: teachers by name, fused logits by level, the student."""

  teachers: dict[str, Output]
  fused: dict[str, jax.Array]
  student: Output


class Framework:
  """The networks' structure without their numbers: every method is a function of parameters."""

  def __init__(self, spec: FrameworkSpec, remat: str = "none"):
    """remat: what the joint forward pass keeps for its backward pass, see remat.py."""
    self.spec = spec
    self._remat = remat
    abstract = nnx.eval_shape(lambda: self._modules(jax.random.key(0)))
    self._graphs = {group: nnx.split(module, nnx.Param)[0] for group, module in abstract.items()}

  def _modules(self, key: jax.Array) -> dict[str, nnx.Module]:
    cohort_key, student_key = jax.random.split(key)
    # The published student starts from Xavier normal, its teachers from PyTorch's default. It has
    # both side heads whatever the fusion levels, as the published network does.
    student = _network(self.spec, self.spec.student, Keys(student_key), side_heads=2, init="xavier")
    return {"cohort": Cohort(self.spec, Keys(cohort_key)), "student": student}

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, float32; the same on every backend."""
    modules = self._modules(key)
    return {group: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for group, m in modules.items()}

  def __call__(self, params: Params, images: jax.Array) -> Outputs:
    """All networks on one batch.

    Args:
      params: as `init` gives them.
      images: (B, M, D, H, W), modalities in MODALITIES order.
    """
    cohort = nnx.merge(self._graphs["cohort"], params["cohort"])
    teachers = {
      name: cohort.teachers[name](select(images, modalities), self._remat)
      for name, modalities in self.spec.teachers.items()
    }

    def features(level: str) -> dict[str, jax.Array]:
      found = {name: out.features[level] for name, out in teachers.items()}
      return jax.lax.stop_gradient(found) if self.spec.fusion_detached else found

    fused = {level: cohort.fusion[level](features(level)) for level in self.spec.levels}
    return Outputs(teachers, fused, self.student(params["student"], images))

  def student(self, params: Params, images: jax.Array) -> Output:
    """The student alone; params: its group only; images: (B, M, D, H, W)."""
    student = nnx.merge(self._graphs["student"], params)
    return student(select(images, self.spec.student), self._remat)

  def network(self, params: Params, x: jax.Array) -> jax.Array:
    """Any one of the networks, for prediction.

    Student and teachers differ in their side heads alone, which prediction has no use for: all
    networks with as many modalities share one compiled program.

    Args:
      params: one network's own.
      x: (B, D, H, W, its modalities).

    Returns:
      (B, D, H, W, classes) logits.
    """
    abstract = nnx.eval_shape(
      lambda: _network(self.spec, x.shape[-1] * ("",), Keys(jax.random.key(0)))
    )
    graph = nnx.split(abstract, nnx.Param)[0]
    return nnx.merge(graph, {k: v for k, v in params.items() if k != "side_heads"})(x).logits

  def networks(self, params: Params) -> dict[str, tuple[Params, tuple[str, ...]]]:
    """name -> (its parameters, its modalities), the student first."""
    networks = {"student": (params["student"], self.spec.student)}
    for name, modalities in self.spec.teachers.items():
      networks[name] = (params["cohort"]["teachers"][name], modalities)
    return networks


def select(images: jax.Array, modalities: Sequence[str]) -> jax.Array:
  """Some modalities of (B, M, D, H, W), as channels: (B, D, H, W, len(modalities))."""
  return jnp.stack([images[:, MODALITIES.index(name)] for name in modalities], axis=-1)
