"""hf://OWNER/NAME@REVISION, with a cache laid out as huggingface_hub lays it; no network."""

import hashlib
import importlib
import os
import socket
from pathlib import Path

import pytest
from students import make_student

from kd_jax.prediction.student_directory import export
from kd_jax.runs import hub
from kd_jax.runs.students import open_students
from kd_jax.runtime.errors import ConfigError, UserError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")
constants = importlib.import_module("huggingface_hub.constants")
errors = importlib.import_module("huggingface_hub.errors")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
  """An empty cache, and HF_HUB_OFFLINE."""
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return tmp_path / "hub"


@pytest.fixture
def held(cache, tmp_path) -> Path:
  """The snapshot of owner/name in the cache: blobs, refs and links."""
  export(make_student(), tmp_path / "student", card="# card")
  place = cache / "models--owner--name"
  snapshot = place / "snapshots" / COMMIT
  for folder in (snapshot, place / "blobs", place / "refs"):
    folder.mkdir(parents=True)
  (place / "refs" / "main").write_text(COMMIT)
  (place / "refs" / "v1").write_text(COMMIT)
  for path in (tmp_path / "student").iterdir():
    blob = hashlib.sha256(path.read_bytes()).hexdigest()
    (place / "blobs" / blob).write_bytes(path.read_bytes())
    os.symlink(f"../../blobs/{blob}", snapshot / path.name)
  return snapshot


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"])
def test_a_copy_is_read_without_network(held, revision):
  (student,) = open_students(f"hf://owner/name{revision}")
  assert student.digest() == make_student().digest()
  assert student.source == f"hf://owner/name@{COMMIT}"  # what a record needs to be repeated


def test_beside_other_students(held, tmp_path):
  export(make_student(1), tmp_path / "other")
  students = open_students([f"hf://owner/name@v1,{tmp_path / 'other'}"])
  assert [student.digest() for student in students] == [
    make_student(0).digest(),
    make_student(1).digest(),
  ]
  with pytest.raises(ConfigError, match="twice"):
    open_students("hf://owner/name@v1,hf://owner/name")


def test_what_is_not_here_and_cannot_be_fetched(held):
  for reference in ("hf://owner/name@v2", "hf://owner/other", f"hf://owner/name@{'f' * 40}"):
    with pytest.raises(UserError, match=r"is not on this machine, and HF_HUB_OFFLINE is set"):
      open_students(reference)


def test_without_a_network(cache, monkeypatch):
  """No connection can be made: one message, which says so."""

  def refuse(*_, **__):
    raise OSError("Network is unreachable")

  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setattr(socket, "create_connection", refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr(socket.socket, "connect", refuse)
  with pytest.raises(UserError, match=r"is not on this machine, and huggingface.co cannot be"):
    open_students("hf://owner/name")


def test_half_a_copy_is_named(held):
  (held / "weights.safetensors").unlink()
  with pytest.raises(UserError, match=r"no whole student: weights\.safetensors is missing in"):
    open_students("hf://owner/name")


def test_a_copy_that_was_tampered_with_is_named(held):
  blob = (held / "weights.safetensors").resolve()
  content = bytearray(blob.read_bytes())
  content[-1] ^= 1
  blob.write_bytes(content)
  with pytest.raises(UserError, match=r"weights\.safetensors is damaged: its checksum"):
    open_students("hf://owner/name")


def test_only_files_that_hold_no_code_are_asked_for(held, monkeypatch):
  asked = {}

  def download(name, **options):
    asked.update(options, name=name)
    return str(held)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  hub.fetch("hf://owner/name@feature/x")
  assert (asked["name"], asked["revision"]) == ("owner/name", "feature/x")
  assert sorted(asked["allow_patterns"]) == [
    *("README.md", "model.json", "subjects.json", "weights.safetensors")
  ]


ANSWERS = {
  "RevisionNotFoundError": "there is no such revision",
  "RepositoryNotFoundError": "there is no such model on huggingface.co, or it is private",
  "GatedRepoError": "is given on request",
  "HfHubHTTPError": "cannot be fetched: HfHubHTTPError: 500",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_hub_refuses_is_one_message(cache, monkeypatch, name):
  kind = getattr(errors, name)

  def refuse(*_, **__):
    error = kind.__new__(kind)
    Exception.__init__(error, "500")
    error.args = ("500",)
    raise error

  monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
  monkeypatch.setattr(kind, "__str__", lambda self: "500")
  with pytest.raises(UserError, match=ANSWERS[name]):
    hub.fetch("hf://owner/name@v9")


@pytest.mark.parametrize(
  "reference",
  ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://../x", "hf://a/b@../../x", "hf://a/b c"],
)
def test_what_is_no_reference_is_said(reference):
  with pytest.raises(ConfigError, match="expected hf://OWNER/NAME"):
    open_students(reference)


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
  with pytest.raises(UserError, match=r"huggingface-hub: pip install 'kd_jax\[hub\]'"):
    hub.fetch("hf://owner/name")
