"""prepare: all cases into the cache, in parallel, keeping what is there; every bad case is named.

The cache is a folder of entries (entry.py), one a case and setting, and files.json, which
remembers the hash of each source file by its size and time, so that unchanged files are not read.
What is there is read once and held against its checksums; a damaged entry is made again.
"""

import concurrent.futures as futures
import json
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from kd_jax.data.case_checks import missing_files, source_files
from kd_jax.data.cases import Case
from kd_jax.data.entry import build_entry, entry_key, file_hash, verify_entry
from kd_jax.data.walk import dead_link
from kd_jax.runtime import child_processes
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.files import is_abandoned, write_text
from kd_jax.runtime.files import sweep as sweep_file
from kd_jax.settings.data import CacheSettings

_INDEX = "files.json"
_SAVE_INDEX_EVERY = 50  # cases
_WARNINGS = 10  # lines

# (size, mtime in ns, sha256) by absolute path.
Index = dict[str, tuple[int, int, str]]
Result = tuple[Path | None, list[CaseError], Index]


def prepare(
  cases: Sequence[Case],
  cache_dir: str | os.PathLike,
  settings: CacheSettings,
  workers: int | None = None,
  progress: Callable[[int, int, str], None] | None = None,
  tell: Callable[[str], None] | None = None,
) -> tuple[dict[str, Path], list[CaseError]]:
  """Makes the entries that are not there yet, and finds everything that is wrong with the rest.

  Args:
    cases: as find_cases has them.
    cache_dir: made if need be; several settings and data sets can share it.
    settings: what the entries look like.
    workers: processes; None for one a core (16 at most), 0 or 1 for this process alone.
    progress: called with (cases done, cases in all, name of the latest).
    tell: called with a line for each entry that was damaged, and each case with warnings (10).

  Returns:
    The entry of each good case by its name, and the findings of all bad cases, both in the order
    of the cases.

  Raises:
    UserError: the cache cannot be written, or a worker process died.
  """
  cache_dir = Path(cache_dir)
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"cannot make the cache folder {cache_dir}: {e.strerror or e}") from e
  sweep(cache_dir)
  index = _read_index(cache_dir)
  ready: dict[str, Path] = {}
  errors: dict[str, list[CaseError]] = {}
  done = 0

  def report(case: Case) -> None:
    nonlocal done
    done += 1
    if progress:
      progress(done, len(cases), case.name)

  there, todo = {}, []
  for case in cases:  # without a worker, and without reading its files, where nothing has changed
    path = _ready_entry(case, cache_dir, settings, index)
    if path:
      there[case.name] = path
    else:
      todo.append(case)
  with futures.ThreadPoolExecutor(_cores()) as pool:  # threads: reading and checksums need no lock
    found = dict(zip(there, pool.map(_damage, there.values()), strict=True))
  for case in cases:
    if case.name not in there:
      continue
    if found[case.name]:
      if tell:
        tell(f"warning: the cached case {case.name} is made again: {found[case.name]}")
      _remove_entry(there[case.name])
      todo.append(case)
    else:
      ready[case.name] = there[case.name]
      report(case)
  try:
    for case, (path, findings, hashes) in _results(todo, cache_dir, settings, index, workers):
      index |= hashes
      errors[case.name] = findings
      if path:
        ready[case.name] = path
      report(case)
      if len(errors) % _SAVE_INDEX_EVERY == 0:
        _write_index(cache_dir, index)
  finally:  # what is done stays done, whatever ended the loop
    if todo:
      _write_index(cache_dir, index)
  entries = {case.name: ready[case.name] for case in cases if case.name in ready}
  _tell_warnings(entries, tell)
  return (
    entries,
    [error for case in cases for error in errors.get(case.name, ())],
  )


def _tell_warnings(entries: Mapping[str, Path], tell: Callable[[str], None] | None) -> None:
  """What was noted of the cases when their entries were made: one line a case."""
  if not tell:
    return
  lines = []
  for name, path in entries.items():
    files: dict[str, list[str]] = {}  # finding and remedy -> which files have it
    for file, finding, remedy in json.loads((path / "meta.json").read_text())["warnings"]:
      files.setdefault(f"{finding}. {remedy}", []).append(file)
    if files:
      said = " ".join(f"{text} ({', '.join(names)})" for text, names in files.items())
      lines.append(f"warning: {name}: {said}")
  for line in lines[:_WARNINGS]:
    tell(line)
  if len(lines) > _WARNINGS:
    tell(f"warning: {len(lines) - _WARNINGS} more cases have warnings, {len(lines)} in all")


# --- The work, here or in processes -----------------------------------------------------------


