"""Options of XLA for programs that run a few times: tiny ones take longer to compile than to run.

With these a training step compiles in a third of the processor time (jax 0.10.2, CPU): XLA's fusion
emitters and LLVM's optimisation are what takes long. STEADY is for programs that also run for a
while: at LLVM's level 0 a float64 step of the golden cases runs for 12 s, at 1 for 0.8 s.
"""

import importlib.metadata

STEADY: dict[str, bool | int] = {
  "xla_backend_optimization_level": 1,
  "xla_llvm_disable_expensive_passes": True,
}
_JAXLIB = tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2])
if _JAXLIB < (0, 11):  # jax 0.12 does not know it, and ends the process for an unknown flag
  STEADY["xla_cpu_use_fusion_emitters"] = False
QUICK = STEADY | {"xla_backend_optimization_level": 0}


def as_flags(options: dict[str, bool | int]) -> str:
  """For XLA_FLAGS."""
  return " ".join(f"--{name}={str(value).lower()}" for name, value in options.items())


FLAGS = as_flags(QUICK)
