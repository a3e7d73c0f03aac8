"""Which form of a convolution a device is given."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from kd_jax.models import conv_choice, conv_forms
from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolution, Convolutions, Times

RECORDS = sorted(conv_choice._TIMES.glob("*.json"))


def convolution(channels=32, features=32, side=128, *, size=3, stride=1, dtype="bfloat16", batch=1):
  return Convolution(batch, (side,) * 3, channels, (size,) * 3, features, stride, dtype)


@pytest.mark.parametrize(
  ("form", "what"),
  [
    ("winograd", {"channels": 16}),
    ("winograd", {"channels": 24, "features": 8}),
    ("depth_stack", {"channels": 16, "features": 16}),
    ("depth_stack_2", {"channels": 8, "features": 8}),
    ("depth_stack", {"channels": 1}),
    ("depth_stack_4", {"channels": 1, "features": 8}),
    ("depth_taps", {"channels": 16, "dtype": "bfloat16"}),
    ("depth_taps", {"channels": 16, "stride": 2}),
    ("depth_taps", {"channels": 2, "size": 7}),
    ("depth_taps", {"channels": 16, "side": 1}),
  ],
)
def test_on_cpu_a_rule_chooses(form, what):
  assert Convolutions("cpu").choose(convolution(**{"dtype": "float32", **what})) == Forms(form)


def test_on_tpu_xla_chooses():
  assert conv_choice.of_platform("tpu").choose(convolution()) == Forms("native")


def test_without_times_a_gpu_takes_xlas_own_form_with_nothing_kept():
  expected = Forms("native", "transposed_native", "native", apart=True)
  assert Convolutions("gpu").choose(convolution()) == expected


def times(ms, direction="forward", **what):
  return Times(convolution(**what), direction, tuple(ms.items()))


def test_the_nearest_shape_that_was_measured_decides():
  measured = (
    times({"native": 2.0, "depth_stack": 1.0}, side=128),
    times({"native": 1.0, "depth_stack_2": 3.0}, side=16, channels=256, features=256),
    times({"native": 9.0, "patches": 1.0}, channels=1),
    times({"native": 9.0, "native_2": 1.0}, stride=2),
    times({"transposed_native": 9.0, "native_2": 1.0}, "to_input"),
  )

  def chosen(direction="forward", **what):
    return conv_choice.fastest(measured, convolution(**what), direction)

  assert chosen() == chosen(side=96, channels=48) == chosen(batch=2) == "depth_stack"
  assert chosen(side=20, channels=192, features=256) == "native"
  assert chosen(channels=4) == "patches" and chosen(channels=5) == "depth_stack"
  assert chosen(stride=2) == "native_2"
  assert chosen("to_input", side=64) == "native_2"
  # Nothing alike: another window, another width of numbers, a direction that was not measured.
  assert chosen(size=7) == chosen(dtype="float32") == chosen("to_kernel") == "native"
  assert chosen("to_input", dtype="float32") == "transposed_native"


def test_measured_times_decide_on_cpu_too():
  measured = Convolutions("cpu", (times({"native": 2.0, "depth_taps": 1.0}),))
  assert measured.choose(convolution()) == Forms("depth_taps", "transposed_native", "native")


def test_forms_can_be_given():
  given = Forms("native_2", "native", "depth_stack")
  assert Convolutions("gpu", forms=given).choose(convolution()) is given


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_one_device_and_of_forms_that_can_be(path):
  record = json.loads(path.read_text())
  assert path.stem == record["device"].lower().replace(" ", "-")
  assert float(record["compute_capability"]) > 0
  rows = conv_choice.times_of(record)
  assert json.loads(json.dumps([conv_choice.row_of(row) for row in rows])) == record["rows"]
  for row in rows:
    assert row.ms
    for form, ms in row.ms:
      window, stride = row.convolution.window, row.convolution.stride
      assert conv_forms.possible(form, row.direction, window, stride) and ms > 0


def device(kind, capability="9.0", platform="gpu"):
  return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)


def test_a_device_without_a_record_takes_the_nearest(monkeypatch):
  def record(kind, capability, form):
    row = {"direction": "forward", **convolution()._asdict(), "ms": {form: 1.0}}
    return {"device": kind, "compute_capability": capability, "rows": [row]}

  records = (record("NVIDIA A100", "8.0", "native_2"), record("NVIDIA H200", "9.0", "native_4"))
  monkeypatch.setattr(conv_choice, "_records", lambda: records)

  def form(device):
    return conv_choice.of_device(device).choose(convolution()).forward

  assert form(device("NVIDIA A100", "8.0")) == form(device("NVIDIA A10", "8.6")) == "native_2"
  # The record of the kind itself is taken whatever the capability says.
  assert form(device("NVIDIA H200", "8.0")) == form(device("NVIDIA B200", "10.0")) == "native_4"
  assert form(device("AMD Instinct", "gfx90a")) == form(device("unknown", None)) == "native_4"
  assert form(device("TPU v5e", platform="tpu")) == "native"
  assert form(device("cpu", platform="cpu")) == "depth_taps"
  monkeypatch.setattr(conv_choice, "_records", lambda: ())
  assert form(device("NVIDIA H200")) == "native"


def test_what_a_time_depends_on_is_read_off_arrays():
  x = jax.ShapeDtypeStruct((2, 8, 6, 4, 3), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((3, 1, 5, 3, 7), jnp.bfloat16)
  expected = Convolution(2, (8, 6, 4), 3, (3, 1, 5), 7, 2, "bfloat16")
  assert Convolution.of(x, kernel, 2) == expected
