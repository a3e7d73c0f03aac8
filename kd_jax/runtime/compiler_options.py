"""What XLA is told beside its defaults: one table, with the reason of each row.

Options go to the compiler with a program, never into XLA_FLAGS, and an option that stands in the
user's XLA_FLAGS is left to what stands there.
"""

import functools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from kd_jax.runtime import cuda

if TYPE_CHECKING:  # settings read their options here, and do not wait for JAX
  import jax

Value = bool | str
Options = tuple[tuple[str, Value], ...]  # sorted by name; what jit can be cached by

AUTO, NONE = "auto", "none"


class Row(NamedTuple):
  """An option, and where it is set.

  Attributes:
    option, value: as XLA names them.
    since: the first compute capability of CUDA devices.
    dtypes: what the networks compute in.
    reason: what it is for, and where that is known from.
  """

  option: str
  value: Value
  since: cuda.Version
  dtypes: tuple[str, ...]
  reason: str


TABLE = (
  Row(
    "xla_gpu_force_conv_nhwc",
    True,
    since=(8, 0),
    dtypes=("bfloat16",),
    reason="cuDNN's kernels for tensor cores take channels last (NVIDIA, Convolutional Layers "
    "User's Guide, Tensor Layouts). XLA gives it 3-D convolutions channels first on every GPU, on "
    "Hopper too, where its log says otherwise (HeuristicLayoutAssignment in "
    "xla/service/gpu/transforms/layout_assignment.cc; seen with jaxlib 0.10.2 and 0.11.2 in "
    "programs compiled for 8.0, 9.0 and 10.0). Not float64, which cuDNN has channels first alone.",
  ),
)
# Measured nowhere yet, so in no row: xla_gpu_experimental_enable_conv_fusion=true (jaxlib 0.11),
# which gives convolutions to cuDNN as fusions.


class Chosen(NamedTuple):
  """The options of this process's programs.

  Attributes:
    options: for the compiler.
    notes: what was asked for and is left out, and why; lines for people.
  """

  options: Options
  notes: tuple[str, ...]


def text(options: Options) -> str:
  """Options as people read them."""
  return ", ".join(f"{name}={_shown(value)}" for name, value in options) or NONE


def read(wanted: str) -> dict[str, Value]:
  """The options that a setting names beside the table's.

  Args:
    wanted: "auto", "none", or "name=value,name=value".

  Raises:
    ValueError: it is none of these.
  """
  if wanted in (AUTO, NONE):
    return {}
  options: dict[str, Value] = {}
  for part in wanted.split(","):
    name, equals, value = part.strip().removeprefix("--").partition("=")
    if not (equals and value and re.fullmatch(r"xla_\w+", name)):
      raise ValueError("expected auto, none or options such as xla_NAME=true, with commas")
    options[name] = _value(value)
  return options


def choose(wanted: str, dtype: str, device: "jax.Device | None" = None) -> Chosen:
  """What programs are compiled with.

  Args:
    wanted: see `read`. Options that it names are added to the table's, or replace them; "none"
      leaves the table's out.
    dtype: what the networks compute in.
    device: what they run on; None for the first one.
  """
  import jax

  device = device or jax.local_devices()[0]
  found = {} if wanted == NONE else _of_table(device, dtype)
  notes = []
  for name, value in (found | read(wanted)).items():
    if re.search(rf"(?:^|\s)-?-?{name}\b", os.environ.get("XLA_FLAGS", "")):
      found.pop(name, None)
      if name in read(wanted):
        notes.append(f"XLA_FLAGS says what {name} is; the setting does not change it")
    elif error := _refused(name, value):
      found.pop(name, None)
      notes.append(f"warning: this XLA does not take {name}={_shown(value)} ({error}): left out")
    else:
      found[name] = value
  return Chosen(tuple(sorted(found.items())), tuple(notes))


def _of_table(device: "jax.Device", dtype: str) -> dict[str, Value]:
  capability = cuda.capability(device)
  return {
    row.option: row.value
    for row in TABLE
    if capability and capability >= row.since and dtype in row.dtypes
  }


@functools.cache
def _refused(name: str, value: Value) -> str:
  """Why XLA cannot compile with an option; "" if it can."""
  import jax

  try:
    trivial = jax.jit(lambda x: x + 1).lower(1.0)
    trivial.compile(compiler_options={name: value})
  except jax.errors.JaxRuntimeError as e:
    return str(e).splitlines()[0].partition(": ")[2]
  return ""


def _value(text: str) -> Value:
  """A value as the compiler takes it: truth values are none as texts, numbers are."""
  return text.lower() == "true" if text.lower() in ("true", "false") else text


def _shown(value: Value) -> str:
  return str(value).lower() if isinstance(value, bool) else value
