"""What a step computes, against numpy: teacher weights, scores, the ramp's share, norms."""

import dataclasses

import jax
import numpy as np
import optax
import published
import pytest
from linear import Linear
from quick import QUICK

from kd_jax.settings.training import GROUPS
from kd_jax.training.state import init_state
from kd_jax.training.step import make_train_step

TEACHERS = ("flair", "t2")
REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
TOTAL = 0.6
LOSS = published.loss(kd_from_epoch=0, temperature=2.0, supervised=0.7)


@pytest.fixture(scope="module")
def batch():
  """The second half has no brain; where there is one, some sequences are 0 all the same."""
  rng = np.random.default_rng(3)
  images = rng.standard_normal((2, 4, 4, 4, 6)).astype(np.float16)
  images *= rng.random(images.shape) < 0.8
  images[..., 3:] = 0
  assert (images[..., :3] == 0).any(1).any() and (images[..., :3] != 0).any(1).all()
  return {"image": images, "label": rng.integers(0, 4, (2, 4, 4, 6)).astype(np.uint8)}


@pytest.fixture(scope="module")
def compiled(batch):
  """(confidence, loss) -> the first state and a step; two steps are an epoch."""

  def of(confidence, loss=LOSS):
    framework = Linear()
    optimizers = {group: optax.sgd(1.0) for group in GROUPS}
    state = init_state(framework, optimizers, confidence, jax.random.key(1))
    step = jax.jit(make_train_step(framework, optimizers, loss, confidence, steps_per_epoch=2))
    key = jax.random.key(0)
    program = step.lower(state, batch, key).compile(compiler_options=QUICK)

    def run(state, batch=batch):
      after, metrics = program(state, batch, key)
      return after, {name: float(value) for name, value in metrics.items()}

    return state, run

  return of


def logits(state, batch) -> dict[str, np.ndarray]:
  """(B, D, H, W, K) in float64, by network."""
  kernels = {**state.params["teachers"], "student": state.params["student"]["kernel"]}
  images = np.moveaxis(batch["image"], 1, -1).astype(np.float64)
  return {name: images @ np.asarray(kernel, np.float64) for name, kernel in kernels.items()}


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def dice(predicted, truth):
  return 2 * (predicted * truth).sum() / (predicted.sum() + truth.sum())


def hard_dice(z, labels, region):
  return dice(np.isin(z.argmax(-1), REGIONS[region]), np.isin(labels, REGIONS[region]))


def kl(teacher, student, temperature):
  p, q = softmax(teacher / temperature), softmax(student / temperature)
  return (p * np.log(p / q)).sum(-1)


def distilled(metrics):
  return metrics["loss/student"] - 0.7 * metrics["loss/supervised"]


@pytest.fixture(scope="module")
def one_step(compiled):
  """Weighed by the batch itself, on the brain alone: state before, state after, metrics."""
  how = published.confidence(update="batch", total=TOTAL, score="soft_dice", regions=("WT",))
  before, step = compiled(how, dataclasses.replace(LOSS, kd_where="brain"))
  return before, *step(before)


def test_the_batch_s_own_scores_weigh_its_teachers(one_step, batch):
  """The brain is where any sequence is not zero."""
  before, after, metrics = one_step
  z = logits(before, batch)
  scores = {t: dice(1 - softmax(z[t])[..., 0], batch["label"] > 0) for t in TEACHERS}
  expected = 0.0
  for name, score in scores.items():
    weight = TOTAL * score / sum(scores.values())
    np.testing.assert_allclose(metrics[f"confidence/score/{name}"], score, rtol=1e-5)
    np.testing.assert_allclose(metrics[f"confidence/weight/{name}"], weight, rtol=1e-5)
    np.testing.assert_allclose(after.confidence.scores[name], score, rtol=1e-5)
    expected += weight * 4 * kl(z[name], z["student"], 2)[..., :3].mean()
  np.testing.assert_allclose(distilled(metrics), expected, rtol=1e-4)


def test_gradients_are_as_large_as_the_log_says(one_step):
  before, after, metrics = one_step
  for group in GROUPS:
    moved = jax.tree.map(np.subtract, before.params[group], after.params[group])
    length = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(metrics[f"grad_norm/{group}"], length, rtol=1e-4)
    assert length > 1e-3


def test_each_voxel_s_surest_teacher_weighs_most(compiled, batch):
  before, step = compiled(published.confidence(by="voxel", total=TOTAL))
  # Of voxels that are 0, none is surer than another: rounding would decide.
  images = np.random.default_rng(4).standard_normal(batch["image"].shape).astype(np.float16)
  batch = batch | {"image": images}
  _, metrics = step(before, batch)
  z = logits(before, batch)
  sure = {}
  for name in TEACHERS:
    p = softmax(z[name])
    sure[name] = 1 + (p * np.log(p)).sum(-1) / np.log(4) + 1e-7
  expected = 0.0
  for name in TEACHERS:
    share = TOTAL * sure[name] / sum(sure.values())
    np.testing.assert_allclose(metrics[f"confidence/weight/{name}"], share.mean(), rtol=1e-4)
    expected += 4 * (share * kl(z[name], z["student"], 2)).mean()
  np.testing.assert_allclose(distilled(metrics), expected, rtol=1e-4)


def test_each_region_s_scores_weigh_the_teachers_of_the_next_step(compiled, batch):
  """Those that do no better than the student are not heard there."""
  how = published.confidence(
    by="region", update="ema", total=TOTAL, score="hard_dice", above_student=True
  )
  loss = dataclasses.replace(LOSS, kd_targets="regions", kd_regions=("ET", "TC"))
  first, step = compiled(how, loss)
  second, _ = step(first)
  _, metrics = step(second)
  old, new = logits(first, batch), logits(second, batch)
  weights = []
  for i, region in enumerate(REGIONS):
    scores = {name: hard_dice(z, batch["label"], region) for name, z in old.items()}
    for name, score in scores.items():
      np.testing.assert_allclose(second.confidence.scores[name][i], score, rtol=1e-5)
    for name in TEACHERS:
      weight = TOTAL * scores[name] / sum(scores[t] for t in TEACHERS)
      weights.append(weight if scores[name] > scores["student"] else 0.0)
      got = metrics[f"confidence/weight/{name}/{region}"]
      np.testing.assert_allclose(got, weights[-1], rtol=1e-5)
    for name, z in new.items():
      score = hard_dice(z, batch["label"], region)
      np.testing.assert_allclose(metrics[f"dice/{name}/{region}"], score, rtol=1e-5)
      got = metrics[f"confidence/score/{name}/{region}"]
      np.testing.assert_allclose(got, score, rtol=1e-5)
  assert min(weights) == 0 < max(weights)


def test_epochs_are_counted_in_fractions_by_the_ramp(compiled):
  """Distillation from epoch 1 on, a ramp of two epochs."""
  loss = dataclasses.replace(LOSS, kd_from_epoch=1, kd_ramp_epochs=2.0)
  state, step = compiled(published.confidence(update="epoch"), loss)
  for share in (0, 0, 0, 0.25, 0.5, 0.75, 1, 1):
    state, metrics = step(state)
    alone = together = metrics["loss/supervised"]
    together *= 0.7
    for name in TEACHERS:
      together += metrics[f"confidence/weight/{name}"] * metrics[f"loss/kd/{name}"]
    expected = share * together + (1 - share) * alone
    np.testing.assert_allclose(metrics["loss/student"], expected, rtol=1e-5)
