"""A compiled program's text: its computations, their instructions, and where each comes from.

Everything here is a function of what `compiled.as_text()` gives: an optimised, scheduled HLO module
of any backend. benchmarks/kernels.py says what the instructions cost.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_INDEX = re.compile(r"/\*index=\d+\*/")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FAST_MEMORY = re.compile(r"S\([1-4]\)")
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_CONTROL = {"while", "call", "conditional", "async-start"}


class Array(NamedTuple):
  """Of an instruction: its sides, its bytes, and whether they lie in device memory."""

  dims: tuple[int, ...]
  bytes: int
  in_memory: bool

  @property
  def moved(self) -> int:
    return self.bytes if self.in_memory else 0


class Instruction(NamedTuple):
  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str  # operands and attributes, as written
  called: tuple[str, ...]
  root: bool


class Program(NamedTuple):
  """A module as it was read.

  Attributes:
    entry: name of the computation that it begins with.
    computations: name -> its instructions.
    known: every instruction by its name.
    frames: number of a stack frame -> (file, function) of each call, outermost first; {} where the
      text has none.
  """

  entry: str
  computations: dict[str, list[Instruction]]
  known: dict[str, Instruction]
  frames: dict[int, tuple[tuple[str, str], ...]]


def read(text: str) -> Program:
  entry, computations = _computations(text)
  known = {one.name: one for body in computations.values() for one in body}
  return Program(entry, computations, known, _frames(text))


def work(program: Program, name: str, times: int = 1) -> Iterator[tuple[Instruction, int]]:
  """The instructions of a computation that do something, and how often; loops are entered."""
  for one in program.computations[name]:
    if one.opcode in _NO_WORK or one.opcode.endswith("-done"):
      continue
    if one.opcode in _CONTROL:
      trips = _TRIPS.search(one.rest)
      for called in one.called:
        yield from work(program, called, times * (int(trips[1]) if trips else 1))
    else:
      yield one, times


def inside(program: Program, one: Instruction) -> Iterator[Instruction]:
  """An instruction and all those that are fused into it."""
  yield one
  for called in one.called:
    for inner in program.computations[called]:
      yield from inside(program, inner)


def _computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
  """The entry's name, and every computation's instructions by its name."""
  found: dict[str, list[Instruction]] = {}
  entry, body = "", None
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      body = found[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      body = None
    elif body is not None and (match := _INSTRUCTION.match(_INDEX.sub("", line))):
      root, name, shape, opcode, rest = match.groups()
      operands = re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0])
      called = _CALLED.findall(rest)
      for branches in _BRANCHES.findall(rest):
        called += re.findall(r"%?([\w.\-]+)", branches)
      own = (name, opcode, arrays(shape), tuple(operands), rest, tuple(called), bool(root))
      body.append(Instruction(*own))
  return entry, found


def arrays(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape as HLO writes it: one, or those of a tuple in order."""
  found = []
  for _, bits, sides, order, layout in _ARRAY.findall(shape):
    dims = [int(side) for side in sides.split(",") if side]
    padded = list(dims)
    tile = re.match(r"T\(([\d,]+)\)", layout)
    for axis, unit in zip(order.split(","), reversed(tile[1].split(",") if tile else ())):  # noqa: B905
      if axis:  # the fastest axis is padded to the tile's last side
        padded[int(axis)] = -(-dims[int(axis)] // int(unit)) * int(unit)
    size = math.prod(padded) * int(bits or 8) // 8
    found.append(Array(tuple(dims), size, not _FAST_MEMORY.search(layout)))
  return tuple(found)


def _frames(text: str) -> dict[int, tuple[tuple[str, str], ...]]:
  """See Program."""
  tables: dict[str, dict[int, str]] = {}
  for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
    _, _, after = text.partition(f"\n{name}\n")
    lines = after.split("\n\n", 1)[0].splitlines()
    rows = (line.split(" ", 1) for line in lines if line[:1].isdigit())
    tables[name] = {int(number): rest for number, rest in rows}
  found: dict[int, tuple[tuple[str, str], ...]] = {}
  for number, row in sorted(tables["StackFrames"].items()):
    location, parent = _number(row, "file_location_id"), _number(row, "parent_frame_id")
    place = tables["FileLocations"][location]
    file = tables["FileNames"][_number(place, "file_name_id")].strip('"')
    function = tables["FunctionNames"][_number(place, "function_name_id")].strip('"')
    found[number] = (*found.get(parent - 1, ()), (file, function))  # written one too high
  return found


def _number(row: str, name: str) -> int:
  match = re.search(rf"\b{name}=(\d+)", row)
  return int(match[1]) if match else 0
