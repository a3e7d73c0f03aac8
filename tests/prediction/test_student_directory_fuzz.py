"""A shared student from a stranger: opened or refused in words, and nothing else is touched."""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from students import make_student

from kd_jax.data.subjects import read_subjects
from kd_jax.prediction.student_directory import export
from kd_jax.runs.students import open_student
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import MOST_BYTES

MORE = int(os.environ.get("KD_JAX_FUZZ", "0"))  # =20: twenty times as many, other ones each time
FILES = ("model.json", "subjects.json", "weights.safetensors")


def tries(examples: int):
  return settings(
    max_examples=examples * max(MORE, 1), derandomize=not MORE, deadline=None, database=None
  )


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("original") / "student"
  export(make_student(), folder)
  open_student(folder)  # what is imported is imported
  return folder


@pytest.fixture(scope="module")
def place(original, tmp_path_factory) -> Path:
  """Where altered copies lie."""
  folder = tmp_path_factory.mktemp("place") / "student"
  shutil.copytree(original, folder)
  return folder


# What the process opens, runs and changes while it is watched. A hook cannot be taken away again.
WATCHED: list[tuple[str, tuple]] | None = None
EVENTS = ("open", "os.", "shutil.", "subprocess.", "socket.", "exec", "import", "pickle.")


def _hook(event, arguments):
  if WATCHED is not None and event.startswith(EVENTS):
    WATCHED.append((event, arguments))


sys.addaudithook(_hook)


@contextlib.contextmanager
def nothing_but(folder: Path):
  """Fails if anything but the folder's own files is opened, or anything is written or run."""
  global WATCHED
  WATCHED = events = []
  try:
    yield
  finally:
    WATCHED = None
  own = {str(folder / name) for name in FILES}
  installed = (sys.prefix, sys.base_prefix)
  for event, arguments in events:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
      path, _, how = arguments
      read_only = not how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      library = os.fsdecode(path).startswith(installed)
      assert read_only and (os.fsdecode(path) in own or library), (event, arguments)
    elif event == "import":  # a library's own late import is none that a file could ask for
      assert arguments[0].split(".")[0] in sys.modules, arguments
    else:
      assert event in ("open", "exec"), (event, arguments)


def outcome(folder: Path) -> str | None:
  """What is said against it; None if it is opened."""
  with nothing_but(folder):
    try:
      student = open_student(folder)
    except UserError as e:
      assert str(folder) in str(e)
      return str(e)
  assert student.digest() == make_student().digest()
  return None


def places(value, prefix=()) -> list[tuple]:
  """The keys that lead to every part of nested JSON."""
  pairs = value.items() if isinstance(value, dict) else enumerate(value)
  found = []
  for key, inner in pairs:
    found.append((*prefix, key))
    if isinstance(inner, dict | list):
      found += places(inner, (*prefix, key))
  return found


def replaced(content, path: tuple, value):
  content = inner = copy.deepcopy(content)
  for key in path[:-1]:
    inner = inner[key]
  inner[path[-1]] = value
  return content


PATHS = ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "~/.ssh/id_rsa", "http://a.invalid/x"]
CODE = ["__import__('os').system('true')", "os", "kd_jax.train:train", "${HOME}", "{0.__class__}"]
ODD = st.one_of(
  st.sampled_from([0, -1, 1, 3, 8, 10**9, 10**400, 2**63, 0.5, -0.5, 1e308, None, True, False]),
  st.sampled_from([float("nan"), float("inf"), -float("inf")]),
  st.sampled_from([*PATHS, *CODE, "", "\ud800", "t1", "x" * 500]),
  st.sampled_from([[], {}, [1], ["t1", "t1"], [10**9] * 4, [8] * 3, [-8] * 3, [0] * 3]),
  st.text(max_size=5),
  st.recursive(st.none() | st.integers(), lambda x: st.lists(x, max_size=2), max_leaves=4),
)


@given(st.data())
@tries(60)
def test_an_altered_model_json(original, place, data):
  model = json.loads((original / "model.json").read_text())
  for _ in range(data.draw(st.integers(1, 2))):
    path = data.draw(st.sampled_from(places(model)))
    model = replaced(model, path, data.draw(ODD))
  (place / "model.json").write_text(json.dumps(model))
  shutil.copy(original / "weights.safetensors", place)
  outcome(place)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("architecture.filters", [10**9] * 4, "architecture.filters = 1000000000 is not between 4"),
    ("architecture.filters", [-4, 4, 8, 8], "architecture.filters = -4"),
    ("architecture.filters", "many", "expected a list"),
    ("architecture.filters", [4, 4, 8, "8"], "of type int"),
    ("architecture.modalities", ["ct"], "known: flair, t1, t1ce, t2"),
    ("architecture.modalities", ["t1"] * 1000, "twice"),
    ("architecture.modalities", [], "name one modality at least"),
    ("architecture.code", "os.system", "unknown setting"),
    ("preparation.patch", [1 << 20] * 3, "preparation.patch = 1048576 is not between 8 and 1024"),
    ("preparation.patch", [0, 8, 8], "preparation.patch"),
    ("preparation.spacing", 1e-9, "between 0.1 and 20"),
    ("preparation.spacing", float("nan"), "between 0.1 and 20"),
    ("inference.overlap", 0.9999999, "inference.overlap"),
    ("inference.overlap", float("nan"), "inference.overlap"),
    ("training", [], "damaged or was edited"),
    ("training.convention", "../../x", "training.convention"),
    ("scores", "high", "damaged or was edited"),
    ("weights", None, "damaged or was edited"),
    ("weights.sha256", ["a"], "checksum"),
    ("format", {"__class__": "os.system"}, "has format"),
  ],
)
def test_what_is_wrong_with_a_model_json_is_said(original, place, path, value, message):
  model = json.loads((original / "model.json").read_text())
  (place / "model.json").write_text(json.dumps(replaced(model, tuple(path.split(".")), value)))
  shutil.copy(original / "weights.safetensors", place)
  assert message in outcome(place)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b"\xff\xfe{}", "cannot read"),
    (b"", "cannot read"),
    (b"1" * 5000, "cannot read"),
    (b"null", "no JSON object"),
  ],
)
@pytest.mark.parametrize("name", ["model.json", "subjects.json"])
def test_what_is_no_json_object(original, tmp_path, name, content, message):
  folder = tmp_path / "student"
  shutil.copytree(original, folder)
  (folder / name).write_bytes(content)
  said = outcome(folder)
  assert message in said or (name == "subjects.json" and "no list of training subjects" in said)


