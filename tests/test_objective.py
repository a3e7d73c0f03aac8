"""The joint loss on hand-made outputs: names, weights, the first epoch, gradients."""

import jax
import numpy as np
import pytest

from kd_jax import losses
from kd_jax.models.framework import Outputs
from kd_jax.models.resunet import Output
from kd_jax.objective import LossSettings, SideWeights, objective

NO, YES = np.array(False), np.array(True)
TEACHERS = ("flair", "t2")
ALPHA = {"flair": np.float32(0.11), "t2": np.float32(0.04)}
SIDES = {"level1": 4, "level2": 2}  # voxels along each side; 8 at full resolution
LABELS = np.random.default_rng(9).integers(0, 4, (2, 8, 8, 8))

comb = jax.jit(losses.comb, static_argnames="reduction")
kd = jax.jit(losses.kd, static_argnames="reduction")

# total, supervised, kd and cooperative weights, all different: no two can be swapped unnoticed.
SETTINGS = LossSettings(
  temperature=3.0,
  supervised=0.7,
  cooperative={"level1": 0.09, "level2": 0.06},
  side={"level1": SideWeights(0.2, 0.8, 0.35), "level2": SideWeights(0.05, 0.55, 0.45)},
)


def some_logits(seed, side):
  return np.random.default_rng(seed).standard_normal((2, side, side, side, 4)).astype(np.float32)


def some_outputs(teachers=TEACHERS, levels=("level1", "level2")):
  """As networks would give them; the student has both side heads, used or not."""
  seeds = iter(range(100))
  return Outputs(
    teachers={name: Output(some_logits(next(seeds), 8), {}, {}) for name in teachers},
    fused={level: some_logits(next(seeds), SIDES[level]) for level in levels},
    student=Output(
      some_logits(next(seeds), 8),
      {level: some_logits(next(seeds), side) for level, side in SIDES.items()},
      {},
    ),
  )


@pytest.fixture(scope="module")
def joint():
  """(outputs, distil) -> (loss, terms), compiled once a structure."""
  return jax.jit(lambda outputs, distil: objective(outputs, LABELS, ALPHA, distil, SETTINGS))


def test_before_distillation_the_student_learns_from_labels_alone(joint):
  _, terms = joint(some_outputs(), NO)
  expected = comb(LABELS, some_outputs().student.logits)
  np.testing.assert_allclose(terms["loss/student"], expected, rtol=1e-6)
  np.testing.assert_allclose(terms["loss/supervised"], expected, rtol=1e-6)


def test_before_distillation_the_cohort_learns_as_ever(joint):
  before, after = joint(some_outputs(), NO)[1], joint(some_outputs(), YES)[1]
  assert before["loss/cohort"] == after["loss/cohort"]
  assert before["loss/student"] != after["loss/student"]
  assert before["loss/kd/t2"] == after["loss/kd/t2"]  # logged though not used yet


@pytest.mark.parametrize("levels", [(), ("level1",), ("level1", "level2")])
def test_terms_are_named_and_weighted(joint, levels):
  out = some_outputs(levels=levels)
  loss, terms = joint(out, YES)
  shrunk = {"level1": LABELS[:, ::2, ::2, ::2], "level2": LABELS[:, ::4, ::4, ::4]}

  supervised = comb(LABELS, out.student.logits)
  expected = {"loss/supervised": supervised, "loss/student": 0.7 * supervised, "loss/cohort": 0}
  for name in TEACHERS:
    own = comb(LABELS, out.teachers[name].logits)
    response = kd(out.student.logits, out.teachers[name].logits, 3.0)
    expected |= {f"loss/teacher/{name}": own, f"loss/kd/{name}": response}
    expected["loss/cohort"] += own
    expected["loss/student"] += {"flair": 0.11, "t2": 0.04}[name] * response
  for level in levels:
    cooperative = comb(shrunk[level], out.fused[level])
    side = comb(shrunk[level], out.student.side_logits[level])
    response = kd(out.student.side_logits[level], out.fused[level], 3.0)
    expected |= {
      f"loss/cooperative/{level}": cooperative,
      f"loss/side/{level}/supervised": side,
      f"loss/side/{level}/kd": response,
    }
    first = level == "level1"
    expected["loss/cohort"] += (0.09 if first else 0.06) * cooperative
    expected["loss/student"] += (
      0.2 * (0.8 * side + 0.35 * response) if first else 0.05 * (0.55 * side + 0.45 * response)
    )
  assert terms.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(loss, expected["loss/cohort"] + expected["loss/student"], rtol=1e-5)


