"""What each JAX primitive is in ONNX. See onnx_graph.py.

A lowering is a function of (graph, inputs, equation) that adds nodes and returns their result.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kd_jax.exports.onnx_graph import Graph, Lowering, Symbol, Value


def _shape(equation: Any) -> tuple[Any, ...]:
  return equation.outvars[0].aval.shape


def _free(n: Any) -> bool:
  """Whether a size is the batch's, and not known yet."""
  return not isinstance(n, int)


def _need(holds: bool, what: str) -> None:
  if not holds:
    raise NotImplementedError(what)


def _ints(numbers: Sequence[int]) -> np.ndarray:
  return np.asarray(numbers, np.int64)


def _onnx_type(graph: Graph, dtype: Any) -> int:
  return graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# --- Of each number by itself --------------------------------------------------------------------


def _same(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  return inputs[0]


def _op(*names: str) -> Lowering:
  """The first op of all inputs, the next ones of what that gives."""

  def lower(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
    first, *others = names
    result = graph.add(first, *inputs)
    for name in others:
      result = graph.add(name, result)
    return result

  return lower


def _integer_pow(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  _need(equation.params["y"] == 2, "a power other than 2")
  return graph.add("Mul", inputs[0], inputs[0])


def _square(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  return graph.add("Mul", inputs[0], inputs[0])


def _select_n(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  which, *cases = inputs
  boolean = equation.invars[0].aval.dtype == np.bool_
  _need(boolean and len(cases) == 2, "a choice by numbers")
  return graph.add("Where", which, cases[1], cases[0])


def _convert(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  to = equation.params["new_dtype"]
  if equation.invars[0].aval.dtype == to:
    return inputs[0]
  return graph.add("Cast", inputs[0], to=_onnx_type(graph, to))


def _reduce_precision(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  bits = equation.params["exponent_bits"], equation.params["mantissa_bits"]
  _need(bits == (5, 10), "a precision other than float16's")
  half = graph.add("Cast", inputs[0], to=_onnx_type(graph, np.float16))
  return graph.add("Cast", half, to=_onnx_type(graph, equation.invars[0].aval.dtype))


# --- Shapes --------------------------------------------------------------------------------------


def _reshaped(graph: Graph, x: Value, shape: Sequence[Any]) -> Symbol:
  _need(sum(map(_free, shape)) <= 1, "a shape with two free sizes")
  return graph.add("Reshape", x, _ints([-1 if _free(n) else n for n in shape]))


def _reshape(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  return _reshaped(graph, inputs[0], _shape(equation))


def _transpose(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  return graph.add("Transpose", inputs[0], perm=list(equation.params["permutation"]))


def _broadcast_in_dim(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  shape, old = _shape(equation), equation.invars[0].aval.shape
  axes = equation.params["broadcast_dimensions"]
  aligned: list[Any] = [1] * len(shape)
  for axis, n in zip(axes, old, strict=True):
    aligned[axis] = n
  x = inputs[0] if tuple(aligned) == old else _reshaped(graph, inputs[0], aligned)
  if tuple(aligned) == tuple(shape):
    return x
  # In Expand, 1 leaves a size as it is. The batch's size is an axis of its own or not at all.
  sizes: list[Value] = []
  for n, own in zip(shape, aligned, strict=True):
    if _free(n) and not _free(own):
      _need(str(n).isidentifier(), "a size computed from the batch's")
      sizes.append(graph.batch())
    else:
      sizes.append(_ints([1 if _free(n) else n]))
  return graph.add("Expand", x, graph.add("Concat", *sizes, axis=0))


def _concatenate(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  return graph.add("Concat", *inputs, axis=equation.params["dimension"])


def _stack(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  axis = equation.params["axis"]
  return graph.add("Concat", *(graph.add("Unsqueeze", x, _ints([axis])) for x in inputs), axis=axis)


def _slice(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  params, old = equation.params, equation.invars[0].aval.shape
  strides = params["strides"] or (1,) * len(old)
  for axis, (start, limit, stride) in enumerate(
    zip(params["start_indices"], params["limit_indices"], strides, strict=True)
  ):
    if (start, limit, stride) == (0, old[axis], 1):
      continue
    _need(not (_free(start) or _free(limit)), "a part of the batch")
    inputs = [graph.add("Slice", inputs[0], *(_ints([n]) for n in (start, limit, axis, stride)))]
  return inputs[0]


def _pad(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  low, high, between = zip(*equation.params["padding_config"], strict=True)
  _need(not any(between), "padding between numbers")
  return graph.add("Pad", inputs[0], _ints([*low, *high]), inputs[1])


# --- Sums and products ---------------------------------------------------------------------------


def _reduce_sum(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  """An axis at a time: a runtime that adds a whole volume in one row would lose digits."""
  x = inputs[0]
  for axis in sorted(equation.params["axes"], reverse=True):
    x = graph.add("ReduceSum", x, _ints([axis]), keepdims=0)
  return x


def _reduce(op: str) -> Lowering:
  def lower(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
    return graph.add(op, inputs[0], _ints(equation.params["axes"]), keepdims=0)

  return lower


def _dot_general(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
  dimensions = [variable.aval.ndim for variable in equation.invars]
  plain = not left_batch and not right_batch and left == (dimensions[0] - 1,)
  _need(plain and dimensions[1] == 2 and len(right) == 1, "a product that is none of a matrix")
  matrix = inputs[1]
  if right == (1,):
    matrix = matrix.T if isinstance(matrix, np.ndarray) else graph.add("Transpose", matrix)
  return graph.add("MatMul", inputs[0], matrix)


def _convolution(graph: Graph, inputs: Sequence[Value], equation: Any) -> Value:
  params = equation.params
  x, kernel = inputs
  _need(set(params["lhs_dilation"]) == {1}, "a dilated image")
  _need(params["batch_group_count"] == 1, "groups of the batch")
  _need(isinstance(kernel, np.ndarray), "a kernel that is computed")
  image, weights, result = params["dimension_numbers"]
  low, high = zip(*params["padding"], strict=True)
  y = graph.add(
    "Conv",
    graph.add("Transpose", x, perm=list(image)),  # (B, C, D, H, W)
    np.transpose(kernel, weights),  # (F, C, kD, kH, kW)
    strides=list(params["window_strides"]),
    pads=[*low, *high],
    dilations=list(params["rhs_dilation"]),
    group=params["feature_group_count"],
  )
  return graph.add("Transpose", y, perm=np.argsort(result).tolist())


LOWERINGS: dict[str, Lowering] = {
  **dict.fromkeys(("name", "stop_gradient", "copy", "copy_p", "optimization_barrier"), _same),
  **{"add": _op("Add"), "sub": _op("Sub"), "mul": _op("Mul"), "div": _op("Div")},
  **{"max": _op("Max"), "min": _op("Min"), "neg": _op("Neg"), "abs": _op("Abs")},
  **{"exp": _op("Exp"), "log": _op("Log"), "tanh": _op("Tanh"), "logistic": _op("Sigmoid")},
  **{"sqrt": _op("Sqrt"), "rsqrt": _op("Sqrt", "Reciprocal")},
  **{"eq": _op("Equal"), "ne": _op("Equal", "Not"), "gt": _op("Greater"), "lt": _op("Less")},
  **{"ge": _op("GreaterOrEqual"), "le": _op("LessOrEqual")},
  **{"integer_pow": _integer_pow, "square": _square, "select_n": _select_n},
  **{"convert_element_type": _convert, "reduce_precision": _reduce_precision},
  **{"reshape": _reshape, "squeeze": _reshape, "expand_dims": _reshape, "transpose": _transpose},
  **{"broadcast_in_dim": _broadcast_in_dim, "concatenate": _concatenate, "stack": _stack},
  **{"slice": _slice, "pad": _pad, "reduce_sum": _reduce_sum},
  **{"reduce_max": _reduce("ReduceMax"), "reduce_min": _reduce("ReduceMin")},
  **{"dot_general": _dot_general, "conv_general_dilated": _convolution},
}
