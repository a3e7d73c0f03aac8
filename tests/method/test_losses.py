"""The losses against tables worked out by hand."""

from math import log
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.method import losses
from kd_jax.settings.method import KdReduction

# Compiled, since most of these tests' time would go into one small program for every operation.
overlap = jax.jit(losses.overlap, static_argnames="reduction")
dice_jaccard_ce = jax.jit(losses.dice_jaccard_ce, static_argnames="reduction")
cross_entropy = jax.jit(losses.cross_entropy)
kd = jax.jit(losses.kd, static_argnames="reduction")
kd_gradients = jax.jit(jax.grad(losses.kd, argnums=(0, 1)), static_argnames="reduction")
shrink_labels = jax.jit(losses.shrink_labels, static_argnames="shape")


def volume(probabilities, labels):
  """Voxels in a row along W -> logits (1, 1, 1, W, K) with these probabilities, and labels."""
  logits = np.log(np.array(probabilities, np.float32))
  return logits[None, None, None], np.array(labels)[None, None, None]


UNIFORM = [[0.25] * 4] * 4
PAIR = [[0.75, 0.25], [0.5, 0.5]]
SURE = [[1 - 1e-9, 1e-9]] * 2

# probabilities, labels, reduction -> Dice loss, Jaccard loss, cross-entropy
TABLE = [
  # Each class: I = 1/4, P + T = 1 + 1.
  (UNIFORM, [0, 1, 2, 3], "volume", 1 - 1 / 4, 1 - 1 / 7, log(4)),
  # Class 0: I = 1, P + T = 1 + 4; the others are absent and cost the full 1.
  (UNIFORM, [0, 0, 0, 0], "volume", 1 - 2 / 5 / 4, 1 - 1 / 4 / 4, log(4)),
  # Every slice: class 0 has I = 1/4, P + T = 5/4.
  (UNIFORM, [0, 0, 0, 0], "slice", 1 - 2 / 5 / 4, 1 - 1 / 4 / 4, log(4)),
  # Class 0: I = 3/4, P + T = 9/4; class 1: I = 1/2, P + T = 7/4.
  (PAIR, [0, 1], "volume", 1 - (2 / 3 + 4 / 7) / 2, 1 - (1 / 2 + 2 / 5) / 2, -log(0.375) / 2),
  # Slice 0 has class 0 alone: I = 3/4, P + T = 7/4; slice 1 class 1 alone: I = 1/2, P + T = 3/2.
  (PAIR, [0, 1], "slice", 1 - (6 / 7 + 2 / 3) / 4, 1 - (3 / 4 + 1 / 2) / 4, -log(0.375) / 2),
  # Nothing to improve, and yet: class 1 is absent.
  (SURE, [0, 0], "volume", 1 / 2, 1 / 2, 0),
  (SURE, [0, 0], "slice", 1 / 2, 1 / 2, 0),
]


@pytest.mark.parametrize(("p", "y", "reduction", "dice", "jaccard", "entropy"), TABLE)
def test_supervised_losses_by_hand(p, y, reduction, dice, jaccard, entropy):
  logits, labels = volume(p, y)
  got = overlap(labels, logits, reduction=reduction)
  np.testing.assert_allclose(got.dice, dice, atol=1e-6)
  np.testing.assert_allclose(got.jaccard, jaccard, atol=1e-6)
  np.testing.assert_allclose(cross_entropy(labels, logits), entropy, atol=1e-6)
  together = dice_jaccard_ce(labels, logits, reduction=reduction)
  np.testing.assert_allclose(together, (dice + jaccard + entropy) / 3, atol=1e-6)


def test_volume_is_the_default_reduction():
  logits, labels = volume(PAIR, [0, 1])
  assert dice_jaccard_ce(labels, logits) == dice_jaccard_ce(labels, logits, reduction="volume")
  assert dice_jaccard_ce(labels, logits) != dice_jaccard_ce(labels, logits, reduction="slice")


