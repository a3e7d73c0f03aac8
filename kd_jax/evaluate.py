"""Scores of a trained student on whole scans, in the scans' own space."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kd_jax import config as config_lib
from kd_jax import inference, optim
from kd_jax import step as step_lib
from kd_jax.checkpoint import Checkpoints
from kd_jax.data import cache, grid, labels, nifti
from kd_jax.data.cases import MODALITIES, Case
from kd_jax.data.dataset import FOLDS_FILE, open_dataset
from kd_jax.data.entry import open_entry
from kd_jax.data.labels import CLASSES, REGIONS
from kd_jax.errors import ConfigError, UserError, did_you_mean
from kd_jax.metrics.volumetric import EMPTY_MASK_RULE, SLICE_DICE_NOTE, score_case
from kd_jax.models.framework import Framework
from kd_jax.runlog import Terminal, table
from kd_jax.storage import write_text
from kd_jax.train import CONFIG_FILE

SPLITS = ("val",)
METRICS = [f"{kind}_{region}" for kind in ("dice", "slice_dice_reference") for region in REGIONS]


def evaluate(
  workdir: Path, split: str, changes: Mapping[str, Any] | None, terminal: Terminal
) -> dict[str, Any]:
  """Scores the best student of a work directory on one split of its data.

  Args:
    workdir: where a run has trained.
    split: "val", the fold's validation cases.
    changes: a configuration whose settings may differ from the run's where that leaves the student
      as it is (the data's place, how volumes are looked at); None for the run's own.
    terminal: where to tell.

  Returns:
    What summary.json holds; it and scores.csv lie in WORKDIR/evaluation/SPLIT.

  Raises:
    UserError: training subjects are asked for, or something is missing.
  """
  if split == "train":
    raise UserError(
      "REFUSED: --split=train would score the student on the subjects it was trained on. Such "
      "numbers say nothing about new patients and must not be reported. Use --split=val."
    )
  if split not in SPLITS:
    raise ConfigError(did_you_mean("split", split, SPLITS))
  raw = config_lib.read(workdir / CONFIG_FILE)
  if changes is not None:
    allowed = config_lib.MAY_CHANGE_TO_EVALUATE
    for line in config_lib.check_resumable(raw, changes, workdir, allowed):
      terminal.line(f"changed since training: {line}")
    raw = changes
  config = config_lib.parse(raw)
  if not (workdir / FOLDS_FILE).exists():
    raise UserError(f"{workdir} has no {FOLDS_FILE}: which subjects it was trained on is not known")
  dataset = open_dataset(config.data, workdir, terminal.progress)
  _refuse_training_patients(dataset.cases, dataset.train, dataset.val)

  framework = Framework(config.model)
  checkpoints = Checkpoints(workdir, read_only=True)
  step = checkpoints.best_step()
  networks = checkpoints.restore_networks(step, _abstract_state(framework, config))
  averaged = networks.ema is not None
  student = networks.ema if averaged else networks.params["student"]
  terminal.line(
    f"{config.name}: student ({'+'.join(config.model.student)}) of step {step}"
    f"{', averaged parameters' if averaged else ''}, {len(dataset.val)} {split} cases"
  )

  entries = {name: open_entry(dataset.entries[name]) for name in dataset.val}
  shapes = [entry.images.shape[1:] for entry in entries.values()]
  predict = inference.make_predictor(
    framework.network, inference.plan(shapes, config.data.patch, config.predict)
  )
  channels = [MODALITIES.index(modality) for modality in config.model.student]
  progress = terminal.progress("scoring")
  scores = {}
  for done, (name, entry) in enumerate(entries.items(), 1):
    probabilities = np.asarray(predict(student, entry.images[channels]))
    predicted = to_native_classes(probabilities, entry.grid)
    scores[name] = score_case(predicted, truth_of(dataset.cases[name]))
    progress(done, len(entries), name)

  summary = {
    "name": config.name,
    "split": split,
    "fold": config.data.fold,
    "checkpoint_step": step,
    "cases": len(scores),
    "left_out": sorted({error.case for error in dataset.bad}),
    "space": "the scan's own",
    "empty_masks": EMPTY_MASK_RULE,
    "mean_dice": {region: _mean(scores, f"dice_{region}") for region in REGIONS},
    "slice_dice_reference": {
      "note": SLICE_DICE_NOTE,
      "mean": {region: _mean(scores, f"slice_dice_reference_{region}") for region in REGIONS},
    },
  }
  folder = workdir / "evaluation" / split
  write_text(folder / "scores.csv", _csv(scores))
  write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
  _tell(terminal, scores, summary, folder)
  if dataset.bad:
    terminal.line(f"left out, as you asked:\n{cache.error_table(dataset.bad)}")
  return summary


def to_native_classes(probabilities: np.ndarray, where: grid.Grid) -> np.ndarray:
  """(K, *grid.shape) probabilities -> (*native_shape) classes; background outside the box."""
  outside = [1.0] + [0.0] * (len(CLASSES) - 1)
  return np.argmax(grid.from_grid(probabilities, where, outside), axis=0).astype(np.uint8)


def truth_of(case: Case) -> np.ndarray:
  """(D, H, W) classes of the label map, in the scan's own space."""
  return labels.to_classes(nifti.read(case.seg).data, case.convention)


def _refuse_training_patients(cases: Mapping[str, Case], train: list[str], val: list[str]) -> None:
  """The folds were checked when they were made; a file may have been edited since."""
  both = {cases[name].patient for name in train} & {cases[name].patient for name in val}
  if both:
    raise UserError(
      f"REFUSED: {len(both)} patients stand in training and validation: {sorted(both)[:10]}"
    )


def _abstract_state(framework: Framework, config: config_lib.Config) -> step_lib.TrainState:
  """The shapes of a checkpoint's state; nothing is computed."""
  optimizers = {group: optim.optimizer(s, 1) for group, s in config.optim.groups.items()}
  ema = config.optim.ema_decay > 0
  return jax.eval_shape(
    lambda key: step_lib.init_state(framework, optimizers, config.confidence, key, ema=ema),
    jax.random.key(0),
  )


def _mean(scores: Mapping[str, Mapping[str, float]], metric: str) -> float:
  return float(np.mean([case[metric] for case in scores.values()]))


def _csv(scores: Mapping[str, Mapping[str, float]]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["case", *METRICS])
  for name, case in scores.items():
    writer.writerow([name, *(f"{case[metric]:.6f}" for metric in METRICS)])
  return text.getvalue()


def _tell(
  terminal: Terminal,
  scores: Mapping[str, Mapping[str, float]],
  summary: Mapping[str, Any],
  folder: Path,
) -> None:
  rows = [[name, *(case[metric] for metric in METRICS)] for name, case in scores.items()]
  rows.append(["mean", *(_mean(scores, metric) for metric in METRICS)])
  head = ["case", *(f"Dice {r}" for r in REGIONS), *(f"slice ref. {r}" for r in REGIONS)]
  terminal.line(
    f"volumetric Dice in {summary['space']} space; {EMPTY_MASK_RULE}\n{table(head, rows)}\n"
    f"slice ref.: {SLICE_DICE_NOTE}\nwritten: {folder / 'scores.csv'}, {folder / 'summary.json'}"
  )
