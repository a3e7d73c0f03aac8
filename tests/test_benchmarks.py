"""The benchmarks: what they count and parse is right, and the PyTorch mirror computes the same."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import QUICK

from benchmarks import scaling, timing, train_step
from benchmarks.flops import forward_flops, step_flops
from kd_jax.method.objective import objective
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.model import ModelSettings
from kd_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[1]
PAPER = train_step.PAPER


# --- FLOPs ------------------------------------------------------------------------------------


def hand_count(filters, side, heads):
  """Multiply-adds of one network with one modality, level by level.

  Source: docs/method.md, "Networks".
  """
  f0, f1, f2, f3 = filters
  v0, v1, v2, v3 = (side**3 // 8**k for k in range(4))

  def block(i, o, voxels):  # main and skip from i to o, then o to o
    return 27 * voxels * (2 * i * o + o * o)

  def stage(deep, skip, small, large):
    wide = deep + skip
    gate = 2 * 2 * wide * max(1, wide // 16)  # two linear layers, of the mean and the maximum
    return 8 * deep * deep * small + gate + block(wide, skip, large)

  encoder = 27 * v0 * (2 * f0 + f0 * f0) + block(f0, f1, v1) + block(f1, f2, v2) + block(f2, f3, v3)
  decoder = stage(f3, f2, v3, v2) + stage(f2, f1, v2, v1) + stage(f1, f0, v1, v0)
  return encoder + decoder + 4 * f0 * v0 + heads * (4 * f1 * v1 + 4 * f2 * v2)


def test_flops_are_those_of_a_hand_count():
  filters, side = (4, 8, 12, 16), 16
  spec = ModelSettings(student=("t1ce",), teachers={"t2": ("t2",)}, filters=filters)
  narrow = spec.teacher_filters
  assert narrow == (4, 4, 8, 8)
  f1 = narrow[1]
  fusion = 2 * 2 * f1 * 1 + (4 * f1 + 4 * 4) * (side // 2) ** 3
  expected = 2 * (hand_count(filters, side, 1) + hand_count(narrow, side, 0) + fusion)
  assert forward_flops(spec, (side,) * 3) == expected


@pytest.mark.parametrize("cohorts", [1, 2])
def test_flops_are_those_of_the_traced_program(cohorts):
  """Every convolution and matrix product in the networks' own program, padding included."""
  # Forms for the CPU may need fewer multiplications than they stand for, rows of a TPU need more.
  spec = ModelSettings(
    student=("t1ce", "t1"),
    teachers={"t2": ("t2",)},
    filters=(4, 8, 12, 32),
    fusion_levels=2,
    attention="cbam",
    cohorts=cohorts,
  )
  plain = Convolutions("gpu", forms=Forms("native"))
  patch, framework = (16, 24, 32), Framework(spec, convolutions=plain)
  params = jax.eval_shape(framework.init, jax.random.key(0))
  images = jax.ShapeDtypeStruct((cohorts, 4, *patch), jnp.float32)
  traced = flops_of(jax.make_jaxpr(framework)(params, images).jaxpr)
  assert cohorts * forward_flops(spec, patch) == traced


def flops_of(jaxpr):
  total = 0
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      total += flops_of(inner) if hasattr(inner, "eqns") else 0
    shapes = [x.aval.shape for x in equation.invars[:2]]
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "conv_general_dilated":
      total += 2 * outputs * math.prod(shapes[1][:-1])  # HWIO: all taps and inputs
    elif equation.primitive.name == "dot_general":
      ((left, _), _) = equation.params["dimension_numbers"]
      total += 2 * outputs * math.prod(shapes[0][axis] for axis in left)
  return total


def test_the_papers_step_has_about_21_teraflop_a_sample():
  settings = train_step.settings(PAPER["filters"], (PAPER["side"],) * 3, 1, "float32")
  assert len(settings.model.teachers) == 3
  counted = step_flops(settings.model, settings.data.patch)
  assert counted == pytest.approx(21.3e12, rel=0.01)


# --- Timing -----------------------------------------------------------------------------------


def test_the_ceiling_is_above_zero():
  product, flops = train_step.matmul("float32", 256, 2)
  assert flops == 2 * 2 * 256**3
  assert np.isfinite(product()).all()
  assert flops / timing.alternate({"matmul": product}, 1, 2)["matmul"].least > 0


