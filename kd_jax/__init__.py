"""Online multi-teacher cross-modal distillation for brain tumour segmentation, in JAX.

  import kd_jax

  student = kd_jax.load("my_student")
  classes = student.segment(array, voxel_mm=(1, 1, 1))

These names are stable; docs/api.md describes them. Each is imported when it is first used, so that
`import kd_jax` takes no time and starts no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see
  from kd_jax.api import Student, evaluate, load, preset, train
  from kd_jax.prediction.segment import ScanWarning, Segmentation
  from kd_jax.runtime.errors import CaseError, ConfigError, UserError
  from kd_jax.settings.run import Settings

__version__ = "0.1.0"
__all__ = [
  "CaseError",
  "ConfigError",
  "ScanWarning",
  "Segmentation",
  "Settings",
  "Student",
  "UserError",
  "__version__",
  "evaluate",
  "load",
  "preset",
  "train",
]

_MODULES = {
  "CaseError": "kd_jax.runtime.errors",
  "ConfigError": "kd_jax.runtime.errors",
  "ScanWarning": "kd_jax.prediction.segment",
  "Segmentation": "kd_jax.prediction.segment",
  "Settings": "kd_jax.settings.run",
  "UserError": "kd_jax.runtime.errors",
}


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module 'kd_jax' has no attribute {name!r}")
  value = getattr(importlib.import_module(_MODULES.get(name, "kd_jax.api")), name)
  globals()[name] = value  # asked for once
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
