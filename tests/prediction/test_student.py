"""Students: exported, read back, damaged, imported from PyTorch."""

import dataclasses
import hashlib
import json
import shutil
import sys
import types
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from runs import make_data, make_run
from students import make_student

from kd_jax.prediction import import_torch
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.prediction.student import Architecture, Preparation, Student
from kd_jax.prediction.student_directory import export
from kd_jax.runs.students import open_student, open_students
from kd_jax.runtime.errors import ConfigError, UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def shared(tmp_path) -> Path:
  export(make_student(), tmp_path / "shared")
  return tmp_path / "shared"


def test_what_is_exported_comes_back(shared):
  student, back = make_student(), open_student(shared)
  assert back.digest() == student.digest()
  for field in ("name", "architecture", "preparation", "inference", "training", "scores"):
    assert getattr(back, field) == getattr(student, field)
  assert sorted(p.name for p in shared.iterdir()) == [
    "model.json",
    "subjects.json",
    "weights.safetensors",
  ]


@pytest.mark.parametrize("convention", ["msd", '{"NCR": 1, "ED": 3, "ET": 2}'])
def test_a_student_keeps_the_label_convention_of_its_data(tmp_path, convention):
  student = make_student()
  own = dataclasses.replace(student, training=student.training | {"convention": convention})
  export(own, tmp_path)
  assert open_student(tmp_path).training["convention"] == convention


@pytest.mark.parametrize("convention", ["brats1999", '{"WT": 1}', "{", 7, None])
def test_a_student_of_an_unknown_convention_is_refused(shared, convention):
  edit(shared, lambda model: model["training"].update(convention=convention))
  with pytest.raises(UserError, match=r"model\.json is damaged or was edited"):
    open_student(shared)


def test_subjects_are_exported_as_digests(shared):
  assert "Clinic" not in (shared / "subjects.json").read_text()
  assert open_student(shared).train[0].images == {"t1ce": "ab" * 16}


def test_equal_architectures_share_programs():
  assert make_student(0).architecture.framework() is make_student(1).architecture.framework()


def test_another_student_is_not_overwritten(shared):
  export(make_student(), shared)  # the same one may be
  with pytest.raises(UserError, match="another student already"):
    export(make_student(seed=1), shared)


def edit(shared: Path, change) -> None:
  model = json.loads((shared / "model.json").read_text())
  change(model)
  (shared / "model.json").write_text(json.dumps(model))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m.update(format=99), "format 99"),
    (lambda m: m.pop("architecture"), "damaged or was edited"),
    (lambda m: m["architecture"].update(filters=[4, 4]), "expected 4 values"),
    (lambda m: m["architecture"].update(network="resenc"), "does not fit its network"),
    (lambda m: m["architecture"].pop("network"), "damaged or was edited"),
    (lambda m: m["architecture"].update(attention="gone"), "damaged or was edited"),
    (lambda m: m["architecture"].update(network="Other"), "unknown value 'Other'; known: resunet"),
    (lambda m: m["architecture"].update(filters=[4, 4, 8, 16]), "does not fit its network"),
    (lambda m: m["preparation"].update(spacing=-1.0), "damaged or was edited"),
    (lambda m: m["preparation"].update(grid="sphere"), "preparation.grid: unknown value 'sphere'"),
    (lambda m: m["inference"].update(window="guess"), "damaged or was edited"),
    (lambda m: m["weights"].update(sha256="0"), "checksum"),
    (lambda m: m["weights"].update(file="../../secret"), None),
  ],
)
def test_an_edited_model_is_named(shared, change, message):
  edit(shared, change)
  if message is None:  # the weights' place is fixed, whatever the file says
    assert open_student(shared).digest() == make_student().digest()
  else:
    with pytest.raises(UserError, match=message):
      open_student(shared)


def test_students_of_before_there_was_a_choice_of_networks_are_read(shared):
  def as_it_was(model):
    del model["architecture"]["network"]
    model["architecture"] = {"network": "ResUNet", **model["architecture"]}

  edit(shared, as_it_was)
  back = open_student(shared)
  assert back.architecture == make_student().architecture
  assert (back.architecture.network, back.digest()) == ("resunet", make_student().digest())


