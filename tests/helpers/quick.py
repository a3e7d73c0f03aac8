"""Options of XLA for programs that run a few times: tiny ones take longer to compile than to run.

LLVM's level 1, not 0: at 0 a float64 step of the golden cases runs for 12 s, at 1 for 0.8 s.
"""

QUICK = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
