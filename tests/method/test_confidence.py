"""The confidence weights: how much the student learns from each teacher, and when that changes."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.method import confidence
from kd_jax.method.confidence import weights_of

TEACHERS = ("flair", "t2", "t1")
EPOCH = published.confidence(update="epoch")
EMA = published.confidence(update="ema", ema_decay=0.75)


def by_name(*values):
  return dict(zip(TEACHERS, map(jnp.float32, values), strict=True))


def run(scores, how, steps_per_epoch=2):
  """Yields the weights in use at every step, and ends with the state after the last one."""
  state = confidence.init(TEACHERS, how)
  used = []
  for step, score in enumerate(scores):
    state = confidence.begin_step(state, jnp.asarray(step % steps_per_epoch == 0), how)
    used.append([float(state.weights[name]) for name in TEACHERS])
    state = confidence.end_step(state, by_name(*score), how)
  return np.array(used), state


def test_weights_share_the_total_by_score():
  got = weights_of(by_name(0.6, 0.3, 0.1), 0.15)
  np.testing.assert_allclose([got[n] for n in TEACHERS], [0.09, 0.045, 0.015], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
  st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5),
  st.sampled_from([0.15, 1.0, 3.0]),
)
def test_weights_add_up_to_the_total(scores, total):
  got = weights_of({str(i): jnp.float32(s) for i, s in enumerate(scores)}, total)
  np.testing.assert_allclose(sum(map(float, got.values())), total, rtol=1e-5)
  assert all(w >= 0 for w in got.values())


def test_weights_are_uniform_where_all_scores_are_zero():
  got = weights_of(by_name(0, 0, 0), 0.15)
  np.testing.assert_allclose(list(got.values()), 0.05, rtol=1e-6)


def test_weights_follow_names_and_not_the_order():
  scores = by_name(0.6, 0.3, 0.1)
  backwards = dict(reversed(scores.items()))
  got, other = weights_of(scores, 0.15), weights_of(backwards, 0.15)
  assert list(got) != list(other)
  for name in TEACHERS:
    np.testing.assert_allclose(got[name], other[name], rtol=1e-6)


def test_scores_are_taken_by_name_and_not_by_order():
  state = confidence.init(TEACHERS, EPOCH)
  after = confidence.end_step(state, dict(reversed(by_name(0.6, 0.3, 0.1).items())), EPOCH)
  np.testing.assert_allclose([after.scores[n] for n in TEACHERS], [0.6, 0.3, 0.1], rtol=1e-6)


@pytest.mark.parametrize("total", [0.15, 0.6])
def test_every_teacher_is_heard_alike_at_first(total):
  state = confidence.init(TEACHERS, published.confidence(total=total))
  np.testing.assert_allclose([state.weights[n] for n in TEACHERS], total / 3, rtol=1e-6)
  assert state.count == 0


def test_epoch_weights_change_when_the_next_epoch_begins():
  scores = [(0.2, 0.4, 0.0), (0.4, 0.2, 0.0), (0.1, 0.1, 0.6), (0.1, 0.1, 0.2), (0, 0, 1)]
  used, _ = run(scores, EPOCH)
  uniform = [0.05, 0.05, 0.05]
  first = [0.075, 0.075, 0]  # sums 0.6, 0.6, 0
  second = [0.025, 0.025, 0.1]  # sums 0.2, 0.2, 0.8: the first epoch is forgotten
  np.testing.assert_allclose(used, [uniform, uniform, first, first, second], atol=1e-7)


def test_epoch_scores_begin_anew_with_each_epoch():
  _, state = run([(0.2, 0.4, 0.0), (0.4, 0.2, 0.0), (0.1, 0.3, 0.6)], EPOCH)
  np.testing.assert_allclose([state.scores[n] for n in TEACHERS], [0.1, 0.3, 0.6], rtol=1e-6)
  assert state.count == 1


def test_ema_weights_change_at_every_step():
  scores = [(0.4, 0.4, 0.0), (0.0, 0.4, 0.8), (0, 0, 0)]
  used, state = run(scores, EMA)
  # The first scores are taken whole, then 3/4 of the old and 1/4 of the new.
  expected = [[0.05, 0.05, 0.05], [0.075, 0.075, 0], [0.05, 0.2 / 3, 0.1 / 3]]
  np.testing.assert_allclose(used, expected, atol=1e-7)
  np.testing.assert_allclose(
    [state.scores[n] for n in TEACHERS], [0.225, 0.3, 0.15], rtol=1e-6
  )  # 3/4 of (0.3, 0.4, 0.2)


@pytest.mark.parametrize("how", [EPOCH, EMA])
def test_zero_scores_leave_uniform_weights(how):
  used, _ = run([(0, 0, 0)] * 4, how)
  np.testing.assert_allclose(used, 0.05, rtol=1e-6)


@pytest.mark.parametrize("how", [EPOCH, EMA])
def test_the_total_is_kept_in_every_step(how):
  rng = np.random.default_rng(0)
  used, _ = run(rng.random((7, 3)), how, steps_per_epoch=3)
  np.testing.assert_allclose(used.sum(1), 0.15, rtol=1e-5)


def avals(tree):
  return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("how", [EPOCH, EMA])
def test_the_state_keeps_its_types_and_none_is_weak(how, x64):
  """A weak type in the first state makes the whole step compile twice."""
  with jax.enable_x64(x64):
    state = confidence.init(TEACHERS, how)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))

    def step(state, scores):
      state = confidence.begin_step(state, jnp.asarray(True), how)
      return confidence.end_step(state, scores, how)

    after = jax.eval_shape(step, state, by_name(0.1, 0.2, 0.3))
    assert avals(after) == avals(state)


@pytest.mark.parametrize("how", [EPOCH, EMA])
def test_a_student_without_teachers_has_no_weights(how):
  state = confidence.begin_step(confidence.init((), how), jnp.asarray(True), how)
  assert (state.weights, state.scores) == ({}, {})


def test_a_batchs_own_scores_need_no_past():
  """ "batch" in the state is the last batch's scores; the step weighs by the present one's."""
  how = published.confidence(update="batch")
  used, _ = run([(0.6, 0.3, 0.1), (0.1, 0.1, 0.2), (0, 0, 1)], how)
  np.testing.assert_allclose(used[1], [0.09, 0.045, 0.015], rtol=1e-5)
  np.testing.assert_allclose(used[2], [0.0375, 0.0375, 0.075], rtol=1e-5)


def test_each_region_weighs_the_teachers_by_its_own_dice():
  how = published.confidence(by="region", update="ema", total=0.6)
  state = confidence.init(("flair", "t2"), how)
  assert state.weights["t2"].shape == state.scores["t2"].shape == (3,)
  scores = {"flair": jnp.array([0.9, 0.2, 0.0]), "t2": jnp.array([0.9, 0.6, 0.0])}
  state = confidence.end_step(state, scores, how)
  state = confidence.begin_step(state, jnp.asarray(False), how)
  np.testing.assert_allclose(state.weights["flair"], [0.3, 0.15, 0.3], rtol=1e-5)
  np.testing.assert_allclose(state.weights["t2"], [0.3, 0.45, 0.3], rtol=1e-5)


def test_who_does_worse_than_the_student_is_not_heard():
  how = published.confidence(update="ema", total=0.6, above_student=True)
  got = weights_of({**by_name(0.6, 0.3, 0.1), "student": jnp.float32(0.3)}, 0.6)
  assert list(got) == list(TEACHERS)
  np.testing.assert_allclose([got[n] for n in TEACHERS], [0.36, 0, 0], rtol=1e-6)
  state = confidence.init(TEACHERS, how)
  assert state.scores.keys() == {*TEACHERS, "student"}
  assert state.weights.keys() == set(TEACHERS)
  assert confidence.init((), how).scores == {}


@pytest.mark.parametrize("update", ["epoch", "ema"])
def test_before_anything_is_scored_every_teacher_is_heard(update):
  """Though none is above the student yet: all scores are 0."""
  how = published.confidence(update=update, total=0.6, above_student=True)
  state = confidence.begin_step(confidence.init(TEACHERS, how), jnp.asarray(True), how)
  np.testing.assert_allclose([state.weights[n] for n in TEACHERS], 0.2, rtol=1e-6)


def test_by_region_the_student_is_compared_region_by_region():
  scores = {"flair": jnp.array([0.8, 0.4, 0.1]), "student": jnp.array([0.5, 0.5, 0.6])}
  np.testing.assert_allclose(weights_of(scores, 0.5)["flair"], [0.5, 0, 0], rtol=1e-6)
