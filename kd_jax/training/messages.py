"""What a run says of itself: at its start, in the log, after a validation, at its end."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from kd_jax import __version__
from kd_jax.data.dataset import Dataset
from kd_jax.prediction import calibration
from kd_jax.runs.layout import CHECKPOINTS, CONFIG_FILE, TENSORBOARD
from kd_jax.runs.log import Log
from kd_jax.runtime import commands, compiler_options, cuda
from kd_jax.runtime.compiler_options import Options
from kd_jax.runtime.terminal import error_table, table
from kd_jax.settings.run import Settings
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.memory import Choice
from kd_jax.training.state import TrainState
from kd_jax.training.validation import Validation


def introduce(
  log: Log,
  settings: Settings,
  workdir: Path,
  dataset: Dataset,
  mesh: Mesh,
  total_steps: int,
) -> None:
  device = jax.devices()[0]
  log.line(
    f"{settings.name}: {len(dataset.train)} training and {len(dataset.val)} validation cases, "
    f"fold {settings.data.fold}; {total_steps} steps; {dict(mesh.shape)} {device.device_kind} "
    f"({device.platform}); kd_jax {__version__}, jax {jax.__version__}; work directory {workdir}"
  )
  first, epochs = settings.loss.kd_from_epoch, settings.train.epochs
  if settings.model.teachers and first >= epochs:
    log.line(
      f"warning: the student never hears its teachers: distillation begins after epoch {first} "
      f"(loss.kd_from_epoch), and train.epochs = {epochs}"
    )


def machine(log: Log, dtype: str, remat: Choice, options: Options, warnings: Sequence[str]) -> None:
  """What computes the run, and how, in one line; and what speaks against it."""
  device = jax.local_devices()[0]
  capability, cudnn = cuda.capability(device), cuda.cudnn()
  kind = device.device_kind
  if capability:
    version = f"cuDNN {cuda.text(cudnn)}" if cudnn else "cuDNN of unknown version"
    kind += f" (compute capability {cuda.text(capability)}, {version})"
  line = f"{dtype} on {kind}; {remat.line}; XLA options: {compiler_options.text(options)}"
  log.line(line)
  log.text("machine", line)
  for warning in (*cuda.doubts(device, dtype), *warnings):
    log.line(warning)


def details(log: Log, workdir: Path, state: TrainState, changed: Sequence[str]) -> None:
  """Where the run stands, what was changed since it began, its parameters and its settings."""
  if first := int(state.step):
    log.line(f"going on from step {first}")
  for line in changed:
    log.line(f"changed since the run began: {line}")
  overview = parameter_overview.get_parameter_overview(state.params)
  log.line(overview, terminal=False)
  log.text("parameters", overview)
  log.text("config", (workdir / CONFIG_FILE).read_text())


def summary(numbers: Mapping[str, float]) -> str:
  dice = "/".join(f"{numbers[f'dice/student/{region}']:.2f}" for region in REGIONS)
  rate = numbers["samples_per_second"]
  return (
    f"loss {numbers['loss/student']:.3f}  Dice {'/'.join(REGIONS)} {dice}  {rate:.2f} samples/s"
  )


def validated(
  log: Log, step: int, result: Validation, best: Mapping[str, Any], seconds: float
) -> None:
  scalars = {
    f"val/dice/{network}/{region}": value
    for network, regions in result.dice.items()
    for region, value in regions.items()
  }
  minimum = result.minimum_sizes
  scalars |= {f"val/min_{name}": mm3 for name, mm3 in minimum._asdict().items()}
  scalars |= {
    f"val/dice_postprocessed/{region}": value for region, value in result.postprocessed.items()
  }
  scalars |= {"val/score": result.score}
  scalars |= {f"val/temperature/{r}": t for r, t in result.calibration.temperatures.items()}
  log.scalars(step, scalars | {"val/seconds": seconds})
  for name, pixels in result.pictures.items():
    log.picture(step, f"val/{name}", pixels)
  rows = [[name, *regions.values()] for name, regions in result.dice.items()]
  if any(minimum):
    rows.append(["student, postprocessed", *result.postprocessed.values()])
  heading = f"validation after step {step} ({seconds:.0f} s), Dice on the training grid"
  log.line(f"{heading}\n{table(['network', *REGIONS], rows)}")
  if minimum.component_mm3:
    log.line(f"postprocessed: components of less than {minimum.component_mm3:g} mm3 are left out")
  if minimum.et_mm3:
    log.line(f"postprocessed: ET of less than {minimum.et_mm3:g} mm3 in a case becomes core")
  if result.calibration.known:
    log.line(f"calibration: {_calibration(result)}")
  log.line(f"best so far: {best['score']:.4f} at step {best['step']}")


def _calibration(result: Validation) -> str:
  """ "WT: temperature 1.31, ECE 0.0104 -> 0.0062; ..."."""
  parts = []
  for region, temperature in result.calibration.temperatures.items():
    before, after = (calibration.errors(result.evidence[region], t) for t in (1.0, temperature))
    parts.append(
      f"{region}: temperature {temperature:.2f}, ECE {before.ece:.4f} -> {after.ece:.4f}"
    )
  return "; ".join(parts)


def conclude(
  log: Log, workdir: Path, dataset: Dataset, best: Mapping[str, Any], idle: bool
) -> None:
  if dataset.bad:
    log.line(f"left out, as you asked:\n{error_table(dataset.bad)}")
  if idle:
    log.line("nothing left to do: all steps were done before")
  if best:
    log.line(f"best checkpoint: step {best['step']}, mean Dice {best['score']:.4f}")
  curves, own = (shlex.quote(str(path)) for path in (workdir / TENSORBOARD, workdir))
  log.line(
    f"checkpoints: {workdir / CHECKPOINTS}\n"
    f"curves and pictures: tensorboard --logdir {curves}\n"
    f"scores in the scans' own space: {commands.typed('evaluate')} --workdir={own}"
  )
