"""Schedules, clipping and the plateau rule, by hand."""

from math import cos, pi

import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest

from kd_jax.settings.training import PlateauSettings
from kd_jax.training.optimisers import Plateau, learning_rates, optimizer, schedule


def rates(steps, total=100, **settings):
  rate = schedule(published.optimiser(learning_rate=0.4, **settings), total)
  return [float(rate(step)) for step in steps]


COSINE = {"schedule": "warmup_cosine", "warmup": 0.1}
POLY = {"schedule": "poly", "warmup": 0.0, "power": 0.9}


def test_sgd_has_nesterovs_momentum_and_decays_in_the_gradient():
  settings = published.optimiser(
    algorithm="sgd", learning_rate=0.1, schedule="constant", beta1=0.9, weight_decay=0.5
  )
  tx, x, momentum = optimizer(settings, 10), jnp.float32(2.0), 0.0
  state, expected = tx.init(x), 2.0
  for gradient in (1.0, -0.5, 3.0):
    updates, state = tx.update(jnp.float32(gradient), state, x)
    x = optax.apply_updates(x, updates)
    decayed = gradient + 0.5 * expected
    momentum = decayed + 0.9 * momentum
    expected -= 0.1 * (decayed + 0.9 * momentum)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"schedule": "constant"}, {0: 0.4, 50: 0.4, 99: 0.4, 500: 0.4}),
    ({"schedule": "plateau"}, {0: 0.4, 50: 0.4, 99: 0.4}),
    # Ten steps up; the other 90 fall along half a cosine: 55 is half-way.
    (COSINE, {0: 0.04, 1: 0.08, 4: 0.2, 9: 0.4, 10: 0.4, 55: 0.2, 100: 0, 120: 0}),
    (COSINE, {99: 0.4 * (1 + cos(pi * 89 / 90)) / 2}),
    (COSINE | {"final": 0.25}, {0: 0.04, 10: 0.4, 55: 0.25, 100: 0.1, 120: 0.1}),
    (COSINE | {"warmup": 0.0}, {0: 0.4, 50: 0.2, 100: 0}),
    (POLY, {0: 0.4, 50: 0.4 * 0.5**0.9, 99: 0.4 * 0.01**0.9, 100: 0, 120: 0}),
    (POLY | {"final": 0.5, "power": 1.0}, {0: 0.4, 50: 0.3, 100: 0.2}),
    (POLY | {"warmup": 0.2}, {0: 0.02, 19: 0.4, 20: 0.4, 60: 0.4 * 0.5**0.9, 100: 0}),
  ],
)
def test_schedules_by_hand(settings, expected):
  np.testing.assert_allclose(rates(expected, **settings), list(expected.values()), atol=1e-7)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("name", ["warmup_cosine", "poly"])
def test_every_step_of_a_run_moves_and_the_peak_is_reached(name, warmup, total):
  got = rates(range(total), total, schedule=name, warmup=warmup)
  assert min(got) > 0
  np.testing.assert_allclose(max(got), 0.4, rtol=1e-6)
  top = int(np.argmax(got))
  assert (np.diff(got[: top + 1]) > 0).all()
  assert (np.diff(got[top:]) <= 0).all()


def test_an_unknown_schedule_lists_the_known():
  with pytest.raises(ValueError, match=r"'cosine' is none of .*warmup_cosine"):
    schedule(published.optimiser(schedule="cosine"), 10)


def updates(gradients, settings, total=100, params=(1.0, -2.0)):
  """The updates of two parameters that a sequence of gradients makes."""
  tx, params = optimizer(settings, total), jnp.array(params)
  state, result = tx.init(params), []
  for gradient in gradients:
    update, state = tx.update(jnp.array(gradient, jnp.float32), state, params)
    params = optax.apply_updates(params, update)
    result.append(update)
  return np.array(result)


@pytest.mark.parametrize("name", ["constant", "warmup_cosine", "poly", "plateau"])
def test_the_very_first_step_moves_by_its_learning_rate(name):
  """Adam's steps under a constant gradient are as long as the learning rate."""
  settings = published.optimiser(learning_rate=0.4, schedule=name, warmup=0.1)
  got = updates([[0.3, -2.0]] * 3, settings)
  expected = rates(range(3), schedule=name, warmup=0.1)
  assert expected[0] > 0
  np.testing.assert_allclose(got[:, 0], -np.array(expected), rtol=1e-4)
  np.testing.assert_allclose(got[:, 1], np.array(expected), rtol=1e-4)