def test_programs_take_turns():
  calls = []
  programs = {name: lambda name=name: calls.append(name) for name in "ab"}
  spreads = timing.alternate(programs, rounds=2, block=2, warm_up=1)
  assert "".join(calls) == "aaabbbbbbaaa"
  for spread in spreads.values():
    assert spread.count == 4  # the first call of a turn does not count
    assert 0 <= spread.least <= spread.median <= spread.most


# --- Collectives ------------------------------------------------------------------------------

# A mesh of 2 x 2: devices 0 and 1 share a volume, 0 and 2 hold different samples.
HLO = """
  %all-reduce.1 = (f32[3,3,3,8,16]{4,3,2,1,0}, /*index=1*/f32[16]{0}) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=1] {'axis_0'}, to_apply=%add
  %all-reduce.2 = f32[1,6]{1,0} all-reduce(%c), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, to_apply=%add
  %all-reduce.3 = f32[] all-reduce(%c), replica_groups=[1,4]<=[4], to_apply=%add
  %all-reduce.4 = f32[5]{0} all-reduce(%c), replica_groups=[4,1]<=[4], to_apply=%add
  %all-gather.1 = u8[1,32,32,32]{3,2,0,1} all-gather(%d), replica_groups=[2,2]<=[4], dimensions={1}
  %all-gather.2 = s32[16]{0} all-gather(%d), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %all-to-all.1 = bf16[8,4]{1,0} all-to-all(%e), replica_groups={{0,2},{1,3}}, dimensions={0}
  %collective-permute.1 = f32[1,1,8,8,4]{4,3,2,1,0} collective-permute(%f), source_target_pairs={{0,1},{2,3}}
  %collective-permute-start.2 = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%f), source_target_pairs={{0,1},{2,3}}
  %collective-permute-done.2 = f32[10]{0} collective-permute-done(%collective-permute-start.2)
  %fusion.1 = f32[7]{0} fusion(%all-reduce.1), metadata={op_name="all-reduce"}
"""  # noqa: E501


def test_collectives_are_read_from_a_compiled_program():
  assert [tuple(one) for one in scaling.collectives(HLO, space=2)] == [
    ("all-reduce", 4 * (27 * 8 * 16 + 16), 2, True),
    ("all-reduce", 24, 2, False),
    ("all-reduce", 4, 4, True),  # and none for groups of one device
    ("all-gather", 32**3, 2, False),
    ("all-gather", 64, 2, True),
    ("all-to-all", 64, 2, True),
    ("collective-permute", 4 * 256, 2, False),
    ("collective-permute", 40, 2, False),
  ]


def test_an_unknown_notation_is_not_guessed_at():
  with pytest.raises(ValueError, match="unknown notation"):
    scaling.collectives("  %a = f32[4]{0} all-reduce(%b), replica_groups=@somewhere", 1)


def test_the_collectives_of_a_real_program():
  """A sum over the batch is one all-reduce; a shift along the depth is one halo."""
  mesh = make_mesh(2, 2)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "space"))
  x = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=sharding)

  def found(function):
    text = jax.jit(function).lower(x).compile().as_text()
    return {tuple(one) for one in scaling.collectives(text, space=2)}

  assert found(lambda x: x.sum(0)) == {("all-reduce", 4 * 4, 2, True)}
  assert found(lambda x: x.sum(1)) == {("all-reduce", 2 * 4, 2, False)}
  shifted = found(lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :8])
  assert ("collective-permute", 2 * 4, 2, False) in shifted


def test_what_a_device_sends():
  gradients = scaling.Collective("all-reduce", 100, 2, True)
  assert gradients.sent() == pytest.approx(100)  # 2 (n - 1) / n
  assert gradients.sent(growth=4) == pytest.approx(175)
  halo = scaling.Collective("collective-permute", 100, 2, False)
  assert halo.sent() == halo.sent(growth=4) == 100
  assert scaling.Collective("all-gather", 100, 2, False).sent(growth=4) == pytest.approx(50)


def test_an_impossible_mesh_is_named():
  with pytest.raises(ConfigError, match="multiple"):
    scaling._mesh_shape("1x8", 32, 8)
  with pytest.raises(ConfigError, match="4x2"):
    scaling._mesh_shape("four", 32, 8)


