"""The benchmark of inference: its scans, its order, what it counts, and a tiny run."""

import json

import jax
import nibabel as nib
import numpy as np
import pytest

from benchmarks import inference as benchmark
from benchmarks import inference_forward, inference_inputs
from kd_jax.data import nifti
from kd_jax.data.scan_checks import check_scan
from kd_jax.prediction.student import Architecture, Preparation, check_parameters
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.labels import CLASSES

TINY = {"filters": (4, 4, 8, 8), "spacing": 4.0, "patch": 24, "cases": 2, "rows": 2}
ARCHITECTURE = Architecture(("t1ce",), TINY["filters"], "channel")
PREPARATION = Preparation("brain", "zscore", TINY["spacing"], (TINY["patch"],) * 3)


@pytest.fixture(scope="module")
def coarse_scan(tmp_path_factory):
  """A scan of 4 mm voxels."""
  folder = tmp_path_factory.mktemp("scans")
  return inference_inputs.write_scans(folder, 2, None, voxel_mm=4).images["t1ce"]


def test_a_generated_scan_passes_the_checks_at_real_size(tmp_path):
  data = inference_inputs.brain(1.0, 1, seed=0)
  assert data.shape == (240, 240, 155)
  assert data.dtype == np.int16
  for axis, mm in enumerate(inference_inputs.BRAIN_MM):
    inside = np.flatnonzero(data.any(axis=tuple(a for a in range(3) if a != axis)))
    assert inside[-1] + 1 - inside[0] == pytest.approx(mm, abs=1)
  nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1, 1, 1])), tmp_path / "x.nii.gz")
  assert check_scan(nifti.read(tmp_path / "x.nii.gz"), "t1ce") == []
  assert 1.2e6 < (tmp_path / "x.nii.gz").stat().st_size < 2.7e6  # of seven real ones


def test_generated_scans_differ_in_size(coarse_scan):
  paths = sorted(coarse_scan.parents[1].glob("others/*.nii.gz"))
  shapes = [np.argwhere(nifti.read(path).data).max(0) for path in paths]
  assert len(paths) == 2
  assert (shapes[0] < shapes[1]).any()


def test_students_call_everything_background():
  one, other = inference_inputs.students(2, ARCHITECTURE, PREPARATION)
  assert one.digest() != other.digest()
  for student in (one, other):
    assert check_parameters(student.params, ARCHITECTURE.framework(), "random")
    assert not student.params["head"]["kernel"].any()
    assert np.argmax(student.params["head"]["bias"]) == CLASSES.index("background")


def test_the_cheapest_comes_first(coarse_scan):
  networks = inference_inputs.students(1, ARCHITECTURE, PREPARATION)
  choices = [(n, mode, mirror) for n in (1, 5, 9) for mode in ("sliding", "whole")
             for mirror in (True, False)]  # fmt: skip
  setups = map(benchmark.Setup._make, choices)
  scan = inference_inputs.scans_in(coarse_scan.parent)[0]
  # 35 x 44 x 35 voxels: a whole brain is 40 x 48 x 40, 24^3 at 2 x 3 x 2 places is 2.16 times that.
  cost = {"whole": 40 * 48 * 40, "sliding": 12 * 24**3}
  expected = sorted(choices, key=lambda c: c[0] * cost[c[1]] * (8 if c[2] else 1))
  assert benchmark.in_order_of_cost(setups, networks, scan) == expected


def test_the_seconds_between_cases():
  found = benchmark.between([14.0, 10.0, 11.0, 13.0])
  assert found == {"median": 1.0, "least": 1.0, "most": 2.0, "count": 3}


def test_compilations_are_counted():
  f = jax.jit(lambda x: 3 * x + 17)
  with benchmark.compilations() as first:
    f(np.ones(3))
  with benchmark.compilations() as again:
    f(np.zeros(3))
  with benchmark.compilations() as other:
    f(np.ones(4))
  f(np.ones(5))
  assert [len(found) for found in (first, again, other)] == [1, 0, 1]
  assert first[0] > 0


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--cases=1"], "at least 2"),
    (["--rows=0"], "at least 1"),
    (["--networks", "1", "0"], "--networks"),
    (["--scan=scan.mha"], "nii.gz"),
  ],
)
def test_impossible_arguments(arguments, message):
  with pytest.raises(ConfigError, match=message):
    benchmark._arguments(arguments)


