"""A program as StableHLO, by jax.export: one file for CPU, NVIDIA GPU and TPU.

`jax.export.deserialize` reads it, of the same JAX or a later one (JAX promises six months).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export, lax

from kd_jax.exports.program import FOR_XLA_ON_CPU, PLAIN, program
from kd_jax.prediction.student import Student

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def encode(students: Sequence[Student]) -> tuple[bytes, dict[str, Any]]:
  """The file, and what model.json says of it."""
  plain, on_cpu = program(students, PLAIN), program(students, FOR_XLA_ON_CPU)
  weights = jax.tree.map(np.asarray, plain.parameters)  # constants of the file, once for all

  def run(image, mean, deviation):
    # One module for all: the device's index chooses. XLA's own 3-D convolution is slow on CPU.
    inputs = (weights, image, mean, deviation)
    return lax.platform_dependent(*inputs, cpu=on_cpu.run, default=plain.run)

  (batch,) = export.symbolic_shape("batch")
  exported = export.export(jax.jit(run), platforms=PLATFORMS)(*plain.inputs(batch))
  said = {
    "platforms": list(PLATFORMS),
    "calling_convention": exported.calling_convention_version,
    "jax": jax.__version__,
  }
  return bytes(exported.serialize()), said
