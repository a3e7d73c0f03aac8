"""What a predictor decides: where its result lies, sequences, the window, too little memory."""

import dataclasses

import jax
import numpy as np
import pytest
from students import make_student
from synthetic import write

from kd_jax.data.cases import loose_case
from kd_jax.data.preprocess import PlainImage
from kd_jax.models import conv_choice
from kd_jax.prediction import predictor as predictor_module
from kd_jax.prediction import sliding_window
from kd_jax.prediction.predictor import Prediction, Predictor, Prepared
from kd_jax.prediction.student import Architecture
from kd_jax.runtime import cuda
from kd_jax.runtime.errors import CaseError, ConfigError, UserError
from kd_jax.settings.inference import MinimumSizes

SHAPE = (12, 10, 9)
BRAIN = (slice(2, 11), slice(1, 9), slice(3, 9))


def image(seed: int) -> PlainImage:
  data = np.zeros(SHAPE, np.int16)
  data[BRAIN] = np.random.default_rng(seed).integers(100, 900, data[BRAIN].shape)
  return PlainImage(data)


def test_what_is_said_of_the_brain_lies_where_it_was_and_all_else_is_background():
  prepared = Predictor([make_student()]).prepare({"t1ce": image(0)})
  assert prepared.grid.box == BRAIN
  p = np.random.default_rng(1).dirichlet(np.ones(4), prepared.grid.shape)
  prediction = Prediction(np.moveaxis(p, -1, 0).astype(np.float32), prepared, MinimumSizes())

  classes = np.zeros(SHAPE)
  classes[BRAIN] = p.argmax(-1)
  np.testing.assert_array_equal(prediction.classes(), classes)
  assert prediction.classes().dtype == np.uint8
  maps = prediction.regions()
  for region, of in {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}.items():
    expected = np.zeros(SHAPE)
    expected[BRAIN] = p[..., of].sum(-1)
    np.testing.assert_allclose(maps[region], expected, atol=1e-6, err_msg=region)
  assert maps.keys() == {"WT", "TC", "ET"}


def test_sequences_come_in_the_student_s_order_and_others_are_passed_over():
  student = make_student(modalities=("t2", "t1ce"))
  given = {"flair": image(0), "t1ce": image(1), "t2": image(2)}
  prepared = Predictor([student]).prepare(given)
  assert prepared.reference is given["t2"]
  for array, name in zip(prepared.images, ("t2", "t1ce"), strict=True):
    brain = given[name].data[BRAIN].astype(float)
    np.testing.assert_allclose(array, (brain - brain.mean()) / brain.std(), atol=2e-3)


def test_a_sequence_without_a_file_is_named(tmp_path):
  case = loose_case("scan", {"t2": tmp_path / "scan-t2w.nii.gz"})
  with pytest.raises(CaseError, match="no t1ce image"):
    Predictor([make_student()]).load(case, print)


def test_what_speaks_against_a_scan_is_told_with_the_scan_s_name(tmp_path):
  axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 36, 27)), indexing="ij")
  brain = sum(x**2 for x in axes) < 0.8
  noise = np.random.default_rng(0).normal(400, 40, brain.shape)
  path = write(tmp_path / "scan.nii.gz", np.int16(brain * noise), np.diag([-5.0, -5, 5, 1]))
  told = []
  Predictor([make_student(spacing=5.0)]).load(loose_case("scan", {"t1ce": path}), told.append)
  (line,) = [line for line in told if "5 x 5 x 5 mm" in line]
  assert line.startswith("warning: scan (scan.nii.gz): ")


def prepared_of(*shape: int) -> Prepared:
  return Prepared(np.zeros((1, *shape), np.float32), None, None)


@pytest.mark.parametrize(("asked", "whole"), [("auto", True), ("whole", True), ("sliding", False)])
def test_the_window_that_memory_allows(monkeypatch, asked, whole):
  """One voxel more than there is memory for, of the largest of the students, is too much."""
  small = make_student()
  wide = dataclasses.replace(small.architecture, filters=(8, 8, 16, 16))
  large = dataclasses.replace(
    small, architecture=wide, params=wide.framework().init(jax.random.key(0))["student"]
  )
  per_voxel = wide.kind.bytes_per_channel * 8
  assert per_voxel > small.architecture.kind.bytes_per_channel * 4
  for missing in (0, 1):
    memory = per_voxel * 64 * 48 * 40 - missing
    monkeypatch.setattr(predictor_module, "free_memory", lambda memory=memory: memory)
    for students in ([small, large], [large, small]):
      window = Predictor(students, window=asked).window(prepared_of(64, 47, 33))
      fits = whole and not (missing and asked == "auto")
      assert window == ((64, 48, 40) if fits else (16, 16, 16))


def test_what_the_compiler_is_told(monkeypatch):
  """By the table, or as asked; what is wrong with the machine is to be said before predictions."""
  assert Predictor([make_student()]).compiler_options == ()
  monkeypatch.setattr(cuda, "capability", lambda device: (9, 0))
  monkeypatch.setattr(cuda, "cudnn", lambda: (9, 10, 2))
  monkeypatch.setattr(conv_choice, "of_device", lambda device: conv_choice.of_platform("gpu"))
  monkeypatch.setattr(Architecture, "framework", Architecture.framework.__wrapped__)  # no cache
  usual = Predictor([make_student()])
  assert usual.compiler_options == (("xla_gpu_force_conv_nhwc", True),)
  assert len(usual.notes) == 1 and "cuDNN 9.10.2" in usual.notes[0]
  assert Predictor([make_student()], compiler_options="none").compiler_options == ()
  unknown = Predictor([make_student()], compiler_options="xla_no_such=1")
  assert unknown.compiler_options == usual.compiler_options and "xla_no_such" in unknown.notes[0]
  with pytest.raises(ConfigError, match="compiler_options = 'fast'"):
    Predictor([make_student()], compiler_options="fast")


@pytest.mark.parametrize("said", ["RESOURCE_EXHAUSTED: 9 GB", "INTERNAL: Out of memory on GPU"])
def test_too_little_memory_is_said_with_the_remedy(monkeypatch, said):
  def fails(*args):
    raise jax.errors.JaxRuntimeError(said)

  monkeypatch.setattr(sliding_window, "predict", fails)
  with pytest.raises(UserError, match=r"a window of \(24, 16, 8\) voxels; use --window=sliding"):
    Predictor([make_student()], window="whole").probabilities(prepared_of(24, 10, 8))
  with pytest.raises(
    UserError, match=r"a window of \(16, 16, 16\) voxels; end other.*=cpu"
  ) as error:
    Predictor([make_student()], window="sliding").probabilities(prepared_of(24, 10, 8))
  assert "--window=sliding" not in str(error.value)  # it slides already


def test_any_other_error_of_the_device_stays_what_it_is(monkeypatch):
  def fails(*args):
    raise jax.errors.JaxRuntimeError("INTERNAL: ptxas failed")

  monkeypatch.setattr(sliding_window, "predict", fails)
  with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
    Predictor([make_student()]).probabilities(prepared_of(16, 16, 16))