@pytest.mark.parametrize("reduction", ["volume", "slice"])
def test_overlap_is_of_the_whole_batch(reduction):
  """A class that one sample lacks is not absent: its voxels count with the other sample's."""
  logits, labels = volume(PAIR, [0, 1])
  logits, labels = np.concatenate([logits, logits]), np.concatenate([labels, 0 * labels])
  got = overlap(labels, logits, reduction=reduction)
  if reduction == "volume":  # I = 2, 1/2; P = 5/2, 3/2; T = 3, 1
    expected = 1 - (4 / 5.5 + 1 / 2.5) / 2
  else:  # slice 0: I = 3/2, 0; P + T = 7/2, 1/2. Slice 1: I = 1/2, 1/2; P + T = 2, 2.
    expected = 1 - (3 / 3.5 + 0 + 1 / 2 + 1 / 2) / 4
  np.testing.assert_allclose(got.dice, expected, atol=1e-6)


def test_slices_lie_along_the_last_axis():
  """A class that fills one slice of an axis is absent from the others of that axis only."""
  for axis, missing in ((1, 0), (2, 0), (3, 3)):
    labels = np.zeros((1, 4, 4, 4), int)
    labels[(slice(None),) * axis + (0,)] = 1
    sure = 50 * np.eye(2, dtype=np.float32)[labels]
    dice = overlap(labels, sure, reduction="slice").dice
    # The last axis: class 0 is absent from one slice of four, class 1 from three.
    np.testing.assert_allclose(dice, (missing + (axis == 3)) / 8, atol=1e-6)


KL = 0.75 * log(1.5) + 0.25 * log(0.5)  # of (3/4, 1/4) from (1/2, 1/2)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_by_hand(temperature):
  """Two samples of three voxels; the teacher's logits are log 3 apart at the temperature."""
  student, teacher = np.zeros((2, 2, 1, 1, 3, 2), np.float32)
  teacher[..., 0] = temperature * log(3)
  mean = kd(student, teacher, temperature, reduction="voxel_mean")
  total = kd(student, teacher, temperature, reduction="voxel_sum")
  np.testing.assert_allclose(mean, temperature**2 * KL, rtol=1e-5)
  np.testing.assert_allclose(total, temperature * 3 * KL, rtol=1e-5)
  assert kd(student, teacher, temperature) == mean


def test_kd_runs_from_the_teacher_to_the_student():
  half, skewed = np.array([[0, 0], [log(3), 0]], np.float32).reshape(2, 1, 1, 1, 1, 2)
  np.testing.assert_allclose(kd(half, skewed, 1.0), KL, rtol=1e-5)
  backwards = 0.5 * log(0.5 / 0.75) + 0.5 * log(0.5 / 0.25)
  np.testing.assert_allclose(kd(skewed, half, 1.0), backwards, rtol=1e-5)


def some_logits(seed, shape=(2, 3, 4, 5, 4), scale=1.0):
  return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("reduction", get_args(KdReduction))
def test_kd_of_equals_is_zero_and_pulls_nowhere(reduction):
  same = some_logits(0)
  np.testing.assert_allclose(kd(same, same, 4.0, reduction=reduction), 0, atol=1e-5)
  gradient, _ = kd_gradients(same, same, 4.0, reduction=reduction)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)
  shifted = same + some_logits(1, (2, 3, 4, 5, 1))  # the same probabilities
  np.testing.assert_allclose(kd(shifted, same, 4.0, reduction=reduction), 0, atol=1e-4)


@pytest.mark.parametrize("temperature", [50.0, 500.0])
def test_the_voxel_mean_pulls_alike_at_every_temperature(temperature):
  """Hinton et al. (2015): at high T the gradient is the difference of the logits over K."""
  student, teacher = some_logits(0), some_logits(1)
  apart = student - teacher
  expected = (apart - apart.mean(-1, keepdims=True)) / 4 / (2 * 3 * 4 * 5)
  gradient, _ = kd_gradients(student, teacher, temperature, reduction="voxel_mean")
  error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
  assert error < 2 / temperature


def test_the_voxel_sum_pulls_by_the_probabilities_difference():
  student, teacher = some_logits(0), some_logits(1)
  q, p = (np.exp(z / 4) / np.exp(z / 4).sum(-1, keepdims=True) for z in (student, teacher))
  gradient, _ = kd_gradients(student, teacher, 4.0, reduction="voxel_sum")
  np.testing.assert_allclose(gradient, (q - p) / 2, atol=1e-6)


@pytest.mark.parametrize("reduction", get_args(KdReduction))
def test_kd_gives_the_teacher_no_gradient(reduction):
  student, teacher = kd_gradients(some_logits(0), some_logits(1), 4.0, reduction=reduction)
  assert np.abs(student).max() > 0
  assert (np.asarray(teacher) == 0).all()


