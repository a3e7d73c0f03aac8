"""Two cohorts of teachers: who trains on what, whom the student hears; on meshes; with a run."""

import dataclasses
import functools
import json
from pathlib import Path

import descent
import jax
import numpy as np
import optax
import published
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK
from synthetic import make_case

from kd_jax.data.cases import find_cases
from kd_jax.data.dataset import Dataset
from kd_jax.models.framework import Framework, select
from kd_jax.runs.checkpoints import Checkpoints
from kd_jax.runs.layout import COHORTS_FILE
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.settings import presets
from kd_jax.settings.model import ModelSettings
from kd_jax.training import cohorts
from kd_jax.training.mesh import make_mesh
from kd_jax.training.state import from_items, init_state, to_items
from kd_jax.training.step import batch_sharding, compile_step, make_train_step

SPEC = ModelSettings(
  student=("t1ce",),
  teachers={"flair": ("flair",), "t2": ("t2", "t1ce")},
  filters=(4, 4, 8, 8),
  cohorts=2,
)
RATE = 0.5


@pytest.fixture(scope="module")
def framework(tiny):
  return Framework(dataclasses.replace(SPEC, network=tiny, dtype="float64"))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  images = rng.standard_normal((4, 4, 16, 16, 16))
  labels = rng.integers(0, 4, (4, 16, 16, 16)).astype(np.uint8)
  return {"image": images.astype(np.float16), "label": labels}


@pytest.fixture(scope="module")
def state(framework):
  """On the host, in float64."""
  optimizers, key = descent.optimizers(RATE), jax.random.key(0)
  return descent.widened(init_state(framework, optimizers, published.confidence(), key, ema=True))


