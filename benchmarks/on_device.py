"""Everything that should be known of a GPU that is at hand for minutes, in one call.

  python benchmarks/on_device.py --minutes=8
  python benchmarks/on_device.py --minutes=8 --only facts step torch --json=before.json
  python benchmarks/on_device.py --small --only facts "step student_only"

In this order, the most valuable first: the device and its versions; the step of mtcm_kd (with its
profile) and of the student alone as shipped; the golden cases; the default's step; PyTorch's, eager
and compiled; the step by options of the compiler and by form of its convolutions; convolutions one
by one; what the step keeps for the backward pass; cases from file to file; the step fed by reading
processes; what deterministic operations cost. What the time does not allow is skipped or cut off,
and said to be.

Every section is a process of its own: a crash ends it alone, and the peak of the memory is its own.
XLA chooses kernels by timing them, so the first two steps compile with the machine to themselves.
After them sections compile beside each other (--ahead, and PyTorch), but while one measures all
others are stopped; PyTorch tries its kernels then. Compile times are those on a busy machine, and
so is the choice of kernels of the later steps: --ahead=1 and --only without torch leave XLA alone.

Each result is printed, and in the JSON, as soon as it is there; without --json that is
benchmarks/records/device/KIND-DATE.json.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

from benchmarks import common
from benchmarks.device import sections
from benchmarks.device.runner import Record, Runner, Section
from benchmarks.device.turns import Turns
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.files import slug, write_text

# Processes that read data import this file again: JAX is imported where it is used.

RECORDS = Path(__file__).parent / "records" / "device"
_FIRST = "facts"  # what the record is named after
_PATIENCE = 3.0  # times the estimate, until a section is ended
_SMALL_SECONDS = 1.0  # a section needs at least, with --small


def main() -> None:
  arguments = _arguments()
  if arguments.section:
    sections.run(arguments.section, Turns(arguments.turns), arguments.small)
    return
  measure(arguments, chosen(arguments.only))


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = common.parser(__doc__, "on_device", "tiny networks, 16^3")
  parser.set_defaults(json=None)
  parser.add_argument("--minutes", type=float, default=8.0, help="in all")
  parser.add_argument("--only", nargs="+", help="sections, by how their names begin")
  parser.add_argument("--ahead", type=int, default=2, help="sections that compile at once")
  parser.add_argument("--section", choices=sections.JOBS, help="this one, in this process")
  parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  for name, least in (("minutes", 0), ("ahead", 1)):
    if getattr(arguments, name) < least:
      raise ConfigError(f"--{name}={getattr(arguments, name)}: {least} is the least")
  return arguments


def chosen(only: Sequence[str] | None) -> list[str]:
  """The sections of these names, or whose names begin so, in their order. ConfigError for none."""

  def is_meant(name: str, given: str) -> bool:
    return name == given or (given not in sections.JOBS and name.startswith(given))

  for given in only or ():
    if not any(is_meant(name, given) for name in sections.JOBS):
      names = ", ".join(sections.JOBS)
      raise ConfigError(f"--only {given!r}: no section begins so; there are {names}")
  return [
    name for name in sections.JOBS if only is None or any(is_meant(name, each) for each in only)
  ]


def measure(arguments: argparse.Namespace, names: Sequence[str]) -> None:
  """Runs the sections within the time. SystemExit if none of them has a result."""
  end = time.monotonic() + 60 * arguments.minutes
  began = datetime.datetime.now(datetime.UTC)
  settings = {name: getattr(arguments, name) for name in ("minutes", "small", "only", "ahead")}
  done: list[Record] = []  # before those that run now
  path: Path | None = arguments.json

  def report(records: Sequence[Record]) -> None:
    found = [*done, *records]
    if path:
      rows = [row for one in found if one["section"] == _FIRST for row in one["rows"]]
      machine = rows[0]["machine"] if rows else {}
      record = {"began": str(began), "settings": settings, "machine": machine, "sections": found}
      write_text(path, json.dumps(record, indent=1, default=str) + "\n")

  def run(part: Sequence[str]) -> list[Record]:
    work = [_section(name, arguments.small) for name in part]
    return Runner(work, end, arguments.ahead, report, tell).run()

  def tell(line: str) -> None:
    print(f"[{max(0.0, end - time.monotonic()):4.0f} s left] {line}", flush=True)

  if _FIRST in names:
    done += run([_FIRST])
  path = path or RECORDS / f"{_kind(done)}-{began:%Y-%m-%d-%H%M}.json"
  found = [*done, *run([name for name in names if name != _FIRST])]
  print(f"\n{path}")
  if not any(one["rows"] for one in found):
    sys.exit("error: nothing was measured")


def _section(name: str, small: bool) -> Section:
  job = sections.JOBS[name]
  command = [sys.executable, __file__, "--section", name, "--turns"]
  command += ["--small"] if small else []
  seconds = _SMALL_SECONDS if small else job.seconds
  limit = _PATIENCE * (sections.JOBS[name].seconds if small else seconds)
  if job.beside:
    limit = float("inf")  # it has all the time
  env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_WAIT_POLICY": "passive"}
  if job.xla_flags:
    env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {job.xla_flags}".strip()
  return Section(name, command, seconds, limit, env, job.beside, job.quiet)


def _kind(done: Sequence[Record]) -> str:
  """Such as nvidia-h200, for the name of a file."""
  rows: list[dict[str, Any]] = [row for one in done for row in one["rows"]]
  kind = rows[0]["machine"]["kind"] if rows else "unknown"
  return slug(kind)


if __name__ == "__main__":
  common.command(main)
