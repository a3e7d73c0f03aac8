"""The networks: sizes, shapes, the convolutions, and where training starts from."""

import functools
import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models import blocks
from kd_jax.models.conv import Forms, upsample2
from kd_jax.models.conv_choice import Convolutions
from kd_jax.models.framework import Framework, select
from kd_jax.models.fusion import Fusion
from kd_jax.settings.model import ModelSettings
from kd_jax.training.mesh import make_mesh

FULL = ModelSettings(  # with one teacher: all are built alike
  student=("t1ce",),
  teachers={"t2": ("t2",)},
  teacher_width=1.0,
  filters=(32, 64, 128, 256),
  fusion_levels=2,
)
TINY = ModelSettings(
  student=("t1ce",),
  teachers={"flair": ("flair",), "others": ("t2", "t1", "flair")},
  teacher_width=1.0,
  filters=(4, 4, 8, 8),
  fusion_levels=2,
)
KEY = jax.random.key(0)
# For programs that run once: compiled without LLVM's optimisations, in half the time.


@functools.cache
def full(attention="channel"):
  """The full-size framework, and its parameters' shapes."""
  framework = Framework(replace(FULL, attention=attention))
  return framework, jax.eval_shape(framework.init, KEY)


def shapes_of(framework, params, shape):
  return jax.eval_shape(framework, params, jax.ShapeDtypeStruct(shape, jnp.float32))


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# --- Sizes and shapes; nothing is compiled ----------------------------------------------------


def test_parameter_counts_are_the_published_ones():
  _, params = full()
  assert size(params["student"]) == 9_459_478
  heads = (64 * 4 + 4) + (128 * 4 + 4)  # the side heads, which only the student has
  assert size(params["teachers"]["networks"]["t2"]) == 9_459_478 - heads
  three = nnx.eval_shape(lambda: Fusion(("flair", "t2", "t1"), 64, 4, rngs=nnx.Rngs(0)))
  assert size(nnx.state(three, nnx.Param)) == 2_540


def test_parameter_counts_of_the_second_level_and_of_cbam():
  # A gate of 128 -> 8 -> 128 and a conv1 to 4 channels for the teacher, and the last conv1.
  fusion = {"level1": 64 * 4 + 4 + 4 * 64 + 64, "level2": 128 * 8 + 8 + 8 * 128 + 128}
  fusion = {"level1": fusion["level1"] + 260 + 20, "level2": fusion["level2"] + 516 + 20}
  (_, plain), (_, cbam) = full(), full("cbam")
  assert {k: size(v) for k, v in plain["teachers"]["fusion"].items()} == fusion
  gate = 2 * 7**3 + 1 + 2  # conv7 of two channels, and the scale and bias of its norm
  assert {k: size(v) - gate for k, v in cbam["teachers"]["fusion"].items()} == fusion
  assert size(cbam["student"]) == size(plain["student"]) + 3 * gate


@pytest.mark.parametrize("attention", ["channel", "cbam"])
def test_output_shapes(attention):
  out = shapes_of(*full(attention), (2, 4, 32, 48, 16))
  whole, half, quarter, eighth = (2, 32, 48, 16), (2, 16, 24, 8), (2, 8, 12, 4), (2, 4, 6, 2)
  sides = {"level1": (*half, 4), "level2": (*quarter, 4)}
  features = {"level1": (*half, 64), "level2": (*quarter, 128), "bottleneck": (*eighth, 256)}
  shapes = jax.tree.map(jnp.shape, out)
  assert shapes.student == ((*whole, 4), sides, features)
  assert shapes.teachers == {"t2": ((*whole, 4), {}, features)}
  assert shapes.fused == sides


def test_a_teacher_has_the_side_heads_that_it_is_given():
  framework = Framework(replace(TINY, teachers={"t2": ("t2",)}, teacher_side_heads=1))
  out = shapes_of(framework, jax.eval_shape(framework.init, KEY), (1, 4, 16, 16, 16))
  assert {k: v.shape for k, v in out.teachers["t2"].side_logits.items()} == {
    "level1": (1, 8, 8, 8, 4)
  }


