"""Teachers, fusion and student: built from the configuration, run together, taken apart again.

Parameters are a nested dict of arrays with two groups, one for each optimiser:

  {"teachers": {"networks": {name: ...}, "fusion": {level: ...}}, "student": ...}

An empty group has no key: no "fusion" at 0 levels, an empty "teachers" without teachers. Two
cohorts of teachers have such a dict each: {"teachers": {"first": ..., "second": ...}, ...}.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kd_jax.models import conv_choice, lanes
from kd_jax.models.blocks import Keys
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.fusion import Fusion
from kd_jax.models.interface import NetworkKind, Output, number
from kd_jax.models.networks import NETWORKS
from kd_jax.settings.model import FUSION_LEVELS, FusionLevel, ModelSettings
from kd_jax.tasks.labels import CLASSES
from kd_jax.tasks.names import MODALITIES

Params = dict[str, Any]
COHORTS = ("first", "second")


class Teachers(nnx.Module):
  """The teachers and the fusion modules through which they learn from each other."""

  def __init__(self, spec: ModelSettings, convolutions: Convolutions, rngs: Keys):
    own: dict[str, Any] = {"convolutions": convolutions, "rngs": rngs}
    body = teacher_body(spec)
    self.networks = nnx.Dict(
      {
        name: _network(body, spec, modalities, side_heads=spec.teacher_side_heads, **own)
        for name, modalities in spec.teachers.items()
      }
    )
    features = body.kind.features(body.filters)
    packs = lanes.packs(body.filters, convolutions.platform)
    self.fusion = nnx.Dict(
      {
        level: Fusion(
          tuple(spec.teachers),
          features[level].channels,
          len(CLASSES),
          attention=spec.attention,
          activation=spec.fusion_activation,
          dtype=compute_dtype(spec, convolutions.platform),
          pack=packs[number(level)],
          **own,
        )
        for level in spec.levels
      }
    )


class Body(NamedTuple):
  """What a network is but for its inputs and heads."""

  kind: NetworkKind
  filters: tuple[int, ...]


def student_body(spec: ModelSettings) -> Body:
  return Body(NETWORKS[spec.network], spec.filters)


def teacher_body(spec: ModelSettings) -> Body:
  return Body(NETWORKS[spec.teacher_kind], spec.teacher_filters)


def _network(
  body: Body,
  spec: ModelSettings,
  modalities: Sequence[str],
  *,
  convolutions: Convolutions,
  **options: Any,
) -> nnx.Module:
  return body.kind.build(
    len(modalities),
    len(CLASSES),
    body.filters,
    attention=spec.attention,
    dtype=compute_dtype(spec, convolutions.platform),
    convolutions=convolutions,
    **options,
  )


def compute_dtype(spec: ModelSettings, platform: str) -> jnp.dtype:
  """What the networks compute in; "auto" depends on the platform ("cpu", "gpu", "tpu")."""
  automatic = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(automatic if spec.dtype == "auto" else spec.dtype)


class Taught(NamedTuple):
  """Teachers' outputs by name, and the fused logits of their features by level."""

  teachers: dict[str, Output]
  fused: Mapping[FusionLevel, jax.Array]


class Outputs(NamedTuple):
  """One joint forward pass.

  Attributes:
    teachers, fused: as of Taught; with two cohorts, of those that train on a sample.
    student: see there.
    others: with two cohorts, of those that do not train on a sample, without gradient; else None.
  """

  teachers: dict[str, Output]
  fused: Mapping[FusionLevel, jax.Array]
  student: Output
  others: Taught | None = None

  @property
  def heard(self) -> Taught:
    """What the student hears."""
    return self.others or Taught(self.teachers, self.fused)


