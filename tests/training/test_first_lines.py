"""What a run says of the machine before its first step: one line, and what speaks against it."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from kd_jax.runtime import cuda
from kd_jax.settings import presets
from kd_jax.training import messages
from kd_jax.training.memory import Choice
from kd_jax.training.mesh import make_mesh

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


@pytest.mark.parametrize(
  ("variant", "epochs", "warned"), [("", 1, True), ("", 2, False), ("student_only", 1, False)]
)
def test_teachers_that_are_never_heard_are_told(said, variant, epochs, warned):
  settings = presets.settings(f"quickstart:{variant}", {"train.epochs": epochs})
  log, cases = SimpleNamespace(line=said.lines.append), SimpleNamespace(train=[1], val=[2])
  messages.introduce(log, settings, Path("runs/x"), cases, make_mesh(1, 1), 20)
  assert said.lines[0].startswith("quickstart") and len(said.lines) == 1 + warned
  if warned:
    assert "never hears its teachers" in said.lines[1] and "train.epochs = 1" in said.lines[1]


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
