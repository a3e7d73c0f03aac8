"""CUDA devices: which generation they are of, and which cuDNN computes their convolutions."""

import contextlib
import ctypes
import importlib.metadata
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only reads settings does not wait for JAX
  import jax

Version = tuple[int, ...]

_LIBRARY = "libcudnn.so.9"
_WHEELS = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
# cuDNN 9.8 to 9.10 gave wrong numbers, and said nothing, for 3-D convolutions of bfloat16 on large
# volumes; 9.13 did not (seen on H100: github.com/pytorch/pytorch/issues/163539).
_SOUND: Version = (9, 13)
_HALF = ("bfloat16", "float16")


def capability(device: "jax.Device") -> Version | None:
  """The compute capability of a CUDA device, such as (8, 0) of an A100; None for any other."""
  text = str(getattr(device, "compute_capability", ""))  # "gfx90a" of AMD's
  major, dot, minor = text.partition(".")
  return (int(major), int(minor)) if dot and major.isdigit() and minor.isdigit() else None


def cudnn() -> Version | None:
  """The version of the cuDNN in use; None without one."""
  return _loaded() or _installed()


def doubts(device: "jax.Device", dtype: str) -> tuple[str, ...]:
  """What to say where cuDNN may be wrong for networks that compute in dtype; lines for people."""
  found = cudnn() if capability(device) and dtype in _HALF else None
  if not found or found >= _SOUND:
    return ()
  wheel = next((name for name in _WHEELS if _wheel(name)), _WHEELS[0])
  return (
    f"warning: cuDNN {text(found)}: before {text(_SOUND)} it could give wrong numbers for {dtype} "
    f"3-D convolutions of large volumes, without an error. Upgrade it: pip install -U {wheel}",
  )


def text(version: Version) -> str:
  return ".".join(map(str, version))


def _loaded() -> Version | None:
  """Of the library that this process has opened: it need not be the installed wheel's."""
  if not hasattr(os, "RTLD_NOLOAD"):
    return None
  with contextlib.suppress(OSError, AttributeError):
    library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOLOAD)
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())  # 91300 is 9.13.0
    return number // 10000, number // 100 % 100, number % 100
  return None


def _installed() -> Version | None:
  """Of the wheel that JAX opens it from, the newer one where there are two."""
  return max(filter(None, map(_wheel, _WHEELS)), default=None)


def _wheel(name: str) -> Version | None:
  try:
    parts = importlib.metadata.version(name).split(".")
  except importlib.metadata.PackageNotFoundError:
    return None
  return tuple(int(part) for part in parts[:3] if part.isdigit())
