"""Training step and prediction are lowered for GPU and TPU on a machine that has neither."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import published
import pytest

from kd_jax.models import conv_choice
from kd_jax.models.framework import Framework
from kd_jax.settings.model import ModelSettings
from kd_jax.training.mesh import make_mesh
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import init_state
from kd_jax.training.step import compile_step, make_train_step

SPEC = ModelSettings(student=("t1ce",), teachers={"flair": ("flair",)}, filters=(4, 8, 8, 8))
NAMES = {"gpu": "cuda", "tpu": "tpu"}  # ours, and JAX's where it exports


@functools.cache
def framework(platform):
  return Framework(SPEC, "norms", conv_choice.of_platform(platform))


def convolutions(exported):
  """How many convolutions a program has, by spatial axes: {2: ..., 3: ...}."""
  found = re.findall(r"stablehlo.convolution.*dim_numbers = \[([^\]]*)\]", exported.mlir_module())
  spatial = [len(axes.split(",")) - 2 for axes in found]
  return {axes: spatial.count(axes) for axes in (2, 3)}


def exported_step(platform):
  own = framework(platform)
  optimizers = {group: optimizer(published.optimiser(), 100) for group in ("teachers", "student")}
  settings = (published.loss(), published.confidence())
  step = make_train_step(own, optimizers, *settings, steps_per_epoch=10, ema_decay=0.9)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda key: init_state(own, optimizers, settings[1], key, ema=True), key)
  batch = {
    "image": jax.ShapeDtypeStruct((1, 4, 16, 16, 16), jnp.float16),
    "label": jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.uint8),
  }
  compiled = compile_step(step, make_mesh(1, 1))
  return jax.export.export(compiled, platforms=[NAMES[platform]])(state, batch, key)


def test_the_training_step_for_a_tpu():
  exported = exported_step("tpu")
  assert exported.platforms == ("tpu",)
  found = convolutions(exported)
  # Rows of several voxels have slices as samples. One convolution of each network, the last of the
  # bottleneck, sees rows of one voxel: XLA's own form, forward and backward.
  assert found[2] > 100 and found[3] == 2 * 3
  assert "bf16" in exported.mlir_module()


def test_the_training_step_for_a_gpu():
  exported = exported_step("gpu")
  assert exported.platforms == ("cuda",)
  found = convolutions(exported)
  assert sum(found.values()) > 80  # in forms by the times of a GPU; products over patches are none
  text = exported.mlir_module()
  # Convolutions keep their biases out, and their gradients what they stack.
  assert text.count("optimization_barrier") > sum(found.values()) / 2
  assert "bf16" in text


@pytest.mark.parametrize("platform", NAMES)
def test_prediction(platform):
  own = framework(platform)
  params = jax.eval_shape(own.init, jax.random.key(0))["student"]
  window = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)
  exported = jax.export.export(jax.jit(own.network), platforms=[NAMES[platform]])(params, window)
  assert exported.platforms == (NAMES[platform],)
  assert [out.shape for out in exported.out_avals] == [(1, 16, 16, 16, 4)]
  assert sum(convolutions(exported).values()) > 15