# --- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_mirror_computes_the_same(gradients):
  """Logits, losses, and in the slow run every parameter's gradient: what is detached is so too."""
  torch = pytest.importorskip("torch")
  from benchmarks import torch_mirror

  spec = ModelSettings(
    student=("t1ce",), teachers={"flair": ("flair",), "t2": ("t2",)}, filters=(4, 4, 8, 8)
  )
  torch.manual_seed(0)
  mirror, framework = torch_mirror.Mirror(spec), Framework(spec)
  params = torch_mirror.to_params(mirror)
  expected = jax.eval_shape(framework.init, jax.random.key(0))
  assert jax.tree.map(np.shape, params) == jax.tree.map(jnp.shape, expected)

  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 4, 16, 16, 24), np.float32)
  labels = rng.integers(0, 4, (2, 16, 16, 24))
  loss = train_step.settings(spec.filters, (16, 16, 16), 2, "float32").loss
  weights = {"flair": 0.2, "t2": 0.3}

  def loss_fn(params):
    outputs = framework(params, images)
    y = jnp.asarray(labels)
    total, terms = objective(outputs, y, weights, jnp.asarray(1.0), loss, y >= 0)
    return total, (outputs, terms)

  run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True) if gradients else loss_fn)
  result = run.lower(params).compile(compiler_options=QUICK)(params)
  (total, (ours, terms)), grads = result if gradients else (result, None)

  theirs = mirror(torch.from_numpy(images))
  teachers, student = torch_mirror.objective(theirs, torch.from_numpy(labels), weights, loss)
  pairs = {
    "total": (total, teachers + student),
    "teachers": (terms["loss/teachers"], teachers),
    "student": (terms["loss/student"], student),
    "fused": (ours.fused["level1"], theirs.fused["level1"]),
    **{
      f"side {k}": (x, theirs.student.side_logits[k]) for k, x in ours.student.side_logits.items()
    },
    "student's logits": (ours.student.logits, theirs.student.logits),
    **{k: (x.logits, theirs.teachers[k].logits) for k, x in ours.teachers.items()},
  }
  for name, (a, b) in pairs.items():
    b = b.detach().movedim(1, -1) if b.ndim == 5 else b.detach()
    np.testing.assert_allclose(a, b.numpy(), 1e-4, 1e-4, err_msg=name)

  if gradients:
    (teachers + student).backward()
    for parameter in mirror.parameters():
      untouched = torch.zeros_like(parameter)  # level 2's side head has no loss at one level
      parameter.data = untouched if parameter.grad is None else parameter.grad
    for a, b in zip(*map(jax.tree.leaves, (grads, torch_mirror.to_params(mirror))), strict=True):
      np.testing.assert_allclose(a, b, 1e-3, 1e-5)


@pytest.mark.parametrize("kind", [{}, {"channels_last": True}])
def test_the_mirrors_step_trains(kind):
  torch = pytest.importorskip("torch")
  from benchmarks import torch_mirror

  settings = train_step.settings((4, 4, 8, 8), (16, 16, 16), 1, "float32")
  batch, rate = train_step.random_batch(settings), settings.optim.student.learning_rate
  mirror = torch_mirror.Mirror(settings.model)
  before = [parameter.detach().clone() for parameter in mirror.parameters()]
  step = torch_mirror.make_step(settings, batch, "cpu", dtype=torch.float32, net=mirror, **kind)
  step()
  after = [parameter.detach() for parameter in mirror.parameters()]
  moved = np.array([float((a - b).abs().max()) for a, b in zip(before, after, strict=True)])
  # Adam's first step is the learning rate; a gate may be dead at so few channels.
  assert np.mean(np.isclose(moved, rate, rtol=0.05)) > 0.8
  assert moved.max() < 1.1 * rate


# --- As commands ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "rows"), [(["train_step.py"], 1), (["scaling.py", "--mesh", "1x1", "2x2"], 2)]
)
def test_small_runs(tmp_path, arguments, rows):
  path = tmp_path / "result.json"
  script, *rest = arguments
  command = [sys.executable, ROOT / "benchmarks" / script, "--small", f"--json={path}", *rest]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
  result = json.loads(path.read_text())
  found = result["rows"] if script == "train_step.py" else result["rows"]["meshes"]
  assert len(found) == rows
  rule = done.stdout.splitlines()[-rows - 1]  # the table's last rows end the output
  assert set(rule) == {"-", " "}
