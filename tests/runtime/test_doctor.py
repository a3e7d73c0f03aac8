"""What the doctor says of machines that lack something, each made by a limit or a stand-in."""

import errno
import resource
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import jax
import pytest

from kd_jax.runtime import cuda, doctor, machine, startup
from kd_jax.runtime.doctor import FAIL, NOTE, OK, SLOW, Finding
from kd_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


def found(check, folder=Path("runs")) -> list[Finding]:
  return list(doctor._findings(check, folder))


def only(check, level, words, folder=Path("runs")) -> None:
  (finding,) = found(check, folder)
  assert finding.level == level and words in finding.words, finding


@pytest.fixture
def disk(monkeypatch):
  """Gives every folder this many free bytes."""
  return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, free))


class Device:
  """A device of JAX, as far as the doctor looks at it."""

  def __init__(self, platform="gpu", compute_capability="9.0", limit=80_000_000_000):
    self.platform, self.compute_capability = platform, compute_capability
    self.device_kind, self.limit = "NVIDIA X", limit

  def memory_stats(self):
    return {"bytes_limit": self.limit}


@pytest.fixture
def gpu(monkeypatch):
  """Puts such a device in the place of JAX's."""

  def use(**properties):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(**properties)])
    monkeypatch.setattr(machine, "wrong_convolution", lambda device: "")

  return use


# --- The report ---------------------------------------------------------------------------------


def test_all_checks_of_this_machine(tmp_path, capsys, monkeypatch):
  first = jax.local_devices()[0]
  monkeypatch.setattr(jax, "local_devices", lambda: [first])
  doctor.report(tmp_path)
  lines = capsys.readouterr().out.splitlines()
  assert {line[:4].strip() for line in lines[:-2]} <= {OK, NOTE, SLOW}
  assert any("the CPU alone" in line for line in lines)
  assert lines[-1] == "nothing will fail; some will be slow"
  assert list(tmp_path.iterdir()) == []


def test_what_fails_is_an_error_after_all_lines(tmp_path, capsys, monkeypatch):
  def broken(_):
    raise RuntimeError("first line\nsecond")

  def refused(_):
    raise UserError("not \x1b[2J here")

  checks = {"one": broken, "two": refused, "three": lambda _: iter([Finding(OK, "fine")])}
  monkeypatch.setattr(doctor, "CHECKS", checks)
  with pytest.raises(UserError, match="2 of these will fail"):
    doctor.report(tmp_path)
  said = capsys.readouterr().out
  assert "FAIL  one        RuntimeError: first line\n" in said and "ok    three      fine" in said
  assert "\x1b" not in said


# --- Programs -----------------------------------------------------------------------------------


def test_packages_that_do_not_fit(monkeypatch):
  monkeypatch.setattr(machine, "unmet_requirements", lambda: ["jax>=9 is needed, 1 is installed"])
  assert [finding.level for finding in found(doctor._packages)] == [OK, FAIL]


def test_extras_are_those_of_the_package(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  named = {finding.words.partition("[")[2].rstrip("]'") for finding in found(doctor._extras)}
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  assert named == set(doctor.EXTRAS) == set(extras) - {"gpu", "tpu", "all", "docs"}
  assert extras["all"] == [f"kd_jax[{','.join(doctor.EXTRAS)}]"]
  for name, (module, _) in doctor.EXTRAS.items():  # what is looked for comes with the extra
    assert any(word.startswith(module.replace("_", "-")) for word in extras[name]), name


# --- Devices ------------------------------------------------------------------------------------


def test_a_gpu(gpu):
  gpu()
  only(doctor._devices, OK, "1 x NVIDIA X")


def test_a_device_that_computes_wrongly(gpu, monkeypatch):
  gpu()
  monkeypatch.setattr(machine, "wrong_convolution", lambda device: "cannot compute: no cuDNN")
  assert [finding.level for finding in found(doctor._devices)] == [OK, FAIL]


@pytest.mark.parametrize(
  ("asked", "installed", "words"),
  [
    ("cpu", True, "JAX_PLATFORMS=cpu says so"),
    (None, True, "is installed and does not work"),
    (None, False, "pip install 'kd_jax[gpu]'"),
  ],
)
def test_a_gpu_that_jax_does_not_use(monkeypatch, asked, installed, words):
  monkeypatch.delenv("JAX_PLATFORMS")
  if asked:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
  monkeypatch.setattr(machine, "has_nvidia", lambda: True)
  monkeypatch.setattr(machine, "has_tpu", lambda: False)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
  only(lambda _: doctor._unused_accelerators(), SLOW, words)


def test_no_device_at_all(monkeypatch):
  def none():
    raise UserError("JAX can use no device")

  monkeypatch.setattr(startup, "check_devices", none)
  only(doctor._devices, FAIL, "JAX can use no device")


@pytest.mark.parametrize(("version", "level"), [((9, 13, 0), OK), ((9, 10, 1), FAIL), (None, FAIL)])
def test_cudnn(gpu, monkeypatch, version, level):
  gpu()
  monkeypatch.setattr(cuda, "cudnn", lambda: version)
  only(doctor._cudnn, level, "")


def test_cudnn_is_no_matter_elsewhere():
  assert found(doctor._cudnn) == []


# --- Memory and places --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("free", "limit", "levels"),
  [(10**10, 8 * 10**10, [OK, OK]), (10**9, 6 * 10**9, [SLOW, SLOW]), (None, 10**11, [OK])],
)
def test_memory(gpu, monkeypatch, free, limit, levels):
  gpu(limit=limit)
  monkeypatch.setattr(machine, "available_memory", lambda: free)
  assert [finding.level for finding in found(doctor._memory)] == levels


def test_a_small_shared_memory(disk, tmp_path, monkeypatch):
  monkeypatch.setattr(doctor, "_SHARED", tmp_path)
  disk(64_000_000)
  only(doctor._shared_memory, FAIL, "--shm-size")
  disk(10**10)
  only(doctor._shared_memory, OK, "10.0 GB")


def test_few_open_files(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
  only(doctor._open_files, FAIL, "ulimit -n")
  monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, -1))
  only(doctor._open_files, OK, "")


def test_the_folder_of_a_run(disk, tmp_path):
  for free, level in ((10**8, FAIL), (10**10, NOTE), (10**11, OK)):
    disk(free)
    only(doctor._run_folder, level, str(tmp_path / "a" / "b"), tmp_path / "a" / "b")
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written():
  only(doctor._run_folder, FAIL, "cannot write in /proc/x", Path("/proc/x"))


def test_a_file_system_without_locks(disk, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")

  disk(10**11)
  monkeypatch.setattr("fcntl.flock", refuse)
  fine, noted = found(doctor._run_folder, tmp_path)
  assert fine.level == OK and noted.level == NOTE and "has no locks" in noted.words


def test_the_cache_folder(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  only(doctor._cache_folder, OK, str(tmp_path / "kd_jax" / "compiled"))
  monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
  only(doctor._cache_folder, SLOW, "cannot write in /proc/nowhere/kd_jax")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/x")
  only(doctor._cache_folder, OK, "/x")


def test_no_folder_for_temporary_files(disk, monkeypatch):
  def none():
    raise FileNotFoundError

  disk(10**6)
  only(doctor._temporary, FAIL, "is full")
  monkeypatch.setattr("tempfile.gettempdir", none)
  only(doctor._temporary, FAIL, "set TMPDIR")
