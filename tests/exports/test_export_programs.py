"""Exported programs against the networks that they were made of."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import export as jax_export
from students import make_student
from synthetic import brats_root, images

from kd_jax.data import nifti, preprocess
from kd_jax.data.preprocess import PlainImage
from kd_jax.exports import onnx_graph, onnx_program, stablehlo
from kd_jax.exports.program import FOR_XLA_ON_CPU, normalised, program
from kd_jax.prediction.student import Architecture
from kd_jax.runtime.errors import UserError

NEAR = 1e-4


def session(students):
  pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
  onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
  content, said = onnx_program.encode(students)
  assert said["opset"] == onnx_graph.OPSET == 18
  return onnxruntime.InferenceSession(content)


def run_onnx(session, image, mean, deviation):
  return session.run(
    ["probabilities", "regions"], {"image": image, "mean": mean, "deviation": deviation}
  )


def run_here(students, *inputs):
  """By the forms that kd_jax's own prediction on CPU takes."""
  own = program(students, FOR_XLA_ON_CPU)
  return [np.asarray(x) for x in jax.jit(own.run)(own.parameters, *inputs)]


def of_network(network: str, filters: tuple[int, ...], attention: str):
  student = make_student()
  architecture = Architecture(("t1ce", "flair"), filters, attention, network)
  params = architecture.framework().init(jax.random.key(3))["student"]
  params.pop("side_heads", None)
  return dataclasses.replace(student, architecture=architecture, params=params)


def windows(batch: int, channels: int, side: int = 16):
  rng = np.random.default_rng(batch)
  image = rng.uniform(1, 900, (batch, channels, side, side, side)).astype(np.float32)
  image[rng.random(image.shape) < 0.3] = 0
  image[:, :, :4] = 0
  mean = rng.uniform(300, 500, (batch, channels)).astype(np.float32)
  return image, mean, (mean / 2).astype(np.float32)


NETWORKS = [
  ("resunet", (4, 4, 8, 8), "channel"),
  pytest.param(("resunet", (4, 4, 8, 8), "cbam"), marks=pytest.mark.slow),
  pytest.param(("resenc", (4, 4, 8), "channel"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda own: f"{own[0]}-{own[2]}")
def test_onnx_gives_what_the_network_gives_for_any_batch(network):
  students = [of_network(*network)]
  loaded, inputs = session(students), windows(3, 2)
  probabilities, regions = here = run_here(students, *inputs)
  alone = [run_onnx(loaded, *(x[i : i + 1] for x in inputs)) for i in range(3)]
  for i, own in enumerate(here):
    together = run_onnx(loaded, *inputs)[i]
    assert together.shape == own.shape
    np.testing.assert_allclose(together, own, atol=NEAR)
    np.testing.assert_allclose(np.concatenate([x[i] for x in alone]), own, atol=NEAR)
  assert probabilities.std(axis=(0, 2, 3, 4)).max() > 0.01  # numbers that could differ
  _, ncr, ed, et = np.moveaxis(probabilities, 1, 0)
  np.testing.assert_allclose(regions, np.stack([ncr + ed + et, ncr + et, et], 1), atol=1e-6)
  np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_members():
  students = [make_student(0), make_student(1)]
  inputs = windows(2, 1)
  each = [run_onnx(session([student]), *inputs) for student in students]
  assert np.abs(each[0][0] - each[1][0]).max() > 0.05
  both = run_onnx(session(students), *inputs)
  for i in range(2):
    np.testing.assert_allclose(both[i], (each[0][i] + each[1][i]) / 2, atol=1e-6)


def test_stablehlo_is_one_file_for_cpu_gpu_and_tpu():
  """The numbers are held against those of the other format."""
  students = [make_student()]
  content, said = stablehlo.encode(students)
  loaded = jax_export.deserialize(bytearray(content))
  assert loaded.platforms == ("cpu", "cuda", "tpu") == tuple(said["platforms"])
  inputs = windows(2, 1)
  found = jax.jit(loaded.call)(*inputs)
  for x, y in zip(found, run_onnx(session(students), *inputs), strict=True):
    np.testing.assert_allclose(x, y, atol=NEAR)


@pytest.mark.slow
def test_stablehlo_holds_the_weights_once():
  """Two forms of the network for two kinds of device, and one set of numbers for both."""
  student = of_network("resunet", (8, 16, 32, 64), "channel")
  content, _ = stablehlo.encode([student])
  assert len(content) < 1.3 * sum(np.asarray(x).nbytes for x in jax.tree.leaves(student.params))


@pytest.mark.parametrize("how", ["zscore", "paper"])
def test_the_program_normalises_as_preparation_does(how):
  x = images(shape=(20, 22, 18))["t1ce"]
  prepared, grid = preprocess.to_arrays({"t1ce": PlainImage(x, (3.0, 3.0, 3.0))}, "brain", how, 3.0)
  crop = x[grid.box].astype(np.float32)
  inside = crop[crop != 0]
  mean = inside.mean(dtype=np.float64) if how == "zscore" else crop.min() / crop.max() + crop.min()
  deviation = inside.std(dtype=np.float64) if how == "zscore" else 1.0
  numbers = [np.full((1, 1), n, np.float32) for n in (mean, deviation)]
  own = jax.jit(normalised, static_argnums=3)(crop[None, None], *numbers, how)
  # Of the published form, min / max and min are subtracted at once: a rounding less.
  np.testing.assert_allclose(own[0], prepared, rtol=0 if how == "zscore" else 1e-6)


def test_what_is_normalised_already_stays():
  """A scan that was resampled: mean 0 and deviation 1."""
  z = np.random.default_rng(0).normal(size=(1, 1, 8, 8, 8)).astype(np.float16).astype(np.float32)
  zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
  np.testing.assert_array_equal(normalised(z, zero, one, "zscore"), z)


def test_onnx_on_a_real_scan():
  """Windows of a patient's brain, as they stand in the file."""
  path = sorted(brats_root().glob("BraTS2018/*/*_t1ce.nii*"))[0]
  scan = nifti.read(path).data.astype(np.float32)
  inside = scan[scan != 0]
  numbers = [np.full((2, 1), n, np.float32) for n in (inside.mean(), inside.std())]
  places = [(100, 100, 60), (60, 90, 80)]
  crops = [scan[tuple(slice(a, a + 32) for a in place)] for place in places]
  image = np.stack(crops)[:, None]
  assert (image != 0).mean() > 0.5
  own = make_student()
  preparation = dataclasses.replace(own.preparation, patch=(32, 32, 32))
  student = dataclasses.replace(own, preparation=preparation)
  found = run_onnx(session([student]), image, *numbers)
  for x, y in zip(found, run_here([student], image, *numbers), strict=True):
    np.testing.assert_allclose(x, y, atol=NEAR)


# --- The writer of ONNX ---------------------------------------------------------------------------


def written(function, *shapes):
  onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
  closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))
  graph = onnx_graph.Graph(onnx, batch_of="x0")
  names = [f"x{i}" for i in range(len(shapes))]
  symbols = [onnx_graph.Symbol(name) for name in names]
  results = onnx_graph.write(graph, closed, symbols, onnx_program.LOWERINGS)
  shape = closed.out_avals[0].shape
  return graph.model(dict(zip(names, shapes, strict=True)), {"y": shape}, results, "0")


