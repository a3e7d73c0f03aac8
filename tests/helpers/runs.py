"""Runs that nobody trained: work directories as training leaves them, with random parameters."""

import dataclasses
import json
from pathlib import Path

import jax
from synthetic import LARGE, make_case

from kd_jax.data import folds as folds_lib
from kd_jax.data import nifti
from kd_jax.data.cases import find_cases
from kd_jax.data.subjects import subject_of, write_subjects
from kd_jax.models.framework import Framework
from kd_jax.runs.checkpoints import Checkpoints
from kd_jax.runs.layout import CONFIG_FILE, FOLDS_FILE, SUBJECTS_FILE
from kd_jax.runtime.files import write_text
from kd_jax.settings import presets, record
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import init_state, to_items


def make_data(root: Path, cases: int = 6, first: int = 0) -> Path:
  for i in range(first, first + cases):
    make_case(root / f"case{i}", seed=i, affine=LARGE)
  return root


def make_run(
  workdir: Path,
  root: Path,
  fold: int = 0,
  seed: int = 0,
  folds: int = 5,
  notes: dict | None = None,
  given: folds_lib.Folds | None = None,
) -> Path:
  """A T1ce student and one FLAIR teacher, as if trained on all but one fold of root's cases.

  The folds are made, or given.
  """
  settings = presets.settings(
    "brats21:from_flair",
    {
      "name": "small-from_flair",
      "data.root": str(root),
      "data.fold": fold,
      "data.folds": folds,
      "data.spacing": 3.0,
      "data.patch": (16, 16, 16),
      "model.filters": (4, 4, 8, 8),
      "inference.overlap": 0.25,
    },
  )
  record.write(workdir / CONFIG_FILE, settings)

  cases = {case.name: case for case in find_cases(root)}
  kept = given or folds_lib.make_folds(list(cases.values()), folds)
  write_text(workdir / FOLDS_FILE, json.dumps(kept))
  images = {n: {m: nifti.read(x) for m, x in case.images.items()} for n, case in cases.items()}
  sides = folds_lib.split(kept, fold)
  subjects = ([subject_of(cases[name], images[name]) for name in side] for side in sides)
  write_subjects(workdir / SUBJECTS_FILE, *subjects)

  optimizers = {group: optimizer(own, 1) for group, own in settings.optim.groups.items()}
  framework = Framework(settings.model)
  state = init_state(framework, optimizers, settings.confidence, jax.random.key(seed), ema=True)
  state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x.copy(), state.params["student"]))
  checkpoints = Checkpoints(workdir)
  checkpoints.save(7, to_items(state), notes or {}, 0.5)
  checkpoints.wait()
  checkpoints.close()
  return workdir
