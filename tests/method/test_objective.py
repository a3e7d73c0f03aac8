"""The joint loss on hand-made outputs: names, weights, the first epoch, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from kd_jax.method import losses
from kd_jax.method.distillation import bottleneck_kd, enlarge, prototype_kd, voxel_weights
from kd_jax.method.objective import distillation_share, objective
from kd_jax.models.framework import Outputs
from kd_jax.models.interface import Output
from kd_jax.settings.method import SideWeights

NO, YES = np.array(False), np.array(True)
TEACHERS = ("flair", "t2")
ALPHA = {"flair": np.float32(0.11), "t2": np.float32(0.04)}
SIDES = {"level1": 4, "level2": 2}  # voxels along each side; 8 at full resolution
LABELS = np.random.default_rng(9).integers(0, 4, (2, 8, 8, 8))
BRAIN = np.random.default_rng(10).random((2, 8, 8, 8)) < 0.7

dice_jaccard_ce = jax.jit(losses.dice_jaccard_ce, static_argnames="reduction")
kd = jax.jit(losses.kd, static_argnames="reduction")

# total, supervised, kd and cooperative weights, all different: no two can be swapped unnoticed.
SETTINGS = published.loss(
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
  return jax.jit(lambda outputs, distil: objective(outputs, LABELS, ALPHA, distil, SETTINGS, BRAIN))


def test_before_distillation_the_student_learns_from_labels_alone(joint):
  _, terms = joint(some_outputs(), NO)
  expected = dice_jaccard_ce(LABELS, some_outputs().student.logits)
  np.testing.assert_allclose(terms["loss/student"], expected, rtol=1e-6)
  np.testing.assert_allclose(terms["loss/supervised"], expected, rtol=1e-6)


def test_before_distillation_the_teachers_learn_as_ever(joint):
  before, after = joint(some_outputs(), NO)[1], joint(some_outputs(), YES)[1]
  assert before["loss/teachers"] == after["loss/teachers"]
  assert before["loss/student"] != after["loss/student"]
  assert before["loss/kd/t2"] == after["loss/kd/t2"]  # logged though not used yet
  assert before["loss/distillation"] == 0 < after["loss/distillation"]


@pytest.mark.parametrize("levels", [(), ("level1",), ("level1", "level2")])
def test_terms_are_named_and_weighted(joint, levels):
  out = some_outputs(levels=levels)
  loss, terms = joint(out, YES)
  shrunk = {"level1": LABELS[:, ::2, ::2, ::2], "level2": LABELS[:, ::4, ::4, ::4]}

  supervised = dice_jaccard_ce(LABELS, out.student.logits)
  expected = {"loss/supervised": supervised, "loss/student": 0.7 * supervised, "loss/teachers": 0}
  taught = 0
  for name in TEACHERS:
    own = dice_jaccard_ce(LABELS, out.teachers[name].logits)
    response = kd(out.student.logits, out.teachers[name].logits, 3.0)
    expected |= {f"loss/teacher/{name}": own, f"loss/kd/{name}": response}
    expected["loss/teachers"] += own
    expected["loss/student"] += {"flair": 0.11, "t2": 0.04}[name] * response
    taught += {"flair": 0.11, "t2": 0.04}[name] * response
  for level in levels:
    cooperative = dice_jaccard_ce(shrunk[level], out.fused[level])
    side = dice_jaccard_ce(shrunk[level], out.student.side_logits[level])
    response = kd(out.student.side_logits[level], out.fused[level], 3.0)
    expected |= {
      f"loss/cooperative/{level}": cooperative,
      f"loss/side/{level}/supervised": side,
      f"loss/side/{level}/kd": response,
    }
    first = level == "level1"
    expected["loss/teachers"] += (0.09 if first else 0.06) * cooperative
    expected["loss/student"] += (
      0.2 * (0.8 * side + 0.35 * response) if first else 0.05 * (0.55 * side + 0.45 * response)
    )
    taught += (0.2 * 0.35 if first else 0.05 * 0.45) * response
  expected["loss/distillation"] = taught
  assert terms.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(loss, expected["loss/teachers"] + expected["loss/student"], rtol=1e-5)


@pytest.mark.parametrize("distil", [NO, YES])
def test_a_student_alone_has_its_supervised_loss_at_full_weight(joint, distil):
  out = some_outputs(teachers=(), levels=())
  loss, terms = joint(out, distil)
  assert terms.keys() == {"loss/supervised", "loss/student"}
  np.testing.assert_allclose(loss, dice_jaccard_ce(LABELS, out.student.logits), rtol=1e-6)
  assert terms["loss/student"] == terms["loss/supervised"] == loss


def test_reductions_reach_every_term():
  out = some_outputs(levels=("level1",))
  as_published = published.loss(dice_reduction="slice", kd_reduction="voxel_sum", temperature=20.0)
  _, terms = jax.jit(lambda out: objective(out, LABELS, ALPHA, YES, as_published, BRAIN))(out)
  half = LABELS[:, ::2, ::2, ::2]
  side = out.student.side_logits["level1"]
  expected = {
    "loss/supervised": dice_jaccard_ce(LABELS, out.student.logits, reduction="slice"),
    "loss/teacher/t2": dice_jaccard_ce(LABELS, out.teachers["t2"].logits, reduction="slice"),
    "loss/cooperative/level1": dice_jaccard_ce(half, out.fused["level1"], reduction="slice"),
    "loss/side/level1/supervised": dice_jaccard_ce(half, side, reduction="slice"),
    "loss/kd/t2": kd(out.student.logits, out.teachers["t2"].logits, 20.0, reduction="voxel_sum"),
    "loss/side/level1/kd": kd(side, out.fused["level1"], 20.0, reduction="voxel_sum"),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)


def test_the_default_weights_are_the_published_ones():
  settings = published.loss()
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
    loss, terms = objective(outputs, LABELS, ALPHA, distil, SETTINGS, BRAIN)
    return {"joint": loss, "student": terms["loss/student"], "teachers": terms["loss/teachers"]}

  program = jax.jit(jax.jacrev(three))
  return lambda distil: program(some_outputs(), distil)


def sizes(tree):
  return [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree)]


def test_student_terms_reach_neither_teachers_nor_fused_logits(gradients):
  gradient = gradients(YES)["student"]
  assert max(sizes((gradient.teachers, gradient.fused))) == 0
  assert min(sizes(gradient.student)) > 0


def test_the_teachers_terms_do_not_reach_the_student(gradients):
  gradient = gradients(YES)["teachers"]
  assert max(sizes(gradient.student)) == 0
  assert min(sizes((gradient.teachers, gradient.fused))) > 0


def test_one_backward_pass_gives_each_group_its_own_gradient(gradients):
  got = gradients(YES)
  teachers = got["teachers"]
  expected = got["student"]._replace(teachers=teachers.teachers, fused=teachers.fused)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got["joint"], expected)


def test_before_distillation_labels_alone_pull_the_student(gradients):
  gradient = gradients(NO)["joint"].student
  assert max(sizes(gradient.side_logits)) == 0
  alone = jax.jit(jax.grad(losses.dice_jaccard_ce, argnums=1))(
    LABELS, some_outputs().student.logits
  )
  np.testing.assert_allclose(gradient.logits, alone, rtol=1e-5, atol=1e-9)


# --- Choices around the published terms -------------------------------------------------------


def terms_of(settings, outputs=None, alpha=ALPHA, share=YES):
  program = jax.jit(lambda out: objective(out, LABELS, alpha, share, settings, BRAIN))
  return program(outputs or some_outputs(levels=("level1",)))[1]


def test_distillation_ramps_up():
  ramp = dataclasses.replace(SETTINGS, kd_from_epoch=2, kd_ramp_epochs=4.0)
  shares = [float(distillation_share(jnp.int32(10 * e), 10, ramp)) for e in (0, 2, 3, 5, 9)]
  assert shares == [0, 0, 0.25, 0.75, 1]
  none, quarter, all_of_it = (
    terms_of(ramp, share=np.float32(s))["loss/student"] for s in (0, 0.25, 1)
  )
  alone = dice_jaccard_ce(LABELS, some_outputs(levels=("level1",)).student.logits)
  assert not SETTINGS.kd_ramp_epochs
  np.testing.assert_allclose(none, alone, rtol=1e-6)
  np.testing.assert_allclose(all_of_it, terms_of(SETTINGS)["loss/student"], rtol=1e-6)
  np.testing.assert_allclose(quarter, 0.75 * alone + 0.25 * all_of_it, rtol=1e-5)


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 49, 100, 200, 250, 1001])
def test_distillation_begins_with_an_epoch_s_first_step(steps_per_epoch):
  """In float32, where 1001 / 1001 - 1, compiled, is a little less than 0."""

  @jax.jit
  def share(step):
    return distillation_share(step, steps_per_epoch, SETTINGS)

  first = SETTINGS.kd_from_epoch * steps_per_epoch
  assert [float(share(jnp.int32(first + d))) for d in (-1, 0, 1, steps_per_epoch)] == [0, 1, 1, 1]


def test_distillation_may_never_begin():
  never = dataclasses.replace(SETTINGS, kd_from_epoch=2**30)
  assert float(distillation_share(jnp.int32(2**31 - 2), 250, never)) == 0


def test_every_network_with_heads_is_supervised_deeply():
  deep = dataclasses.replace(SETTINGS, deep_supervision={"level1": 0.5, "level2": 0.0})
  out = some_outputs(levels=())
  side = some_logits(77, 4)
  out.teachers["t2"] = out.teachers["t2"]._replace(side_logits={"level1": side})
  got, plain = terms_of(deep, out), terms_of(SETTINGS, out)
  half = LABELS[:, ::2, ::2, ::2]
  teacher = dice_jaccard_ce(half, side)
  np.testing.assert_allclose(got["loss/teacher/t2/level1"], teacher, rtol=1e-5)
  np.testing.assert_allclose(
    got["loss/teachers"], plain["loss/teachers"] + 0.5 * teacher, rtol=1e-5
  )
  student = dice_jaccard_ce(half, out.student.side_logits["level1"])
  np.testing.assert_allclose(
    got["loss/student"], plain["loss/student"] + 0.7 * 0.5 * student, rtol=1e-5
  )
  assert "loss/teacher/flair/level1" not in got  # it has no head
  assert "loss/supervised/level2" not in got  # its weight is zero


def test_each_region_has_its_own_teacher_weights():
  regions = dataclasses.replace(SETTINGS, kd_targets="regions")
  out = some_outputs(levels=())
  alpha = {"flair": np.float32([0.3, 0.2, 0.1]), "t2": np.float32([0, 0.4, 0.6])}
  got = terms_of(regions, out, alpha)
  expected = 0.7 * dice_jaccard_ce(LABELS, out.student.logits)
  for name, weights in alpha.items():
    each = losses.region_kd(out.student.logits, out.teachers[name].logits, 3.0)
    np.testing.assert_allclose(got[f"loss/kd/{name}"], np.mean(each), rtol=1e-5)
    expected += np.mean(weights * each)
  np.testing.assert_allclose(got["loss/student"], expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.4, np.float32([0.1, 0.2, 0.3])])
def test_regions_that_are_not_distilled_add_nothing(alpha):
  out = some_outputs(levels=("level1",))
  some = dataclasses.replace(SETTINGS, kd_targets="regions", kd_regions=("ET", "WT"))
  got = terms_of(some, out, dict.fromkeys(out.teachers, alpha))
  side = losses.region_kd(out.student.side_logits["level1"], out.fused["level1"], 3.0)
  np.testing.assert_allclose(got["loss/side/level1/kd"], (side[0] + side[2]) / 2, rtol=1e-5)
  plain = terms_of(some, out, dict.fromkeys(out.teachers, 0.0))
  distilled = 0.0
  for teacher in out.teachers.values():
    each = np.broadcast_to(alpha, 3) * losses.region_kd(out.student.logits, teacher.logits, 3.0)
    distilled += (each[0] + each[2]) / 2
  np.testing.assert_allclose(got["loss/student"] - plain["loss/student"], distilled, rtol=1e-4)


def test_each_voxel_has_its_own_teacher_weights():
  out = some_outputs(levels=())
  flair = np.random.default_rng(5).random((2, 8, 8, 8), np.float32)
  got = terms_of(SETTINGS, out, {"flair": flair, "t2": 0 * flair})
  weighted = kd(out.student.logits, out.teachers["flair"].logits, 3.0, teacher_weight=flair)
  expected = 0.7 * dice_jaccard_ce(LABELS, out.student.logits) + weighted
  np.testing.assert_allclose(got["loss/student"], expected, rtol=1e-5)


@pytest.mark.parametrize("where", ["brain", "balanced", "agreement"])
def test_voxels_are_weighted_in_every_response_term(where):
  out = some_outputs(levels=("level1",))
  got = terms_of(dataclasses.replace(SETTINGS, kd_where=where), out)
  half = (slice(None), *(slice(None, None, 2),) * 3)
  teachers = [output.logits for output in out.teachers.values()]
  full = voxel_weights(where, LABELS, BRAIN, teachers)
  expected = kd(out.student.logits, out.teachers["t2"].logits, 3.0, weight=full)
  np.testing.assert_allclose(got["loss/kd/t2"], expected, rtol=1e-5)
  side = voxel_weights(where, LABELS[half], BRAIN[half], ())
  expected = kd(out.student.side_logits["level1"], out.fused["level1"], 3.0, weight=side)
  np.testing.assert_allclose(got["loss/side/level1/kd"], expected, rtol=1e-5)


def test_the_fused_logits_can_teach_at_full_resolution():
  got, plain = (terms_of(dataclasses.replace(SETTINGS, fused_teacher=w)) for w in (0.4, 0.0))
  out = some_outputs(levels=("level1",))
  expected = kd(out.student.logits, enlarge(out.fused["level1"]), 3.0)
  np.testing.assert_allclose(got["loss/kd/fused"], expected, rtol=1e-5)
  gain = got["loss/student"] - plain["loss/student"]
  np.testing.assert_allclose(gain, 0.4 * expected, rtol=1e-4)


def test_features_are_distilled_as_the_mean_over_teachers():
  settings = dataclasses.replace(SETTINGS, bottleneck=0.3, prototype=0.2)
  assert settings.features == ("bottleneck", "level1")
  assert SETTINGS.features == ()
  rng = np.random.default_rng(3)

  def with_features(output):
    features = {"bottleneck": (2, 1, 1, 1, 6), "level1": (2, 4, 4, 4, 5)}
    return output._replace(
      features={k: rng.standard_normal(s).astype(np.float32) for k, s in features.items()}
    )

  out = some_outputs(levels=())
  out = Outputs(
    {name: with_features(o) for name, o in out.teachers.items()}, {}, with_features(out.student)
  )
  got, plain = terms_of(settings, out), terms_of(SETTINGS, out)
  gain, half = 0.0, LABELS[:, ::2, ::2, ::2]
  for name, teacher in out.teachers.items():
    own = out.student.features
    bottleneck = bottleneck_kd(own["bottleneck"], teacher.features["bottleneck"])
    prototype = prototype_kd(own["level1"], teacher.features["level1"], half)
    np.testing.assert_allclose(got[f"loss/bottleneck/{name}"], bottleneck, rtol=1e-5)
    np.testing.assert_allclose(got[f"loss/prototype/{name}"], prototype, rtol=1e-5)
    gain += 0.15 * bottleneck + 0.1 * prototype
  np.testing.assert_allclose(got["loss/student"] - plain["loss/student"], gain, rtol=1e-4)
