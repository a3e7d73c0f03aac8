"""Students and runs of version 0.1 (commit 90f0c4f) are read, and runs go on."""

import json
import shutil
import subprocess
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from program import REPOSITORY, Place, checkpoint_steps, numbers
from synthetic import LARGE, make_case

from kd_jax.data.cases import find_cases
from kd_jax.models.framework import Framework
from kd_jax.prediction.predictor import Predictor
from kd_jax.runs.checkpoints import Checkpoints, Items
from kd_jax.runs.layout import CONFIG_FILE
from kd_jax.runs.students import open_student
from kd_jax.settings import presets, record
from kd_jax.settings.inference import BY_VALIDATION
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import from_items, init_state, to_items

EARLIER = Path(__file__).parent / "earlier"  # a student, a mask that it made, a run's settings
COMMIT = "90f0c4f914ab57bd1d1da3722da7987409543a51"


# --- An exported student ------------------------------------------------------------------------


def test_a_student_is_opened_and_says_of_a_scan_what_it_said_then(tmp_path):
  student = open_student(EARLIER / "student")
  assert student.architecture.network == "resunet"
  assert student.inference.window == "sliding" and student.inference.overlap == 0.25
  make_case(tmp_path / "case0", seed=0, affine=LARGE)
  (case,) = find_cases(tmp_path)
  classes = Predictor([student]).predict_case(case).classes()
  then = np.asarray(nib.load(EARLIER / "mask.nii.gz").dataobj)  # in the scan's own axes: LPS
  then = np.where(then == 4, 3, then)
  assert then.any() and np.mean(classes != then) < 1e-3  # other processors round otherwise


# --- A run ----------------------------------------------------------------------------------------


def test_the_settings_of_a_run_have_today_s_names():
  settings = record.read(EARLIER / CONFIG_FILE)
  assert settings.inference.min_et_mm3 == BY_VALIDATION
  assert settings.optim.teachers.schedule == "constant"
  assert settings.data.foreground_oversampling == 0.67
  assert (settings.model.network, settings.model.teacher_network) == ("resunet", "same")
  known = json.loads((EARLIER / CONFIG_FILE).read_text())
  assert settings.train.spatial_shards == known["train"]["space"]
  assert settings.train.preview_cases == known["train"]["pictures"]


def older(items: Items) -> Items:
  """A checkpoint's items as version 0.1 named them."""

  def group(tree):
    teachers = {("teachers" if k == "networks" else k): v for k, v in tree["teachers"].items()}
    return {"cohort": teachers, "student": tree["student"]}

  def moments(tree):
    """Of an optimiser's state, within which the teachers' parameters stand again."""
    if isinstance(tree, dict) and "networks" in tree:
      return {("teachers" if k == "networks" else k): v for k, v in tree.items()}
    if isinstance(tree, tuple):
      parts = [moments(part) for part in tree]
      return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return tree

  training = dict(items.training)
  optimisers = training["opt_state"]
  training["opt_state"] = {
    "cohort": moments(optimisers["teachers"]),
    "student": optimisers["student"],
  }
  scale = training["lr_scale"]
  training["lr_scale"] = {"cohort": scale["teachers"], "student": scale["student"]}
  return Items({**items.networks, "params": group(items.networks["params"])}, training)


@pytest.fixture(scope="module")
def state():
  settings = presets.settings(
    "brats21:from_flair", {"model.filters": (4, 4, 8, 8), "data.patch": (16, 16, 16)}
  )
  optimizers = {group: optimizer(own, 1) for group, own in settings.optim.groups.items()}
  framework = Framework(settings.model)
  return init_state(framework, optimizers, settings.confidence, jax.random.key(3), ema=True)


def test_a_checkpoint_is_restored_under_today_s_names(tmp_path, state):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(4, older(to_items(state)), {"best": {}}, 0.5)
  checkpoints.wait()
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.eval_shape(lambda: to_items(state))
  items, _ = checkpoints.restore(4, abstract, sharding)
  restored = from_items(items)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(x, y)
  student, averaged = checkpoints.restore_student(4)
  assert averaged
  for x, y in zip(jax.tree.leaves(student), jax.tree.leaves(state.ema), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_run_goes_on_and_its_student_is_opened(tmp_path):
  """The whole way, with the program as it was at that commit."""
  program = tmp_path / "program"
  program.mkdir()
  archive = subprocess.run(
    ["git", "-C", str(REPOSITORY), "archive", COMMIT], capture_output=True, check=False
  )
  if archive.returncode:
    pytest.skip(f"the repository's history does not reach back to {COMMIT[:7]}")
  subprocess.run(["tar", "-x", "-C", str(program)], input=archive.stdout, check=True)
  place = Place(tmp_path)
  today = place.flags("run", train__epochs=1)
  then = [flag.replace("optim.teachers", "optim.cohort") for flag in today]
  then = [flag.replace(f"{REPOSITORY}/configs", f"{program}/configs") for flag in then]
  place.finish(place.python(str(program / "main.py"), *then))
  assert checkpoint_steps(tmp_path / "run")[-1] == 4
  shutil.copytree(tmp_path / "run", tmp_path / "alone")
  assert open_student(tmp_path / "run").training["step"] == 4

  said = place.finish(place.start("run", train__epochs=2))
  assert "going on from step 4" in said
  there = [flag.replace("train.epochs=1", "train.epochs=2") for flag in then]
  there = [flag.replace(str(tmp_path / "run"), str(tmp_path / "alone")) for flag in there]
  place.finish(place.python(str(program / "main.py"), *there))
  ours, theirs = numbers(tmp_path / "run"), numbers(tmp_path / "alone")
  assert ours[-1]["val/dice/student/WT"] == theirs[-1]["val/dice/student/WT"]
  assert ours[-2]["train/loss/student"] == theirs[-2]["train/loss/student"]