@pytest.mark.parametrize("reduction", get_args(KdReduction))
def test_region_kd_gives_the_teacher_no_gradient(reduction):
  def total(student, teacher):
    return losses.region_kd(student, teacher, 4.0, reduction).sum()

  student, teacher = jax.jit(jax.grad(total, argnums=(0, 1)))(some_logits(0), some_logits(1))
  assert np.abs(student).max() > 0
  assert (np.asarray(teacher) == 0).all()


def test_an_unknown_kd_reduction_is_refused():
  with pytest.raises(ValueError, match=r"'sum' is none of .*voxel_mean.*voxel_sum"):
    losses.kd(some_logits(0), some_logits(1), 4.0, "sum")


def test_bfloat16_logits_are_computed_in_float32():
  shape = (2, 16, 16, 16, 4)
  narrow = [some_logits(i, shape, 3.0).astype(jnp.bfloat16) for i in (0, 1)]
  labels = np.random.default_rng(2).integers(0, 4, shape[:-1], np.uint8)

  @jax.jit
  def every(student, teacher):
    return {
      "dice_jaccard_ce": losses.dice_jaccard_ce(labels, student),
      "dice_jaccard_ce of slices": losses.dice_jaccard_ce(labels, student, "slice"),
      "kd": losses.kd(student, teacher, 4.0),
      "kd sum": losses.kd(student, teacher, 20.0, "voxel_sum"),
      "regions": losses.dice_jaccard_ce(labels, student, targets="regions"),
      "region_kd": losses.region_kd(student, teacher, 4.0),
    }

  got = every(*narrow)
  expected = every(*(z.astype(np.float32) for z in narrow))
  for name, value in got.items():
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    logits = jax.ShapeDtypeStruct((2, 3, 4, 5, 4), jnp.float64)
    labels = jax.ShapeDtypeStruct((2, 3, 4, 5), jnp.uint8)
    assert jax.eval_shape(kd, logits, logits, 4.0).dtype == jnp.float64
    assert jax.eval_shape(dice_jaccard_ce, labels, logits).dtype == jnp.float64


def test_losses_stay_finite_for_extreme_logits():
  sure = some_logits(0, scale=1e4)
  labels = np.zeros(sure.shape[:-1], int)
  value, gradient = jax.jit(jax.value_and_grad(losses.dice_jaccard_ce, argnums=1))(labels, sure)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  assert np.isfinite(kd(sure, -sure, 1.0, reduction="voxel_sum"))
  assert all(np.isfinite(g).all() for g in kd_gradients(sure, -sure, 1.0, reduction="voxel_sum"))


@pytest.mark.parametrize(
  ("n_in", "n_out", "source"),
  [
    (4, 2, [0, 2]),
    (8, 2, [0, 4]),
    (5, 2, [0, 2]),
    (6, 4, [0, 1, 3, 4]),
    (3, 3, [0, 1, 2]),
    (2, 4, [0, 0, 1, 1]),
  ],
)
def test_shrink_labels_takes_the_floor(n_in, n_out, source):
  labels = np.random.default_rng(0).integers(0, 100, (2, n_in, n_in, n_in))
  got = shrink_labels(labels, shape=(n_out,) * 3)
  np.testing.assert_array_equal(got, labels[:, source][:, :, source][:, :, :, source])


def test_shrink_labels_treats_each_axis_by_itself_and_keeps_the_type():
  labels = np.random.default_rng(0).integers(0, 4, (2, 8, 4, 12)).astype(np.uint8)
  got = shrink_labels(labels, shape=(4, 2, 3))
  assert got.dtype == jnp.uint8
  np.testing.assert_array_equal(got, labels[:, ::2, ::2, ::4])


# --- Regions and samples ----------------------------------------------------------------------


def test_regions_probabilities_are_sums_and_complements():
  logits = some_logits(3)
  p = np.asarray(jax.nn.softmax(logits))
  inside, outside = (np.exp(x) for x in losses.region_log_probabilities(logits))
  for r, classes in enumerate(((1, 2, 3), (1, 3), (3,))):
    np.testing.assert_allclose(inside[..., r], p[..., list(classes)].sum(-1), rtol=1e-5)
  np.testing.assert_allclose(inside + outside, 1, rtol=1e-5)