def test_adam_by_hand():
  settings = published.optimiser(
    learning_rate=0.1, schedule="constant", beta1=0.5, beta2=0.75, epsilon=1e-8
  )
  got = updates([[1.0, 2.0], [3.0, -2.0]], settings)
  # Second step: m = 1/4 g1 + 1/2 g2 over 3/4; v = 3/16 g1² + 1/4 g2² over 7/16.
  mean = np.array([1.75, -0.5]) / 0.75
  square = np.array([3 / 16 + 9 / 4, 12 / 16 + 1]) / (7 / 16)
  np.testing.assert_allclose(got[1], -0.1 * mean / np.sqrt(square), rtol=1e-5)


@pytest.mark.parametrize(
  ("clip_norm", "gradient", "clipped"),
  [
    (0.0, [30.0, 40.0], [30, 40]),  # no clipping
    (5.0, [30.0, 40.0], [3, 4]),
    (5.0, [3.0, 4.0], [3, 4]),
    (5.0, [0.3, -0.4], [0.3, -0.4]),
  ],
)
def test_clipping_bounds_the_norm_and_keeps_the_direction(clip_norm, gradient, clipped):
  """With epsilon 1 Adam's first step is g / (|g| + 1): it tells the gradient's size."""
  settings = published.optimiser(
    learning_rate=1.0, schedule="constant", epsilon=1.0, clip_norm=clip_norm
  )
  g = np.array(clipped)
  np.testing.assert_allclose(updates([gradient], settings)[0], -g / (np.abs(g) + 1), rtol=1e-5)


def test_weight_decay_shrinks_parameters_by_the_learning_rate():
  settings = published.optimiser(learning_rate=0.1, schedule="constant", weight_decay=0.5)
  np.testing.assert_allclose(updates([[0.0, 0.0]], settings)[0], [-0.05, 0.1], rtol=1e-6)
  none = published.optimiser(learning_rate=0.1, schedule="constant")
  np.testing.assert_array_equal(updates([[0.0, 0.0]], none)[0], 0)


@pytest.mark.parametrize(
  ("patience", "from_epoch", "scores", "lowered"),
  [
    (2, 0, [0.1, 0.2, 0.3, 0.4], []),
    # Best at 1; two without a better one are borne, the third is not; then two more again.
    (2, 0, [0.5, 0.6, 0.6, 0.5, 0.4, 0.6, 0.6, 0.6, 0.6], [4, 7]),
    # A better score starts the count again.
    (2, 0, [0.5, 0.4, 0.4, 0.51, 0.4, 0.4, 0.4], [6]),
    # The best is remembered across a lowering.
    (1, 0, [0.5, 0.1, 0.1, 0.4, 0.4, 0.6, 0.1], [2, 4]),
    (0, 0, [0.5, 0.5, 0.5], [1, 2]),
    # Earlier epochs neither set the best nor use up patience.
    (1, 3, [0.9, 0.1, 0.9, 0.2, 0.2, 0.2, 0.3], [5]),
    (5, 0, [0.5] + [0.4] * 11, [6]),
  ],
)
def test_plateau_sequences(patience, from_epoch, scores, lowered):
  settings = PlateauSettings(patience=patience, from_epoch=from_epoch)
  standing, got = Plateau(), []
  for epoch, score in enumerate(scores):
    standing, lower = standing.after(score, epoch, settings)
    if lower:
      got.append(epoch)
  assert got == lowered


def test_plateau_standing_is_all_there_is_to_remember():
  settings = PlateauSettings(patience=1)
  standing, _ = Plateau().after(0.5, 0, settings)
  standing, _ = standing.after(0.4, 1, settings)
  assert standing == Plateau(0.5, 1)
  assert standing.after(0.4, 2, settings) == (Plateau(0.5, 0), True)


def test_learning_rates_are_by_group_and_scaled():
  rate = learning_rates(
    {
      "teachers": published.optimiser(learning_rate=0.4, **COSINE),
      "student": published.optimiser(learning_rate=0.2, schedule="plateau"),
    },
    100,
  )
  whole, tenth = jnp.ones(()), jnp.asarray(0.1)
  assert rate(4, {"teachers": whole, "student": tenth}) == pytest.approx(
    {"teachers": 0.2, "student": 0.02}
  )
  assert rate(55, {"teachers": tenth, "student": whole}) == pytest.approx(
    {"teachers": 0.02, "student": 0.2}
  )
