"""A checkpoint comes back as it was saved, and one that a disk has spoilt is not used."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.runs import checkpoints as checkpoint
from kd_jax.runs.checkpoints import Checkpoints, set_aside_damaged
from kd_jax.runtime import checksums
from kd_jax.runtime.errors import UserError
from kd_jax.training.state import TrainState, from_items, to_items

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_of(step):
  """The items of a state."""
  params = {"teachers": {"w": jnp.full(9, 2.0 + step)}, "student": {"w": jnp.arange(5000.0) + step}}
  state = TrainState(
    step=jnp.int32(step),
    params=params,
    opt_state={"student": {"mu": jnp.full(3, 0.5)}},
    confidence={"weights": jnp.ones(2)},
    lr_scale={"student": jnp.ones(())},
    ema=jax.tree.map(jnp.copy, params["student"]),
  )
  return to_items(state)


@pytest.fixture
def workdir(tmp_path):
  """Three checkpoints; the first is the best."""
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step, score in ((3, 0.9), (5, 0.1), (8, 0.2)):
    checkpoints.save(step, state_of(step), {"best": step}, score)
  checkpoints.wait()
  assert checkpoints.steps() == [3, 5, 8]
  checkpoints.close()
  return tmp_path


def files(workdir, step):
  folder = workdir / "checkpoints" / str(step)
  return [path for path in folder.glob("*/**/*") if path.is_file() and path.stat().st_size]


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def no_word(text):
  pytest.fail(text)


def test_a_checkpoint_comes_back_as_it_was_saved(workdir):
  set_aside_damaged(workdir, no_word)
  checkpoints = Checkpoints(workdir)
  items, notes = checkpoints.restore(5, jax.eval_shape(lambda: state_of(0)), DEVICE)
  assert notes == {"best": 5} and checkpoints.best_step() == 3
  state, saved = from_items(items), from_items(state_of(5))
  for field in dataclasses.fields(TrainState):
    expected = jax.tree.leaves(getattr(saved, field.name))
    actual = jax.tree.leaves(getattr(state, field.name))
    for x, y in zip(actual, expected, strict=True):
      np.testing.assert_array_equal(x, y)


def test_every_file_of_every_item_has_its_checksum(workdir):
  """And each appears with its checkpoint, never after it: none can go without."""
  for step in (3, 5, 8):
    folder = workdir / "checkpoints" / str(step)
    assert (folder / checksums.CHECKSUMS_FILE).is_file()
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"networks", "training"}
    for path in files(workdir, step):
      before = path.read_bytes()
      flip(path)
      assert str(path.relative_to(folder)) in checksums.damage(folder), path
      path.write_bytes(before)
    assert checksums.damage(folder) == ""


@pytest.mark.parametrize("how", ["bit", "truncated", "missing", "checksums"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(workdir, how):
  largest = max(files(workdir, 8), key=lambda path: path.stat().st_size)
  if how == "bit":
    flip(largest)
  elif how == "truncated":
    os.truncate(largest, largest.stat().st_size // 2)
  elif how == "missing":
    largest.unlink()
  else:
    (workdir / "checkpoints" / "8" / checksums.CHECKSUMS_FILE).write_text("{")
  told = []
  set_aside_damaged(workdir, told.append)
  assert len(told) == 1 and "step 8 is damaged" in told[0] and "damaged-checkpoint-8" in told[0]
  assert (workdir / "damaged-checkpoint-8" / "networks").is_dir()
  checkpoints = Checkpoints(workdir)
  assert checkpoints.steps() == [3, 5]
  items, _ = checkpoints.restore(5, jax.eval_shape(lambda: state_of(0)), DEVICE)
  assert int(items.training["step"]) == 5
  checkpoints.save(8, state_of(8), {})  # done again
  checkpoints.wait()
  assert checkpoints.steps()[-1] == 8
  checkpoints.close()
  set_aside_damaged(workdir, no_word)


def test_no_sound_checkpoint_is_an_error_that_touches_nothing(workdir):
  for step in (3, 5, 8):
    flip(files(workdir, step)[0])
  with pytest.raises(UserError, match=r"step 8: .*step 5: .*step 3: "):
    set_aside_damaged(workdir, no_word)
  assert Checkpoints(workdir, read_only=True).steps() == [3, 5, 8]


def test_a_run_without_checkpoints_begins(tmp_path):
  set_aside_damaged(tmp_path, no_word)


def test_a_checkpoint_from_before_there_were_checksums_is_used(workdir):
  (workdir / "checkpoints" / "8" / checksums.CHECKSUMS_FILE).unlink()
  set_aside_damaged(workdir, no_word)
  assert Checkpoints(workdir).steps() == [3, 5, 8]


def test_prediction_refuses_a_damaged_checkpoint_and_says_what_to_do(workdir):
  checkpoints = Checkpoints(workdir, read_only=True)
  student, averaged = checkpoints.restore_student(3)
  assert averaged and student["w"][0] == 3 and len(student["w"]) == 5000
  flip(files(workdir, 3)[0])
  with pytest.raises(UserError, match=r"step 3 in .* is damaged.*move .* elsewhere"):
    checkpoints.restore_student(3)


@pytest.mark.parametrize("when", ["restore_student", "notes"])
def test_a_best_checkpoint_that_is_replaced_while_it_is_read(workdir, monkeypatch, when):
  """A run that goes on may find a better one, and removes the one that was the best."""
  real, looked_at = getattr(Checkpoints, when), []

  def removed_first(self, step, *args):
    looked_at.append(step)
    if step == 3:
      shutil.rmtree(workdir / "checkpoints" / "3")
    return real(self, step, *args)

  monkeypatch.setattr(Checkpoints, when, removed_first)
  best = checkpoint.read_best(workdir)
  assert looked_at == [3, 8] and (best.step, best.notes, best.score) == (8, {"best": 8}, 0.2)
  assert best.student["w"][0] == 8


def test_a_best_checkpoint_that_is_damaged_is_an_error(workdir):
  flip(files(workdir, 3)[0])
  with pytest.raises(UserError, match=r"step 3 in .* is damaged"):
    checkpoint.read_best(workdir)
