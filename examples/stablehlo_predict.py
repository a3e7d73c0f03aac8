"""A mask of one scan by a StableHLO export of kd_jax: numpy, nibabel, jax and
flatbuffers (which jax.export reads by) are enough.

  python main.py --mode=export --format=stablehlo --checkpoint=my_student --output=my_stablehlo
  python examples/stablehlo_predict.py my_stablehlo scan.nii.gz mask.nii.gz

One file serves CPU, NVIDIA GPU and TPU. What is done before and after the program is the same as
for ONNX, so that it stands in onnx_predict.py, beside this file.
"""

import sys
from pathlib import Path

import numpy as np
from onnx_predict import Run, Unusable, main, read_export


def open_stablehlo(folder: Path) -> tuple[dict, Run]:
  model, content = read_export(folder, "stablehlo")
  import jax
  from jax import export

  try:
    program = jax.jit(export.deserialize(bytearray(content)).call)
  except Exception as e:  # of another version of JAX: it says so in its own words
    raise Unusable(f"this JAX ({jax.__version__}) cannot read the program: {e}") from e

  def run(image: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.asarray(program(image, mean, deviation)[0])

  return model, run


if __name__ == "__main__":
  main(open_stablehlo, sys.argv[1:])
