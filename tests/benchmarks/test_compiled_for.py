"""What is read from compiled programs, and the benchmark that compiles for other devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import FLAGS

from benchmarks import compiled_for, hlo, targets
from benchmarks.kernels import estimated_cycles, kernels
from kd_jax.models.conv import Forms, conv3d
from kd_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]

# A convolution of cuDNN with both gradients, fusions with slices and an update, a loop.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/kd_jax/training/step.py"
2 "/x/kd_jax/models/framework.py"
3 "/x/flax/nnx/nn/linear.py"

FunctionNames
1 "make_train_step.<locals>.train_step"
2 "Framework.student"
3 "Stem.__call__"
4 "Conv.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=13}
2 {file_name_id=2 function_name_id=2 line=14}
3 {file_name_id=2 function_name_id=3 line=15}
4 {file_name_id=3 function_name_id=4 line=16}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

%fused_concatenate (param_0: f32[100,4]) -> f32[4,8] {
  %param_0 = f32[100,4]{1,0} parameter(0)
  %slice.1 = f32[4,4]{1,0} slice(%param_0), slice={[0:4], [0:4]}
  %slice.2 = f32[4,4]{1,0} slice(%param_0), slice={[4:8], [0:4]}
  ROOT %concatenate.1 = f32[4,8]{1,0} concatenate(%slice.1, %slice.2), dimensions={1}
}

%fused_update (param_0.1: f32[100,4], param_1: f32[2,4], param_2: s32[]) -> f32[100,4] {
  %param_0.1 = f32[100,4]{1,0} parameter(0)
  %param_1 = f32[2,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %update.1 = f32[100,4]{1,0} dynamic-update-slice(%param_0.1, %param_1, %param_2, %param_2)
}

%body (arg: f32[4,8]) -> f32[4,8] {
  %arg = f32[4,8]{1,0} parameter(0)
  ROOT %multiply.1 = f32[4,8]{1,0} multiply(%arg, %arg)
}

%condition (arg.1: f32[4,8]) -> pred[] {
  %arg.1 = f32[4,8]{1,0} parameter(0)
  ROOT %constant.9 = pred[] constant(true)
}

ENTRY %main (x: bf16[1,8,8,8,2], k: bf16[4,3,3,3,2], w: f32[100,4], u: f32[2,4], i: s32[]) -> f32[4,8] {
  %x = bf16[1,8,8,8,2]{4,3,2,1,0} parameter(0)
  %k = bf16[4,3,3,3,2]{4,3,2,1,0} parameter(1)
  %w = f32[100,4]{1,0} parameter(2)
  %u = f32[2,4]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %conv.1 = (bf16[1,8,8,8,4]{4,3,2,1,0}, /*index=1*/u8[0]{0}) custom-call(%x, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp()/conv" stack_frame_id=4}
  %y = bf16[1,8,8,8,4]{4,3,2,1,0} get-tuple-element(%conv.1), index=0
  %conv.2 = (bf16[1,8,8,8,2]{4,3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(step)/transpose(jvp())/conv" stack_frame_id=4}
  %conv.3 = (bf16[4,3,3,3,2]{4,3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convBackwardFilter"
  %concatenate_fusion = f32[4,8]{1,0} fusion(%w), kind=kLoop, calls=%fused_concatenate
  %update_fusion = f32[100,4]{1,0} fusion(%w, %u, %i), kind=kLoop, calls=%fused_update
  ROOT %while.1 = f32[4,8]{1,0} while(%concatenate_fusion), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501


def test_kernels_of_a_program():
  found = {one.name: one for one in kernels(PROGRAM)}
  assert set(found) == {
    *("conv.1", "conv.2", "conv.3", "concatenate_fusion", "update_fusion", "multiply.1"),
  }
  voxels, kernel = 8**3, 27 * 2 * 4
  inside = (3 * 8 - 2) ** 3  # taps that meet no padding
  for name, backward in (("conv.1", False), ("conv.2", True), ("conv.3", False)):
    one = found[name]
    assert (one.kind, one.side, one.backward) == ("convolution", 8, backward)
    assert one.bytes == 2 * (2 * voxels + 4 * voxels + kernel)
    assert one.flops == 2 * inside * 2 * 4
  assert found["conv.1"].part == "student Stem Conv"
  assert found["conv.3"].part == "conv.3"  # nothing tells where it comes from
  # Two slices are read of the hundred rows, and two rows are written of them.
  assert found["concatenate_fusion"].bytes == 4 * (2 * 16 + 32)
  assert found["concatenate_fusion"].kind == "rearrangement"
  assert found["update_fusion"].bytes == 4 * (8 + 8 + 1)
  assert (found["multiply.1"].times, found["multiply.1"].kind) == (3, "elementwise")
  assert found["multiply.1"].bytes == 4 * 3 * 32


def test_cycles_that_xla_expects_are_added_up():
  line = '  %k.1 = f32[4] fusion(%a), backend_config={"estimated_cycles":"7","window":[]}'
  program = "\n".join(
    [line, line.replace("7", "35").replace("k.1", "k.2"), "  %c = s32[] constant(1)"]
  )
  assert estimated_cycles(program) == 42
  assert estimated_cycles(PROGRAM) is None


def test_arrays_have_their_padding_and_their_place():
  padded, fast, scalar = hlo.arrays(
    "(bf16[16,5,32]{2,1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)}, pred[])"
  )
  assert padded.bytes == padded.moved == 2 * 16 * 8 * 128
  assert (fast.bytes, fast.moved) == (4 * 1024, 0)
  assert (scalar.dims, scalar.bytes) == ((), 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_a_real_program_are_xlas_own(stride):
  """Forward pass and both gradients, where XLA for CPU has them as convolutions."""

  def loss(x, kernel):
    return jnp.sum(conv3d(x, kernel, stride, Forms("native")) ** 2)

  shapes = (1, 12, 10, 8, 3), (3, 3, 3, 3, 5)
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*inputs).compile()
  counted = sum(one.flops for one in kernels(compiled.as_text()))
  assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.03)


def test_levels_are_the_nearest_sides():
  sides = [144, 72, 36, 18]
  assert [compiled_for.level(side, sides) for side in (152, 76, 18, 3)] == [144, 72, 18, "other"]


def test_what_to_install_is_told(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
  for device, package in (("h100", r"jax\[cuda13\]"), ("v5e", r"jax\[tpu\]")):
    with pytest.raises(UserError, match=f"pip install .{package}==.*"):
      targets.mesh_of(targets.TARGETS[device])


def test_seconds_are_those_of_the_slower_side():
  target = targets.TARGETS["h200"]
  assert compiled_for._seconds([], target, "bfloat16") == 0
  moves, multiplies = (
    kernels(PROGRAM)[0]._replace(bytes=size, flops=flops, times=2)
    for size, flops in ((4_800_000_000, 1), (1, 989_000_000_000))
  )
  both = compiled_for._seconds([moves, multiplies], target, "bfloat16")
  assert both == pytest.approx(2 * (1e-3 + 1e-3))
  assert compiled_for._seconds([moves], targets.TARGETS["cpu"], "bfloat16") is None


def test_it_runs_for_this_machine(tmp_path):
  path = tmp_path / "result.json"
  command = [sys.executable, ROOT / "benchmarks" / "compiled_for.py", "--device=cpu", "--small"]
  command += ["--variants", "student_only", "--dtype=float32", f"--json={path}"]
  env = os.environ | {"XLA_FLAGS": FLAGS}
  subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
  step, prediction = json.loads(path.read_text())["rows"]
  assert (step["program"], prediction["program"]) == ("step", "prediction")
  for row in (step, prediction):
    assert row["memory"]["peak"] > 0
    assert row["by_kind"]["convolution"]["flops"] > 0
    for groups in (row["by_kind"], row["by_side"]):
      total = np.sum([[g["kernels"], g["bytes"], g["flops"]] for g in groups.values()], axis=0)
      assert list(total) == [row["all"][name] for name in ("kernels", "bytes", "flops")]
    assert row["all"]["seconds_at_least"] is None  # nobody publishes this machine's peaks
  assert {one["backward"] for one in step["largest"]} == {True, False}
