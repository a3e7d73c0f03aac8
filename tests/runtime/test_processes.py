"""How processes find each other; what they do together: integration/test_several_processes.py."""

import numpy as np
import pytest

from kd_jax.runtime import processes
from kd_jax.runtime.errors import CaseError, ConfigError


@pytest.mark.parametrize(
  ("environment", "together"),
  [
    ({}, False),
    ({"SLURM_STEP_NUM_TASKS": "4"}, True),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_NTASKS": "4"}, False),  # of the allocation: a script without srun runs once
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_PROCESS_ADDRESSES": "a:8471,b:8471", "TPU_WORKER_HOSTNAMES": "a"}, True),
  ],
)
def test_slurm_and_gke_say_whether_there_are_others(environment, together):
  assert processes.started_together(environment) is together


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((None, "host:1", None, None), "go together"),
    ((None, None, None, 0), "go together"),
    ((None, "host:1", 2, 2), "0 to 1"),
    ((None, "host:1", 2, -1), "0 to 1"),
    ((None, "host", 2, 0), "HOST:PORT"),
    ((False, "host:1", 2, 0), "contradicts"),
  ],
)
def test_flags_that_make_no_sense_are_refused_before_any_work(given, message):
  with pytest.raises(ConfigError, match=message):
    processes.join(*given)


def test_a_process_alone_is_first_and_does_everything():
  assert processes.first()
  assert processes.share([3, 1, 2]) == [3, 1, 2]
  assert processes.gather({"a": [1, None]}) == [{"a": [1, None]}]
  assert processes.union({"a": 1}) == {"a": 1}
  error = CaseError("case", "file", "finding", "remedy")
  assert [str(e) for e in processes.all_errors([error])] == [str(error)]
  processes.wait()


def test_shares_are_disjoint_and_complete(monkeypatch):
  items, shares = list(range(7)), []
  for index in range(3):
    monkeypatch.setattr(processes.jax, "process_index", lambda index=index: index)
    monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
    shares.append(processes.share(items))
  assert sorted(np.concatenate(shares).tolist()) == items
  assert max(map(len, shares)) - min(map(len, shares)) <= 1