@pytest.mark.parametrize("name", FILES)
def test_files_without_end_are_not_read(original, tmp_path, name):
  folder = tmp_path / "student"
  shutil.copytree(original, folder)
  (folder / name).unlink()
  with open(folder / name, "wb") as file:
    file.truncate(MOST_BYTES * 1000)  # of zeros, which take no place on the disk
  assert "bytes, and at most" in outcome(folder)
  (folder / name).unlink()
  os.mkfifo(folder / name)
  assert outcome(folder)  # and is not waited for


# Weights


def safetensors_file(header: dict | bytes, content=b"", length: int | None = None) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def weigh(original: Path, place: Path, content: bytes) -> str | None:
  """The outcome with these weights, and their checksum in model.json."""
  (place / "weights.safetensors").write_bytes(content)
  model = json.loads((original / "model.json").read_text())
  model["weights"]["sha256"] = hashlib.sha256(content).hexdigest()
  (place / "model.json").write_text(json.dumps(model))
  return outcome(place)


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CRAFTED = {
  "a header of 2^60 bytes": safetensors_file({}, length=1 << 60),
  "a header of 2^64 - 1 bytes": safetensors_file({}, length=(1 << 64) - 1),
  "no header": b"",
  "half a length": b"\x10\0\0",
  "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
  "a zip, as torch.save writes": b"PK\x03\x04" + bytes(100),
  "no JSON": safetensors_file(b"{" * 100),
  "nested without end": safetensors_file(b'{"a":' * 50_000),
  "overlapping": safetensors_file({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)),
  "beyond the end": safetensors_file({"a": tensor(offsets=(0, 1 << 40))}, bytes(8)),
  "backwards": safetensors_file({"a": tensor(offsets=(8, 0))}, bytes(8)),
  "another size than its shape": safetensors_file({"a": tensor(shape=(1 << 40,))}, bytes(8)),
  "a size that overflows": safetensors_file({"a": tensor(shape=(1 << 32, 1 << 32, 2))}, bytes(8)),
  "a hole": safetensors_file({"a": tensor(offsets=(4, 12))}, bytes(12)),
  "an unknown type": safetensors_file({"a": tensor("OBJ")}, bytes(8)),
  "bfloat16": safetensors_file({"a": tensor("BF16", (4,))}, bytes(8)),
  "float8": safetensors_file({"a": tensor("F8_E4M3", (8,))}, bytes(8)),
  "a path as a name": safetensors_file({"../../a": tensor()}, bytes(8)),
  "a name below another": safetensors_file(
    {"a": tensor(), "a/b": tensor(offsets=(8, 16))}, bytes(16)
  ),
  "no name": safetensors_file({"": tensor()}, bytes(8)),
  "none": safetensors_file({}),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_weights(original, place, name):
  assert "weights.safetensors" in weigh(original, place, CRAFTED[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.int8, np.bool_])
def test_weights_of_another_type(original, place, dtype):
  arrays = safetensors.numpy.load_file(original / "weights.safetensors")
  arrays["head/kernel"] = arrays["head/kernel"].astype(dtype)
  assert "expected float32" in weigh(original, place, safetensors.numpy.save(arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(original, place, value):
  arrays = safetensors.numpy.load_file(original / "weights.safetensors")
  arrays["head/kernel"] = np.full_like(arrays["head/kernel"], value)
  assert "NaN or infinite" in weigh(original, place, safetensors.numpy.save(arrays))


@given(st.data())
@tries(50)
def test_altered_weights(original, place, data):
  content = bytearray((original / "weights.safetensors").read_bytes())
  header = 8 + int.from_bytes(content[:8], "little")
  for _ in range(data.draw(st.integers(1, 3))):
    at = data.draw(st.integers(0, min(header, len(content))))
    what = data.draw(st.sampled_from(["set", "cut", "insert"]))
    if what == "cut":
      del content[at : data.draw(st.integers(at, len(content)))]
    elif what == "set":
      content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    else:
      content[at:at] = data.draw(st.binary(max_size=9))
  try:
    weigh(original, place, bytes(content))
  except AssertionError as e:  # a changed number is a student too, another one
    assert "digest" in str(e)


# Subjects


@given(st.data())
@tries(100)
def test_altered_subjects(original, place, data):
  subjects = json.loads((original / "subjects.json").read_text())
  path = data.draw(st.sampled_from(places(subjects)))
  file = place / "altered.json"
  file.write_text(json.dumps(replaced(subjects, path, data.draw(ODD))))
  try:
    train, val = read_subjects(file)
  except UserError as e:
    assert "altered.json" in str(e)
  else:
    assert all(isinstance(s.name, str) for s in train + val)
