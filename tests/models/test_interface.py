"""What networks say of themselves is what they do, and the framework goes by it alone."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
from flax import nnx
from quick import QUICK

from kd_jax.models import resenc
from kd_jax.models.blocks import Keys
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework, select
from kd_jax.models.interface import BOTTLENECK, Feature, level, stride
from kd_jax.models.networks import NETWORKS
from kd_jax.settings.model import ACCEPTS, ModelSettings, multiple
from kd_jax.settings.training import GROUPS
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step

KEY = jax.random.key(0)
CASES = [
  ("resunet", (4, 8, 12, 16)),
  ("resenc", (4, 8, 12)),
  ("resenc", (4, 8, 12, 16)),
  ("resenc", (4, 6, 8, 10, 12, 12)),
  ("resenc", (4, 4, 4, 4, 4, 4, 8)),
]
MIXED = ModelSettings(
  student=("t1ce",),
  teachers={"flair": ("flair",), "t2": ("t2", "t1ce")},
  teacher_width=1.0,
  filters=(4, 4, 8, 8),
  network="resenc",
  teacher_network="resunet",
)


def outputs_of(network, filters, shape, side_heads=0):
  """The shapes that a network with two modalities gives; nothing is computed."""

  def run(x):
    return NETWORKS[network].build(2, 4, filters, side_heads=side_heads, rngs=Keys(KEY))(x)

  return jax.eval_shape(run, jax.ShapeDtypeStruct((*shape, 2), jnp.float32))


def test_levels_are_named_by_their_strides():
  assert [stride(level(n)) for n in (1, 2, 5)] == [2, 4, 32]


@pytest.mark.parametrize(("network", "filters"), CASES)
def test_outputs_are_what_the_network_s_kind_says(network, filters):
  kind, sides = NETWORKS[network], (128, 64, 192)
  levels = kind.levels(filters)
  assert len(levels) == len(filters) - 2
  out = outputs_of(network, filters, (2, *sides), len(levels))
  assert out.logits.shape == (2, *sides, 4)
  assert out.features.keys() == {*levels, BOTTLENECK} == kind.features(filters).keys()
  for name, x in out.features.items():
    own = kind.features(filters)[name]
    assert x.shape == (2, *(n // own.stride for n in sides), own.channels)
  assert out.side_logits.keys() == set(levels)
  for name, x in out.side_logits.items():
    assert x.shape == (2, *(n // stride(name) for n in sides), 4)
  # The smallest input that it takes leaves one voxel at the bottleneck.
  out = outputs_of(network, filters, (1, *[kind.multiple(filters)] * 3))
  assert out.features[BOTTLENECK].shape == (1, 1, 1, 1, filters[-1])


@pytest.mark.parametrize("network", NETWORKS)
def test_side_heads_change_no_other_parameter(network):
  """So that prediction and exported students can leave them out."""

  def parameters(side_heads):
    module = NETWORKS[network].build(1, 4, (4, 4, 8, 8), side_heads=side_heads, rngs=Keys(KEY))
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))

  with_heads, without = parameters(2), parameters(0)
  assert with_heads.pop("side_heads").keys() == {"level1", "level2"}
  assert not without.pop("side_heads", {})
  jax.tree.map(np.testing.assert_array_equal, with_heads, without)


@pytest.mark.parametrize("network", NETWORKS)
def test_attentions_are_those_that_it_can_be_built_with(network):
  kind = NETWORKS[network]
  accepts = ACCEPTS[network]
  filters = (4,) * accepts.stages[0]
  for attention in ("channel", "cbam"):

    def make(attention=attention):
      return kind.build(1, 4, filters, attention=attention, rngs=Keys(KEY))

    if attention in accepts.attentions:
      nnx.eval_shape(make)
    else:
      with pytest.raises(ValueError, match="attention"):
        make()


def test_settings_and_networks_agree():
  """Settings stand below the networks: they say again what a patch must be a multiple of."""
  assert set(ACCEPTS) == set(NETWORKS)
  for name, kind in NETWORKS.items():
    for stages in ACCEPTS[name].stages:
      filters = (4,) * stages
      assert kind.multiple(filters) == multiple(filters)
      assert len(kind.levels(filters)) == stages - 2


# --- In a framework ---------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [(4, 8, 8), (4, 4, 8, 8), (4, 4, 6, 8, 8)])
def test_a_student_has_the_side_heads_of_the_method_s_levels(filters):
  spec = replace(MIXED, filters=filters, teacher_network="same", teacher_side_heads=1)
  framework = Framework(spec)
  side = spec.multiple
  out = jax.eval_shape(
    framework, jax.eval_shape(framework.init, KEY), jax.ShapeDtypeStruct((1, 4, *[side] * 3), "f4")
  )
  assert list(out.student.side_logits) == ["level1", "level2"][: len(filters) - 2]
  assert list(out.teachers["t2"].side_logits) == ["level1"]
  assert out.fused["level1"].shape == (1, *[side // 2] * 3, 4)


def test_fusion_knows_its_features_channels_from_the_teachers_network(monkeypatch):
  """Also where the teachers' network has others than the student's at the same stride."""
  kind = NETWORKS["resunet"]

  def doubled(modalities, classes, filters, **options):
    return kind.build(modalities, classes, [2 * n for n in filters], **options)

  def features(filters):
    return {name: Feature(f.stride, 2 * f.channels) for name, f in kind.features(filters).items()}

  monkeypatch.setitem(NETWORKS, "wide", kind._replace(build=doubled, features=features))
  framework = Framework(replace(MIXED, fusion_levels=2, teacher_network="wide"))
  out = jax.eval_shape(
    framework, jax.eval_shape(framework.init, KEY), jax.ShapeDtypeStruct((1, 4, 16, 16, 8), "f4")
  )
  channels = {name: x.shape[-1] for name, x in out.teachers["t2"].features.items()}
  assert channels == {"level1": 8, "level2": 16, "bottleneck": 16}
  assert {name: x.shape for name, x in out.fused.items()} == {
    "level1": (1, 8, 8, 4, 4),
    "level2": (1, 4, 4, 2, 4),
  }


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_teachers_may_be_narrower_or_wider_than_their_student(width):
  """All of them, in what is fused and in prediction; the student is as it was."""
  spec = ModelSettings(filters=(8, 16, 24, 32), fusion_levels=2)
  framework = Framework(replace(spec, teacher_width=width))
  params = jax.eval_shape(framework.init, KEY)
  out = jax.eval_shape(framework, params, jax.ShapeDtypeStruct((1, 4, 16, 16, 8), "f4"))
  for name, own in {"student": out.student, **out.teachers}.items():
    times = 1 if name == "student" else width
    channels = {level: x.shape[-1] for level, x in own.features.items()}
    assert channels == {"level1": 16 * times, "level2": 24 * times, "bottleneck": 32 * times}
    weights, modalities = framework.networks(params)[name]
    x = jax.ShapeDtypeStruct((1, 16, 16, 8, len(modalities)), "f4")
    assert jax.eval_shape(framework.network_of(name), weights, x).shape == (1, 16, 16, 8, 4)
  assert out.fused["level2"].shape == (1, 4, 4, 2, 4)
  usual = jax.eval_shape(Framework(spec).init, KEY)
  assert jax.tree.map(jnp.shape, usual["student"]) == jax.tree.map(jnp.shape, params["student"])


def test_networks_of_one_kind_share_a_function_and_others_do_not():
  names = ("student", "flair", "t2")
  alike = Framework(replace(MIXED, teacher_network="resenc"))
  assert len({alike.network_of(name) for name in names}) == 1
  mixed = Framework(MIXED)
  assert mixed.network_of("flair") == mixed.network_of("t2") != mixed.network_of("student")


# --- A student under teachers of another network ----------------------------------------------


@pytest.fixture(scope="module")
def mixed():
  framework = Framework(MIXED)
  return framework, framework.init(KEY)


def test_each_network_predicts_as_its_own_kind(mixed):
  framework, params = mixed
  images = np.random.default_rng(0).standard_normal((1, 4, 16, 16, 16)).astype(np.float32)

  @jax.jit
  def every(params, images):
    alone = {
      name: framework.network_of(name)(own, select(images, modalities))
      for name, (own, modalities) in framework.networks(params).items()
    }
    return framework(params, images), alone

  together, alone = every.lower(params, images).compile(compiler_options=QUICK)(params, images)
  outputs = {"student": together.student, **together.teachers}
  assert alone.keys() == outputs.keys()
  for name, logits in alone.items():
    # Two programs; norms of the deepest stages divide by the deviation of a few voxels.
    np.testing.assert_allclose(logits, outputs[name].logits, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_mixed_framework_learns(monkeypatch):
  """CDSFL and side KD at level 1: losses fall on one batch, every part of the networks moves.

  With native convolutions and a block a stage, since nearly all of its time is compiling.
  """
  monkeypatch.setattr(resenc, "BLOCKS", (1, 1, 1, 1))
  spec = replace(MIXED, teachers={"flair": ("flair", "t1ce")}, dtype="float32")
  framework = Framework(spec, convolutions=Convolutions("tpu"))
  optimizers = {group: optax.adam(1e-2) for group in GROUPS}
  confidence, loss = published.confidence(), published.loss(kd_from_epoch=0)
  state = first = init_state(framework, optimizers, confidence, KEY)
  step = make_train_step(framework, optimizers, loss, confidence, steps_per_epoch=100)
  label = np.digitize(np.linalg.norm(np.indices((16, 16, 16)) - 7.5, axis=0), [3, 4, 6])
  label = np.array([1, 3, 2, 0], np.uint8)[label]
  noise = 0.3 * np.random.default_rng(0).standard_normal((1, 4, 16, 16, 16))
  image = (noise + np.array([0, 1, 2, 3])[label]).astype(np.float32)
  batch = {"image": image, "label": label[None]}
  program = jax.jit(step).lower(state, batch, KEY).compile(compiler_options=QUICK)
  history = []
  for _ in range(6):
    state, metrics = program(state, batch, KEY)
    history.append(jax.device_get(metrics))
  assert history[0]["loss/side/level1/kd"] > 0 and history[0]["loss/kd/flair"] > 0
  for name in ("loss/supervised", "loss/teacher/flair", "loss/cooperative/level1"):
    values = [float(metrics[name]) for metrics in history]
    assert np.isfinite(values).all() and values[-1] < 0.95 * values[0], (name, values)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.params, state.params)

  def farthest(tree):
    return max(jax.tree.leaves(tree))

  student = moved["student"]
  parts = [student[name] for name in ("stem", "encoder", "decoder", "head")]
  parts += [student["side_heads"]["level1"], moved["teachers"]["fusion"]["level1"]]
  assert min(farthest(part) for part in parts) > 1e-3
  assert farthest(student["side_heads"]["level2"]) == 0  # only level 1 is fused


# --- Memory -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_prediction_takes_about_as_much_memory_as_said(network):
  """By XLA's own account of a small window."""
  filters, side = (8, 16, 16, 16), 48  # few in the depth, so that kernels weigh little
  framework = Framework(ModelSettings(("t1ce",), {}, network, filters=filters))
  params = jax.eval_shape(framework.init, KEY)["student"]
  x = jax.ShapeDtypeStruct((1, *[side] * 3, 1), jnp.float32)
  program = jax.jit(framework.network).lower(params, x).compile(compiler_options=QUICK)
  found = program.memory_analysis().temp_size_in_bytes / (math.prod(x.shape) * filters[0])
  assert 0.6 < found / NETWORKS[network].bytes_per_channel < 1.4
