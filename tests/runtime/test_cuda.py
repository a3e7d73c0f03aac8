"""CUDA devices and their cuDNN: versions are found, and old ones warned of."""

import ctypes
import functools
import importlib.metadata
import os
from types import SimpleNamespace

import jax
import pytest

from kd_jax.runtime import cuda, versions

H200 = SimpleNamespace(compute_capability="9.0")
MI300 = SimpleNamespace(compute_capability="gfx942")


@pytest.fixture
def wheels(monkeypatch):
  """name -> version of what is installed; no library is loaded."""
  installed = {}

  def version(name):
    if name not in installed:
      raise importlib.metadata.PackageNotFoundError(name)
    return installed[name]

  def not_loaded(*_, **__):
    raise OSError("cannot open shared object file")

  monkeypatch.setattr(importlib.metadata, "version", version)
  monkeypatch.setattr(ctypes, "CDLL", not_loaded)
  return installed


def test_compute_capabilities():
  assert cuda.capability(H200) == (9, 0)
  assert cuda.capability(SimpleNamespace(compute_capability="12.1")) == (12, 1)
  assert cuda.capability(MI300) is None
  assert cuda.capability(jax.devices("cpu")[0]) is None


def test_the_version_of_a_wheel(wheels):
  assert cuda.cudnn() is None
  wheels["nvidia-cudnn-cu12"] = "9.10.2.21"
  assert cuda.cudnn() == (9, 10, 2)
  wheels["nvidia-cudnn-cu13"] = "9.28.1.4"
  assert cuda.cudnn() == (9, 28, 1)


def test_the_library_that_is_loaded_counts_before_the_wheel(wheels, monkeypatch):
  wheels["nvidia-cudnn-cu13"] = "9.28.1.4"
  names = []

  def open_loaded(name, mode):
    names.append(name)
    get_version = functools.partial(int, 91002)  # a function of C takes attributes, too
    return SimpleNamespace(cudnnGetVersion=get_version)

  monkeypatch.setattr(ctypes, "CDLL", open_loaded)
  monkeypatch.setattr(os, "RTLD_NOLOAD", 4, raising=False)
  assert cuda.cudnn() == (9, 10, 2)
  assert names == ["libcudnn.so.9"]


@pytest.mark.parametrize(
  ("found", "dtype", "device", "warned"),
  [
    ("9.10.2.21", "bfloat16", H200, True),
    ("9.8.0.87", "float16", H200, True),
    ("9.12.0.46", "bfloat16", H200, True),
    ("9.13.0.50", "bfloat16", H200, False),
    ("10.1.0.1", "bfloat16", H200, False),
    ("9.10.2.21", "float32", H200, False),
    ("9.10.2.21", "bfloat16", MI300, False),
    (None, "bfloat16", H200, False),
  ],
)
def test_a_cudnn_that_may_be_wrong_is_warned_of(wheels, found, dtype, device, warned):
  if found:
    wheels["nvidia-cudnn-cu12"] = found
  lines = cuda.doubts(device, dtype)
  assert len(lines) == warned
  for line in lines:
    assert line.startswith(f"warning: cuDNN {found.rpartition('.')[0]}")
    assert dtype in line and "9.13" in line
    assert "pip install -U nvidia-cudnn-cu12" in line


def test_without_a_wheel_the_remedy_is_the_newest_one(wheels, monkeypatch):
  monkeypatch.setattr(cuda, "_loaded", lambda: (9, 9, 0))
  (line,) = cuda.doubts(H200, "bfloat16")
  assert "cuDNN 9.9.0" in line and "nvidia-cudnn-cu13" in line


def test_the_record_of_devices_has_both_versions(wheels, monkeypatch):
  on_cpu = versions.devices()
  assert on_cpu["cudnn"] is None and on_cpu["compute_capability"] is None
  wheels["nvidia-cudnn-cu13"] = "9.13.0.50"
  device = SimpleNamespace(platform="gpu", device_kind="H", client=None, compute_capability="9.0")
  monkeypatch.setattr(jax, "devices", lambda: [device])
  on_gpu = versions.devices()
  assert (on_gpu["cudnn"], on_gpu["compute_capability"]) == ("9.13.0", "9.0")
