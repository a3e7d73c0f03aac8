"""What a run says of the machine before its first step: one line, and what speaks against it."""

from types import SimpleNamespace

import jax
import pytest

from kd_jax.runtime import cuda
from kd_jax.training import messages
from kd_jax.training.memory import Choice

CHOICE = Choice(("norms", "stages"), 24 * 10**9, "remat norms (auto: about 17.0 of 24.0 GB)")
OPTIONS = (("xla_gpu_force_conv_nhwc", True),)


@pytest.fixture
def said():
  """What was logged: lines, and texts for TensorBoard by name."""
  return SimpleNamespace(lines=[], texts={})


def tell(said, monkeypatch, version, warnings=()):
  device = SimpleNamespace(device_kind="NVIDIA A100", compute_capability="8.0")
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  monkeypatch.setattr(cuda, "cudnn", lambda: version)
  log = SimpleNamespace(line=said.lines.append, text=said.texts.__setitem__)
  messages.machine(log, "bfloat16", CHOICE, OPTIONS, warnings)


def test_one_line_says_what_computes_and_how(said, monkeypatch):
  tell(said, monkeypatch, (9, 13, 0))
  (line,) = said.lines
  assert line == (
    "bfloat16 on NVIDIA A100 (compute capability 8.0, cuDNN 9.13.0); remat norms (auto: about "
    "17.0 of 24.0 GB); XLA options: xla_gpu_force_conv_nhwc=true"
  )
  assert said.texts == {"machine": line}


def test_doubts_follow(said, monkeypatch):
  tell(said, monkeypatch, (9, 10, 2), ["warning: this XLA does not take xla_x=1"])
  _, cudnn, option = said.lines
  assert cudnn.startswith("warning: cuDNN 9.10.2") and "xla_x=1" in option
