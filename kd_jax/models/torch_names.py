"""An explicit table from the published PyTorch parameter names and layouts to ours.

The parity tests use it, and anyone who has weights of the published code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Path = tuple[str, ...]

_BLOCK = {
  "conv_block.0": "norm_in",
  "conv_block.2": "conv_in",
  "conv_block.3": "norm_out",
  "conv_block.5": "conv_out",
  "conv_skip.0": "skip_conv",
  "conv_skip.1": "skip_norm",
}
_GATE = {"mlp.1": "channel/squeeze", "mlp.3": "channel/excite"}


def network_table() -> dict[str, Path]:
  """PyTorch module name -> the path of ours, for a teacher or the student."""
  table = {
    "input_layer.0": "stem/conv_in",
    "input_layer.3": "stem/conv_out",
    "input_skip.0": "stem/skip_conv",
    "output_layer": "head",
    "output_layer_1": "side_heads/level1",
    "output_layer_2": "side_heads/level2",
  }
  blocks = {"residual_conv_1": "down1", "residual_conv_2": "down2", "bridge": "bridge"}
  for number, stage in enumerate(("up2", "up1", "up0"), start=1):
    table[f"upsample_{number}"] = f"{stage}/upsample"
    table |= {f"channel_attention_{number}.{k}": f"{stage}/gate/{v}" for k, v in _GATE.items()}
    blocks[f"up_residual_conv_{number}"] = f"{stage}/block"
  for theirs, ours in blocks.items():
    table |= {f"{theirs}.{k}": f"{ours}/{v}" for k, v in _BLOCK.items()}
  return {theirs: tuple(ours.split("/")) for theirs, ours in table.items()}


def fusion_table(teachers: Sequence[str]) -> dict[str, Path]:
  """PyTorch module name -> the path of ours, for one fusion module; teachers in its order."""
  table = {"output_layer": "head"}
  for number, name in enumerate(teachers, start=1):
    table[f"intermediate_conv{number}"] = f"projections/{name}"
    table |= {f"channel_attention{number}.{k}": f"gates/{name}/{v}" for k, v in _GATE.items()}
  return {theirs: tuple(ours.split("/")) for theirs, ours in table.items()}


def convert(
  parameters: Mapping[str, np.ndarray], table: Mapping[str, Path], *, ignore: Sequence[str] = ()
) -> dict[str, Any]:
  """PyTorch parameters by name -> our nested dict.

  Args:
    parameters: name, such as "bridge.conv_block.2.weight", -> array in PyTorch's layout.
    table: of the module names.
    ignore: modules to leave out, such as heads that a teacher does not have.

  Raises:
    KeyError: a name that is not in the table.
  """
  tree: dict[str, Any] = {}
  for name, array in parameters.items():
    module, _, kind = name.rpartition(".")
    if module in ignore:
      continue
    if module not in table or kind not in ("weight", "bias"):
      raise KeyError(f"parameter {name!r} is none of the published network's")
    node = tree
    for key in table[module]:
      node = node.setdefault(key, {})
    leaf, layout = _leaf(module, kind, array.ndim)
    node[leaf] = layout(array)
  return tree


def _leaf(module: str, kind: str, ndim: int) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """Our name for a module's parameter, and what brings it into our layout."""
  if kind == "bias":
    return "bias", np.asarray
  if ndim == 1:
    return "scale", np.asarray
  if ndim == 2:  # a linear layer (out, in) -> (1, 1, 1, in, out)
    return "kernel", lambda a: a.T[None, None, None]
  if module.startswith("upsample"):  # transposed convolution (in, out, 2, 2, 2)
    return "kernel", lambda a: a.transpose(2, 3, 4, 0, 1)
  return "kernel", lambda a: a.transpose(2, 3, 4, 1, 0)  # (out, in, k, k, k)
