"""A step with a number that is NaN or infinite: left out, and nothing of it stays."""

import functools

import jax
import numpy as np
import published
import pytest
from linear import Linear

from kd_jax.settings.training import GROUPS
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step

CONFIDENCE = published.confidence(update="epoch")
STEPS_PER_EPOCH = 2


def flat(tree):
  return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
    "image": rng.standard_normal((1, 4, 8, 8, 8)).astype(np.float16),
    "label": rng.integers(0, 4, (1, 8, 8, 8)).astype(np.uint8),
  }


@pytest.fixture(scope="module")
def programs(batch):
  """A fresh state, and the step compiled without and with the policy."""
  framework = Linear()
  optimizers = {group: optimizer(published.optimiser(clip_norm=1.0), 9) for group in GROUPS}
  state = init_state(framework, optimizers, CONFIDENCE, jax.random.key(0), ema=True)
  make = functools.partial(
    make_train_step,
    framework,
    optimizers,
    published.loss(),
    CONFIDENCE,
    steps_per_epoch=STEPS_PER_EPOCH,
    ema_decay=0.5,
  )
  key = jax.random.key(0)
  compiled = [
    jax.jit(make(skip_nonfinite=skip)).lower(state, batch, key).compile() for skip in (False, True)
  ]
  return state, *(functools.partial(_run, program, key) for program in compiled)


def _run(program, key, state, batch):
  return program(state, batch, key)


def test_a_bad_step_leaves_everything_but_its_number(programs, batch):
  state, plain, skipping = programs
  bad = batch | {"image": np.full_like(batch["image"], np.nan)}
  state, _ = skipping(state, batch)
  after, metrics = skipping(state, bad)
  assert metrics["skipped"] == 1 and np.isnan(metrics["loss/student"])
  before, got = flat(state), flat(after)
  assert int(got.pop(".step")) == int(before.pop(".step")) + 1
  for name, x in before.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
  spoiled, _ = plain(state, bad)
  assert any(np.isnan(x).any() for x in flat(spoiled).values())  # what it would have been


def test_an_epoch_begins_with_a_bad_step_too(programs, batch):
  """The teachers' weights are those that the epoch's first step sets, whatever became of it."""
  state, plain, skipping = programs
  for _ in range(STEPS_PER_EPOCH):
    state, _ = skipping(state, batch)
  assert int(state.confidence.count) == STEPS_PER_EPOCH
  bad = batch | {"image": np.full_like(batch["image"], np.inf)}
  after, _ = skipping(state, bad)
  sound, _ = plain(state, batch)
  assert int(after.confidence.count) == 0 and int(sound.confidence.count) == 1
  for name, weight in sound.confidence.weights.items():
    np.testing.assert_allclose(after.confidence.weights[name], weight, rtol=1e-6)


def test_a_sound_step_is_what_it_is_without_the_policy(programs, batch):
  state, plain, skipping = programs
  expected, metrics = plain(state, batch)
  actual, ours = skipping(state, batch)
  assert ours.pop("skipped") == 0
  wanted, got = flat((expected, metrics)), flat((actual, ours))
  assert wanted.keys() == got.keys()
  for name, x in wanted.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
