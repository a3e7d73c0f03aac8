"""Voxels' weights, confidence by voxel, features: on tiny arrays whose answer is known."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.method.distillation import (
  bottleneck_kd,
  certainty_shares,
  enlarge,
  prototype_kd,
  voxel_weights,
)
from kd_jax.settings.method import KdWhere

SURE = np.float32([20, 0, 0, 0])
UNSURE = np.float32([0, 0, 0, 0])


def volume(*voxels):
  """Voxels along the last axis of space: (1, 1, 1, W, ...)."""
  return np.stack(voxels)[None, None, None]


def test_voxels_of_the_brain():
  brain = volume(np.array(True), np.array(False))
  labels = np.zeros(brain.shape, int)
  np.testing.assert_array_equal(voxel_weights("brain", labels, brain, ()), [[[[1, 0]]]])


def test_balanced_classes_weigh_the_same_in_all():
  """And all voxels together as much as without: reductions may sum."""
  labels = volume(*np.array([0, 0, 0, 1, 3, 3]))
  weight = np.asarray(voxel_weights("balanced", labels, labels > 0, ()))[0, 0, 0]
  for cls in (0, 1, 3):
    np.testing.assert_allclose(weight[labels[0, 0, 0] == cls].sum(), 6 / 3, rtol=1e-6)


def test_agreement_is_one_where_teachers_agree_and_none_where_they_do_not():
  other = np.roll(SURE, 1)
  teachers = (volume(SURE, SURE, UNSURE), volume(SURE, other, UNSURE))
  labels = np.zeros((1, 1, 1, 3), int)
  weight = np.asarray(voxel_weights("agreement", labels, labels == 0, teachers))[0, 0, 0]
  np.testing.assert_allclose(weight, [1, 0, 1], atol=1e-4)
  alone = voxel_weights("agreement", labels, labels == 0, teachers[:1])
  np.testing.assert_array_equal(alone, np.ones(labels.shape))


def softmax(x):
  e = np.exp(x.astype(np.float64))
  return e / e.sum(-1, keepdims=True)


def entropy(p):
  return -(p * np.log(p)).sum(-1)


@pytest.mark.parametrize("number", [2, 3, 6])
def test_agreement_is_the_rest_of_the_jensen_shannon_divergence(number):
  """Its largest value is log 2 for two teachers, and log 4, of the classes, for four and more."""
  teachers = np.random.default_rng(number).standard_normal((number, 2, 2, 2, 2, 4))
  p = softmax(teachers)
  divergence = entropy(p.mean(0)) - entropy(p).mean(0)
  got = voxel_weights("agreement", np.zeros((2, 2, 2, 2), int), None, tuple(np.float32(teachers)))
  np.testing.assert_allclose(got, 1 - divergence / np.log(min(number, 4)), atol=1e-5)


def test_agreement_carries_no_gradient():
  labels, other = np.zeros((1, 1, 1, 2), int), volume(UNSURE, SURE)

  def f(logits):
    return voxel_weights("agreement", labels, None, (logits, other)).sum()

  assert np.abs(jax.grad(f)(volume(np.float32([1, 0, 0, 0]), SURE))).max() == 0


def test_certainty_is_what_entropy_leaves():
  teachers = np.random.default_rng(1).standard_normal((3, 2, 2, 3, 2, 4)).astype(np.float32)
  sure = 1 - entropy(softmax(teachers)) / np.log(4)
  got = certainty_shares(dict(zip("abc", teachers, strict=True)), 0.7)
  for share, expected in zip(got.values(), 0.7 * sure / sure.sum(0), strict=True):
    np.testing.assert_allclose(share, expected, rtol=1e-3)


def test_teachers_that_know_nothing_share_alike():
  shares = certainty_shares({"a": volume(UNSURE), "b": volume(UNSURE), "c": volume(UNSURE)}, 0.6)
  for share in shares.values():
    np.testing.assert_allclose(share, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
  "term",
  [
    bottleneck_kd,
    lambda a, b: prototype_kd(a, b, np.arange(32).reshape(1, 4, 2, 4) % 4),
    lambda a, b: voxel_weights("agreement", np.zeros((1, 4, 2, 4), int), None, (a, b)),
    lambda a, b: certainty_shares({"a": a, "b": b}, 1.0)["b"],
  ],
)
def test_16_bits_are_widened_before_anything_is_computed(term):
  rng = np.random.default_rng(0)
  a, b = (3 * rng.standard_normal((2, 1, 4, 2, 4, 4))).astype(jnp.bfloat16)
  got = term(jnp.asarray(a), jnp.asarray(b))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, term(a.astype(np.float32), b.astype(np.float32)), rtol=1e-6)


def test_where_is_checked():
  assert voxel_weights("all", None, None, ()) == 1.0
  with pytest.raises(ValueError, match="nowhere"):
    voxel_weights("nowhere", None, None, ())
  assert "all" in get_args(KdWhere)


def test_the_surer_teacher_is_heard():
  shares = certainty_shares({"a": volume(SURE, SURE), "b": volume(UNSURE, SURE)}, 0.5)
  got = {name: np.asarray(share)[0, 0, 0] for name, share in shares.items()}
  np.testing.assert_allclose(got["a"], [0.5, 0.25], rtol=1e-3)
  np.testing.assert_allclose(got["a"] + got["b"], 0.5, rtol=1e-6)


def test_shares_carry_no_gradient():
  def f(logits):
    return certainty_shares({"a": logits, "b": volume(UNSURE, SURE)}, 1.0)["a"].sum()

  gradient = jax.grad(f)(volume(np.float32([1, 0, 0, 0]), SURE))
  assert np.abs(gradient).max() == 0


def test_enlarging_is_linear_along_every_axis():
  x = np.arange(4, dtype=np.float32)[None, :, None, None, None] + np.zeros((1, 4, 2, 2, 3))
  got = np.asarray(enlarge(x))
  assert got.shape == (1, 8, 4, 4, 3)
  expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]  # centres at (i + 1/2) / 2 - 1/2, clamped
  np.testing.assert_allclose(got[0, :, 0, 0, 0], expected, rtol=1e-6)
  expected = noise = np.random.default_rng(0).random((2, 3, 4, 5, 2), np.float32)
  for axis in (1, 2, 3):
    n = noise.shape[axis]
    at = (np.arange(2 * n) + 0.5) / 2 - 0.5
    weights = np.stack([np.interp(at, np.arange(n), unit) for unit in np.eye(n)], axis=1)  # (2n, n)
    expected = np.moveaxis(np.tensordot(weights, expected, (1, axis)), 0, axis)
  np.testing.assert_allclose(enlarge(noise), expected, rtol=1e-5)


def test_bottlenecks_alike_cost_nothing_and_the_teacher_gets_no_gradient():
  a, b = np.random.default_rng(1).standard_normal((2, 1, 2, 2, 2, 6)).astype(np.float32)
  assert abs(bottleneck_kd(a, a)) < 1e-6
  p, q = softmax(b), softmax(a)
  expected = (p * np.log(p / q)).sum(-1).mean()
  np.testing.assert_allclose(bottleneck_kd(a, b), expected, rtol=1e-5)
  mine, theirs = jax.grad(bottleneck_kd, argnums=(0, 1))(a, b)
  assert np.abs(mine).max() > 0 == np.abs(theirs).max()


def test_prototypes_do_not_care_for_length_or_rotation_of_features():
  """Similarities are cosines to a network's own prototypes: another basis says the same."""
  rng = np.random.default_rng(2)
  a = rng.standard_normal((1, 3, 3, 3, 5)).astype(np.float32)
  labels = rng.integers(0, 3, (1, 3, 3, 3))  # no ET: left out
  turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
  assert prototype_kd(a, (7 * a @ turn).astype(np.float32), labels) < 1e-9
  assert prototype_kd(a, rng.standard_normal(a.shape).astype(np.float32), labels) > 1e-2
  mine, theirs = jax.grad(prototype_kd, argnums=(0, 1))(a, 2 * a[..., ::-1] + 1, labels)
  assert np.abs(mine).max() > 0 == np.abs(theirs).max()


def test_prototypes_are_class_means_and_similarities_cosines():
  rng = np.random.default_rng(5)
  student, teacher = rng.standard_normal((2, 2, 3, 2, 4, 5)).astype(np.float32)
  labels = rng.integers(0, 3, (2, 3, 2, 4))  # no ET: left out

  def cosines(features, cls):
    prototype = features[labels == cls].mean(0)
    lengths = np.linalg.norm(features, axis=-1) * np.linalg.norm(prototype)
    return features @ prototype / lengths

  gaps = [((cosines(student, c) - cosines(teacher, c)) ** 2).mean() for c in (0, 1, 2)]
  np.testing.assert_allclose(prototype_kd(student, teacher, labels), np.mean(gaps), rtol=1e-4)
