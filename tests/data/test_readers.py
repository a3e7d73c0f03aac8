"""Reader processes: any program can start them, none outlives its run, and none ends unnoticed."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from small_disk import small_disk
from synthetic import make_case

from kd_jax.data import readers
from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
from kd_jax.runtime import child_processes
from kd_jax.runtime.errors import UserError
from kd_jax.settings.data import CacheSettings

REPOSITORY = Path(__file__).parents[2]

# A program that reads three batches of the entries in its last argument, and never parses flags.
PLAIN = """
import sys
from pathlib import Path
from kd_jax.settings.data import SamplingSettings
from kd_jax.data.pipeline import training_batches
def read(workers, count=3):
  global batches  # it stays open until the program ends
  entries = sorted(path for path in Path(sys.argv[-1]).iterdir() if path.is_dir())
  batches = training_batches(entries, SamplingSettings((6, 4, 8), workers=workers), batch=2, seed=0)
  for _ in range(count):
    print(next(batches)["image"].shape, flush=True)
"""
SHAPE = "(2, 4, 6, 4, 8)"
GUARDED = PLAIN + 'if __name__ == "__main__":\n  read(workers=1)\n'
PARSES_LATER = """
from absl import app, flags
X = flags.DEFINE_integer("x", 1, "")
def main(argv):
  print("parsed", X.value, flags.FLAGS.grain_py_debug_mode, flush=True)
  read(workers=1)
if __name__ == "__main__":
  read(workers=1)
  assert not flags.FLAGS.is_parsed()
  app.run(main)
"""
# Notes the first signal, and ends as a run does: after more batches, with 128 + the signal.
STOPS_AS_A_RUN = """
import multiprocessing, signal
def main():
  seen = []
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: seen.append(number))
  read(workers=2, count=1)
  print("readers", *[child.pid for child in multiprocessing.active_children()], flush=True)
  after = 0
  while after < 20:
    next(batches)
    after += bool(seen)
  print("saved", flush=True)
  sys.exit(128 + seen[0])
if __name__ == "__main__":
  main()
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """The folder with the entries of two cases."""
  root = tmp_path_factory.mktemp("readers")
  for seed, name in enumerate("AB"):
    make_case(root / "data" / name, seed=seed)
  _, errors = prepare(
    find_cases(root / "data"), root / "cache", CacheSettings(spacing=3.0), workers=1
  )
  assert not errors
  return root / "cache"


def start(program, cache, folder, *arguments):
  """The program as a file of its own, in a process group of its own."""
  path = folder / "program.py"
  path.write_text(program)
  return subprocess.Popen(
    [sys.executable, path, *arguments, cache],
    **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    start_new_session=True,
  )


def running(pids):
  """Those of the processes that run; what nobody has waited for yet has ended too."""
  states = {}
  for pid in pids:
    path = Path(f"/proc/{pid}/stat")
    states[pid] = path.read_text().rpartition(")")[2].split()[0] if path.exists() else "gone"
  return [pid for pid, state in states.items() if state not in ("gone", "Z")]


# --- Programs that start readers --------------------------------------------------------------


def test_a_program_needs_no_flags_and_no_file(cache):
  """As in a REPL or a notebook: the program comes from standard input."""
  done = subprocess.run(
    [sys.executable, "-", cache],
    **{"input": PLAIN + "read(workers=2)", "capture_output": True, "text": True},
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    timeout=120,
  )
  assert (done.returncode, done.stdout.split("\n")[:-1]) == (0, [SHAPE] * 3), done.stderr


def test_flags_can_be_parsed_after_readers_have_started(cache, tmp_path):
  flags = ("--x=3", "--grain_py_debug_mode=true")
  output, _ = start(PLAIN + PARSES_LATER, cache, tmp_path, *flags).communicate(timeout=120)
  expected = [SHAPE] * 3 + ["parsed 3 True"] + [SHAPE] * 3
  assert [line for line in output.split("\n") if line in expected] == expected, output


def test_a_script_without_a_guard_is_named(cache, tmp_path):
  process = start(PLAIN + "read(workers=2)", cache, tmp_path)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  (last,) = (line for line in output.split("\n") if "UserError:" in line)
  assert f"{tmp_path / 'program.py'} calls kd_jax outside `if" in last
  assert '`if __name__ == "__main__":`' in last and "data.workers=0" in last


