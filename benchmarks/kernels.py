"""The kernels of a compiled program: what each moves, multiplies and belongs to.

Read from the program's text, so no device is needed, and it serves GPU, TPU and CPU alike. Bytes
are those of a kernel's operands and results in device memory: what it must read and write if no
cache keeps anything. Where a layout has tiles (on a TPU) the padding to whole tiles counts; what
lies in a TPU's own fast memory does not.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import hlo
from benchmarks.hlo import Instruction, Program

KINDS = ("convolution", "matmul", "reduction", "rearrangement", "elementwise")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s["]?[=:][{\[]([^}\]]*)[}\]]')
_SLICES = {"slice", "dynamic-slice", "slice-start"}
_REARRANGE = {"concatenate", "transpose", "copy", "copy-start", "slice-start", "pad", "reverse"}


class Kernel(NamedTuple):
  """One piece of work of a program.

  Attributes:
    name: of its instruction.
    kind: one of KINDS, by the dearest thing that it does.
    bytes: read and written.
    flops: two for each multiply-add of its convolutions and products, by shapes.
    side: voxels along a side of the volume that it works on; 0 where its arrays are none.
    part: of the code that it comes from, outermost first.
    backward: whether it belongs to the backward pass.
    times: how often it runs; a loop of unknown length counts once.
  """

  name: str
  kind: str
  bytes: int
  flops: int
  side: int
  part: str
  backward: bool
  times: int


def kernels(text: str) -> list[Kernel]:
  """Every kernel of a compiled program, in the order of its text."""
  program = hlo.read(text)
  found = []
  for one, times in hlo.work(program, program.entry):
    inside = list(hlo.inside(program, one))
    origin = re.search(r'op_name="([^"]*)"', one.rest)
    frame = re.search(r"stack_frame_id=(\d+)", one.rest)
    operation = origin[1] if origin else ""
    found.append(
      Kernel(
        one.name,
        _kind(one, inside),
        _bytes(one, program),
        sum(_flops(each, program.known) for each in inside),
        _side(one, program.known),
        _part(program.frames.get(int(frame[1]), ()) if frame else (), operation or one.name),
        "transpose(" in operation,
        times,
      )
    )
  return found


def estimated_cycles(text: str) -> int | None:
  """What XLA for TPU expects all kernels of a compiled program to take; None of other platforms."""
  told = re.findall(r'"estimated_cycles":"(\d+)"', text)
  return sum(map(int, told)) if told else None


def _part(calls: Sequence[tuple[str, str]], operation: str) -> str:
  """Such as "student DecoderStage Upsample", from the calls that lead there."""
  names = [
    function.removesuffix(".__call__").split(".")[-1]
    for file, function in calls
    if ("/kd_jax/" in file or function.endswith(".__call__")) and "<" not in function
  ]
  names = [name for name in names if name not in ("Framework", "run")]
  classes = [name for name in names if name[:1].isupper()]
  # Within a network its modules tell enough; elsewhere the functions do.
  chosen = [*(("student",) if "student" in names else ()), *classes[-2:]] if classes else names[-2:]
  return " ".join(chosen) or operation.rsplit("/", 1)[-1]


def _kind(one: Instruction, inside: Sequence[Instruction]) -> str:
  opcodes = {each.opcode for each in inside}
  target = re.search(r'custom_call_target="([^"]*)"', one.rest)
  name = target[1].lower() if target else ""
  if "convolution" in opcodes or "conv" in name:
    return "convolution"
  if "dot" in opcodes or "gemm" in name or "matmul" in name:
    return "matmul"
  if opcodes & {"reduce", "reduce-window"}:
    return "reduction"
  return "rearrangement" if opcodes & _REARRANGE else "elementwise"


def _bytes(one: Instruction, program: Program) -> int:
  """Read and written; of what is only sliced, the slices, and of what is updated, the update."""
  known = program.known
  operands = [known[name].results for name in one.operands]
  if one.opcode in _SLICES:
    result = one.results[-1] if one.opcode != "slice-start" else one.results[1]
    return result.moved + (result.bytes if operands[0][0].in_memory else 0)
  if one.opcode == "copy-start":
    return operands[0][0].moved + one.results[0].moved
  if one.opcode != "fusion":
    return sum(array.moved for each in (*operands, one.results) for array in each)
  body = program.computations[one.called[0]]
  read = 0
  for inner in body:
    if inner.opcode == "parameter":
      whole = sum(array.moved for array in operands[int(inner.rest.split(")")[0])])
      read += min(whole, _read(inner, body, whole))
  root = next(inner for inner in body if inner.root)
  parts = [known[name] for name in root.operands] if root.opcode == "tuple" else [root]
  written = sum(array.moved for array in one.results)
  for part in parts:
    if part.opcode == "dynamic-update-slice":
      own, update = part.results[0], known[part.operands[1]].results[0]
      written -= max(0, own.moved - update.moved)
  return read + written


def _read(parameter: Instruction, body: Sequence[Instruction], whole: int) -> int:
  """Bytes of a fusion's parameter that its users look at."""
  total = 0
  for user in body:
    if parameter.name not in user.operands:
      continue
    if user.opcode in _SLICES:
      total += user.results[0].bytes
    elif user.opcode != "dynamic-update-slice" or parameter.name in user.operands[1:]:
      return whole
  return total


