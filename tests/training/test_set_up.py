"""What a run is set up with when it goes on."""

from synthetic import LARGE, make_case

from kd_jax.settings import presets
from kd_jax.training.mesh import make_mesh
from kd_jax.training.setup import set_up
from kd_jax.training.state import to_items


def test_cases_that_have_gone_move_no_epoch(tmp_path, terminal):
  """One pass over the cases stays as long as it was: epochs, schedules and first-epoch rule."""
  for i in range(6):
    make_case(tmp_path / "data" / f"case{i}", seed=i, affine=LARGE)
  changes = {
    "data.root": str(tmp_path / "data"),
    "data.cache": str(tmp_path / "cache"),
    "data.demo_cases": 0,
    "data.batch": 1,
    "data.folds": 3,
    "data.patch": (16, 16, 16),
    "data.prepare_workers": 1,
    "data.skip_bad_cases": True,
    "model.filters": (4, 4, 8, 8),
    "train.steps_per_epoch": 0,
    "train.epochs": 5,
  }
  settings = presets.settings("quickstart:student_only", changes)
  begun = set_up(settings, make_mesh(1, 1), tmp_path / "run", terminal)
  assert (begun.plan.steps_per_epoch, begun.plan.total_steps) == (4, 20)
  begun.checkpoints.save(4, to_items(begun.state), {"steps_per_epoch": 4})
  begun.checkpoints.wait()
  begun.checkpoints.close()
  begun.log.close()

  (tmp_path / "data" / begun.dataset.train[0] / f"{begun.dataset.train[0]}_t1ce.nii.gz").unlink()
  again = set_up(settings, make_mesh(1, 1), tmp_path / "run", terminal)
  assert len(again.dataset.train) == 3
  assert (again.plan.steps_per_epoch, again.plan.total_steps) == (4, 20)