def _results(
  cases: Sequence[Case],
  cache_dir: Path,
  settings: CacheSettings,
  index: Index,
  workers: int | None,
) -> Iterator[tuple[Case, Result]]:
  """Each case with what _work says of it, as they are done."""
  if workers is None:
    workers = min(_cores(), 16)
  workers = min(workers, len(cases))
  tasks = [(case, cache_dir, settings, _known(case, index)) for case in cases]
  if workers <= 1:
    for task in tasks:
      yield task[0], _work(*task)
    return
  child_processes.refuse_second_run()
  others, children = set(multiprocessing.active_children()), set()
  # spawn: a fork of a process with threads (JAX has many) can hang.
  pool = futures.ProcessPoolExecutor(
    workers, multiprocessing.get_context("spawn"), initializer=child_processes.end_with_parent
  )
  waiting = {}
  try:
    with child_processes.importable_main(), child_processes.without_ctrl_c():
      waiting = {pool.submit(_work, *task): task[0] for task in tasks}
    children = set(multiprocessing.active_children()) - others
    for future in futures.as_completed(list(waiting)):
      result = future.result()
      yield waiting.pop(future), result
  except BrokenProcessPool as e:
    pool.shutdown(cancel_futures=True)  # until then not all have a status
    if any(child.exitcode == child_processes.STARTED_AGAIN for child in children):
      one = "prepare the cases with one process (data.prepare_workers=1)"
      raise UserError(child_processes.unguarded(one)) from e
    # The pool does not say which; cases are taken in order, a few ahead.
    suspects = ", ".join(case.name for case in list(waiting.values())[: workers + 1])
    raise UserError(
      "a worker process died while preparing the cache (the system may have run out of memory) at "
      f"one of: {suspects}. Run again with fewer workers; the cases that are ready are kept"
    ) from e
  finally:
    pool.shutdown(cancel_futures=True)


def _work(case: Case, cache_dir: Path, settings: CacheSettings, known: Mapping[str, str]) -> Result:
  """One case: hashes of its files that are not known yet, and its entry."""
  index, hashes = {}, {}
  try:
    for kind, path in source_files(case).items():
      key, stat = os.path.abspath(path), path.stat()
      hashes[kind] = known.get(key) or file_hash(path)
      index[key] = (stat.st_size, stat.st_mtime_ns, hashes[kind])
  except OSError as e:
    finding, remedy = f"cannot be read: {e.strerror or e}", "Check the file's permissions."
    finding, remedy = dead_link(path) or (finding, remedy)
    return None, [CaseError(case.name, path, finding, remedy)], {}
  return *build_entry(case, cache_dir, settings, hashes), index


def _cores() -> int:
  """Cores that this process may use (a container's share, where the system tells)."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ready_entry(case: Case, cache_dir: Path, settings: CacheSettings, index: Index) -> Path | None:
  """The entry of a case whose files are as the index has them, if it is there."""
  known = _known(case, index)
  files = source_files(case)
  by_path = {kind: os.path.abspath(path) for kind, path in files.items()}
  hashes = {kind: known[path] for kind, path in by_path.items() if path in known}
  if len(hashes) < len(files) or missing_files(case, settings.sequences, settings.require_seg):
    return None
  path = cache_dir / entry_key(case, hashes, settings)
  return path if path.exists() else None


# --- What is on disk --------------------------------------------------------------------------


def _known(case: Case, index: Index) -> dict[str, str]:
  """The hashes, by path, of a case's files that have not changed since they were read."""
  known = {}
  for path in map(os.path.abspath, source_files(case).values()):
    if path not in index:
      continue
    size, mtime, sha256 = index[path]
    try:
      stat = os.stat(path)
    except OSError:
      continue
    if (stat.st_size, stat.st_mtime_ns) == (size, mtime):
      known[path] = sha256
  return known


def _read_index(cache_dir: Path) -> Index:
  try:
    return {k: tuple(v) for k, v in json.loads((cache_dir / _INDEX).read_text()).items()}
  except (OSError, ValueError, AttributeError, TypeError):
    return {}  # it only saves reading; without it the files are hashed again


def _write_index(cache_dir: Path, index: Index) -> None:
  """With what others wrote meanwhile; a line lost between read and write only costs a reading."""
  write_text(cache_dir / _INDEX, json.dumps(_read_index(cache_dir) | index))


def _damage(path: Path) -> str:
  """What is wrong with an entry; "" if it is as it was written."""
  try:
    verify_entry(path)
  except UserError as e:
    return str(e)
  return ""


def _remove_entry(path: Path) -> None:
  """At once, as far as others can see; what they have opened stays open to them."""
  temporary = path.with_name(f"tmp-{socket.gethostname()}-{os.getpid()}-{path.name}")
  try:
    path.rename(temporary)
  except OSError as e:
    if path.exists():  # else another run was faster
      raise UserError(f"cannot replace {path}, which is damaged: {e.strerror or e}") from e
  shutil.rmtree(temporary, ignore_errors=True)


def sweep(cache_dir: Path) -> None:
  """Removes what killed runs left: of dead processes of this machine, or an hour old."""
  sweep_file(cache_dir / _INDEX)
  for path in cache_dir.glob("tmp-*"):
    if is_abandoned(path, path.name.removeprefix("tmp-").rpartition("-")[0]):
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)