def test_a_scan_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r"missing\.nii\.gz"):
    inference_inputs.write_scans(tmp_path, 2, tmp_path / "missing.nii.gz")


def test_a_tiny_run(tmp_path, coarse_scan, monkeypatch, capsys):
  monkeypatch.setattr(benchmark, "SMALL", TINY)
  arguments = ["--small", f"--scan={coarse_scan}", f"--json={tmp_path / 'result.json'}"]
  arguments += ["--networks", "2", "1", "--modes", "whole", "--mirror", "no", "--repeat=1"]
  benchmark.run(benchmark._arguments(arguments))

  found = json.loads((tmp_path / "result.json").read_text())
  rows = found["rows"]["cases"]
  assert found["rows"]["forward"] == []
  assert [row["networks"] for row in rows] == [1, 2]
  for row in rows:
    assert (row["windows"], row["window"]) == (1, [40, 48, 40])
    assert 0 < row["compile_seconds"] < row["first_seconds"]
    assert row["recompiled"] == 0
    assert row["seconds"]["count"] == 1  # between two cases
    assert 0 < row["seconds"]["median"] < row["together_seconds"]
    parts = [row[f"{name}_seconds"] for name in ("read", "network", "write")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(row["alone_seconds"])
    assert row["hidden"] == pytest.approx(1 - row["seconds"]["median"] / row["alone_seconds"])
    assert row["host_gb"] > 0.05

  lines = capsys.readouterr().out.splitlines()
  assert set(lines[-3]) == {"-", " "}  # two rows end the output
  assert [line[:7] for line in lines[-2:]] == ["1 whole", "2 whole"]


def test_what_is_compiled_again_is_an_error(tmp_path, coarse_scan, monkeypatch, capsys):
  monkeypatch.setattr(benchmark, "SMALL", TINY)
  names = ("first", "compile", "together", "read", "network", "write", "alone")
  row = {f"{name}_seconds": 1.0 for name in names}
  row |= {"networks": 1, "mode": "whole", "mirror": False, "shape": (8,) * 3, "window": (8,) * 3}
  row |= {"windows": 1, "hidden": 0.0, "recompiled": 1, "host_gb": 1.0, "device_gb": None}
  row |= {"seconds": benchmark.between([1.0, 2.0])}
  monkeypatch.setattr(benchmark, "measure", lambda *_: row)
  arguments = ["--small", f"--scan={coarse_scan}", f"--json={tmp_path / 'result.json'}"]
  with pytest.raises(SystemExit, match="compiled after the first case"):
    benchmark.run(benchmark._arguments(arguments))
  assert "1 x 8x8x8" in capsys.readouterr().out  # the table is there nevertheless


# --- PyTorch ----------------------------------------------------------------------------------


def test_forward_passes_are_compared_with_ours():
  torch = pytest.importorskip("torch")
  window = (16, 16, 16)
  rows = inference_forward.measure_forward(ARCHITECTURE, window, rounds=1)
  assert [row["program"] for row in rows][:3] == ["kd_jax", "torch", "torch, channels last"]
  assert rows[0]["time_over_kd_jax"] == rows[0]["cpu_over_kd_jax"] == 1
  for row in rows:
    ratio = row["seconds"]["median"] / rows[0]["seconds"]["median"]
    assert row["time_over_kd_jax"] == pytest.approx(ratio)

  # What is compared computes the same.
  mirror, params = inference_forward.mirrored_network(ARCHITECTURE)
  x = np.random.default_rng(0).standard_normal((1, *window, 1), np.float32)
  ours = jax.jit(ARCHITECTURE.framework().network)(params, x)
  with torch.inference_mode():
    theirs = mirror(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).logits
  np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), 1e-4, 1e-4)