@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_fusion_teaches_no_teacher(detached):
  """Else its loss reaches all of them: that is how they learn from each other."""
  spec = replace(TINY, teachers={"t2": ("t2",)}, fusion_detached=detached)
  framework = Framework(spec)
  params = framework.init(KEY)
  images = np.random.default_rng(0).standard_normal((1, 4, 16, 16, 16)).astype(np.float32)

  def fused(params):
    return jnp.sum(framework(params, images).fused["level1"] ** 2)

  gradient = jax.jit(jax.grad(fused), compiler_options=QUICK)(params)["teachers"]
  largest = {
    k: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient[k])) for k in gradient
  }
  assert (largest["networks"] == 0) == detached
  assert largest["fusion"] > 0


def test_without_fusion_levels_nothing_is_fused():
  framework = Framework(replace(TINY, teachers={"t2": ("t2",)}, fusion_levels=0))
  params = jax.eval_shape(framework.init, KEY)
  out = shapes_of(framework, params, (1, 4, 16, 16, 16))
  assert (list(out.teachers), out.fused) == (["t2"], {})
  assert jax.tree.leaves(params["teachers"].get("fusion", {})) == []


def test_a_student_alone_has_neither_teachers_nor_fusion():
  framework = Framework(replace(FULL, teachers={}))
  params = jax.eval_shape(framework.init, KEY)
  out = shapes_of(framework, params, (1, 4, 16, 16, 16))
  assert (out.teachers, out.fused) == ({}, {})
  assert jax.tree.leaves(params["teachers"]) == []
  assert size(params["student"]) == 9_459_478  # both side heads, as in the published network


def test_parameters_and_statistics_are_float32_where_bfloat16_is_computed():
  framework = Framework(replace(FULL, dtype="bfloat16"))
  params = jax.eval_shape(framework.init, KEY)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  out = shapes_of(framework, params, (1, 4, 16, 16, 16))
  assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("bfloat16")}
  # Statistics in float32: bfloat16 cannot tell 300 from 301, nor square their difference.
  x = 300 + np.random.default_rng(0).standard_normal((1, 8, 8, 8, 4))
  norm = blocks.group_norm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  mean = np.asarray(norm(jnp.asarray(x, jnp.float32)), np.float32).mean((0, 1, 2, 3))
  np.testing.assert_allclose(mean, 0, atol=0.01)


def test_several_modalities_for_one_teacher(tiny):
  _, params, _ = tiny
  teachers = params["teachers"]["networks"]
  assert teachers["flair"]["stem"]["conv_in"]["kernel"].shape == (3, 3, 3, 1, 4)
  assert teachers["others"]["stem"]["conv_in"]["kernel"].shape == (3, 3, 3, 3, 4)
  assert teachers["others"]["stem"]["skip_conv"]["kernel"].shape == (3, 3, 3, 3, 4)
  assert teachers["others"]["bridge"]["conv_in"]["kernel"].shape == (3, 3, 3, 8, 8)


def test_select_takes_modalities_by_name_in_the_order_asked_for():
  images = np.arange(2 * 4 * 8).reshape(2, 4, 2, 2, 2)  # flair, t1, t1ce, t2
  got = select(images, ("t2", "flair"))
  np.testing.assert_array_equal(got[..., 0], images[:, 3])
  np.testing.assert_array_equal(got[..., 1], images[:, 0])


# --- The networks by themselves and together --------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
  """The tiny framework, its parameters, and a patch."""
  framework = Framework(TINY)
  images = np.random.default_rng(0).standard_normal((1, 4, 8, 8, 16)).astype(np.float32)
  return framework, framework.init(KEY), images


def test_a_network_alone_does_what_it_does_among_the_others(tiny):
  framework, params, images = tiny

  @jax.jit
  def every(params, images):
    alone = {
      name: framework.network(own, select(images, modalities))
      for name, (own, modalities) in framework.networks(params).items()
    }
    return framework(params, images), alone

  program = every.lower(params, images).compile(compiler_options=QUICK)
  before, alone = program(params, images)
  assert alone.keys() == {"student", "flair", "others"}
  for name, logits in alone.items():
    together = before.student.logits if name == "student" else before.teachers[name].logits
    np.testing.assert_allclose(together, logits, rtol=1e-4, atol=1e-5, err_msg=name)

  # Only the teacher called "others" sees t1 and t2; the others' logits cannot change with them.
  changed = images.copy()
  changed[:, [1, 3]] += 1
  after, alone_after = program(params, changed)
  same = {name: np.array_equal(alone[name], alone_after[name]) for name in alone}
  assert same == {"student": True, "flair": True, "others": False}
  for level in ("level1", "level2"):
    assert not np.array_equal(before.fused[level], after.fused[level])


