"""Voxels' weights, confidence by voxel, features: on tiny arrays whose answer is known."""

from typing import get_args

import jax
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
  labels = volume(*np.array([0, 0, 0, 1, 3, 3]))
  weight = np.asarray(voxel_weights("balanced", labels, labels > 0, ()))[0, 0, 0]
  for cls in (0, 1, 3):
    np.testing.assert_allclose(weight[labels[0, 0, 0] == cls].sum(), 1, rtol=1e-6)


def test_agreement_is_one_where_teachers_agree_and_none_where_they_do_not():
  other = np.roll(SURE, 1)
  teachers = (volume(SURE, SURE, UNSURE), volume(SURE, other, UNSURE))
  labels = np.zeros((1, 1, 1, 3), int)
  weight = np.asarray(voxel_weights("agreement", labels, labels == 0, teachers))[0, 0, 0]
  np.testing.assert_allclose(weight, [1, 0, 1], atol=1e-4)
  alone = voxel_weights("agreement", labels, labels == 0, teachers[:1])
  np.testing.assert_array_equal(alone, np.ones(labels.shape))


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


def test_enlarging_keeps_means_and_is_linear_inside():
  x = np.arange(4, dtype=np.float32)[None, :, None, None, None] + np.zeros((1, 4, 2, 2, 3))
  got = np.asarray(enlarge(x))
  assert got.shape == (1, 8, 4, 4, 3)
  expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]  # centres at (i + 1/2) / 2 - 1/2, clamped
  np.testing.assert_allclose(got[0, :, 0, 0, 0], expected, rtol=1e-6)
  noise = np.random.default_rng(0).random((1, 3, 4, 5, 2), np.float32)
  np.testing.assert_allclose(np.mean(enlarge(noise)), noise.mean(), rtol=0.1)


def test_bottlenecks_alike_cost_nothing_and_the_teacher_gets_no_gradient():
  a, b = np.random.default_rng(1).standard_normal((2, 1, 2, 2, 2, 6)).astype(np.float32)
  assert abs(bottleneck_kd(a, a)) < 1e-6
  assert bottleneck_kd(a, b) > 0.1
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
