"""Options for XLA: which rows hold where, what a user changes, what XLA does not take."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from kd_jax.prediction import sliding_window
from kd_jax.runtime import compiler_options
from kd_jax.runtime.compiler_options import TABLE, choose, read, text
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import presets

NHWC = "xla_gpu_force_conv_nhwc"
KNOWN = "xla_gpu_autotune_level"  # XLA for CPU takes options for GPU, and makes nothing of them


def gpu(capability):
  return SimpleNamespace(compute_capability=capability)


A100, L4, H200, B200 = map(gpu, ("8.0", "8.9", "9.0", "10.0"))
V100, MI300 = map(gpu, ("7.0", "gfx942"))


@pytest.mark.parametrize("device", [A100, L4, H200, B200])
def test_channels_last_on_tensor_cores_of_bfloat16(device):
  assert choose("auto", "bfloat16", device).options == ((NHWC, True),)
  assert choose("auto", "float64", device).options == ()  # cuDNN has it channels first alone


@pytest.mark.parametrize("device", [V100, MI300, None])
def test_nothing_elsewhere(device):
  assert choose("auto", "bfloat16", device) == ((), ())


def test_every_row_has_a_reason_and_is_known_to_xla():
  for row in TABLE:
    assert len(row.reason) > 80
    assert compiler_options._refused(row.option, row.value) == ""


def test_users_add_options_change_rows_and_leave_the_table_out():
  assert choose("none", "bfloat16", A100).options == ()
  added = choose(f"{KNOWN}=0", "bfloat16", A100)
  assert added == (((KNOWN, "0"), (NHWC, True)), ())
  assert text(added.options) == f"{KNOWN}=0, {NHWC}=true"
  changed = choose(f"--{NHWC}=false, {KNOWN}=2", "bfloat16", A100)
  assert changed.options == ((KNOWN, "2"), (NHWC, False))


def test_xla_flags_win(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=/x --{NHWC}=false")
  assert choose("auto", "bfloat16", A100) == ((), ())
  options, (note,) = choose(f"{NHWC}=true", "bfloat16", V100)
  assert options == () and "XLA_FLAGS" in note and NHWC in note
  monkeypatch.setenv("XLA_FLAGS", f"--{NHWC}_of_another_name=false")
  assert choose("auto", "bfloat16", A100).options == ((NHWC, True),)


def test_what_xla_does_not_take_is_left_out_and_named():
  options, notes = choose(f"xla_gpu_no_such_thing=true,{KNOWN}=0", "bfloat16", A100)
  assert options == ((KNOWN, "0"), (NHWC, True))
  (note,) = notes
  assert note.startswith("warning: ") and "xla_gpu_no_such_thing=true" in note
  options, (note,) = choose(f"{KNOWN}=much", "bfloat16", V100)
  assert options == () and f"{KNOWN}=much" in note


def test_an_option_is_tried_once(monkeypatch):
  compiler_options._refused.cache_clear()
  tried = []
  real = jax.jit
  monkeypatch.setattr(jax, "jit", lambda *a, **k: tried.append(1) or real(*a, **k))
  for _ in range(3):
    choose("auto", "bfloat16", A100)
  assert len(tried) == 1


@pytest.mark.parametrize(
  "wanted", ["", "all", "auto,none", "xla_x", "xla_x=", "nhwc=true", "xla-x=1"]
)
def test_what_is_no_list_of_options_is_refused(wanted):
  with pytest.raises(ValueError, match="expected auto, none or options"):
    read(wanted)
  with pytest.raises(ConfigError, match=r"train\.compiler_options"):
    presets.settings("brats21", {"train.compiler_options": wanted})


def test_options_reach_the_compiler_of_predictions():
  """One that XLA does not know is an error there, so they do not get lost on the way."""
  arguments = ({}, jnp.zeros((4, 4, 4, 1)), jnp.zeros((1, 3), int), 1)

  def network(params, x):
    return jnp.tile(x, 4)

  plan = sliding_window.Plan((4, 4, 4), (4, 4, 4), 0.0)
  sliding_window.compiled_with(((KNOWN, "0"),))(*arguments, network, plan, False)
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_nonsense"):
    sliding_window.compiled_with((("xla_nonsense", True),))(*arguments, network, plan, False)
