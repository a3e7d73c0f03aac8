"""Parity with the published computation, in float64, over every case of KD_JAX_GOLDEN_DIR.

The format is in the golden files' json: settings, PyTorch parameter shapes (the numbers are rebuilt
from the names), and a log of several joint steps.
"""

import functools
import json
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
from quick import STEADY

from kd_jax.method import batch_scores as device
from kd_jax.method import confidence, losses
from kd_jax.models import torch_names
from kd_jax.models.framework import Framework
from kd_jax.settings.model import ModelSettings
from kd_jax.training import step
from kd_jax.training.state import TrainState

GOLDEN = Path(os.environ.get("KD_JAX_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
TOLERANCE = 1e-6
FIRST_KD_EPOCH = 1000
BATCH = 2  # of every step case
SIDE_HEADS = ("output_layer_1", "output_layer_2")  # our teachers have none; they never see a loss


def _documents() -> dict[str, dict | list]:
  return {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}


DOCUMENTS = _documents()
STEP_CASES = [
  name for name, d in DOCUMENTS.items() if isinstance(d, dict) and "parameter_shapes" in d
]
LOSS_CASES = [(name, case) for name, d in DOCUMENTS.items() if isinstance(d, list) for case in d]


def test_there_are_golden_cases():
  assert STEP_CASES, f"no step cases in {GOLDEN}"
  assert LOSS_CASES, f"no loss cases in {GOLDEN}"


def assert_close(actual, expected, what: str) -> None:
  """Relative to the expected array's norm."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape, what
  error = np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30)
  assert error <= TOLERANCE, f"{what}: relative error {error:.2e}"


def channels_last(array: np.ndarray) -> np.ndarray:
  return np.moveaxis(array, 1, -1).astype(np.float64)


@pytest.mark.parametrize(("name", "case"), LOSS_CASES, ids=lambda v: str(v)[:12])
def test_losses(name, case):
  with np.load(GOLDEN / f"{name}.npz") as z, jax.enable_x64(True):
    number = case["case"]
    logits = jnp.asarray(channels_last(z[f"{number}/logits"]))
    teacher = jnp.asarray(channels_last(z[f"{number}/teacher_logits"]))
    labels = jnp.asarray(z[f"{number}/labels"])
    dice, jaccard = losses.overlap(labels, logits, "slice")
    assert_close(dice, case["dice_loss"], "Dice loss")
    assert_close(jaccard, case["jaccard_loss"], "Jaccard loss")
    assert_close(losses.cross_entropy(labels, logits), case["cross_entropy"], "cross-entropy")
    assert_close(losses.dice_jaccard_ce(labels, logits, "slice"), case["combination_loss"], "sum")
    for key, expected in case.items():
      if key.startswith("kd_T"):
        kd = losses.kd(logits, teacher, float(key[4:]), "voxel_sum")
        assert_close(kd, expected, key)
    predicted = jnp.argmax(logits, -1)
    for key, region in (("whole_tumor", "WT"), ("tumor_core", "TC"), ("ET", "ET")):
      assert_close(device.slice_dice(predicted, labels, region), case["slice_dice"][key], key)


def rebuild(network: str, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """The parameters of a golden network, from their names (docs/method.md, "Golden cases")."""
  parameters = {}
  for name, shape in shapes.items():
    seed = zlib.crc32(f"{network}/{name}".encode())
    r = np.random.RandomState(seed).standard_normal(shape)
    if len(shape) == 1:
      r = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
    else:
      r *= np.sqrt(1 / np.prod(shape[1:]))
    parameters[name] = r.astype(np.float32).astype(np.float64)
  return parameters


class Golden:
  """One case, translated into our settings."""

  def __init__(self, name: str):
    document = DOCUMENTS[name]
    with np.load(GOLDEN / f"{name}.npz") as z:
      self.arrays = dict(z)
    self.log = document["steps_log"]
    self.initial_weights = document["weights_of_first_step"]
    channels = document["image_channels"]
    modality = channels[document["student_channel"]]
    self.teachers = [channels[i] for i in document["teacher_channels"]]
    self.levels = [f"level{i + 1}" for i in range(document["deep_supervision_levels"])]
    self.spec = ModelSettings(
      student=(modality,),
      teachers={name: (name,) for name in self.teachers},
      teacher_width=1.0,
      filters=tuple(document["filters"]),
      fusion_levels=len(self.levels),
      dtype="float64",
    )
    regions = tuple(r for r in ("WT", "TC", "ET") if r in str(document["confidence_score"]).upper())
    self.confidence = published.confidence(
      total=document["total_proportion"], score="slice_dice", regions=regions, update="epoch"
    )
    self.loss = published.loss(
      dice_reduction="slice",
      kd_reduction="voxel_sum",
      temperature=document["temperature"],
      kd_from_epoch=FIRST_KD_EPOCH,
    )
    self.first_step = FIRST_KD_EPOCH if document["kd"] else 0  # an epoch has one step here
    self.learning_rate = document["learning_rate"]
    self.shapes = document["parameter_shapes"]
    order = [channels.index(m) for m in ("flair", "t1", "t1ce", "t2")]
    # A case of one sample is given it twice, which changes no number (Dice is a ratio, all else a
    # mean): so all cases share one compiled step, and compiling is nearly all of their time.
    twice = np.resize(np.arange(document["batch"]), BATCH)
    self.images = jnp.asarray(self.arrays["images"][twice][:, order].astype(np.float64))
    self.labels = jnp.asarray(self.arrays["labels"][twice])

  def params(self):
    network = torch_names.network_table()
    fusion = torch_names.fusion_table(self.teachers)
    torch = {name: rebuild(name, shapes) for name, shapes in self.shapes.items()}
    teachers = {
      "networks": {
        name: torch_names.convert(torch[f"teacher{i}"], network, ignore=SIDE_HEADS)
        for i, name in enumerate(self.teachers)
      },
      "fusion": {
        level: torch_names.convert(torch[f"fusion{i}"], fusion)
        for i, level in enumerate(self.levels)
      },
    }
    params = {"teachers": teachers, "student": torch_names.convert(torch["student"], network)}
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("name", STEP_CASES)
def test_steps(name):
  with jax.enable_x64(True):
    golden = Golden(name)
    framework = Framework(golden.spec)
    params = golden.params()
    _check_shapes(framework, params)
    _check_steps(golden, framework, params)


def _check_shapes(framework, params):
  expected = jax.eval_shape(framework.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)


def _check_forward(golden, outputs):
  expected = golden.arrays
  outputs = jax.tree.map(lambda x: x[: len(expected["images"])], outputs)
  assert_close(outputs.student.logits, channels_last(expected["logits/student"]), "student logits")
  for i, level in enumerate(("level1", "level2")):
    side = channels_last(expected[f"logits/student_ds{i}"])
    assert_close(outputs.student.side_logits[level], side, f"student's {level}")
  for i, name in enumerate(golden.teachers):
    logits = channels_last(expected[f"logits/teacher{i}"])
    assert_close(outputs.teachers[name].logits, logits, f"teacher {name}")
    for j, level in enumerate(("level1", "level2")):
      feature = channels_last(expected[f"features/teacher{i}/level{j}"])
      ours = outputs.teachers[name].features[level][:1, ..., :4]
      assert_close(ours, feature, f"teacher {name}, {level}")
  for i, level in enumerate(golden.levels):
    fused = channels_last(expected[f"logits/fusion{i}"])
    assert_close(outputs.fused[level], fused, f"fusion at {level}")


def _check_gradients(golden, grads):
  """Norms of every parameter's gradient; whole gradients where the case holds them."""
  network, fusion = torch_names.network_table(), torch_names.fusion_table(golden.teachers)
  trees = {"student": (grads["student"], network)}
  for i, name in enumerate(golden.teachers):
    trees[f"teacher{i}"] = (grads["teachers"]["networks"][name], network)
  for i, level in enumerate(golden.levels):
    trees[f"fusion{i}"] = (grads["teachers"]["fusion"][level], fusion)

  def ours(key: str):
    """Our gradient of PyTorch's NETWORK/PARAMETER, and what brings theirs into our layout."""
    owner, name = key.split("/", 1)
    module, kind = name.rsplit(".", 1)
    if owner.startswith("teacher") and module in SIDE_HEADS:
      return None, None
    node, table = trees[owner]
    for part in table[module]:
      node = node[part]
    shape = golden.shapes[owner][name]
    leaf, layout = torch_names._leaf(module, kind, len(shape))
    return node[leaf], layout

  norms = {k[9:]: float(v) for k, v in golden.arrays.items() if k.startswith("gradnorm/")}
  assert norms.keys() == {f"{n}/{p}" for n, shapes in golden.shapes.items() for p in shapes}
  largest = {n: max(v for k, v in norms.items() if k.startswith(f"{n}/")) for n in golden.shapes}
  for key, expected in norms.items():
    gradient, _ = ours(key)
    norm = 0.0 if gradient is None else float(jnp.linalg.norm(gradient.ravel()))
    # A bias before a norm has no gradient: both sides hold rounding noise there.
    noise = 1e-10 * largest[key.split("/")[0]]
    assert abs(norm - expected) <= TOLERANCE * expected + noise, f"{key}: {norm} {expected}"
  for key, array in golden.arrays.items():
    if key.startswith("grad/"):
      gradient, layout = ours(key[5:])
      assert_close(gradient, layout(array), key)


def _recorder() -> optax.GradientTransformation:
  """Keeps the last gradient as its state, and passes it on."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
  )


@functools.cache
def _programs() -> dict:
  """Compiled steps by what they depend on: cases that differ in numbers alone share one."""
  return {}


def _step_and_forward(golden, framework, optimizers):
  """The real train step, and the forward pass of its parameters, in one program.

  Compiling is nearly all that this test's time goes into: XLA merges the two forward passes, and
  the first-epoch rule is met through the step's number, so that cases with and without
  distillation share the program.
  """
  train_step = step.make_train_step(
    framework, optimizers, golden.loss, golden.confidence, steps_per_epoch=1
  )

  def both(state, batch):
    return train_step(state, batch, jax.random.key(0)), framework(state.params, batch["image"])

  key = repr((golden.spec, golden.loss, golden.confidence, golden.learning_rate))
  return _programs().setdefault(key, jax.jit(both, compiler_options=STEADY))


def _check_steps(golden, framework, params):
  """Every joint step through the real train step; outputs and gradients of the first one."""
  optimizers = {
    group: optax.chain(_recorder(), optax.adam(golden.learning_rate)) for group in params
  }
  weights = zip(golden.teachers, golden.initial_weights, strict=True)
  weighted = confidence.init(golden.teachers, golden.confidence)
  state = TrainState(
    step=jnp.asarray(golden.first_step, jnp.int32),
    params=params,
    opt_state={group: tx.init(params[group]) for group, tx in optimizers.items()},
    confidence=weighted.replace(weights={n: jnp.asarray(w, float) for n, w in weights}),
    lr_scale={group: jnp.ones(()) for group in optimizers},
    ema=None,
  )
  step_and_forward = _step_and_forward(golden, framework, optimizers)
  batch = {"image": golden.images, "label": golden.labels}
  for entry in golden.log:
    (state, metrics), outputs = step_and_forward(state, batch)
    for ours, expected in _expected_metrics(golden, entry).items():
      assert_close(metrics[ours], expected, f"step {entry['step']}, {ours}")
    if entry["step"] == 0:
      _check_forward(golden, outputs)
      _check_gradients(golden, {group: state.opt_state[group][0] for group in optimizers})
  _, outputs = step_and_forward(state, batch)
  expected = channels_last(golden.arrays["final/student/logits"])
  assert_close(outputs.student.logits[: len(expected)], expected, "final logits")


def _expected_metrics(golden, entry) -> dict[str, float]:
  expected = {
    "loss/student": entry["student_loss"],
    "loss/supervised": entry["supervised"],
    "loss/teachers": entry["teacher_total"],
  }
  for i, name in enumerate(golden.teachers):
    expected[f"loss/kd/{name}"] = entry["kd"][i]
    expected[f"loss/teacher/{name}"] = entry["teacher"][i]
    expected[f"confidence/weight/{name}"] = entry["weights"][i]
    expected[f"confidence/score/{name}"] = entry["confidence_metric"][i]
  for i, level in enumerate(golden.levels):
    expected[f"loss/cooperative/{level}"] = entry["cooperative"][i]
    expected[f"loss/side/{level}/supervised"] = entry["ds_supervised"][i]
    expected[f"loss/side/{level}/kd"] = entry["ds_kd"][i]
  return expected