def test_a_script_without_a_guard_is_named_when_it_prepares_cases(cache, tmp_path):
  program = """
import sys
from kd_jax.settings.data import CacheSettings
from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
prepare(find_cases(sys.argv[-1] + "/../data"), "cache", CacheSettings(spacing=3.0), workers=2)
"""
  output, _ = start(program, cache, tmp_path).communicate(timeout=120)
  assert "program.py calls kd_jax outside" in output and "data.prepare_workers=1" in output


# --- Readers end with their run, and not before -----------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_readers_outlive_a_signal_to_the_whole_group_until_the_run_has_saved(
  cache, tmp_path, number
):
  """One signal comes while the readers still start, one while they read."""
  process = start(PLAIN + STOPS_AS_A_RUN, cache, tmp_path)
  if number == signal.SIGINT:
    lines = [process.stdout.readline() for _ in range(2)]
  else:
    children = Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + 60
    # The resource tracker and two readers.
    while sum(len(p.read_text().split()) for p in children.glob("*/children")) < 3:
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.01)
    lines = []
  os.killpg(process.pid, number)
  output, _ = process.communicate(timeout=60)
  output = "".join(lines) + output
  assert process.returncode == 128 + number and "saved" in output, output
  pids = next(line for line in output.split("\n") if line.startswith("readers")).split()[1:]
  assert len(pids) == 2 and not running(pids)


def test_readers_die_with_a_killed_run_and_leave_no_shared_memory(cache, tmp_path):
  process = start(PLAIN + STOPS_AS_A_RUN, cache, tmp_path)
  process.stdout.readline()
  pids = process.stdout.readline().split()[1:]
  assert len(running(pids)) == 2
  held = {name for pid in pids for name in shared_memory(pid)}
  process.kill()
  deadline = time.monotonic() + 20
  while running(pids) or any(Path(name).exists() for name in held):
    assert time.monotonic() < deadline, (running(pids), held)
    time.sleep(0.05)
  process.communicate()


IN_THE_MAKING = """
import _posixshmem, multiprocessing, os, sys, threading, time
from kd_jax.runtime import child_processes
def make():  # as SharedMemory does it, stopped before it tells the resource tracker
  made = _posixshmem.shm_open(sys.argv[2], os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
  os.ftruncate(made, 32)
  print("made", flush=True)
  time.sleep(60)
def work(signals):
  if signals:
    child_processes.obey_parent_alone()
  else:
    child_processes.end_with_parent()
  threading.Thread(target=make, daemon=True).start()
  time.sleep(60)
if __name__ == "__main__":
  stopped = sys.argv[1] == "stopped"
  if stopped:
    child_processes.keep_signals_from_children()
  child = multiprocessing.get_context("spawn").Process(target=work, args=(stopped,))
  child.start()
  print(child.pid, flush=True)
  if sys.stdin.readline() and stopped:
    child.terminate()
    child.join()
"""


@pytest.mark.parametrize("ending", ["killed", "stopped"])
def test_a_block_that_is_just_being_made_is_not_left(tmp_path, ending):
  """A reader ends between making shared memory and telling Python's resource tracker of it."""
  block = Path(f"/dev/shm/psm_kd_jax_{os.getpid()}_{ending}")
  (tmp_path / "program.py").write_text(IN_THE_MAKING)
  process = subprocess.Popen(
    [sys.executable, tmp_path / "program.py", ending, f"/{block.name}"],
    **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
  )
  lines = {process.stdout.readline() for _ in range(2)}
  assert "made\n" in lines and block.exists()
  (pid,) = (int(line) for line in lines - {"made\n"})
  if ending == "killed":
    process.kill()
  else:
    process.stdin.write("\n")
    process.stdin.flush()
  deadline = time.monotonic() + 20
  while running([pid]) or block.exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.communicate()


def shared_memory(pid):
  """The files in shared memory that a process has mapped."""
  maps = Path(f"/proc/{pid}/maps").read_text().split("\n")
  return {line.split()[5] for line in maps if "/dev/shm/psm_" in line and "deleted" not in line}


# --- Readers that end before their work is done -----------------------------------------------


