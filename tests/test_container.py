"""What a container does (launch/container/run.sh), without the engine of one.

The slow tests run it in bubblewrap: a read-only root, an unknown user, no network.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quick import FLAGS
from students import make_student
from synthetic import LARGE, make_case

from kd_jax.data import nifti
from kd_jax.prediction.student_directory import export

ROOT = Path(__file__).parents[1]
RUN = ROOT / "launch" / "container" / "run.sh"
CASES = ("BraTS-GLI-00001-100", "BraTS-GLI-00002-100")
# In place of the program: it tells how it was called, and predicts one mask of two.
FAKE = """#!/bin/sh
echo "called: $*"
for word in "$@"; do
  case $word in --output=*) cp "$0" "${word#*=}/a.nii.gz"; touch "${word#*=}/predict.json" ;; esac
done
exit ${STATUS:-0}
"""


@pytest.fixture
def mounted(tmp_path):
  """Folders as a container has them, and the environment that names them."""
  for name in ("input", "output", "model", "bin", "tmp"):
    (tmp_path / name).mkdir()
  for name in ("input/scan.nii.gz", "model/description.json"):
    (tmp_path / name).touch()
  program = tmp_path / "bin" / "kd-jax"
  program.write_text(FAKE)
  program.chmod(0o755)
  names = {f"KD_JAX_{name.upper()}": str(tmp_path / name) for name in ("input", "output", "model")}
  path = f"{program.parent}:{os.environ['PATH']}"
  return tmp_path, names | {"PATH": path, "TMPDIR": str(tmp_path / "tmp"), "HOME": "/"}


def run(names, *words, **changes):
  return subprocess.run(
    [RUN, *words], env=names | changes, capture_output=True, text=True, check=False, timeout=60
  )


def test_only_masks_come_out_and_nothing_stays_behind(mounted):
  place, names = mounted
  done = run(names, "--mirror")
  assert done.returncode == 0, done.stderr
  assert f"called: predict --checkpoint={place}/model --input={place}/input" in done.stdout
  called, told = done.stdout.splitlines()
  assert called.endswith("--mirror")
  assert told == f"mask: {place}/output/a.nii.gz"
  assert [p.name for p in (place / "output").iterdir()] == ["a.nii.gz"]
  assert (place / "output/a.nii.gz").read_text() == FAKE
  assert not list((place / "tmp").iterdir())


def test_a_bad_scan_costs_the_status_and_no_mask(mounted):
  place, names = mounted
  assert run(names, STATUS="3").returncode == 3
  assert [p.name for p in (place / "output").iterdir()] == ["a.nii.gz"]


def test_other_words_are_a_command(mounted):
  _, names = mounted
  done = run(names, "doctor", "--workdir=x", STATUS="1")
  assert (done.returncode, done.stdout) == (1, "called: doctor --workdir=x\n")
  assert run(names, "--version").stdout == "called: --version\n"


@pytest.mark.parametrize(
  ("break_it", "message"),
  [
    (lambda place: (place / "input/scan.nii.gz").unlink(), "input is empty; mount the scans"),
    (lambda place: shutil.rmtree(place / "input"), "there is no .*input"),
    (lambda place: shutil.rmtree(place / "model"), "there is no student in .*model; mount one"),
    (lambda place: shutil.rmtree(place / "output"), "there is no .*output; mount a folder"),
    (lambda place: shutil.rmtree(place / "tmp"), "no temporary folder can be written"),
  ],
)
def test_what_is_not_mounted_is_named(mounted, break_it, message):
  place, names = mounted
  break_it(place)
  done = run(names)
  assert done.returncode == 1 and "called" not in done.stdout
  error = done.stderr.splitlines()[-1]
  assert error.startswith("error: ") and re.search(message, error), error


# --- The real program, in a sandbox -----------------------------------------------------------


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """Cases as challenge organisers lay them, a student, and the program."""
  place = tmp_path_factory.mktemp("container")
  for seed, name in enumerate(CASES):
    case = make_case(place / "input" / name, seed=seed, affine=LARGE)
    for path in list(case.iterdir()):
      kinds = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"}
      kind = path.name.removesuffix(".nii.gz").rpartition("_")[2]
      if kind in kinds:
        path.rename(path.with_name(f"{name}-{kinds[kind]}.nii.gz"))
      else:
        path.unlink()
  export(make_student(spacing=3.0), place / "model")
  program = place / "bin" / "kd-jax"
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m kd_jax "$@"\n')
  program.chmod(0o755)
  return place


def sandboxed(scans, output, *words, write=True):
  """The entry script as user 12345 on a read-only root, without network."""
  if not (bwrap := shutil.which("bwrap")):
    pytest.skip("bubblewrap is not installed (apt-get install bubblewrap)")
  bind = ["--bind" if write else "--ro-bind", output, "/mnt/output"]
  command = [
    *(bwrap, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/mnt"),
    *("--ro-bind", scans, "/mnt/scans", *bind, "--unshare-net", "--unshare-user", "--uid", "12345"),
    *("--gid", "12345", "--die-with-parent", RUN, *words),
  ]
  names = {f"KD_JAX_{name.upper()}": f"/mnt/scans/{name}" for name in ("input", "model")}
  environment = {
    **names,
    "KD_JAX_OUTPUT": "/mnt/output",
    "PATH": f"/mnt/scans/bin:{os.environ['PATH']}",
    "TMPDIR": "/dev/shm",
    "XLA_FLAGS": FLAGS,
    "JAX_PLATFORMS": "cpu",
  }
  done = subprocess.run(
    list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
  )
  if "bwrap: " in done.stderr:
    pytest.skip(f"no sandbox can be made here: {done.stderr.strip()}")
  return done


@pytest.mark.slow
def test_a_mask_a_case_for_an_unknown_user_without_network(scans, tmp_path):
  done = sandboxed(scans, tmp_path, "--labels=brats2023")
  assert done.returncode == 0, done.stdout + done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == [f"{name}.nii.gz" for name in CASES]
  for name in CASES:
    mask = nifti.read(tmp_path / f"{name}.nii.gz")
    scan = nifti.read(scans / "input" / name / f"{name}-t1c.nii.gz")
    assert mask.data.shape == scan.data.shape and set(np.unique(mask.data)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(mask.affine, scan.affine)


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_written_is_named(scans, tmp_path):
  done = sandboxed(scans, tmp_path, write=False)
  assert done.returncode == 1
  assert "error: user 12345 may not write to /mnt/output" in done.stderr
