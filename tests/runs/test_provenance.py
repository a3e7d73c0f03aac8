"""What is kept of how a run was made."""

import json
import subprocess

import jax
import pytest

import kd_jax
from kd_jax.runs import provenance


def git(folder, *arguments):
  name = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
  subprocess.run(["git", "-C", str(folder), *name, *arguments], check=True, capture_output=True)


def test_every_start_is_recorded(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
  monkeypatch.setenv("HOME_SECRET", "x")
  provenance.record(tmp_path, step=0, seed=7)
  provenance.record(tmp_path, step=12, seed=7)
  first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
  assert (first["step"], second["step"], second["seed"]) == (0, 12, 7)
  assert first["kd_jax"] == kd_jax.__version__
  assert first["packages"]["jax"] == jax.__version__ and all(first["packages"].values())
  assert first["devices"]["count"] == jax.device_count()
  assert first["environment"]["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
  assert "HOME_SECRET" not in first["environment"]


def test_what_is_known_later_joins_the_latest_start(tmp_path):
  provenance.record(tmp_path, step=0)
  provenance.record(tmp_path, step=5, remat="none")
  provenance.amend(tmp_path, remat="norms", step_bytes=7)
  first, second = json.loads((tmp_path / "run.json").read_text())["starts"]
  assert "step_bytes" not in first
  assert (second["step"], second["remat"], second["step_bytes"]) == (5, "norms", 7)
  for spoilt in ('{"starts": []}', "{"):
    (tmp_path / "run.json").write_text(spoilt)
    provenance.amend(tmp_path, remat="none")
    assert (tmp_path / "run.json").read_text() == spoilt


def test_a_spoilt_record_is_begun_anew(tmp_path):
  (tmp_path / "run.json").write_text('{"starts"')
  provenance.record(tmp_path, step=3)
  assert [x["step"] for x in json.loads((tmp_path / "run.json").read_text())["starts"]] == [3]


def test_the_source_s_commit_and_whether_it_was_changed(tmp_path):
  try:
    git(tmp_path, "init")
  except OSError:
    pytest.skip("no git")
  package = tmp_path / "package"
  package.mkdir()
  (package / "__init__.py").touch()
  assert provenance.git_state(package) is None  # as in a virtual environment
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-m", "first")
  state = provenance.git_state(package)
  assert len(state["commit"]) == 40 and state["modified"] is False
  (package / "__init__.py").write_text("x = 1")
  assert provenance.git_state(package) == state | {"modified": True}
  assert provenance.source({"git": state | {"modified": True}}).endswith("with changes")
  assert provenance.git_state(tmp_path / "nowhere") is None
