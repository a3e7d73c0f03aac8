"""The wheel and the command that it installs, outside of the checkout.

python -m pytest -m slow tests/test_package.py                  # needs the package index
python -m pytest -m slow tests/test_package.py -k "not fresh"   # but for setuptools, does not
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest
from quick import FLAGS

import kd_jax

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
# A run of minutes made one of seconds; two reading processes, which start the command's file again.
TINY = (
  *("--config=quickstart:from_flair", "--config.data.demo_cases=6", "--config.data.workers=2"),
  *("--config.data.patch=(16,16,16)", "--config.model.filters=(4,4,8,8)"),
  *("--config.train.epochs=2", "--config.train.steps_per_epoch=2"),
  *("--config.train.validate_every=2", "--config.train.save_every=2"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
  """Built from a copy: a build leaves files beside its source, and takes those of earlier ones."""
  place = tmp_path_factory.mktemp("wheel")
  source = place / "source"
  shutil.copytree(ROOT / "kd_jax", source / "kd_jax", ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  pip(sys.executable, "wheel", "--no-deps", "-w", str(place), str(source))
  (built,) = place.glob("*.whl")
  return built


@pytest.fixture(scope="module")
def borrowed(wheel, tmp_path_factory) -> Path:
  """An environment that holds the wheel, and borrows all else from the one of the tests."""
  place = tmp_path_factory.mktemp("borrowed") / "venv"
  venv.create(place)
  python = str(place / "bin" / "python")
  pip(sys.executable, "--python", python, "install", "--no-deps", str(wheel))
  (packages,) = place.glob("lib/python*/site-packages")
  (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
  return place / "bin"


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
  """An environment with the wheel and what it asks for, as anybody installs it."""
  place = tmp_path_factory.mktemp("fresh") / "venv"
  venv.create(place, with_pip=True)
  pip(str(place / "bin" / "python"), "install", str(wheel))
  return place / "bin"


def pip(python: str, *words: str) -> None:
  command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
  done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
  assert done.returncode == 0, done.stdout + done.stderr


def environment(**changes: str | None) -> dict[str, str]:
  """That of a terminal: nothing of this test run but XLA's flags; None takes a variable away."""
  own = os.environ | {"XLA_FLAGS": FLAGS} | changes
  return {k: v for k, v in own.items() if v is not None and k != "PYTHONPATH"}


def run(bin_: Path, folder: Path, *words: str, code: int = 0, **changes: str | None) -> str:
  """kd-jax in a folder; what it said on both streams."""
  done = subprocess.run(
    [str(bin_ / "kd-jax"), *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=folder,
    env=environment(**changes),
    timeout=600,
    check=False,
  )
  assert done.returncode == code, done.stdout
  assert "Traceback" not in done.stdout
  return done.stdout


# --- The wheel ----------------------------------------------------------------------------------


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
  files = [f for f in (ROOT / "kd_jax").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
  expected = {str(file.relative_to(ROOT)) for file in files}
  with zipfile.ZipFile(wheel) as archive:
    found = {name for name in archive.namelist() if ".dist-info/" not in name}
  assert len(expected) > 100 and found == expected


def test_the_version_is_the_packages(wheel):
  assert wheel.name.split("-")[:2] == ["kd_jax", kd_jax.__version__]


# --- The command --------------------------------------------------------------------------------


def test_versions_and_help(borrowed, tmp_path):
  versions = run(borrowed, tmp_path, "--version").splitlines()
  assert versions[0] == f"kd_jax {kd_jax.__version__}" and versions[-1].startswith("devices: ")
  assert "cross-validate" in run(borrowed, tmp_path, "--help")
  assert "kd-jax train --config=quickstart" in run(borrowed, tmp_path, "train", "--help")
  assert list(tmp_path.iterdir()) == []


def names_of_ours(folder: Path) -> None:
  """A package, settings and a data set in the folder that somebody works in."""
  (folder / "kd_jax").mkdir()
  (folder / "kd_jax" / "__init__.py").write_text("raise SystemExit('not me')\n")
  (folder / "configs").mkdir()
  (folder / "configs" / "quickstart.py").write_text("raise SystemExit('nor me')\n")
  (folder / "quickstart").mkdir()


def test_the_command_of_the_environment_is_not_shadowed_by_the_folder(borrowed, tmp_path):
  names_of_ours(tmp_path)
  said = run(borrowed, tmp_path, "train", "--config=quickstart", "--config.data.fol=1", code=1)
  assert said == "error: unknown setting data.fol; did you mean data.fold?\n"


def test_a_file_with_the_name_of_a_preset_is_named(borrowed, tmp_path):
  (tmp_path / "brats21").write_text("case1\ncase2 \x00\n")
  said = run(borrowed, tmp_path, "prepare", "--config=brats21:t1", code=1)
  assert said.startswith("error: --config=brats21:t1: the file ") and "Rename it" in said


@pytest.mark.parametrize("home", [None, "/proc/nowhere"], ids=["unset", "read-only"])
def test_without_a_home_folder(borrowed, tmp_path, home):
  own = {"HOME": home, "XDG_CACHE_HOME": None, "JAX_COMPILATION_CACHE_DIR": None}
  said = run(borrowed, tmp_path, "doctor", **own)
  assert ("every start compiles anew" in said) == (home is not None)
  assert "nothing will fail" in said


# --- A fresh environment ------------------------------------------------------------------------


def test_a_fresh_environment_trains_evaluates_exports_and_predicts(fresh, tmp_path):
  """With reading processes, which start the command's own file again."""
  names_of_ours(tmp_path)
  said = run(fresh, tmp_path, "train", *TINY)
  assert "kd-jax evaluate --workdir=runs/quickstart-from_flair-fold0" in said
  run(fresh, tmp_path, "evaluate", "--workdir=runs/quickstart-from_flair-fold0")
  checkpoint = "--checkpoint=runs/quickstart-from_flair-fold0"
  run(fresh, tmp_path, "export-student", checkpoint, "--output=student")
  scans = "--input=runs/demo/Demo_00000"
  run(fresh, tmp_path, "predict", "--checkpoint=student", scans, "--output=masks")
  assert [mask.name for mask in (tmp_path / "masks").glob("*.nii.gz")] == ["Demo_00000.nii.gz"]
  record = json.loads((tmp_path / "runs/quickstart-from_flair-fold0/run.json").read_text())
  assert record["starts"][0]["git"] is None


def test_a_fresh_environment_stops_at_ctrl_c_and_goes_on(fresh, tmp_path):
  constant = [f"--config.optim.{group}.schedule=constant" for group in ("teachers", "student")]
  words = ["train", *TINY, *constant, "--workdir=run"]  # a schedule would bind the number of epochs
  process = subprocess.Popen(
    [str(fresh / "kd-jax"), *words, "--config.train.epochs=500"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=tmp_path,
    env=environment(),
    start_new_session=True,
  )
  try:
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("run/checkpoints/[0-9]*")):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=200)[0]
  finally:
    process.kill()
  assert process.returncode == 130 and "the checkpoint is saved" in said
  assert "Traceback" not in said
  steps = [int(path.name) for path in tmp_path.glob("run/checkpoints/[0-9]*")]
  two_more = f"--config.train.epochs={max(steps) // 2 + 2}"
  assert "going on from step" in run(fresh, tmp_path, *words, two_more)
