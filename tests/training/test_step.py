"""The training step: the same on every mesh, one joint update, compiled once.

Compiling is nearly all of these tests' time. One framework of tiny networks serves all of them but
those of meshes, and XLA is told to hurry. They run in float64: in float32 a sum in another order
now and then turns a maximum or an activation's sign, and gradients jump.
"""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import descent
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.data.augmentation.augment import augment
from kd_jax.models.framework import Framework
from kd_jax.settings.data import AugmentSettings
from kd_jax.settings.model import ModelSettings
from kd_jax.settings.training import GROUPS
from kd_jax.training.mesh import make_mesh
from kd_jax.training.optimisers import optimizer
from kd_jax.training.state import init_state
from kd_jax.training.step import batch_sharding, compile_step, make_train_step

TEACHERS = ("flair", "t2")
SPEC = ModelSettings(
  student=("t1ce",),
  teachers={name: (name,) for name in TEACHERS},
  teacher_width=1.0,
  filters=(4, 4, 8, 8),
)
CONFIDENCE = published.confidence()
STEPS = 10
RATE = 1.0
EMA_DECAY = 0.2


@pytest.fixture(scope="module")
def framework(tiny):
  return Framework(dataclasses.replace(SPEC, network=tiny, dtype="float64"))


@pytest.fixture(scope="module")
def optimizers():
  return descent.optimizers(RATE)


@pytest.fixture(scope="module")
def first_state(framework, optimizers):
  """On the host: programs are given copies, since they take over what they are given."""
  return descent.widened(init_state(framework, optimizers, CONFIDENCE, jax.random.key(0), ema=True))


@pytest.fixture(scope="module")
def batch():
  """Four patches with a ball of tumour each, brighter by class, brightest in T1ce."""
  rng = np.random.default_rng(0)
  where = np.indices((16, 16, 16)).transpose(1, 2, 3, 0)
  images, labels = [], []
  for centre in rng.uniform(5, 11, (4, 3)):
    distance = np.linalg.norm(where - centre, axis=-1)
    label = np.select([distance < 2, distance < 3.5, distance < 6], [1, 3, 2], 0)
    signal = np.array([0, 1, 2, 3])[label] * np.array([0.5, 0.3, 0.8, 0.6]).reshape(4, 1, 1, 1)
    images.append(signal - 1 + 0.3 * rng.standard_normal((4, 16, 16, 16)))
    labels.append(label)
  return {"image": np.array(images, np.float16), "label": np.array(labels, np.uint8)}


@pytest.fixture(scope="module")
def whole(optimizers, batch):
  """Of real networks, one of them a teacher: what a mesh does to their gradients must show."""
  spec = dataclasses.replace(SPEC, teachers={"flair": ("flair",)}, dtype="float64")
  framework = Framework(spec)
  state = descent.widened(
    init_state(framework, optimizers, CONFIDENCE, jax.random.key(0), ema=True)
  )
  made = Programs(framework, optimizers, state, batch)
  yield made
  made._pool.shutdown()


class Programs:
  """The step compiled for meshes, each when it is first asked for; several at once."""

  def __init__(self, framework, optimizers, state, batch):
    self.state, self.batch, self.traces = state, batch, 0
    self._jobs, self._pool = {}, ThreadPoolExecutor(2)

    def counted(key, images, labels):
      self.traces += 1
      # The warp and the artefacts are compared on meshes in data/test_augment.py, in seconds.
      settings = AugmentSettings(spatial=0.0, intensity=0.5, artefact=0.0)
      return augment(key, images, labels, settings)

    self.make = functools.partial(
      make_train_step,
      framework,
      optimizers,
      published.loss(),
      CONFIDENCE,
      steps_per_epoch=1,
      augment=counted,
      ema_decay=EMA_DECAY,
    )
    self.step = self.make()

  def on(self, *shapes, step=None):
    """One (state, batch) -> (state, metrics) for each mesh, on host arrays."""
    for shape in shapes:
      if shape not in self._jobs or step:
        with jax.enable_x64(True):
          lowered = compile_step(step or self.step, make_mesh(*shape)).lower(*self.placed(shape))
        self._jobs[shape] = self._pool.submit(lowered.compile, compiler_options=QUICK)
    return [functools.partial(self._run, shape, self._jobs[shape].result()) for shape in shapes]

  def placed(self, shape, state=None):
    """State, batch and key on the devices of a mesh."""
    mesh = make_mesh(*shape)
    with jax.enable_x64(True):
      state = descent.widened(self.state if state is None else state)
      state, key = jax.device_put((state, jax.random.key(7)), NamedSharding(mesh, P()))
      return state, jax.device_put(self.batch, batch_sharding(mesh)), key

  def _run(self, shape, program, state):
    with jax.enable_x64(True):
      return jax.device_get(program(*self.placed(shape, state)))


@pytest.fixture(scope="module")
def programs(framework, optimizers, first_state, batch):
  made = Programs(framework, optimizers, first_state, batch)
  yield made
  made._pool.shutdown()


