"""What is measured on a device that is at hand for minutes, the most valuable first.

A name's first word is the function that does it, see FUNCTIONS. Seconds are those that a section
took or should take on an H200, with imports and compiling, beside others that compile.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.device.turns import Turns

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_FUSED = "xla_gpu_experimental_enable_conv_fusion=true"

# Function -> its module here.
FUNCTIONS = {
  "facts": "facts",
  "golden": "facts",
  "step": "steps",
  "torch": "torch_steps",
  "inference": "cases",
  "readers": "readers",
}


class Job(NamedTuple):
  """One section: what its function is called with, and what the runner must know."""

  seconds: float
  options: Mapping[str, Any] = _NOTHING
  xla_flags: str = ""
  beside: bool = False
  quiet: bool = False


def _step(seconds: float, variants: str, **options: Any) -> Job:
  return Job(seconds, {"variants": variants, **options})


JOBS = {
  "facts": Job(40),
  "step mtcm_kd": _step(90, "mtcm_kd", profile=True)._replace(quiet=True),
  "step student_only": _step(40, "student_only")._replace(quiet=True),
  "golden": Job(60),
  "step default": _step(90, "default"),
  "torch": Job(60, beside=True),
  "step student_only no_options": _step(40, "student_only", options="none"),
  "step student_only depth_stack": _step(40, "student_only", form="depth_stack"),
  "step mtcm_kd depth_stack": _step(90, "mtcm_kd", form="depth_stack"),
  "step student_only native_2": _step(40, "student_only", form="native_2"),
  "step student_only depth_stack_2": _step(40, "student_only", form="depth_stack_2"),
  "step mtcm_kd tuned": _step(210, "mtcm_kd", form="tuned"),
  "step mtcm_kd norms": _step(90, "mtcm_kd", remat="norms"),
  "step student_only conv_fusion": _step(40, "student_only", options=_FUSED),
  "inference": Job(60),
  "readers": Job(60),
  "step student_only deterministic": _step(40, "student_only")._replace(xla_flags=_DETERMINISTIC),
  "step default batch2": _step(100, "default", batch=2),
  "step mtcm_kd deterministic": _step(90, "mtcm_kd")._replace(xla_flags=_DETERMINISTIC),
}


def run(name: str, turns: Turns, small: bool) -> None:
  """A section, in this process."""
  function = name.split()[0]
  module = importlib.import_module(f"benchmarks.device.{FUNCTIONS[function]}")
  getattr(module, function)(turns, small, **JOBS[name].options)
