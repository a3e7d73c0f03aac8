"""Whole cases from file to file."""

import itertools
import tempfile
from pathlib import Path

import jax

from benchmarks import inference as predicting
from benchmarks import inference_inputs as inputs
from benchmarks.device.turns import Turns
from kd_jax.prediction.output import Output
from kd_jax.prediction.student import Architecture, Preparation


def inference(turns: Turns, small: bool) -> None:
  """One network, whole and sliding, mirrored or not; five of them, whole. The cheapest first."""
  jax.config.update("jax_enable_compilation_cache", False)
  sizes = predicting.SMALL if small else predicting.FULL
  networks = (1,) if small else (1, 5)
  architecture = Architecture((inputs.MODALITY,), sizes["filters"], "channel")
  preparation = Preparation("brain", "zscore", sizes["spacing"], (sizes["patch"],) * 3)
  students = inputs.students(max(networks), architecture, preparation)
  modes, mirror = ("whole", "sliding"), (False,) if small else (False, True)
  setups = {predicting.Setup(1, *how) for how in itertools.product(modes, mirror)}
  setups |= {predicting.Setup(n, "whole", False) for n in networks}
  with tempfile.TemporaryDirectory(prefix="kd_jax-inference-") as folder:
    scans = Path(folder) / "scans"
    scan = inputs.write_scans(scans, 3, None)
    for number, setup in enumerate(predicting.in_order_of_cost(setups, students, scan)):
      output = Output(Path(folder) / f"masks{number}", "brats2018")
      with turns.alone():  # it compiles in its first case, and nothing else does meanwhile
        row = predicting.measure(setup, students, scans, output, repeat=1)
      turns.result(
        f"{setup}: {row['seconds']['median']:.2f} s a case, network {row['network_seconds']:.2f}, "
        f"first {row['first_seconds']:.1f}",
        **row,
      )