class Numbers(grain.sources.RandomAccessDataSource):
  """0, 1, 2, ...; reading number `trouble` does what `way` says."""

  def __init__(self, trouble, way):
    self._trouble, self._way = trouble, way

  def __len__(self):
    return 1000

  def __getitem__(self, index):
    if index == self._trouble:
      kind, value = self._way
      if kind == "exit":
        os._exit(value)
      if kind == "signal":
        os.kill(os.getpid(), value)
      if kind == "error":
        raise OSError(value, os.strerror(value))
      if kind == "slow":
        time.sleep(value)
    return np.full(4, index)


def stream(trouble, *way, workers=1, tell=None):
  reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  numbers = grain.MapDataset.source(Numbers(trouble, way)).to_iter_dataset(reading)
  return readers.read(numbers, workers, tell)


@pytest.mark.parametrize(
  ("trouble", "way", "message"),
  [
    (30, ("exit", 0), r"exit code 0\..*data.workers=0.*last checkpoint"),
    (0, ("exit", 3), r"exit code 3\. It ended while it started.*import.*`if __name__"),
    (30, ("signal", signal.SIGBUS), r"exit code -7 \(SIGBUS\).*/dev/shm \(\d+ MB.*--shm-size"),
    (0, ("error", errno.ENOSPC), r"No space left.*/dev/shm \(\d+ MB.*--shm-size.*data.workers=0"),
  ],
  ids=["status 0", "at its start", "SIGBUS", "ENOSPC"],
)
def test_a_reader_that_ends_is_an_error_with_its_reason(monkeypatch, trouble, way, message):
  monkeypatch.setattr(readers, "_GRACE", 1.0)
  began = time.monotonic()
  with pytest.raises(UserError, match=message):
    for _ in stream(trouble, *way):
      pass
  assert time.monotonic() - began < 30


def test_two_streams_watch_their_own_readers(monkeypatch):
  """That one stream is closed, and its readers end with status 0, is no fault of the other."""
  monkeypatch.setattr(readers, "_GRACE", 0.0)
  one, other = stream(10, "slow", 2.0), stream(1000)
  assert [next(one)[0] for _ in range(2)] == [next(other)[0] for _ in range(2)] == [0, 1]
  other.close()
  assert [next(one)[0] for _ in range(9)] == list(range(2, 11))
  one.close()


def test_a_late_batch_is_told_once(monkeypatch):
  monkeypatch.setattr(readers, "TELL_AFTER", 0.1)
  told = []
  late = stream(5, "slow", 1.5, workers=2, tell=told.append)
  taken = [int(next(late)[0]) for _ in range(5)]
  told.clear()  # the start of a reader is waited for too
  taken.append(int(next(late)[0]))
  late.close()
  assert taken == list(range(6))
  assert len(told) == 1 and "from reader 2 of 2 for" in told[0] and "process ids" in told[0]


def test_a_suspended_reader_is_told_and_does_not_hold_up_the_end(monkeypatch):
  """As if a disk hung: the run says whom it waits for, and Ctrl-C ends it."""
  monkeypatch.setattr(readers, "_CLOSING_S", 1.0)
  told, children = [], set(multiprocessing.active_children())

  def interrupt(text):
    told.append(text)
    raise KeyboardInterrupt

  suspended = stream(20, "signal", signal.SIGSTOP, workers=2, tell=interrupt)
  next(suspended)
  pids = [child.pid for child in set(multiprocessing.active_children()) - children]
  monkeypatch.setattr(readers, "TELL_AFTER", 0.5)
  began = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    list(suspended)
  assert time.monotonic() - began < 30 and not running(pids)
  assert len(told) == 1 and "from reader 1 of 2" in told[0]


def test_children_find_no_second_run_elsewhere():
  child_processes.refuse_second_run()


@pytest.mark.slow
def test_a_small_dev_shm_is_named(cache, tmp_path):
  """As in a container without --shm-size."""
  if not Path("/dev/shm").is_dir():
    pytest.skip("no /dev/shm")
  program = GUARDED.replace("(6, 4, 8)", "(128, 128, 128)")
  with small_disk(tmp_path / "disk", 10):  # skips the test where nothing can be mounted
    pass
  (tmp_path / "program.py").write_text(program)
  mount = 'mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "$@"'
  done = subprocess.run(
    ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, tmp_path / "program.py", cache],
    **{"capture_output": True, "text": True, "timeout": 120},
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
  )
  assert done.returncode == 1
  assert "UserError: a process that reads" in done.stderr and "/dev/shm (4 MB" in done.stderr
