"""What a run says of itself: at its start, in the log, after a validation, at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from kd_jax import __version__
from kd_jax.data.cache import error_table
from kd_jax.data.dataset import Dataset
from kd_jax.runs.log import RunLog
from kd_jax.runtime.terminal import table
from kd_jax.settings.config import CONFIG_FILE, Config
from kd_jax.tasks.labels import REGIONS
from kd_jax.training.step import TrainState
from kd_jax.training.validation import Validation


def introduce(
  log: RunLog,
  config: Config,
  workdir: Path,
  dataset: Dataset,
  mesh: Mesh,
  state: TrainState,
  first: int,
  total_steps: int,
  changed: Sequence[str],
) -> None:
  device = jax.devices()[0]
  log.line(
    f"{config.name}: {len(dataset.train)} training and {len(dataset.val)} validation cases, "
    f"fold {config.data.fold}; {total_steps} steps; {dict(mesh.shape)} {device.device_kind} "
    f"({device.platform}); kd_jax {__version__}, jax {jax.__version__}; work directory {workdir}"
  )
  if first:
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
  log: RunLog, step: int, result: Validation, best: Mapping[str, Any], seconds: float
) -> None:
  scalars = {
    f"val/dice/{network}/{region}": value
    for network, regions in result.dice.items()
    for region, value in regions.items()
  }
  scalars |= {f"val/smallest_{name}": mm3 for name, mm3 in result.smallest._asdict().items()}
  scalars |= {f"val/dice_cleaned/{region}": value for region, value in result.cleaned.items()}
  scalars |= {"val/score": result.score}
  log.scalars(step, scalars | {"val/seconds": seconds})
  for name, pixels in result.pictures.items():
    log.picture(step, f"val/{name}", pixels)
  rows = [[name, *regions.values()] for name, regions in result.dice.items()]
  if any(result.smallest):
    rows.append(["student, cleaned", *result.cleaned.values()])
  heading = f"validation after step {step} ({seconds:.0f} s), Dice on the training grid"
  log.line(f"{heading}\n{table(['network', *REGIONS], rows)}")
  if result.smallest.island:
    log.line(f"cleaned: islands of less than {result.smallest.island:g} mm3 are to be left out")
  if result.smallest.et:
    log.line(f"cleaned: ET of less than {result.smallest.et:g} mm3 in a case is to become core")
  log.line(f"best so far: {best['score']:.4f} at step {best['step']}")


def conclude(
  log: RunLog, workdir: Path, dataset: Dataset, best: Mapping[str, Any], idle: bool
) -> None:
  if dataset.bad:
    log.line(f"left out, as you asked:\n{error_table(dataset.bad)}")
  if idle:
    log.line("nothing left to do: all steps were done before")
  if best:
    log.line(f"best checkpoint: step {best['step']}, mean Dice {best['score']:.4f}")
  log.line(
    f"checkpoints: {workdir / 'checkpoints'}\n"
    f"curves and pictures: tensorboard --logdir {workdir / 'tensorboard'}\n"
    f"scores in the scans' own space: python main.py --mode=evaluate --workdir={workdir}"
  )