def _flops(one: Instruction, known: Mapping[str, Instruction]) -> int:
  """Of one convolution or product by itself; 0 for what is neither."""
  target = re.search(r'custom_call_target="([^"]*)"', one.rest)
  name = target[1].lower() if target else ""
  if _LABELS.search(one.rest) and (one.opcode == "convolution" or "conv" in name):
    return _convolution_flops(one, name, known)
  if one.opcode == "dot" or "gemm" in name or "matmul" in name:
    contracted = _CONTRACTED.search(one.rest)
    left = known[one.operands[0]].results[0].dims
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])] if contracted else []
    return 2 * math.prod(one.results[0].dims) * math.prod(left[axis] for axis in axes)
  return 0


def _convolution_flops(one: Instruction, target: str, known: Mapping[str, Instruction]) -> int:
  """Without products by padding, or by the zeros of a dilated volume.

  XLA for TPU writes products of matrices as convolutions that are mostly padding, too.
  """
  volumes = [one.results[0].dims, *(known[name].results[0].dims for name in one.operands[:2])]
  result, image, kernel = volumes
  # cuDNN's calls for gradients keep the labels and the window of the forward pass.
  if "backwardinput" in target:
    result, image, kernel = image, result, kernel
  elif "backwardfilter" in target:
    result, image, kernel = kernel, image, result
  of_image, of_kernel, of_result = _LABELS.search(one.rest).groups()
  products = result[of_result.index("b")] * math.prod(kernel[of_kernel.index(c)] for c in "io")
  for axis in range(len(image) - 2):
    label = str(axis)
    taps, outputs = kernel[of_kernel.index(label)], result[of_result.index(label)]
    low = int(_window(one.rest, "pad", axis, "0_0").split("_")[0])
    stride, between, spread = (
      int(_window(one.rest, name, axis, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    position = np.add.outer(np.arange(outputs) * stride, np.arange(taps) * spread) - low
    inside = (position >= 0) & (position <= (image[of_image.index(label)] - 1) * between)
    products *= int(np.sum(inside & (position % between == 0)))
  return 2 * products


def _window(rest: str, name: str, axis: int, default: str) -> str:
  """What a convolution's window says of one axis."""
  match = re.search(rf"window={{[^}}]*\b{name}=([\-\d_x]+)", rest)
  return match[1].split("x")[axis] if match else default


def _side(one: Instruction, known: Mapping[str, Instruction]) -> int:
  """The second longest side of its largest volume, and 0 where none of its arrays is a volume.

  The longest may be the channels; the third is split on a TPU. No kernel of a convolution has the
  third power of its second side.
  """
  names = [one.name, *one.operands]
  names += [source for name in names for source in known[name].operands if _renames(known[name])]
  shapes = [array.dims for name in names for array in known[name].results if len(array.dims) > 2]
  sides = [(sorted(dims)[-2], math.prod(dims)) for dims in shapes]
  return max((side for side, size in sides if size >= side**3), default=0)


def _renames(one: Instruction) -> bool:
  return one.opcode == "bitcast"
