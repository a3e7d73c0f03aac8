"""What an exported program computes: one window's intensities in, probabilities out.

Z-scores are of a whole brain, so a window alone cannot have them: the caller takes mean and
deviation of the scan's brain (two numbers a sequence) and gives them with every window. An image
that was normalised before, because it had to be resampled, goes in with mean 0 and deviation 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import ON_CPU, Convolutions
from kd_jax.models.framework import Framework
from kd_jax.prediction.student import Student
from kd_jax.tasks.labels import CLASSES, REGIONS

# The forms that kd_jax chooses are fast in XLA on one kind of device; other devices and runtimes
# have kernels of their own for a plain convolution. "cpu": what it computes in is float32.
PLAIN = Convolutions("cpu", forms=Forms("native"))
FOR_XLA_ON_CPU = ON_CPU

INPUTS = ("image", "mean", "deviation")
OUTPUTS = ("probabilities", "regions")

Outputs = tuple[jax.Array, jax.Array]
Run = Callable[[Any, jax.Array, jax.Array, jax.Array], Outputs]


class Program(NamedTuple):
  """A program and its parameters.

  Attributes:
    run: (parameters, image (B, M, d, h, w), mean (B, M), deviation (B, M)) -> class probabilities
      (B, K, d, h, w) and region probabilities (B, R, d, h, w), R in the order of REGIONS; all
      float32.
    parameters: of the networks, one tree each.
    modalities: M.
    window: d, h, w.
  """

  run: Run
  parameters: list[dict[str, Any]]
  modalities: int
  window: tuple[int, int, int]

  def inputs(self, batch: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """image, mean and deviation for a batch, which may be a symbolic size."""
    shapes = (batch, self.modalities, *self.window), *2 * [(batch, self.modalities)]
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def program(students: Sequence[Student], convolutions: Convolutions = PLAIN) -> Program:
  """The mean of students that read the same input. See Program."""
  first = students[0]
  normalisation = first.preparation.normalise
  networks = [
    Framework(student.architecture.settings(), convolutions=convolutions).network
    for student in students
  ]

  def run(parameters, image, mean, deviation):
    x = normalised(image, mean, deviation, normalisation)
    x = jnp.moveaxis(x, 1, -1)  # (B, d, h, w, M)
    members = [
      jax.nn.softmax(network(own, x).astype(jnp.float32))
      for network, own in zip(networks, parameters, strict=True)
    ]
    probabilities = jnp.moveaxis(sum(members) / len(members), -1, 1)  # (B, K, d, h, w)
    each = [lax.slice_in_dim(probabilities, c, c + 1, axis=1) for c in range(len(CLASSES))]
    regions = [sum(each[c] for c in classes) for classes in REGIONS.values()]
    return probabilities, jnp.concatenate(regions, axis=1)

  parameters = [student.params for student in students]
  return Program(run, parameters, len(first.architecture.modalities), first.preparation.patch)


def normalised(image: jax.Array, mean: jax.Array, deviation: jax.Array, how: str) -> jax.Array:
  """As data/preprocess.py has it, of a window: (B, M, d, h, w), and (B, M) twice.

  "zscore": rounded to float16, as training has seen it, and 0 outside the brain. "paper": no voxel
  is outside; what it subtracts is `mean`, and `deviation` is 1.
  """
  mean, deviation = (numbers[..., None, None, None] for numbers in (mean, deviation))
  z = (image - mean) / deviation
  if how == "paper":
    return z
  # Not a conversion to float16 and back: XLA may leave both out.
  return lax.reduce_precision(jnp.where(image != 0, z, 0), exponent_bits=5, mantissa_bits=10)
