"""The same step in PyTorch: as written, in its faster layout and (on a GPU) compiled."""

import jax

from benchmarks import train_step
from benchmarks.device import steps
from benchmarks.device.turns import Turns


def torch(turns: Turns, small: bool) -> None:
  """The fastest first: that is what there is to be faster than."""
  try:
    import torch as library
  except ModuleNotFoundError as e:
    if e.name != "torch":  # it is here, and broken
      raise
    turns.skip("PyTorch is not installed")
  from benchmarks import torch_mirror

  jax.config.update("jax_platforms", "cpu")  # the device is PyTorch's in this process
  device = "cuda" if library.cuda.is_available() else "cpu"
  sizes = steps.SMALL if small else train_step.PAPER
  dtype = "bfloat16" if device == "cuda" else "float32"
  run = train_step.settings(sizes["filters"], (sizes["side"],) * 3, 1, dtype)
  batch = train_step.random_batch(run)
  for name, kind in torch_mirror.kinds(device).items():
    if device == "cuda":
      library.cuda.empty_cache()
    one = torch_mirror.make_step(run, batch, device, dtype=getattr(library, dtype), **kind)
    library.backends.cudnn.benchmark = False
    one()  # compiles
    one()
    with turns.alone():
      library.backends.cudnn.benchmark = True  # the calls that warm up try cuDNN's algorithms
      if device == "cuda":
        library.cuda.reset_peak_memory_stats()
      seconds = steps.timed(one)
    peak = library.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    found = {"program": name, "dtype": dtype, **steps.measured(seconds, run, peak)}
    turns.result(f"{name}: {steps.described(found)}", **found)
    del one