@pytest.fixture(scope="module")
def history(programs, first_state):
  """Every state from the first on, and the metrics of the steps between them."""
  (step,) = programs.on((1, 1))
  states, metrics = [first_state], []
  for _ in range(STEPS):
    state, measured = step(states[-1])
    states.append(state)
    metrics.append(measured)
  return states, metrics


def flat(tree):
  return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_alike(actual, expected, what, rtol=0.0, atol=0.0):
  actual, expected = flat(actual), flat(expected)
  assert actual.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_allclose(actual[name], x, rtol, atol, err_msg=f"{what}: {name}")


# --- On meshes --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 2), pytest.param((2, 4), marks=pytest.mark.slow)], ids=str)
def test_every_mesh_gives_the_same_numbers(whole, shape):
  """Two steps, the second with distillation and the first's confidence; augmentation on."""
  alone, step = whole.on((1, 1), shape)
  first_state = state = after = whole.state
  for _ in range(2):
    after, metrics = alone(after)
    state, ours = step(state)
    assert_alike(ours, metrics, f"mesh {shape}", rtol=1e-12, atol=1e-12)
    assert_alike(state, after, f"mesh {shape}", atol=1e-12)
  # The tolerance is far below what two steps do: a gradient wrong by a factor would be seen.
  before, after = flat(first_state.params), flat(state.params)
  kernels = [name for name in before if "conv" in name and "kernel" in name]
  moved = {name: np.abs(after[name] - before[name]).max() for name in kernels}
  assert min(moved.values()) > 2e-5


def test_a_batch_in_parts_is_the_same_step(programs, first_state, history):
  """Though its Dice is not a sum over the parts."""
  (step,) = programs.on((2, 1), step=programs.make(accumulate=2))
  states, metrics = history
  for before, after, measured in zip(states[:2], states[1:3], metrics[:2], strict=True):
    state, ours = step(before)
    assert_alike(ours, measured, "in parts", rtol=1e-12, atol=1e-12)
    assert_alike(state, after, "in parts", atol=1e-12)


# --- The update -------------------------------------------------------------------------------


def test_losses_fall_on_one_batch(history):
  _, metrics = history
  for name in ("loss/supervised", "loss/teachers", *(f"loss/teacher/{t}" for t in TEACHERS)):
    values = [float(m[name]) for m in metrics]
    assert np.isfinite(values).all()
    assert np.mean(values[-3:]) < 0.85 * np.mean(values[:3]), name


def test_the_first_epoch_distils_nothing_and_weighs_every_teacher_alike(history):
  first, second = history[1][:2]
  assert first["loss/student"] == first["loss/supervised"]
  assert second["loss/student"] != second["loss/supervised"]
  for name in TEACHERS:
    np.testing.assert_allclose(first[f"confidence/weight/{name}"], 0.075, rtol=1e-6)


def test_weights_of_an_epoch_come_from_the_scores_of_the_last(history):
  for before, after in zip(history[1], history[1][1:], strict=False):
    scores = np.array([before[f"confidence/score/{name}"] for name in TEACHERS])
    weights = np.array([after[f"confidence/weight/{name}"] for name in TEACHERS])
    np.testing.assert_allclose(weights, 0.15 * scores / scores.sum(), rtol=1e-5)
  assert np.abs(weights / 0.075 - 1).max() > 1e-4  # not uniform


def test_steps_are_counted_and_groups_have_their_gradients_norm(history):
  states, metrics = history
  assert [int(state.step) for state in states] == list(range(STEPS + 1))
  for group in GROUPS:  # the first step of plain descent is the gradient times the rate
    before, after = (flat(state.params[group]) for state in states[:2])
    moved = np.sqrt(sum(np.sum(np.square(after[k] - before[k], dtype=float)) for k in before))
    np.testing.assert_allclose(moved / RATE, metrics[0][f"grad_norm/{group}"], rtol=1e-3)


def test_the_average_follows_the_student(history):
  """Quickly at first: decay (1 + step) / (10 + step), until that is more than the one set."""
  states, _ = history
  decays = [0.1, 2 / 11, EMA_DECAY, EMA_DECAY]
  for decay, before, after in zip(decays, states, states[1:], strict=False):
    old, new, got = flat(before.ema), flat(after.params["student"]), flat(after.ema)
    assert old.keys() == new.keys() == got.keys()
    for name, x in got.items():
      expected = decay * old[name] + (1 - decay) * new[name]
      np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("frozen", "free"), [GROUPS, GROUPS[::-1]])
def test_a_scale_of_zero_freezes_its_group_and_no_other(
  programs, first_state, history, frozen, free
):
  """That the other group ends where it would have is what makes the step a joint one."""
  (step,) = programs.on((1, 1))
  scale = {frozen: np.zeros((), np.float32), free: np.ones((), np.float32)}
  after, _ = step(first_state.replace(lr_scale=scale))
  assert_alike(after.params[frozen], first_state.params[frozen], "frozen")
  assert_alike(after.params[free], history[0][1].params[free], "free")
  assert_alike(after.lr_scale, scale, "scale")


