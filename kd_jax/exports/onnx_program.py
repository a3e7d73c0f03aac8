"""A program as an ONNX model, for onnxruntime and whatever else reads ONNX."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from kd_jax import __version__
from kd_jax.exports import onnx_graph
from kd_jax.exports.onnx_primitives import LOWERINGS
from kd_jax.exports.program import INPUTS, OUTPUTS, program
from kd_jax.prediction.student import Student
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.labels import CLASSES, REGIONS

FILE = "model.onnx"
INSTALL = "pip install 'kd_jax[onnx]' (or: pip install onnx)"
_MOST_BYTES = 2**31 - 1  # of a protocol buffer


def encode(students: Sequence[Student]) -> tuple[bytes, dict[str, Any]]:
  """The file, and what model.json says of it.

  Raises:
    UserError: onnx is not installed, the network computes what the export does not know, or the
      networks together take more than the 2 GiB that one file can hold.
  """
  try:
    import onnx
  except ImportError as e:
    raise UserError(f"--format=onnx needs the package onnx: {INSTALL}") from e
  own = program(students)
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(own.parameters)]
  if sum(leaf.nbytes for leaf in leaves) >= _MOST_BYTES:
    raise UserError(
      "the networks take more than the 2 GiB that an ONNX file can hold; export fewer of them, or "
      "use --format=stablehlo"
    )
  (batch,) = export.symbolic_shape("batch")
  closed = jax.make_jaxpr(own.run)(own.parameters, *own.inputs(batch))
  graph = onnx_graph.Graph(onnx, batch_of=INPUTS[0])
  symbols = [onnx_graph.Symbol(name) for name in INPUTS]
  results = onnx_graph.write(graph, closed, [*leaves, *symbols], LOWERINGS)
  inputs = {
    name: ("batch", *x.shape[1:]) for name, x in zip(INPUTS, own.inputs(batch), strict=True)
  }
  channels = (len(CLASSES), len(REGIONS))
  outputs = {name: ("batch", n, *own.window) for name, n in zip(OUTPUTS, channels, strict=True)}
  said = {"opset": onnx_graph.OPSET, "onnx": onnx.__version__}
  return graph.model(inputs, outputs, results, __version__), said