def residual_student() -> Student:
  """Of another network than make_student's, with another number of filters; the same input."""
  architecture = Architecture(("t1ce",), (4, 6, 8), "channel", "resenc")
  params = architecture.framework().init(jax.random.key(0))["student"]
  assert params.pop("side_heads")
  params = jax.tree.map(np.asarray, params)
  return dataclasses.replace(make_student(), architecture=architecture, params=params)


def test_a_student_of_another_network_is_exported_and_averaged_with_others(tmp_path, shared):
  student = residual_student()
  export(student, tmp_path / "residual")
  model = json.loads((tmp_path / "residual" / "model.json").read_text())
  assert model["architecture"] == {
    "modalities": ["t1ce"],
    "filters": [4, 6, 8],
    "attention": "channel",
    "network": "resenc",
  }
  back, other = open_students(f"{tmp_path / 'residual'},{shared}")
  assert (back.architecture, back.digest()) == (student.architecture, student.digest())

  image = np.random.default_rng(0).standard_normal((1, 15, 12, 16)).astype(np.float32)
  prepared = Prepared(image, None, None)
  each = [Predictor([one]).probabilities(prepared) for one in (back, other)]
  both = Predictor([back, other]).probabilities(prepared)
  np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-4)
  # A window of the whole volume suits both; of three stages, multiples of 4 are enough.
  assert Predictor([back], window="whole").window(prepared) == (16, 12, 16)
  assert Predictor([back, other], window="whole").window(prepared) == (16, 16, 16)


def test_a_student_s_patch_suits_its_network(tmp_path):
  export(residual_student(), tmp_path / "residual")  # of three stages: multiples of 4
  edit(tmp_path / "residual", lambda m: m["preparation"].update(patch=[20, 16, 16]))
  assert open_student(tmp_path / "residual").preparation.patch == (20, 16, 16)
  edit(tmp_path / "residual", lambda m: m["preparation"].update(patch=[18, 16, 16]))
  with pytest.raises(UserError, match="multiple of 4"):
    open_student(tmp_path / "residual")


def test_damaged_files_are_named(shared):
  weights = shared / "weights.safetensors"
  content = weights.read_bytes()
  weights.write_bytes(content[:-10])
  with pytest.raises(UserError, match=r"weights\.safetensors is damaged"):
    open_student(shared)
  weights.unlink()
  with pytest.raises(UserError, match=r"cannot read .*weights.safetensors"):
    open_student(shared)
  (shared / "model.json").write_text("[]")
  with pytest.raises(UserError, match="no JSON object"):
    open_student(shared)


def test_weights_of_another_shape_are_refused(shared):
  arrays = safetensors.numpy.load_file(shared / "weights.safetensors")
  arrays["head/kernel"] = arrays["head/kernel"][..., :2]
  content = safetensors.numpy.save(arrays)
  (shared / "weights.safetensors").write_bytes(content)
  edit(shared, lambda m: m["weights"].update(sha256=hashlib.sha256(content).hexdigest()))
  with pytest.raises(UserError, match="head/kernel is"):
    open_student(shared)


def test_folders_that_hold_no_student(tmp_path):
  with pytest.raises(UserError, match="no such checkpoint"):
    open_student(tmp_path / "none")
  with pytest.raises(UserError, match="holds no student"):
    open_student(tmp_path)
  with pytest.raises(ConfigError, match="names no run"):
    open_students(" , ")


def test_students_that_read_different_inputs_are_not_averaged(tmp_path):
  export(make_student(0), tmp_path / "a")
  export(make_student(1), tmp_path / "b")
  assert len(open_students(f"{tmp_path / 'a'}, {tmp_path / 'b'}")) == 2
  export(make_student(2, spacing=2.0), tmp_path / "c")
  with pytest.raises(UserError, match="cannot be averaged"):
    open_students(f"{tmp_path / 'a'},{tmp_path / 'c'}")