def test_the_activation_of_the_fusion_comes_before_its_last_convolution():
  def fusion(activation):
    return Fusion(("a", "b"), 4, 2, activation=activation, rngs=nnx.Rngs(0))

  features = {
    name: np.random.default_rng(seed).standard_normal((1, 2, 2, 2, 4)).astype(np.float32)
    for seed, name in enumerate(("a", "b"))
  }
  plain, bent = fusion(False), fusion(True)
  gated = [plain.projections[n](plain.gates[n](features[n])) for n in ("a", "b")]
  summed = np.asarray(gated[0] + gated[1])
  assert (summed < 0).any()
  kernel, bias = np.asarray(plain.head.kernel[...])[0, 0, 0], np.asarray(plain.head.bias[...])
  np.testing.assert_allclose(plain(features), summed @ kernel + bias, atol=1e-5)
  leaky = np.where(summed < 0, 0.01 * summed, summed)
  np.testing.assert_allclose(bent(features), leaky @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(32, 4), (96, 6), (24, 6), (64, 4), (4, 4)])
def test_group_norm_has_six_groups_where_they_fit(channels, groups):
  norm = blocks.group_norm(channels, dtype=jnp.float32, rngs=nnx.Rngs(0))
  assert norm.num_groups == groups


# --- Convolutions -----------------------------------------------------------------------------


def test_upsample2_writes_each_voxel_as_a_cube():
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((2, 2, 3, 1, 3)), rng.standard_normal((2, 2, 2, 3, 4))
  expected = np.zeros((2, 4, 6, 2, 4))
  for d, h, w in np.ndindex(2, 3, 1):
    for i, j, k in np.ndindex(2, 2, 2):
      expected[:, 2 * d + i, 2 * h + j, 2 * w + k] = x[:, d, h, w] @ kernel[i, j, k]
  np.testing.assert_allclose(upsample2(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=1e-5)


# --- Initialisation ---------------------------------------------------------------------------


def walk(tree, path=()):
  """Yields (path, array) of a nested dict."""
  for name, node in tree.items():
    if isinstance(node, dict):
      yield from walk(node, (*path, name))
    else:
      yield (*path, name), np.asarray(node)


@pytest.fixture(scope="module")
def start():
  """Parameters of networks wide enough for statistics, small enough to be quick."""
  spec = replace(
    TINY, filters=(8, 16, 24, 32), teachers={"flair": ("flair",), "t2": ("t2",)}, fusion_levels=1
  )
  return Framework(spec).init(KEY)


def test_the_same_key_gives_the_same_numbers_and_another_others(tiny):
  framework, params, _ = tiny
  again, other = framework.init(KEY), framework.init(jax.random.key(1))
  for (path, a), (_, b), (_, c) in zip(walk(params), walk(again), walk(other), strict=True):
    np.testing.assert_array_equal(a, b)
    if path[-1] == "kernel":
      assert not np.array_equal(a, c)


def test_no_two_networks_start_alike(start):
  networks = [*start["teachers"]["networks"].values(), start["student"]]
  for a, b in itertools.combinations(networks, 2):
    kernels = zip(
      (x for p, x in walk(a) if p[-1] == "kernel"),
      (x for p, x in walk(b) if p[-1] == "kernel"),
      strict=False,
    )
    assert not any(np.array_equal(x, y) for x, y in kernels if x.shape == y.shape)


def test_init_under_jit_gives_the_same_numbers():
  def init(key):
    module = blocks.Conv(2, 3, 3, build=blocks.Build("torch", jnp.float32, nnx.Rngs(key)))
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))

  eager, compiled = init(KEY), jax.jit(init)(KEY)
  np.testing.assert_array_equal(eager["kernel"], compiled["kernel"])
  np.testing.assert_array_equal(eager["bias"], compiled["bias"])