@pytest.mark.parametrize("distil", [NO, YES])
def test_a_student_alone_has_its_supervised_loss_at_full_weight(joint, distil):
  out = some_outputs(teachers=(), levels=())
  loss, terms = joint(out, distil)
  assert terms.keys() == {"loss/supervised", "loss/student"}
  np.testing.assert_allclose(loss, comb(LABELS, out.student.logits), rtol=1e-6)
  assert terms["loss/student"] == terms["loss/supervised"] == loss


def test_reductions_reach_every_term():
  out = some_outputs(levels=("level1",))
  published = LossSettings(dice_reduction="slice", kd_reduction="voxel_sum", temperature=20.0)
  _, terms = jax.jit(lambda out: objective(out, LABELS, ALPHA, YES, published))(out)
  half = LABELS[:, ::2, ::2, ::2]
  side = out.student.side_logits["level1"]
  expected = {
    "loss/supervised": comb(LABELS, out.student.logits, reduction="slice"),
    "loss/teacher/t2": comb(LABELS, out.teachers["t2"].logits, reduction="slice"),
    "loss/cooperative/level1": comb(half, out.fused["level1"], reduction="slice"),
    "loss/side/level1/supervised": comb(half, side, reduction="slice"),
    "loss/kd/t2": kd(out.student.logits, out.teachers["t2"].logits, 20.0, reduction="voxel_sum"),
    "loss/side/level1/kd": kd(side, out.fused["level1"], 20.0, reduction="voxel_sum"),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)


def test_the_default_weights_are_the_published_ones():
  settings = LossSettings()
  assert settings.supervised == 0.75
  assert settings.cooperative == {"level1": 0.08, "level2": 0.05}
  assert settings.side == {
    "level1": SideWeights(total=0.10, supervised=0.7, kd=0.3),
    "level2": SideWeights(total=0.03, supervised=0.6, kd=0.4),
  }
  assert settings.kd_from_epoch == 1


@pytest.fixture(scope="module")
def gradients():
  """distil -> the gradients of three losses by all outputs: one program for every test."""

  def three(outputs, distil):
    loss, terms = objective(outputs, LABELS, ALPHA, distil, SETTINGS)
    return {"joint": loss, "student": terms["loss/student"], "cohort": terms["loss/cohort"]}

  program = jax.jit(jax.jacrev(three))
  return lambda distil: program(some_outputs(), distil)


def sizes(tree):
  return [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)]


def test_student_terms_reach_neither_teachers_nor_fused_logits(gradients):
  gradient = gradients(YES)["student"]
  assert max(sizes((gradient.teachers, gradient.fused))) == 0
  assert min(sizes(gradient.student)) > 0


def test_cohort_terms_do_not_reach_the_student(gradients):
  gradient = gradients(YES)["cohort"]
  assert max(sizes(gradient.student)) == 0
  assert min(sizes((gradient.teachers, gradient.fused))) > 0


def test_one_backward_pass_gives_each_group_its_own_gradient(gradients):
  got = gradients(YES)
  cohort = got["cohort"]
  expected = got["student"]._replace(teachers=cohort.teachers, fused=cohort.fused)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got["joint"], expected)


def test_before_distillation_labels_alone_pull_the_student(gradients):
  gradient = gradients(NO)["joint"].student
  assert max(sizes(gradient.side_logits)) == 0
  alone = jax.jit(jax.grad(losses.comb, argnums=1))(LABELS, some_outputs().student.logits)
  np.testing.assert_allclose(gradient.logits, alone, rtol=1e-5, atol=1e-9)
