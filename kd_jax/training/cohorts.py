"""On which training patients does each cohort of teachers train?

With two cohorts the student hears, of each case, teachers who have not trained on it: by then those
who have know its label by heart, and tell the student nothing that the label does not (Dao et al.,
Knowledge distillation as semiparametric inference, ICLR 2021: cross-fitting).
"""

import json
from pathlib import Path

from kd_jax.data import folds
from kd_jax.data.dataset import Dataset
from kd_jax.models.framework import COHORTS
from kd_jax.runs.layout import COHORTS_FILE
from kd_jax.runtime import files, processes
from kd_jax.runtime.errors import UserError
from kd_jax.settings.run import Settings


def settle(settings: Settings, workdir: Path, dataset: Dataset, begun: bool) -> list[list[str]]:
  """The training cases of each cohort, by patient; as the run began with them, if it has begun.

  Returns:
    A list of names for each cohort; all in one list with `model.cohorts` = 1.

  Raises:
    UserError: a single patient, or a file that a run began with and that cannot be read any more.
  """
  if settings.model.cohorts == 1:
    return [dataset.train]
  path = workdir / COHORTS_FILE
  halves = files.read_json(path) if begun else _deal(settings, dataset)
  if processes.first() and not begun:
    files.write_text(path, json.dumps(halves, indent=1) + "\n")
  own = [[name for name in dataset.train if name in halves.get(c, ())] for c in COHORTS]
  if not all(own):
    raise UserError(f"{path} has no usable case for one of the cohorts {' and '.join(COHORTS)}")
  return own


def _deal(settings: Settings, dataset: Dataset) -> dict[str, list[str]]:
  """The training patients, dealt as to folds: cohort -> names of cases."""
  cases = [dataset.cases[name] for name in dataset.train]
  if len({case.patient for case in cases}) < len(COHORTS):
    raise UserError("model.cohorts = 2 shares the training patients out, and there is only one")
  dealt = folds.make_folds(cases, len(COHORTS), settings.data.folds_seed)["folds"]
  return dict(zip(COHORTS, dealt, strict=True))
