"""Which form of a convolution a device is given: by a rule, or by what was measured there.

conv_times/*.json holds measured times, one file a device, made by benchmarks/convolution.py
--device; they lie in the package, since an installed one needs them. A shape that is not in a file
takes the fastest form of the shape that is nearest to it; a GPU that has no file takes the file of
the nearest compute capability.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.models import conv_forms
from kd_jax.models.conv import Forms

_TIMES = Path(__file__).parent / "conv_times"
_FEW_CHANNELS = 4  # below, a convolution is a case of its own


class Convolution(NamedTuple):
  """What a time depends on.

  Attributes:
    batch, sides, channels: of the image, (batch, *sides, channels).
    window, features: of the kernel, (*window, channels, features).
    stride: along all three axes.
    dtype: what is computed in.
  """

  batch: int
  sides: tuple[int, int, int]
  channels: int
  window: tuple[int, int, int]
  features: int
  stride: int
  dtype: str

  @classmethod
  def of(cls, x: Any, kernel: Any, stride: int) -> "Convolution":
    """x: (B, D, H, W, C), kernel: (kD, kH, kW, C, F), arrays or their shapes and types."""
    batch, *sides, channels = x.shape
    window, features = kernel.shape[:3], kernel.shape[4]
    return cls(
      batch, tuple(sides), channels, tuple(window), features, stride, jnp.dtype(x.dtype).name
    )


class Times(NamedTuple):
  """Measured: form -> milliseconds, of one convolution in one direction."""

  convolution: Convolution
  direction: str
  ms: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Convolutions:
  """How convolutions are computed on one kind of device.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    times: what was measured there; () for the rules alone.
    forms: for all of them, whatever the rules and the times say; None for those.
  """

  platform: str
  times: tuple[Times, ...] = ()
  forms: Forms | None = None

  def choose(self, convolution: Convolution) -> Forms:
    """The forms of a convolution and of its gradients."""
    if self.forms is not None:
      return self.forms
    on_gpu = self.platform == "gpu"
    if self.times or on_gpu:
      forward, to_input, to_kernel = (
        fastest(self.times, convolution, direction) for direction in conv_forms.DIRECTIONS
      )
      return Forms(forward, to_input, to_kernel, apart=on_gpu)
    return _on_cpu(convolution) if self.platform == "cpu" else Forms("native")


ON_CPU = Convolutions("cpu")


def of_platform(platform: str) -> Convolutions:
  """For "cpu", "gpu" or "tpu", whether it is here or not; of GPUs the newest that was measured."""
  records = _records()
  newest = max(records, key=_capability, default=None)
  return Convolutions(platform, times_of(newest) if platform == "gpu" and newest else ())


def of_device(device: jax.Device) -> Convolutions:
  """For a device that is here."""
  if device.platform != "gpu":
    return of_platform(device.platform)
  records = _records()
  kinds = {record["device"]: record for record in records}
  if device.device_kind in kinds:
    return Convolutions("gpu", times_of(kinds[device.device_kind]))
  text = str(getattr(device, "compute_capability", ""))
  own = float(text) if text.replace(".", "", 1).isdigit() else math.inf  # AMD's is such as gfx90a

  def distance(record: Mapping[str, Any]) -> tuple[bool, float, float]:
    theirs = _capability(record)  # of the same generation, then the nearest, then the newest
    return own // 1 != theirs // 1, abs(own - theirs), -theirs

  nearest = min(records, key=distance, default=None)
  return Convolutions("gpu", times_of(nearest) if nearest else ())


def times_of(record: Mapping[str, Any]) -> tuple[Times, ...]:
  """The rows of a record of conv_times."""
  found = []
  for row in record["rows"]:
    fields = {name: row[name] for name in Convolution._fields}
    fields |= {name: tuple(row[name]) for name in ("sides", "window")}
    found.append(Times(Convolution(**fields), row["direction"], tuple(row["ms"].items())))
  return tuple(found)


def row_of(times: Times) -> dict[str, Any]:
  """And back, as JSON has it."""
  return {"direction": times.direction, **times.convolution._asdict(), "ms": dict(times.ms)}


def fastest(times: Sequence[Times], convolution: Convolution, direction: str) -> str:
  """The form that was fastest for the nearest shape; XLA's own where nothing alike was measured."""
  own = "transposed_native" if direction == "to_input" else "native"
  alike = [
    t for t in times if t.direction == direction and _alike(t.convolution, convolution) and t.ms
  ]
  if not alike:
    return own
  nearest = min(alike, key=lambda t: _distance(t.convolution, convolution))
  return min(nearest.ms, key=lambda pair: pair[1])[0]


def _alike(a: Convolution, b: Convolution) -> bool:
  """Whether a's fastest form says something of b's."""
  same = a.window == b.window and a.stride == b.stride
  few = (a.channels <= _FEW_CHANNELS) == (b.channels <= _FEW_CHANNELS)
  return same and few and jnp.dtype(a.dtype).itemsize == jnp.dtype(b.dtype).itemsize


def _distance(a: Convolution, b: Convolution) -> float:
  """In doublings: of voxels, of channels, of outputs."""
  ratios = (
    (a.batch * math.prod(a.sides)) / (b.batch * math.prod(b.sides)),
    a.channels / b.channels,
    a.features / b.features,
  )
  return sum(abs(math.log2(ratio)) for ratio in ratios)


def _on_cpu(convolution: Convolution) -> Forms:
  """As measured by benchmarks/convolution.py; gradients as JAX derives them."""
  # Winograd's sums would cost 16-bit types digits that they do not have.
  wide = jnp.finfo(convolution.dtype).bits >= 32
  if convolution.window[0] != 3 or convolution.stride != 1 or not wide:
    return Forms("depth_taps")
  channels, features = convolution.channels, convolution.features
  if convolution.sides[0] == 1:
    return Forms("depth_taps")
  # With few channels or outputs Winograd's sums cost more than its products save. With very few
  # outputs, what moves numbers costs more than products: several slices at once move fewer.
  if channels <= _FEW_CHANNELS:
    return Forms("depth_stack_4" if features <= 16 else "depth_stack")
  if channels <= 16 and features <= 16:
    return Forms("depth_stack_2" if features <= 12 else "depth_stack")
  return Forms("winograd")


@functools.cache
def _records() -> tuple[dict[str, Any], ...]:
  return tuple(json.loads(path.read_text()) for path in sorted(_TIMES.glob("*.json")))


def _capability(record: Mapping[str, Any]) -> float:
  return float(record["compute_capability"])