def test_the_student_starts_from_xavier_normal_with_zero_biases(start):
  checked = 0
  for path, x in walk(start["student"]):
    if "upsample" in path or path[-1] == "scale":
      continue
    if path[-1] == "bias":
      np.testing.assert_array_equal(x, 0)
    elif x.size > 3000:
      taps = math.prod(x.shape[:3])
      std = math.sqrt(2 / (taps * (x.shape[-2] + x.shape[-1])))
      assert x.std() == pytest.approx(std, rel=0.06), path
      assert abs(x.mean()) < 5 * std / math.sqrt(x.size), path
      assert np.abs(x).max() > 3 * std, path  # a normal distribution, not a uniform one
      checked += 1
  assert checked > 10


def torch_bound(x, path):
  """1 / sqrt(fan in); PyTorch counts the fan of a transposed convolution over its outputs."""
  channels = x.shape[-1] if "upsample" in path else x.shape[-2]
  return 1 / math.sqrt(math.prod(x.shape[:3]) * channels)


def assert_torch_uniform(tree):
  for path, kernel in walk(tree):
    if path[-1] != "kernel":
      continue
    bound = torch_bound(kernel, path)
    bias = dict(walk(tree))[(*path[:-1], "bias")]
    assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound, path
    assert (bias != 0).all(), path
    if kernel.size > 500:
      assert np.abs(kernel).max() > 0.98 * bound, path
      assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), path
      assert abs(kernel.mean()) < 5 * kernel.std() / math.sqrt(kernel.size), path


def test_teachers_and_fusion_start_from_pytorchs_default(start):
  for teacher in start["teachers"]["networks"].values():
    assert_torch_uniform(teacher)
  assert_torch_uniform(start["teachers"]["fusion"]["level1"])


def test_transposed_convolutions_start_from_pytorchs_default_even_in_the_student(start):
  for stage in ("up0", "up1", "up2"):
    assert_torch_uniform({"upsample": start["student"][stage]["upsample"]})


def test_norms_start_as_the_identity(start):
  norms = [(p, x) for p, x in walk(start) if p[-2].startswith(("norm", "skip_norm"))]
  assert len(norms) == 3 * 6 * 3 * 2  # networks, blocks, norms, scale and bias
  for path, x in norms:
    np.testing.assert_array_equal(x, 1 if path[-1] == "scale" else 0)


# --- On a mesh --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "forms",
  [
    Forms("native"),
    Forms("depth_taps"),
    Forms("native", "transposed_native", "native", apart=True),
    Forms("depth_stack_2", "cubes", "depth_stack_2", apart=True),
  ],
  ids=lambda forms: "-".join(forms[:2]),
)
def test_convolutions_on_a_mesh_have_the_gradients_of_one_device(forms):
  """Batch and depth both split: XLA's partitioner has been wrong there more than once.

  On CPU the step's own mesh test has the depth taps; accelerators use others.
  """

  class Chosen(Convolutions):
    def choose(self, convolution):
      if convolution.stride == 1 and forms.to_input == "cubes":
        return forms._replace(to_input="depth_stack_2")
      return forms

  build = blocks.Build("torch", jnp.float32, nnx.Rngs(0), Chosen("gpu"))
  pair = nnx.Sequential(blocks.ResidualBlock(4, 8, 2, build), blocks.ResidualBlock(8, 8, 2, build))
  graph, params = nnx.split(pair, nnx.Param)
  x = np.random.default_rng(0).standard_normal((4, 16, 8, 8, 4)).astype(np.float32)

  def loss(params, x):
    return jnp.sum(jnp.sin(3 * nnx.merge(graph, params)(x)))

  def gradients(shape):
    mesh = make_mesh(*shape)
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data", "space"))
    program = jax.jit(
      jax.grad(loss), in_shardings=(whole, split), out_shardings=whole, compiler_options=QUICK
    )
    return jax.device_get(nnx.to_pure_dict(program(params, x)))

  expected = dict(walk(gradients((1, 1))))
  for path, got in walk(gradients((2, 2))):
    size = np.abs(expected[path]).max()
    np.testing.assert_allclose(got, expected[path], atol=1e-4 * size + 1e-4, err_msg=str(path))
