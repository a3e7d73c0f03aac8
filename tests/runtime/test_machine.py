"""Facts of the machine: requirements, limits of containers, a device that computes wrongly."""

import jax
import jax.numpy as jnp
import pytest
from packaging.requirements import Requirement

from kd_jax.runtime import machine


def test_what_the_tests_run_with_is_met():
  assert machine.unmet_requirements() == []


@pytest.mark.parametrize(
  ("needed", "finding"),
  [
    ("numpy>=1", ""),
    ("numpy<1", "numpy<1 is needed, "),
    ("no-such-package>=2", "no-such-package>=2 is needed and not installed"),
    ('no-such-package>=2; python_version < "3"', ""),
    ('no-such-package; extra == "all"', ""),
  ],
)
def test_requirements(needed, finding):
  found = machine._unmet(Requirement(needed))
  assert found.startswith(finding) and bool(found) == bool(finding)


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
  monkeypatch.setattr(machine, "_CGROUP", tmp_path)
  return tmp_path


def test_limits_of_a_container_count(cgroup):
  cores, memory = machine.cores(), machine.available_memory()
  (cgroup / "cpu.max").write_text("50000 100000\n")
  (cgroup / "memory.max").write_text("3000000\n")
  (cgroup / "memory.current").write_text("1000000\n")
  assert cores >= 1 and memory > 2_000_000
  assert (machine.cores(), machine.available_memory()) == (1, 2_000_000)


def test_a_container_without_limits(cgroup):
  (cgroup / "cpu.max").write_text("max 100000\n")
  (cgroup / "memory.max").write_text("max\n")
  (cgroup / "memory.current").write_text("1000000\n")
  assert machine.cores() >= 1 and machine.available_memory() > 2_000_000


def test_a_right_convolution():
  assert machine.wrong_convolution(jax.devices()[0]) == ""


@pytest.mark.parametrize(
  ("change", "finding"),
  [
    (lambda x: x + 0.2 * jnp.max(jnp.abs(x)), "gives wrong values"),
    (lambda x: x * jnp.nan, "gives wrong values"),
    (lambda x: jax.lax.stop_gradient(x), "gives wrong gradients"),
    (lambda x: jnp.reshape(x, (1, 2, 3)), "cannot compute: "),
  ],
  ids=["wrong", "NaN", "gradient", "error"],
)
def test_a_wrong_convolution_is_noticed(monkeypatch, change, finding):
  right = jax.lax.conv_general_dilated
  monkeypatch.setattr(jax.lax, "conv_general_dilated", lambda *a, **k: change(right(*a, **k)))
  assert finding in machine.wrong_convolution(jax.devices()[0])
