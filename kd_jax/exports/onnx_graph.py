"""A JAX function as an ONNX graph: its jaxpr is walked, each primitive becomes a node or a few.

Why not jax2onnx: its 0.17.1 asks for an older orbax-checkpoint than this project does, and it knows
no 3-D convolution with channels last. The networks here consist of some thirty primitives.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from kd_jax.runtime.errors import UserError

OPSET = 18  # ReduceMax takes its axes as an input since then; onnxruntime 1.14 and later reads it
_IR_VERSION = 8  # of the same time
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # what a primitive calls is written in its place


class Symbol(NamedTuple):
  """An array that the graph computes, by its name there."""

  name: str


Value = Symbol | np.ndarray
Lowering = Callable[["Graph", Sequence[Value], Any], Value]


class Graph:
  """Nodes and constants as they are collected.

  Attributes:
    onnx: the package.
  """

  def __init__(self, onnx: Any, batch_of: str):
    """batch_of: the name of an input whose first axis is the batch."""
    self.onnx = onnx
    self._batch_of = batch_of
    self._batch: Symbol | None = None
    self._nodes: list[Any] = []
    self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    self._initializers: list[Any] = []

  def add(self, op: str, *inputs: Value, **attributes: Any) -> Symbol:
    """A node with one output."""
    name = f"{op.lower()}_{len(self._nodes)}"
    names = [self._name(value) for value in inputs]
    self._nodes.append(self.onnx.helper.make_node(op, names, [name], name, **attributes))
    return Symbol(name)

  def batch(self) -> Symbol:
    """(1,) int64, the size of the batch."""
    if self._batch is None:
      self._batch = self.add("Shape", Symbol(self._batch_of), start=0, end=1)
    return self._batch

  def _name(self, value: Value) -> str:
    if isinstance(value, Symbol):
      return value.name
    value = np.asarray(value, order="C")
    key = (value.dtype.str, value.shape, value.tobytes())
    if key not in self._constants:
      name = self._constants[key] = f"constant_{len(self._constants)}"
      self._initializers.append(self.onnx.numpy_helper.from_array(value, name))
    return self._constants[key]

  def model(self, inputs: Any, outputs: Any, results: Sequence[Value], producer: str) -> bytes:
    """The finished model; inputs and outputs: name -> shape (sizes, or names of free ones)."""
    helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
    for name, value in zip(outputs, results, strict=True):
      self._nodes.append(helper.make_node("Identity", [self._name(value)], [name], name))
    described = [
      [helper.make_tensor_value_info(name, kind, shape) for name, shape in own.items()]
      for own in (inputs, outputs)
    ]
    graph = helper.make_graph(self._nodes, "kd_jax", *described, self._initializers)
    model = helper.make_model(
      graph,
      opset_imports=[helper.make_opsetid("", OPSET)],
      ir_version=_IR_VERSION,
      producer_name="kd_jax",
      producer_version=producer,
    )
    self.onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def write(
  graph: Graph, closed: core.ClosedJaxpr, arguments: Sequence[Value], lowerings: dict[str, Lowering]
) -> list[Value]:
  """Adds what a jaxpr computes to the graph; what depends on constants alone is computed here.

  Args:
    arguments: constants and symbols, one for each input.
    lowerings: of the primitives, by name.

  Raises:
    UserError: a primitive without a lowering, or one whose lowering does not do what it is given.
  """
  known = dict(zip(closed.jaxpr.constvars, map(np.asarray, closed.consts), strict=True))
  known |= dict(zip(closed.jaxpr.invars, arguments, strict=True))

  def value(variable: Any) -> Value:
    if isinstance(variable, core.Literal):
      aval: Any = variable.aval
      return np.asarray(variable.val, aval.dtype)
    return known[variable]

  for equation in closed.jaxpr.eqns:
    inputs = [value(variable) for variable in equation.invars]
    known |= dict(zip(equation.outvars, _outputs(graph, equation, inputs, lowerings), strict=True))
  return [value(variable) for variable in closed.jaxpr.outvars]


def _outputs(
  graph: Graph, equation: Any, inputs: Sequence[Value], lowerings: dict[str, Lowering]
) -> Sequence[Value]:
  primitive, params = equation.primitive, equation.params
  for name in _INNER:
    if name in params:
      inner = params[name]
      closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, [])
      return write(graph, closed, inputs, lowerings)
  sizes = [n for variable in equation.outvars for n in variable.aval.shape]
  fixed = all(isinstance(n, int) for n in sizes)
  if fixed and not any(isinstance(value, Symbol) for value in inputs):
    found = primitive.bind(*map(jax.numpy.asarray, inputs), **params)
    return [np.asarray(x) for x in (found if primitive.multiple_results else [found])]
  if primitive.name not in lowerings:
    raise UserError(
      f"the network computes {primitive.name}, which the export to ONNX does not know; add it to "
      "kd_jax/exports/onnx_primitives.py"
    )
  try:
    return [lowerings[primitive.name](graph, inputs, equation)]
  except NotImplementedError as e:
    raise UserError(
      f"the network computes {primitive.name} in a way that the export to ONNX does not know: {e}"
    ) from e