def test_a_scale_shortens_the_step(programs, first_state, history):
  (step,) = programs.on((1, 1))
  after, _ = step(first_state.replace(lr_scale=dict.fromkeys(GROUPS, np.float32(0.25))))
  whole = jax.tree.map(np.subtract, history[0][1].params, first_state.params)
  quarter = jax.tree.map(np.subtract, after.params, first_state.params)
  assert_alike(quarter, jax.tree.map(lambda x: x / 4, whole), "a quarter", rtol=1e-3, atol=1e-7)


def test_a_run_taken_up_again_repeats_itself(programs, history):
  """The state is all there is: augmentation is drawn from the step's number."""
  (step,) = programs.on((1, 1))
  states, metrics = history
  state, measured = step(states[3])
  assert_alike(state, states[4], "state")
  assert_alike(measured, metrics[3], "metrics")


def test_every_step_is_augmented_in_its_own_way(programs, history):
  """The same parameters and batch under another step's number see another image."""
  (step,) = programs.on((1, 1))
  states, metrics = history
  _, other = step(states[3].replace(step=np.int32(4)))
  assert abs(other["loss/supervised"] - metrics[3]["loss/supervised"]) > 1e-4


# --- Compiled once ----------------------------------------------------------------------------


def test_the_step_is_not_compiled_again_for_its_own_state(programs):
  shape = (1, 1)
  (run,) = programs.on(shape)
  program, executable = compile_step(programs.step, make_mesh(*shape)), run.args[1]
  state, batch, key = programs.placed(shape)
  with jax.enable_x64(True):
    program.trace(state, batch, key)
    traces = programs.traces
    after, _ = executable(state, batch, key)
    program.trace(after, batch, key)
    assert programs.traces == traces  # types and shardings are those of the program that is there
    executable(after, batch, key)  # which refuses all others


ABSTRACT_BATCH = {
  "image": jax.ShapeDtypeStruct((1, 4, 16, 16, 16), jnp.float16),
  "label": jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.uint8),
}


def types(tree):
  return {name: (x.shape, x.dtype, x.weak_type) for name, x in flat(tree).items()}


def test_the_state_keeps_its_types(tiny):
  """With the real optimisers; a weak type would have the step compiled twice."""
  framework = Framework(dataclasses.replace(SPEC, network=tiny))
  settings = published.optimiser(clip_norm=1.0, weight_decay=0.1)
  optimizers = {group: optimizer(settings, 100) for group in GROUPS}
  state = init_state(framework, optimizers, CONFIDENCE, jax.random.key(0), ema=True)
  step = make_train_step(
    framework, optimizers, published.loss(), CONFIDENCE, steps_per_epoch=3, ema_decay=0.9
  )
  after, metrics = jax.eval_shape(step, state, ABSTRACT_BATCH, jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert types(after) == types(state)
  assert not any(weak for _, _, weak in types(state).values())
  assert all((m.shape, m.dtype) == ((), jnp.float32) for m in metrics.values())


def test_a_student_alone_has_a_step_too():
  framework = Framework(ModelSettings(student=("t1ce",), teachers={}, filters=SPEC.filters))
  optimizers = {group: optimizer(published.optimiser(), 100) for group in GROUPS}
  state = init_state(framework, optimizers, CONFIDENCE, jax.random.key(0))
  step = make_train_step(framework, optimizers, published.loss(), CONFIDENCE, steps_per_epoch=3)
  after, metrics = jax.eval_shape(step, state, ABSTRACT_BATCH, jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)  # no average that none asked for
  assert types(after) == types(state)
  assert metrics.keys() == {
    "loss/supervised",
    "loss/student",
    "grad_norm/teachers",
    "grad_norm/student",
    *(f"dice/student/{region}" for region in ("WT", "TC", "ET")),
  }


@pytest.mark.parametrize("by", ["region", "voxel"])
@pytest.mark.parametrize("update", ["ema", "batch"])
def test_every_kind_of_confidence_has_a_step(tiny, by, update):
  """With features distilled and the batch in parts; types as they were, every number a scalar."""
  framework = Framework(dataclasses.replace(SPEC, network=tiny, teacher_side_heads=2))
  optimizers = {group: optimizer(published.optimiser(algorithm="sgd"), 100) for group in GROUPS}
  loss = published.loss(
    kd_targets="regions" if by == "region" else "classes",
    deep_supervision={"level1": 0.5, "level2": 0.25},
    bottleneck=0.1,
    prototype=0.1,
    fused_teacher=0.2,
  )
  how = published.confidence(by=by, update=update, above_student=by == "region")
  state = init_state(framework, optimizers, how, jax.random.key(0))
  step = make_train_step(framework, optimizers, loss, how, steps_per_epoch=3, accumulate=2)
  batch = {k: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for k, x in ABSTRACT_BATCH.items()}
  after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
  assert types(after) == types(state)
  assert {m.shape for m in metrics.values()} == {()}
  regions = ("/WT", "/TC", "/ET") if by == "region" else ("",)
  assert {f"confidence/weight/t2{r}" for r in regions} <= metrics.keys()
  assert {f"loss/{kind}/t2" for kind in ("bottleneck", "prototype", "kd")} <= metrics.keys()
