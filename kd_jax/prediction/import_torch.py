"""--mode=import_torch: the published PyTorch code's student as an exported student.

The only file that touches PyTorch, and only when this mode is used: weights are read with
`weights_only=True`, so that no code in the file is run.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kd_jax.data.grid import PAPER_SHAPE
from kd_jax.models import torch_names
from kd_jax.prediction.student import Architecture, Preparation, Student, check_parameters
from kd_jax.prediction.student_directory import export
from kd_jax.runtime.errors import ConfigError, UserError, did_you_mean
from kd_jax.settings.inference import InferenceSettings
from kd_jax.tasks.names import MODALITIES, Modality

_WRAPPERS = ("state_dict", "model_state_dict", "model", "student", "net")  # around the parameters

_CODE = re.compile(r"(?:GLOBAL|global|class)\s+([\w.]+\.\w+)")  # what torch refuses to load

_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DataParallel


def import_torch(path: Path, modality: Modality, output: Path) -> Student:
  """Reads a .pth, writes the directory. UserError if it is not the published student's."""
  if modality not in MODALITIES:
    raise ConfigError(did_you_mean("--modality", modality, MODALITIES))
  student = from_state_dict(read(path), path, modality)
  export(student, output)
  return student


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a PyTorch file by name, without the prefixes that wrappers leave."""
  try:
    import torch
  except ImportError as e:
    raise UserError(
      "reading PyTorch files needs PyTorch, for this mode alone: pip install torch"
    ) from e
  if not path.is_file():
    raise UserError(f"no file {path}")
  try:
    content = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as e:  # pickle, zip and torch each raise their own
    # Its own text stays out of ours: it says how to load the file so that its code is run.
    code = _CODE.search(str(e))
    reason = f"it refers to {code[1]}" if code else "damaged, or no file of torch.save"
    raise UserError(
      f"cannot read {path} as plain weights ({reason}). If it holds a whole pickled model, save "
      "its state_dict() with torch.save where it was made, and import that"
    ) from e
  while isinstance(content, Mapping) and (
    inner := next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
  ):
    content = inner
  if not isinstance(content, Mapping) or not content:
    raise UserError(f"{path} holds no state_dict but {type(content).__name__}")
  arrays = {}
  for name, value in content.items():
    if not isinstance(value, torch.Tensor):
      raise UserError(f"{path}: {name!r} is no tensor but {type(value).__name__}")
    if not value.is_floating_point():
      raise UserError(f"{path} is not the published student: {name!r} holds {value.dtype}")
    bare = str(name)
    for prefix in _PREFIXES:
      bare = bare.removeprefix(prefix)
    if bare in arrays:
      raise UserError(f"{path} holds {bare!r} twice, with and without a prefix; keep one of them")
    arrays[bare] = value.detach().to(torch.float32).numpy()
  return arrays


def from_state_dict(arrays: Mapping[str, np.ndarray], source: Path, modality: Modality) -> Student:
  """The student that PyTorch parameters by name make. UserError if one does not fit."""
  table = torch_names.network_table()
  try:
    params = torch_names.convert(arrays, table)
    filters = tuple(
      len(arrays[f"{name}.bias"])
      for name in (
        "input_layer.0",
        "residual_conv_1.conv_block.5",
        "residual_conv_2.conv_block.5",
        "bridge.conv_block.5",
      )
    )
  except KeyError as e:
    raise UserError(
      f"{source} is not the published student (channel attention): {e.args[0]}; expected "
      f"parameters of {', '.join(sorted(table)[:4])}, ..."
    ) from e
  except ValueError as e:
    raise UserError(f"{source} is not the published student: {e}") from e
  architecture = Architecture((modality,), filters, "channel", "resunet")
  params = check_parameters(params, architecture.framework(), source)
  return Student(
    name=source.stem,
    source=str(source),
    architecture=architecture,
    # What the published code feeds its networks:
    # docs/method.md, "The published protocol and what it really does".
    preparation=Preparation("paper", "paper", 1.0, PAPER_SHAPE),
    inference=InferenceSettings("whole", 0.0, min_component_mm3=0.0, min_et_mm3=0.0),
    params=params,
    training={"data": "unknown: imported from PyTorch", "convention": "brats2018"},
    scores=None,
    train=[],
    val=[],
    settings={},
  )
