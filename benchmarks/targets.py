"""Devices that are not at hand: what XLA must know to compile for them, and what makers publish.

XLA compiles for a GPU or a TPU without one where the plugin of that platform is installed. Without
the device it cannot time kernels against each other (autotuning is off), so that a real device may
get other kernels, and with them somewhat other temporary memory.
"""

import importlib.util
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from kd_jax.runtime.errors import UserError


class Target(NamedTuple):
  """One kind of device.

  Attributes:
    platform: "gpu", "tpu" or "cpu".
    name: as in its maker's tables.
    flops: a second at most, dense, by type; float32 as JAX's default precision computes it.
    bytes_per_second: of device memory, at most.
    topology: of a TPU, the smallest that there is.
    hardware: of a GPU, what its compiler asks for beside what all have in common.
    options: of the compiler.
  """

  platform: str
  name: str
  flops: dict[str, float]
  bytes_per_second: float | None
  topology: str = ""
  hardware: Mapping[str, float] = MappingProxyType({})
  options: Mapping[str, Any] = MappingProxyType({})


# On its own, XLA would take channels first for 3-D convolutions where no device is there to ask.
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_force_conv_nhwc": True}
_HOPPER = {
  "core_count": 132,
  "fpus_per_core": 128,
  "shared_memory_per_core": 233472,
  "shared_memory_per_block_optin": 232448,
  "l2_cache_size": 52428800,
  "clock_rate_ghz": 1.98,
  "major": 9,
}
_AMPERE = {
  "core_count": 108,
  "fpus_per_core": 64,
  "shared_memory_per_core": 167936,
  "shared_memory_per_block_optin": 166912,
  "l2_cache_size": 41943040,
  "clock_rate_ghz": 1.41,
  "major": 8,
}


def _gpu(
  name: str, bf16: float, tf32: float, terabytes: float, gigabytes: int, chip: dict
) -> Target:
  hardware = {"memory_bandwidth": int(terabytes * 1e12), "device_memory_size": gigabytes * 10**9}
  flops = {"bfloat16": bf16 * 1e12, "float32": tf32 * 1e12}
  return Target("gpu", name, flops, terabytes * 1e12, "", chip | hardware, _GPU_OPTIONS)


def _tpu(name: str, bf16: float, terabytes: float, topology: str) -> Target:
  flops = dict.fromkeys(("bfloat16", "float32"), bf16 * 1e12)  # float32 in one pass of bfloat16
  return Target("tpu", name, flops, terabytes * 1e12, topology)


TARGETS = {
  "h200": _gpu("NVIDIA H200", 989, 494, 4.8, 141, _HOPPER),
  "h100": _gpu("NVIDIA H100 SXM", 989, 494, 3.35, 80, _HOPPER),
  "a100": _gpu("NVIDIA A100 80GB SXM", 312, 156, 2.0, 80, _AMPERE),
  "v5e": _tpu("TPU v5e", 197, 0.82, "v5e:2x2"),
  "v5p": _tpu("TPU v5p", 459, 2.77, "v5p:2x2x1"),
  "cpu": Target("cpu", "this machine's CPU", {}, None),
}

_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  {chip} cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 13 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
_PLUGINS = {
  "gpu": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "jax[cuda13]"),
  "tpu": (("libtpu",), "jax[tpu]"),
}


def mesh_of(target: Target) -> Mesh:
  """One device of a kind, as a mesh to lower and compile programs for.

  Raises:
    UserError: the plugin of the platform is not installed.
  """
  jax.config.update("jax_platforms", "cpu")  # arrays of this process lie there
  devices = jax.devices() if target.platform == "cpu" else _devices_elsewhere(target)
  one = np.array(devices[:1]).reshape(1, 1)
  return Mesh(one, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def _devices_elsewhere(target: Target) -> list[jax.Device]:
  modules, package = _PLUGINS[target.platform]
  if not any(importlib.util.find_spec(name) for name in modules):
    raise UserError(
      f"to compile for {target.name} install XLA's plugin, which needs no such device: "
      f'pip install "{package}=={jax.__version__}"'
    )
  os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # of a driver that is not there
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # nor a server that tells what machine this is
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # none of them holds a device
  from jax.experimental import topologies

  jax.devices()  # registers the plugins
  if target.platform == "tpu":
    return topologies.get_topology_desc(target.topology, "tpu").devices
  chip = " ".join(f"{key}: {value}" for key, value in target.hardware.items() if key != "major")
  config = _CONFIG.format(chip=chip, major=target.hardware["major"], name=target.name)
  return topologies.get_topology_desc(
    platform="cuda", topology="1x1x1", target_config=config
  ).devices
