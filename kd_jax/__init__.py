"""Online multi-teacher cross-modal distillation for brain tumour segmentation, in JAX."""

__version__ = "0.1.0"