def test_region_losses_on_numbers_by_hand():
  labels = np.array([0, 2, 1, 3], np.uint8).reshape(1, 1, 1, 4)
  p = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1], [0.1, 0.5, 0.2, 0.2], [0.1, 0.2, 0.1, 0.6]]
  )
  logits = np.log(p).reshape(1, 1, 1, 4, 4).astype(np.float32)
  wt, tc, et = 1 - p[:, 0], p[:, 1] + p[:, 3], p[:, 3]
  truth = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
  dice, bce = [], []
  for q, t in zip((wt, tc, et), truth, strict=True):
    dice.append(2 * (q * t).sum() / (q.sum() + t.sum()))
    bce.append(-np.mean(t * np.log(q) + (1 - t) * np.log(1 - q)))
  got = losses.overlap(labels, logits, targets="regions")
  np.testing.assert_allclose(got.dice, 1 - np.mean(dice), rtol=1e-5)
  np.testing.assert_allclose(
    losses.cross_entropy(labels, logits, targets="regions"), np.mean(bce), rtol=1e-5
  )


def test_samples_are_scored_one_by_one_on_what_they_have():
  labels = np.stack([np.zeros((2, 2, 2), int), np.full((2, 2, 2), 3)])
  logits = some_logits(4)[:2, :2, :2, :2]
  p = np.asarray(jax.nn.softmax(logits)).sum((1, 2, 3))  # (B, K)
  dice = [2 * p[0, 0] / (p[0, 0] + 8), 2 * p[1, 3] / (p[1, 3] + 8)]
  got = losses.overlap(labels, logits, "sample")
  np.testing.assert_allclose(got.dice, 1 - np.mean(dice), rtol=1e-5)


def test_a_batch_with_one_region_is_scored_on_it_and_one_with_none_costs_all():
  """With "sample", as the default recipe has regions in few of its patches."""
  labels = np.zeros((2, 2, 2, 2), int)
  logits = some_logits(4)[:2, :2, :2, :2]

  @jax.jit
  def both(labels):
    return losses.overlap(labels, logits, "sample", "regions")

  np.testing.assert_array_equal(both(labels), [1, 1])
  labels[1] = 2  # oedema: WT alone
  wt = 1 - np.asarray(jax.nn.softmax(logits))[1, ..., 0]
  intersection, total = wt.sum(), wt.sum() + 8
  expected = [1 - 2 * intersection / total, 1 - intersection / (total - intersection)]
  np.testing.assert_allclose(both(labels), expected, rtol=1e-5)


def test_a_class_that_is_neither_there_nor_predicted_costs_the_full_one():
  logits = np.zeros((1, 2, 2, 2, 4), np.float32)
  logits[..., 0] = 1e4  # the others' probabilities are 0 in float32

  def total(logits):
    return sum(losses.overlap(np.zeros((1, 2, 2, 2), int), logits))

  got, gradient = jax.jit(jax.value_and_grad(total))(logits)
  np.testing.assert_allclose(got, 2 * 3 / 4, rtol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("distil", [losses.kd, losses.region_kd])
def test_where_no_voxel_counts_nothing_is_distilled(distil):
  """A patch without brain, with distillation in the brain alone."""
  none = np.zeros((2, 3, 4, 5), np.float32)

  def total(student):
    return jnp.sum(distil(student, some_logits(1), 4.0, weight=none))

  value, gradient = jax.jit(jax.value_and_grad(total))(some_logits(0))
  assert value == 0 and (np.asarray(gradient) == 0).all()


def test_region_kd_is_binary_and_weighted():
  student, teacher = some_logits(5), some_logits(6)
  weight = np.random.default_rng(0).random(student.shape[:-1], np.float32)
  got = losses.region_kd(student, teacher, 2.0, weight=weight)
  q, p = (np.asarray(jax.nn.softmax(x / 2)) for x in (student, teacher))
  for r, classes in enumerate(((1, 2, 3), (1, 3), (3,))):
    a, b = p[..., list(classes)].sum(-1), q[..., list(classes)].sum(-1)
    kl = a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
    np.testing.assert_allclose(got[r], 4 * (weight * kl).sum() / weight.sum(), rtol=1e-4)
  some = losses.region_kd(student, teacher, 2.0, weight=weight, regions=("ET", "WT"))
  np.testing.assert_allclose(some, got[np.array([2, 0])], rtol=1e-6)
