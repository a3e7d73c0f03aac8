"""Options of XLA for programs that run once or twice: such small ones take longer to compile."""

QUICK = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