PIECES = {
  "a slice": (lambda x: x[:, 1:4:2, ::3], (2, 5, 7)),
  "padding": (lambda x: jax.numpy.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=3.0), (2, 3, 4)),
  "broadcasting": (lambda x: jax.numpy.broadcast_to(x[:, None, :], (2, 6, 3)) * x.sum(), (2, 3)),
  "a product from the right": (lambda x: jax.numpy.einsum("ab,cb->ac", x, x), (4, 3)),
  "extremes": (lambda x: x.min(axis=1) - x.max(axis=1), (3, 5)),
  "functions": (lambda x: jax.numpy.tanh(x) + jax.numpy.sqrt(abs(x)) - jax.nn.sigmoid(x), (3, 5)),
  "a choice": (lambda x: jax.numpy.where((x < 0.5) & (x != 0.1), -x, x**2), (3, 5)),
  "a sum over two axes": (lambda x: x.sum(axis=(0, 2)), (3, 5, 2)),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_functions(name):
  function, shape = PIECES[name]
  onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
  try:
    content = written(function, shape)
  except UserError as e:  # said, not written wrong
    assert name == "a choice" and "computes and, which" in str(e)
    return
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  (y,) = onnxruntime.InferenceSession(content).run(None, {"x0": x})
  np.testing.assert_allclose(y, function(x), rtol=1e-5, atol=1e-6)


REFUSED = {
  "computes sort, which": lambda x: jax.numpy.sort(x),
  "a power other than 2": lambda x: x**3,
  "a precision other than float16's": lambda x: jax.lax.reduce_precision(x, 8, 7),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_does_not_know_is_named(message):
  with pytest.raises(UserError, match=message):
    written(REFUSED[message], (2, 3))


def test_without_onnx_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "onnx", None)
  with pytest.raises(UserError, match=r"needs the package onnx: pip install 'kd_jax\[onnx\]'"):
    onnx_program.encode([make_student()])
