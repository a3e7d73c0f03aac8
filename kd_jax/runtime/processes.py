"""Several processes of one program: how they find each other, share work out and tell each other.

Each process runs the same program on devices of its own, on one machine or on many; they see the
same files. A process alone is one of one: nothing here costs it anything.
"""

import contextlib
import glob
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kd_jax.runtime.errors import CaseError, ConfigError, UserError

T = TypeVar("T")


def join(
  wanted: bool | None, coordinator: str | None, count: int | None, index: int | None
) -> None:
  """Joins the other processes, before anything else is asked of JAX.

  Args:
    wanted: whether there are others; None to see for oneself (Slurm, Cloud TPU, GKE).
    coordinator: HOST:PORT of process 0, with count and index; where JAX cannot find out.
    count: of all processes.
    index: of this one, from 0.

  Raises:
    ConfigError: half of the explicit flags, or an index that does not exist.
    UserError: the others were not found.
  """
  explicit = (coordinator, count, index)
  if any(value is not None for value in explicit):
    _check_explicit(wanted, coordinator, count, index)
    _initialize(coordinator_address=coordinator, num_processes=count, process_id=index)
  elif wanted or (wanted is None and started_together(os.environ)):
    _initialize()
  elif wanted is None and _is_tpu_vm():  # one host of a pod, or a host of its own: JAX finds out
    with contextlib.suppress(UserError):
      _initialize()


def started_together(environment: Mapping[str, str]) -> bool:
  """Whether Slurm's srun or GKE started more than one of us."""
  tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
  hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
  return (tasks.isdigit() and int(tasks) > 1) or "," in hosts


def _is_tpu_vm() -> bool:
  devices = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _check_explicit(
  wanted: bool | None, coordinator: str | None, count: int | None, index: int | None
) -> None:
  if coordinator is None or count is None or index is None:
    raise ConfigError("--coordinator=HOST:PORT, --processes=N and --process=I go together")
  if wanted is False:
    raise ConfigError("--nodistributed contradicts --coordinator")
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise ConfigError(f"--coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476")
  if not 0 <= index < count:
    raise ConfigError(f"--process={index}: with --processes={count} it must be 0 to {count - 1}")


def _initialize(**where) -> None:
  try:
    jax.distributed.initialize(**where)
  except (ValueError, RuntimeError) as e:
    raise UserError(
      f"cannot join the other processes: {e}. Start the same command everywhere, with "
      "--coordinator=HOST:PORT --processes=N --process=I where JAX does not find out itself, or "
      "with --nodistributed for a process on its own"
    ) from e


def first() -> bool:
  """Whether this is the process that writes and speaks for all."""
  return jax.process_index() == 0


def share(items: Sequence[T]) -> Sequence[T]:
  """This process's part of what all of them have to do."""
  return items[jax.process_index() :: jax.process_count()]


def gather(value: Any) -> list[Any]:
  """Every process's value, in their order; all must call this. Values are what JSON can hold."""
  if jax.process_count() == 1:
    return [value]
  content = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(content.size))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: content.size] = content
  everyone = multihost_utils.process_allgather(padded)
  return [json.loads(bytes(x[:n])) for x, n in zip(everyone, sizes, strict=True)]


def union(part: Mapping[str, Any]) -> dict[str, Any]:
  """The processes' dicts as one."""
  return {name: value for one in gather(dict(part)) for name, value in one.items()}


def all_errors(own: Sequence[CaseError]) -> list[CaseError]:
  """The bad cases that any process has found."""
  return [CaseError(*args) for found in gather([e.args for e in own]) for args in found]


def wait() -> None:
  """Until all processes have come here."""
  gather(None)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
  """Process 0 goes through the body alone, then all others: they find what it has written."""
  if not first():
    wait()
  yield
  if first():
    wait()


@contextlib.contextmanager
def none_left_waiting() -> Iterator[None]:
  """Ends this process at once if the body fails: JAX then ends the others, who wait for it."""
  try:
    yield
  except KeyboardInterrupt:
    if jax.process_count() > 1:
      print("stopped by Ctrl-C", file=sys.stderr, flush=True)
      os._exit(128 + signal.SIGINT)
    raise
  except Exception as error:
    if jax.process_count() == 1:
      raise
    if isinstance(error, UserError):
      print(f"error: {error}", file=sys.stderr)
    else:
      traceback.print_exc()
      print(
        f"error: process {jax.process_index()} of {jax.process_count()} ends, see above. Perhaps "
        "another one was lost. Start all of them again: training goes on from its last checkpoint",
        file=sys.stderr,
      )
    sys.stderr.flush()
    os._exit(1)