def test_a_student_has_one_vote(tmp_path):
  """A run and its export, or a copy: other places, the same weights."""
  export(make_student(0), tmp_path / "a")
  export(make_student(1), tmp_path / "b")
  shutil.copytree(tmp_path / "a", tmp_path / "copy")
  with pytest.raises(ConfigError, match=r"one student twice: \S*/a and \S*/copy have the same"):
    open_students([str(tmp_path / name) for name in ("a", "b", "copy")])


def test_a_cross_validation_s_folds_are_taken_and_no_other_folder(tmp_path):
  root, cv, told = make_data(tmp_path / "data"), tmp_path / "cv", []
  for fold in (2, 0):
    make_run(cv / f"fold{fold}", root, fold, seed=fold, folds=3)
  shutil.copytree(cv / "fold0", cv / "fold0_old")
  students = open_students(str(cv), told.append)
  assert [Path(student.source).name for student in students] == ["fold0", "fold2"]
  (line,) = told
  assert line == (
    f"warning: {cv} has 2 of 3 folds: fold0, fold2; without fold1 it is no finished "
    "cross-validation"
  )
  make_run(cv / "fold1", root, 1, seed=1, folds=3)
  assert len(open_students(str(cv), told.append)) == 3 and len(told) == 1


# --- PyTorch ----------------------------------------------------------------------------------


def golden_parameters() -> dict[str, np.ndarray]:
  """The student of a golden case, from its parameters' names (docs/method.md, "Golden cases")."""
  shapes = json.loads((GOLDEN / "t1ce_kd.json").read_text())["parameter_shapes"]["student"]
  arrays = {}
  for name, shape in shapes.items():
    seed = zlib.crc32(f"student/{name}".encode())
    r = np.random.RandomState(seed).standard_normal(shape)
    if len(shape) > 1:
      r = r * np.sqrt(1 / np.prod(shape[1:]))
    else:
      r = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
    arrays[name] = r.astype(np.float32)
  return arrays


def test_a_published_student_becomes_ours(tmp_path):
  student = import_torch.from_state_dict(golden_parameters(), Path("student.pth"), "t1ce")
  assert student.architecture == Architecture(("t1ce",), (8, 16, 32, 64), "channel")
  assert student.preparation == Preparation("paper", "paper", 1.0, (128, 128, 128))
  export(student, tmp_path / "shared")
  back = open_student(tmp_path / "shared")
  golden = np.load(GOLDEN / "t1ce_kd.npz")
  settings = json.loads((GOLDEN / "t1ce_kd.json").read_text())
  image = golden["images"][:, settings["student_channel"]]  # (B, D, H, W)
  network = jax.jit(back.architecture.framework().network)
  logits = np.asarray(network(back.params, image[..., None].astype(np.float32)))
  expected = np.moveaxis(golden["logits/student"], 1, -1)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_misfits_are_named():
  arrays = golden_parameters()
  short = {k: v for k, v in arrays.items() if not k.startswith("upsample_1")}
  with pytest.raises(UserError, match="up2/upsample"):
    import_torch.from_state_dict(short, Path("a.pth"), "t1ce")
  with pytest.raises(UserError, match="is none of the published"):
    import_torch.from_state_dict(arrays | {"stray": np.zeros(3)}, Path("a.pth"), "t1ce")
  wrong = arrays | {"output_layer.weight": np.zeros((2, 8, 1, 1, 1), np.float32)}
  with pytest.raises(UserError, match="head/kernel"):
    import_torch.from_state_dict(wrong, Path("a.pth"), "t1ce")
  with pytest.raises(UserError, match="not the published student"):
    import_torch.from_state_dict({}, Path("a.pth"), "t1ce")
  flat = arrays | {"bridge.conv_block.2.weight": np.zeros((2, 3, 4), np.float32)}
  with pytest.raises(UserError, match="not the published student"):
    import_torch.from_state_dict(flat, Path("a.pth"), "t1ce")