class Framework:
  """The networks' structure without their numbers: every method is a function of parameters."""

  def __init__(
    self, spec: ModelSettings, remat: str = "none", convolutions: Convolutions | None = None
  ):
    """
    Args:
      spec: what the networks are.
      remat: what the joint forward pass keeps for its backward pass, see remat.py.
      convolutions: how they are computed, and on which platform; None for the first device's way.
    """
    self.spec = spec
    self._remat = remat
    self._convolutions = convolutions or conv_choice.of_device(jax.devices()[0])
    self.dtype = compute_dtype(spec, self._convolutions.platform)
    abstract = nnx.eval_shape(lambda: self._modules(jax.random.key(0)))
    self._graphs = {group: nnx.split(module, nnx.Param)[0] for group, module in abstract.items()}

  def _modules(self, key: jax.Array) -> dict[str, nnx.Module]:
    teachers_key, student_key = jax.random.split(key)
    # The published student starts from Xavier normal, its teachers from PyTorch's default. It has
    # both side heads whatever the fusion levels, as the published network does.
    body = student_body(self.spec)
    side_heads = min(len(FUSION_LEVELS), len(body.kind.levels(body.filters)))
    student = _network(
      body,
      self.spec,
      self.spec.student,
      rngs=Keys(student_key),
      side_heads=side_heads,
      init="xavier",
      convolutions=self._convolutions,
    )
    teachers = Teachers(self.spec, self._convolutions, Keys(teachers_key))
    return {"teachers": teachers, "student": student}

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, float32; the same on every backend."""
    modules = self._modules(key)
    params = {group: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for group, m in modules.items()}
    if self.spec.cohorts == 1:
      return params
    keys = Keys(jax.random.fold_in(key, 2))  # with 0 and 1 it is one of the two keys of _modules
    second = Teachers(self.spec, self._convolutions, keys)
    cohorts = (params["teachers"], nnx.to_pure_dict(nnx.state(second, nnx.Param)))
    return params | {"teachers": dict(zip(COHORTS, cohorts, strict=True))}

  def __call__(self, params: Params, images: jax.Array, heard: Params | None = None) -> Outputs:
    """All networks on one batch.

    Args:
      params: as `init` gives them.
      images: (B, M, D, H, W), modalities in MODALITIES order. With two cohorts the first one trains
        on the samples 0, 2, ..., the second one on the others.
      heard: the teachers' parameters that the student hears with two cohorts; None: those in
        params.
    """
    teachers = params["teachers"]
    if self.spec.cohorts == 1:
      taught = self._teach(teachers, images)
      return Outputs(*taught, self.student(params["student"], images))
    one, two = COHORTS
    halves = images[0::2], images[1::2]
    taught = self._teach_halves((teachers[one], teachers[two]), halves)
    teachers = jax.lax.stop_gradient(heard or teachers)
    others = self._teach_halves((teachers[two], teachers[one]), halves)
    return Outputs(*taught, self.student(params["student"], images), others)

  def _teach(self, params: Params, images: jax.Array) -> Taught:
    """One cohort of teachers, and what they fuse."""
    group: Any = nnx.merge(self._graphs["teachers"], params)  # Teachers
    teachers = {
      name: group.networks[name](select(images, modalities), self._remat)
      for name, modalities in self.spec.teachers.items()
    }

    def features(level: str) -> dict[str, jax.Array]:
      found = {name: out.features[level] for name, out in teachers.items()}
      return jax.lax.stop_gradient(found) if self.spec.fusion_detached else found

    return Taught(teachers, {lv: group.fusion[lv](features(lv)) for lv in self.spec.levels})

  def _teach_halves(self, params: tuple[Params, Params], halves: tuple[Any, Any]) -> Taught:
    """One cohort on the samples 0, 2, ..., another one on the others; joined, (B, ...)."""
    first, second = map(self._teach, params, halves)
    return jax.tree.map(
      lambda x, y: jnp.stack([x, y], axis=1).reshape(2 * x.shape[0], *x.shape[1:]), first, second
    )

  def student(self, params: Params, images: jax.Array) -> Output:
    """The student alone; params: its group only; images: (B, M, D, H, W)."""
    student = nnx.merge(self._graphs["student"], params)
    return student(select(images, self.spec.student), self._remat)

  def network(self, params: Params, x: jax.Array) -> jax.Array:
    """The student's network, for prediction.

    Args:
      params: one network's own.
      x: (B, D, H, W, its modalities).

    Returns:
      (B, D, H, W, classes) logits.
    """
    return self._predict(student_body(self.spec), params, x)

  def teacher_network(self, params: Params, x: jax.Array) -> jax.Array:
    """The teachers' network, for prediction; arguments and result as of `network`."""
    return self._predict(teacher_body(self.spec), params, x)

  def network_of(self, name: str) -> Callable[[Params, jax.Array], jax.Array]:
    """`network` or `teacher_network`, whichever is the one so named.

    Networks of one kind and width differ in their side heads alone, which prediction has no use
    for. All of them get the same function, so that all with as many modalities share one compiled
    program.
    """
    alike = teacher_body(self.spec) == student_body(self.spec)
    return self.network if alike or name == "student" else self.teacher_network

  def _predict(self, body: Body, params: Params, x: jax.Array) -> jax.Array:
    modalities = x.shape[-1] * ("",)
    abstract = nnx.eval_shape(
      lambda: _network(
        body,
        self.spec,
        modalities,
        convolutions=self._convolutions,
        rngs=Keys(jax.random.key(0)),
      )
    )
    graph = nnx.split(abstract, nnx.Param)[0]
    return nnx.merge(graph, {k: v for k, v in params.items() if k != "side_heads"})(x).logits

  def networks(self, params: Params) -> dict[str, tuple[Params, tuple[str, ...]]]:
    """name -> (its parameters, its modalities), the student first.

    Teachers of two cohorts are called NAME_first and NAME_second.
    """
    networks: dict[str, tuple[Params, tuple[str, ...]]] = {}
    networks["student"] = (params["student"], self.spec.student)
    cohorts = {"": params["teachers"]}
    if self.spec.cohorts > 1:
      cohorts = {f"_{cohort}": params["teachers"][cohort] for cohort in COHORTS}
    for name, modalities in self.spec.teachers.items():
      for suffix, teachers in cohorts.items():
        networks[name + suffix] = (teachers["networks"][name], modalities)
    return networks


def select(images: jax.Array, modalities: Sequence[str]) -> jax.Array:
  """Some modalities of (B, M, D, H, W), as channels: (B, D, H, W, len(modalities))."""
  return jnp.stack([images[:, MODALITIES.index(name)] for name in modalities], axis=-1)
