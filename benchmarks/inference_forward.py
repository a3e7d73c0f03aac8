"""The forward pass of the student's network on one window, ours beside PyTorch's."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, timing
from kd_jax.data.grid import Triple
from kd_jax.models import torch_names
from kd_jax.prediction.student import Architecture
from kd_jax.runtime.terminal import table

_HEAD = ["forward", "window", "ms", "min", "max", "cpu-ms", "time/kd_jax", "cpu/kd_jax"]


def measure_forward(
  architecture: Architecture, window: Triple, rounds: int
) -> list[dict[str, Any]]:
  """One window through the network, ours and PyTorch's in turns; our row first."""
  mirror, params = mirrored_network(architecture)
  image = np.random.default_rng(0).standard_normal((1, *window, 1), np.float32)
  framework = architecture.framework()
  network = jax.jit(framework.network)
  params, on_device = jax.device_put((params, image))
  programs = {
    "kd_jax": lambda: network(params, on_device).block_until_ready(),
    **_torch_programs(mirror, image, framework.dtype == jnp.bfloat16),
  }
  spreads = timing.alternate(programs, rounds, block=1)
  ours = spreads["kd_jax"]
  return [
    {
      "program": name,
      "window": window,
      "seconds": spread._asdict(),
      "time_over_kd_jax": spread.median / ours.median,
      "cpu_over_kd_jax": spread.processor / ours.processor,
    }
    for name, spread in spreads.items()
  ]


def mirrored_network(architecture: Architecture) -> tuple[Any, dict[str, Any]]:
  """A PyTorch module of the student's network without side heads, and its parameters as ours."""
  from benchmarks import torch_mirror

  modalities, filters = len(architecture.modalities), architecture.filters
  mirror = torch_mirror.ResUNet(modalities, filters, side_heads=False).eval()
  arrays = {name: x.detach().numpy() for name, x in mirror.state_dict().items()}
  return mirror, torch_names.convert(arrays, torch_names.network_table())


def _torch_programs(
  mirror: Any, image: np.ndarray, bfloat16: bool
) -> dict[str, Callable[[], None]]:
  """The mirror on the kind of device that JAX uses: channels first, last, and on a GPU compiled."""
  import torch

  device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
  torch.backends.cuda.matmul.allow_tf32 = True  # as JAX's default has it, and cuDNN's
  torch.backends.cudnn.benchmark = True
  x = torch.from_numpy(np.moveaxis(image, -1, 1).copy()).to(device)

  def program(layout: Any, compiled: bool = False) -> Callable[[], None]:
    net = copy.deepcopy(mirror).to(device, memory_format=layout)
    net = torch.compile(net) if compiled else net
    own = x.to(memory_format=layout)

    def run() -> None:
      with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        net(own)
      if device == "cuda":
        torch.cuda.synchronize()

    return run

  last = torch.channels_last_3d
  programs = {"torch": program(torch.contiguous_format), "torch, channels last": program(last)}
  return programs | ({"torch compile": program(last, True)} if device == "cuda" else {})


def forward_table(rows: Sequence[Mapping[str, Any]]) -> str:
  return table(_HEAD, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
  times = [row["seconds"][name] for name in ("median", "least", "most", "processor")]
  ratios = [row["time_over_kd_jax"], row["cpu_over_kd_jax"]]
  milliseconds = [f"{1e3 * x:.1f}" for x in times]
  return [row["program"], common.by(row["window"]), *milliseconds, *(f"{x:.2f}" for x in ratios)]