def changed(tree, seed):
  """Other parameters of the same structure."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), tree)


@functools.cache
def compiled(framework, shape, **options):
  """The step on a mesh."""
  make = make_train_step(
    framework,
    descent.optimizers(RATE),
    published.loss(),
    published.confidence(update="ema"),
    steps_per_epoch=1,
    ema_decay=0.5,
    **options,
  )
  mesh, programs = make_mesh(*shape), []

  def run(*arguments):
    if not programs:
      lowered = compile_step(make, mesh).lower(*arguments)
      programs.append(lowered.compile(compiler_options=QUICK))
    return programs[0](*arguments)

  return mesh, run


def steps(framework, batch, state, shape=(1, 1), count=2, **options):
  """The states and metrics of some steps on a mesh."""
  mesh, program = compiled(framework, shape, **options)
  place, found = NamedSharding(mesh, P()), []
  with jax.enable_x64(True):
    key = jax.device_put(jax.random.key(7), place)
    on_mesh = jax.device_put(batch, batch_sharding(mesh))
    for _ in range(count):
      found.append(jax.device_get(program(jax.device_put(state, place), on_mesh, key)))
      state = found[-1][0]
  return found


@pytest.fixture(scope="module")
def taken(framework, batch, state):
  return steps(framework, batch, state)


def assert_alike(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


# --- Whom the student hears -------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(framework, batch, state):
  """What all networks say of the batch, what they would say alone, and who learns from it."""
  heard = changed(state.params["teachers"], seed=1)

  def look(params, heard, images):
    out = framework(params, images, heard)
    sides = {"own": params["teachers"], "heard": heard}
    alone = {
      (side, cohort, name): framework.network(
        teachers[cohort]["networks"][name], select(images, modalities)
      )
      for side, teachers in sides.items()
      for cohort in ("first", "second")
      for name, modalities in SPEC.teachers.items()
    }

    def of(sample, params):
      out = framework(params, images, params["teachers"])
      told = sum(x.logits.sum() for x in out.heard.teachers.values())
      return told + sum((x.logits[sample] ** 2).sum() for x in out.teachers.values())

    learn = [jax.grad(lambda params, k=k: of(k, params))(params)["teachers"] for k in (0, 1)]
    norms = [{name: optax.tree.norm(own[name]["networks"]) for name in own} for own in learn]
    return out, alone, norms

  with jax.enable_x64(True):
    arguments = state.params, heard, np.asarray(batch["image"], np.float64)
    program = jax.jit(look).lower(*arguments).compile(compiler_options=QUICK)
    return jax.device_get(program(*arguments))


def test_a_sample_trains_one_cohort_and_is_predicted_by_the_other(looked):
  out, alone, _ = looked
  for name in SPEC.teachers:
    for sample, own, other in (
      (0, "first", "second"),
      (1, "second", "first"),
      (2, "first", "second"),
    ):
      trained, told = alone["own", own, name], alone["heard", other, name]
      np.testing.assert_allclose(out.teachers[name].logits[sample], trained[sample], atol=1e-9)
      np.testing.assert_allclose(out.heard.teachers[name].logits[sample], told[sample], atol=1e-9)
  assert out.heard.fused["level1"].shape == out.fused["level1"].shape == (4, 8, 8, 8, 4)
  assert np.abs(out.heard.fused["level1"] - out.fused["level1"]).max() > 1e-3


def test_nobody_learns_from_what_the_other_cohort_is_shown(looked):
  *_, (first, second) = looked
  assert first["first"] > 0 and first["second"] == 0
  assert second["second"] > 0 and second["first"] == 0


def test_both_cohorts_are_averaged_and_move(state, taken):
  after = taken[0][0]
  for cohort in ("first", "second"):
    old, new, mean = (
      x[cohort]["networks"]["flair"]["conv_in"]["kernel"]
      for x in (state.params["teachers"], after.params["teachers"], after.teachers_ema)
    )
    assert np.abs(new - old).max() > 1e-6
    np.testing.assert_allclose(mean, 0.1 * old + 0.9 * new, rtol=1e-12)  # the first step's decay


def test_a_teacher_is_scored_where_it_has_not_trained(looked, framework, batch, state):
  """The confidence of a step is the Dice of the averages that the student hears in it."""
  _, alone, _ = looked
  heard = changed(state.params["teachers"], seed=1)
  before = dataclasses.replace(state, teachers_ema=heard)
  ((_, metrics),) = steps(framework, batch, before, count=1)
  logits = np.where(
    (np.arange(4) % 2 == 0)[:, None, None, None, None],
    alone["heard", "second", "flair"],
    alone["heard", "first", "flair"],
  )
  inside = 1 - np.exp(logits[..., 0]) / np.exp(logits).sum(-1)
  truth = batch["label"] > 0
  dice = 2 * (inside * truth).sum() / (inside.sum() + truth.sum())
  assert metrics["confidence/score/flair"] == pytest.approx(dice, abs=1e-6)


def test_no_two_networks_begin_with_the_same_numbers():
  params = Framework(SPEC).init(jax.random.key(0))
  cohorts = (params["teachers"][cohort]["networks"] for cohort in ("first", "second"))
  networks = [
    params["student"],
    *(teachers[name] for teachers in cohorts for name in SPEC.teachers),
  ]
  drawn = [
    {float(x) for leaf in jax.tree.leaves(network) for x in np.ravel(leaf)[:9] if x not in (0, 1)}
    for network in networks
  ]
  assert min(map(len, drawn)) > 100
  for i, own in enumerate(drawn):
    assert not any(own & other for other in drawn[:i])


# --- The same step in parts and on devices ----------------------------------------------------


def test_parts_with_both_cohorts_are_the_same_step(framework, batch, state, taken):
  """The pipeline lays such batches so that each part has samples of both (test_pipeline.py)."""
  order = [0, 2, 1, 3]  # part 0: samples 0 and 2 of the batch below
  laid = {name: x[order] for name, x in batch.items()}
  for (ours, metrics), (theirs, expected) in zip(
    steps(framework, laid, state, accumulate=2), taken, strict=True
  ):
    assert_alike(metrics, expected)
    assert_alike(ours, theirs)


def test_devices_that_share_the_batch_take_the_same_step(framework, batch, state, taken):
  (ours, metrics), (theirs, expected) = steps(framework, batch, state, (2, 1))[-1], taken[-1]
  assert_alike(metrics, expected)
  assert_alike(ours, theirs)


# --- Kept with the run ------------------------------------------------------------------------


def test_a_checkpoint_holds_both_cohorts_and_their_averages(tmp_path, state, taken):
  after = taken[-1][0]
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, to_items(after), {}, None)
  checkpoints.wait()
  with jax.enable_x64(True):
    place = NamedSharding(make_mesh(1, 1), P())
    items, _ = checkpoints.restore(2, to_items(state), place)
  checkpoints.close()
  assert_alike(from_items(items), after)


@pytest.fixture
def five(tmp_path):
  """Five training cases of four patients, and the settings of a run on them."""
  for i in range(5):
    make_case(tmp_path / "data" / f"case{i}", seed=i)
  table = "case,patient\ncase0,P\ncase1,P\n"
  (tmp_path / "patients.csv").write_text(table)
  found = {case.name: case for case in find_cases(tmp_path / "data")}
  found["case1"] = dataclasses.replace(found["case1"], patient=found["case0"].patient)
  settings = presets.settings("brats21", {"model.cohorts": 2})
  return settings, Dataset(found, {}, sorted(found), [], []), tmp_path


def test_cohorts_go_by_patient_and_are_kept(five):
  settings, dataset, workdir = five
  halves = cohorts.settle(settings, workdir, dataset, begun=False)
  assert sorted(name for half in halves for name in half) == dataset.train
  assert {len(half) for half in halves} <= {2, 3}
  assert any({"case0", "case1"} <= set(half) for half in halves)
  stored = json.loads((workdir / COHORTS_FILE).read_text())
  swapped = {"first": stored["second"], "second": stored["first"]}
  (workdir / COHORTS_FILE).write_text(json.dumps(swapped))
  assert cohorts.settle(settings, workdir, dataset, begun=True) == halves[::-1]
  for damaged in ("{}", "[]", "{"):
    (workdir / COHORTS_FILE).write_text(damaged)
    with pytest.raises(UserError, match=COHORTS_FILE):
      cohorts.settle(settings, workdir, dataset, begun=True)


def test_one_cohort_is_all_and_leaves_no_file(five):
  _, dataset, workdir = five
  (half,) = cohorts.settle(presets.settings("brats21"), workdir, dataset, begun=False)
  assert half == dataset.train and not Path(workdir / COHORTS_FILE).exists()


def test_one_patient_cannot_be_shared_out(five):
  settings, dataset, workdir = five
  alone = dataclasses.replace(dataset, train=["case0", "case1"])
  with pytest.raises(UserError, match=r"model\.cohorts = 2 .* there is only one"):
    cohorts.settle(settings, workdir, alone, begun=False)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.batch": 3}, "even number of samples: data.batch = 3"),
    ({"data.batch": 6, "train.accumulate": 2}, "data.batch = 6 in 2 parts"),
    ({"model.teachers": {}}, "model.cohorts = 2 needs teachers"),
    ({"model.cohorts": 3}, "model.cohorts"),
    ({"loss.prototype": 0.1}, r"loss\.prototype .* hears two networks"),
    ({"confidence.above_student": True}, r"confidence\.above_student .* the student on its own"),
  ],
)
def test_what_two_cohorts_need_is_said(changes, message):
  with pytest.raises(ConfigError, match=message):
    presets.settings("brats21", {"model.cohorts": 2, **changes})