@pytest.mark.parametrize("kind", ["running_mean", "running_var", "gamma", "weight_g"])
def test_statistics_of_a_batch_norm_are_no_scale(kind):
  """1-D arrays of another norm: the published network has none of them."""
  arrays = golden_parameters()
  scale = arrays["bridge.conv_block.0.weight"]
  for change in (
    arrays | {f"bridge.conv_block.0.{kind}": scale * 7},
    {k: v for k, v in arrays.items() if k != "bridge.conv_block.0.weight"}
    | {f"bridge.conv_block.0.{kind}": scale},
  ):
    with pytest.raises(UserError, match=rf"0\.{kind}' is none of the published network's"):
      import_torch.from_state_dict(change, Path("a.pth"), "t1ce")


class _FakeTensor:
  def __init__(self, array, dtype="float32"):
    self.array, self.dtype = array, dtype

  def is_floating_point(self):
    return "float" in self.dtype

  def detach(self):
    return self

  def to(self, _):
    return self

  def numpy(self):
    return self.array


def _torch(monkeypatch, load):
  fake = types.SimpleNamespace(load=load, Tensor=_FakeTensor, float32="float32")
  monkeypatch.setitem(sys.modules, "torch", fake)


ADVICE = (
  "Weights only load failed. This file can still be loaded, to do so you have two options, do "
  "those steps only if you trust the source of the checkpoint. \n\t(1) ... setting `weights_only` "
  "to `False` will likely succeed, but it can result in arbitrary code execution.\n\t"
  "WeightsUnpickler error: Unsupported global: GLOBAL monai.networks.nets.unet.UNet was not allowed"
)


@pytest.mark.parametrize("text", [ADVICE, "PytorchStreamReader failed reading zip archive", ""])
def test_advice_to_run_a_file_s_code_is_not_passed_on(tmp_path, monkeypatch, text):
  def load(*_, **options):
    assert options["weights_only"] is True
    raise RuntimeError(text)

  _torch(monkeypatch, load)
  (tmp_path / "s.pth").write_bytes(b"x")
  with pytest.raises(UserError, match="plain weights") as error:
    import_torch.read(tmp_path / "s.pth")
  said = str(error.value)
  assert "weights_only" not in said and "can still be loaded" not in said
  assert ("monai.networks.nets.unet.UNet" in said) == (text == ADVICE)


@pytest.mark.parametrize(
  ("names", "dtype", "message"),
  [(["module.a.weight", "a.weight"], "float32", "twice"), (["a.weight"], "int8", "holds int8")],
)
def test_what_a_file_says_twice_or_in_other_numbers(tmp_path, monkeypatch, names, dtype, message):
  tensors = {name: _FakeTensor(np.zeros(3, np.float32), dtype) for name in names}
  _torch(monkeypatch, lambda *_, **__: tensors)
  (tmp_path / "s.pth").write_bytes(b"x")
  with pytest.raises(UserError, match=message):
    import_torch.read(tmp_path / "s.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pth_files(tmp_path, prefix, wrapped):
  torch = pytest.importorskip("torch")
  arrays = golden_parameters()
  state = {prefix + name: torch.from_numpy(x) for name, x in arrays.items()}
  torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "s.pth")
  read = import_torch.read(tmp_path / "s.pth")
  assert read.keys() == arrays.keys()
  np.testing.assert_array_equal(
    read["bridge.conv_block.2.weight"], arrays["bridge.conv_block.2.weight"]
  )


class Trap:
  def __reduce__(self):
    import os

    return (os.mkdir, ("trapped",))


def test_pth_files_cannot_run_code(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  monkeypatch.chdir(tmp_path)
  torch.save({"student": Trap()}, tmp_path / "trap.pth")
  with pytest.raises(UserError, match="plain weights"):
    import_torch.read(tmp_path / "trap.pth")
  assert not (tmp_path / "trapped").exists()
  (tmp_path / "text.pth").write_text("no weights")
  with pytest.raises(UserError, match="plain weights"):
    import_torch.read(tmp_path / "text.pth")
  torch.save([1, 2], tmp_path / "list.pth")
  with pytest.raises(UserError, match="no state_dict"):
    import_torch.read(tmp_path / "list.pth")
