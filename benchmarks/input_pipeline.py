"""Do cases come as fast as the training step takes them, and does reading them take no more memory?

  python benchmarks/input_pipeline.py --data=BraTS2021 --step-json=runs/benchmarks/train_step.json
  python benchmarks/input_pipeline.py --small

Cases are read with the settings of the preset brats21, from --data or from demonstration cases that
are generated first (native 240x240x155 at 1 mm, files about as large as the real ones).

prepare: from case folders into an empty cache, cases a minute after each worker's first case, and
the time to find all of them there again. Grain: samples a second, on the device, from a stream
whose buffers were drained before; nothing else runs meanwhile. In training on a CPU the step runs
on the same cores as the workers: "times the step" is then what either could do alone. All files are
in the system's file cache; a disk that is slower than what is measured here is what counts then.

Memory is of this process and its workers, with buffers full before and after. "own" is what only
they hold (a shared page counts by its share); "mapped" are pages of files, those of the cases
among them, which the system takes back when it needs them.
"""

import argparse
import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.process_memory import settled
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import read_json

# Worker processes import this file again, and their memory is measured: what is heavy (JAX, the
# settings) is imported where it is used.
if TYPE_CHECKING:
  from kd_jax.data.cases import Case
  from kd_jax.settings.data import CacheSettings, SamplingSettings
  from kd_jax.settings.run import Settings

FULL = {"side": 128, "batches": 1000, "workers": (0, 1, 2, 4), "rounds": 4}
SMALL = {"side": 32, "batches": 50, "workers": (0, 1, 2), "rounds": 2}
_BUFFERED = 10  # batches that Grain holds ready, a worker
_PREPARE_WORKERS = 16  # prepare starts no more by itself


def main() -> None:
  run(_arguments())


def run(arguments: argparse.Namespace) -> None:
  """Measures, writes the JSON and prints."""
  sizes = SMALL if arguments.small else FULL
  data = settings(arguments.patch or sizes["side"], arguments.batch).data
  patch, batch, batches = data.patch, arguments.batch, arguments.batches or sizes["batches"]
  step = batch / arguments.step_seconds if arguments.step_seconds else None
  if arguments.step_json:
    step = step_rate(read_json(arguments.step_json), patch[0], str(arguments.step_json))
  processes = sorted({1, min(common.cores(), _PREPARE_WORKERS)})
  with tempfile.TemporaryDirectory(prefix="kd_jax-input-") as folder:
    count = arguments.cases or sizes["rounds"] * processes[-1]
    cases, entries = find(arguments.data, count, Path(folder) / "data"), []
    prepared, streams = [], []
    for workers in processes:
      common.tell(f"preparing {len(cases)} cases with {workers} workers")
      cache = Path(folder) / f"cache{workers}"
      row, entries = measure_prepare(cases, cache, data.cache_settings(), workers)
      prepared.append(row)
    for workers in arguments.workers or sizes["workers"]:
      common.tell(f"reading {batches} batches with {workers} workers")
      sampling = dataclasses.replace(data.sampling, workers=workers)
      streams.append(measure_stream(entries, sampling, batch, batches))
    described = describe(cases, entries)
  for row in streams:
    row["times_the_step"] = row["samples_per_second"] / step if step else None
  used = {"patch": patch, "batches": batches, "step_samples_per_second": step, **described}
  report(vars(arguments) | used, prepared, streams)


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
  parser = common.parser(__doc__, "input_pipeline", "few cases, patches of 32^3")
  parser.add_argument("--data", type=Path, help="a folder of cases; default: generated ones")
  parser.add_argument("--cases", type=int, help="at most; default: some for each core")
  parser.add_argument("--patch", type=int, help="voxels a side; default: 128, small: 32")
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--batches", type=int, help="default: 1000, small: 50")
  parser.add_argument("--workers", type=int, nargs="+", help="of Grain; default: 0 1 2 4")
  parser.add_argument("--step-seconds", type=float, help="what a step on one batch takes")
  parser.add_argument("--step-json", type=Path, help="the result of benchmarks/train_step.py")
  arguments = parser.parse_args(argv)
  for name in ("cases", "patch", "batch", "batches", "step_seconds"):
    value = getattr(arguments, name)
    if value is not None and value <= 0:
      raise ConfigError(f"--{name.replace('_', '-')}={value} must be above 0")
  if min(arguments.workers or (0,)) < 0:
    raise ConfigError(f"--workers {arguments.workers}: 0 is the least")
  if arguments.step_seconds and arguments.step_json:
    raise ConfigError("--step-seconds and --step-json say the same thing; give one")
  return arguments


def settings(side: int, batch: int) -> "Settings":
  """A run of the preset brats21 with patches of side^3."""
  from kd_jax.settings import presets

  return presets.settings("brats21", {"data.patch": (side,) * 3, "data.batch": batch})


def step_rate(result: Mapping[str, Any], side: int, source: str) -> float:
  """Samples a second that our fastest step takes, from the JSON of benchmarks/train_step.py.

  UserError if it holds no step of ours, or one on patches of another side; source: for messages.
  """
  try:
    found = result["settings"]["side"]
    ours = [row for row in result["rows"] if row["program"] == "kd_jax"]
    rates = [row["samples_per_second"] for row in ours if "note" not in row]  # else it did not fit
  except (KeyError, TypeError) as e:
    raise UserError(f"{source} is no result of benchmarks/train_step.py ({e!r})") from e
  if not rates:
    raise UserError(f"{source} holds no measured step of kd_jax")
  if found != side:
    raise UserError(f"{source} was measured on patches of {found}^3, this is {side}^3")
  return max(rates)


# --- prepare ----------------------------------------------------------------------------------


def find(data: Path | None, count: int, folder: Path) -> "list[Case]":
  """At most so many cases of a data set; without one, generated in folder."""
  from kd_jax.data.cases import find_cases
  from kd_jax.data.dataset import spread
  from kd_jax.data.demo import writer as demo

  if data is None:
    common.tell(f"writing {count} demonstration cases")
    demo.write_dataset(folder, count)
  found = {case.name: case for case in find_cases(data or folder)}
  return [found[name] for name in spread(list(found), count)]


def measure_prepare(
  cases: "Sequence[Case]", cache_dir: Path, settings: "CacheSettings", workers: int
) -> tuple[dict[str, Any], list[Path]]:
  """One row, and the entries, in a cache that is new. UserError if a case cannot be used."""
  from kd_jax.data import cache
  from kd_jax.data.dataset import bad_cases_error

  cache_dir.mkdir()  # what were there already would not be measured
  stamps, began = [], time.perf_counter()
  ready, bad = cache.prepare(
    cases, cache_dir, settings, workers, lambda *_: stamps.append(time.perf_counter() - began)
  )
  if bad:
    raise bad_cases_error(bad)
  began_again = time.perf_counter()
  cache.prepare(cases, cache_dir, settings, workers)
  row = {
    "workers": workers,
    "cases": len(cases),
    "first_seconds": stamps[0],
    "seconds": stamps[-1],
    "cases_per_minute": 60 * rate(stamps, min(workers, len(cases))),
    "again_ms_per_case": 1e3 * (time.perf_counter() - began_again) / len(cases),
  }
  return row, list(ready.values())


def rate(stamps: Sequence[float], workers: int) -> float:
  """Cases a second after each worker's first one; over all where there is hardly a second each.

  Args:
    stamps: seconds from the start to the end of each case, in this order.
    workers: at work; their start and imports end with their first cases.
  """
  if len(stamps) < 2 * workers:
    return len(stamps) / stamps[-1]
  return (len(stamps) - workers) / (stamps[-1] - stamps[workers - 1])


def describe(cases: "Sequence[Case]", entries: Sequence[Path]) -> dict[str, Any]:
  """What was read: MB a case as files and in the cache, and the first one's shape and voxels."""
  from kd_jax.data.case_checks import source_files
  from kd_jax.data.entry import open_entry

  sources = [path for case in cases for path in source_files(case).values()]
  arrays = [path for entry in entries for path in entry.iterdir()]
  file_mb, entry_mb = (
    sum(path.stat().st_size for path in paths) / len(cases) / 1e6 for paths in (sources, arrays)
  )
  meta = open_entry(entries[0]).meta
  native = {"native_shape": meta["grid"]["native_shape"], "native_mm": meta["native_voxel_mm"]}
  return {"cases": len(cases), "file_mb": file_mb, "entry_mb": entry_mb, **native}


# --- Grain ------------------------------------------------------------------------------------


def measure_stream(
  entries: Sequence[Path], sampling: "SamplingSettings", batch: int, batches: int
) -> dict[str, Any]:
  """One row: the rate over so many batches on the device, and memory before and after them."""
  import jax

  from kd_jax.data import pipeline
  from kd_jax.training import step as step_lib
  from kd_jax.training.mesh import make_mesh

  shardings = step_lib.batch_sharding(make_mesh(1, 1))
  rows = pipeline.rows_here(shardings["label"], batch)
  ready = _BUFFERED * max(1, sampling.workers)  # else what was read before would count
  began = time.perf_counter()
  stream = pipeline.training_batches(entries, sampling, batch=batch, seed=0)

  def take(count: int) -> float:
    start = time.perf_counter()
    for samples in itertools.islice(stream, count):
      jax.block_until_ready(pipeline.to_devices(samples, rows, shardings, batch))
    return time.perf_counter() - start

  with contextlib.closing(stream):
    take(1)
    first = time.perf_counter() - began
    take(ready)
    before = settled()
    take(ready)
    seconds = take(batches)
    after = settled()
  return {
    "workers": sampling.workers,
    "batch": batch,
    "batches": batches,
    "first_seconds": first,
    "seconds": seconds,
    "samples_per_second": batch * batches / seconds,
    "before": before._asdict() if before else None,
    "after": after._asdict() if after else None,
    "growth_mb": after.own_mb - before.own_mb if before and after else None,
  }


# --- Tables -----------------------------------------------------------------------------------


def report(
  settings: Mapping[str, Any],
  prepared: Sequence[Mapping[str, Any]],
  streams: Sequence[Mapping[str, Any]],
) -> None:
  """Writes settings["json"] and prints; the table of streams comes last."""
  from benchmarks import timing
  from kd_jax.runtime.terminal import table

  timing.report(settings["json"], settings, {"prepare": prepared, "grain": streams})
  kind = "cases" if settings["data"] else "demonstration cases"
  shape = common.by(settings["native_shape"])
  voxel = " x ".join(f"{mm:.3g}" for mm in settings["native_mm"])
  print(
    f"{settings['cases']} {kind} of {shape} at {voxel} mm, {settings['file_mb']:.1f} MB a case as "
    f"files, {settings['entry_mb']:.1f} MB in the cache; {settings['json']}\n"
  )
  head = ["prepare: workers", "cases", "first/s", "all/s", "cases/min", "again/ms a case"]
  print(table(head, [_prepare_cells(row) for row in prepared]), end="\n\n")
  side, step = settings["patch"][0], settings["step_samples_per_second"]
  print(f"patches of {side}^3; " + (f"the step takes {step:.2f} samples/s" if step else "no step"))
  head = [
    *("Grain: workers", "batch", "batches", "first/s", "samples/s", "times the step"),
    *("processes", "own/MB before", "after", "growth", "mapped/MB"),
  ]
  print(table(head, [_stream_cells(row) for row in streams]))


def _prepare_cells(row: Mapping[str, Any]) -> list[str]:
  names = ("first_seconds", "seconds", "cases_per_minute", "again_ms_per_case")
  return [str(row["workers"]), str(row["cases"]), *(f"{row[name]:.1f}" for name in names)]


def _stream_cells(row: Mapping[str, Any]) -> list[str]:
  before, after = row["before"] or {}, row["after"] or {}
  return [
    *(str(row[name]) for name in ("workers", "batch", "batches")),
    f"{row['first_seconds']:.1f}",
    f"{row['samples_per_second']:.1f}",
    common.cell(row.get("times_the_step"), ".2f"),
    common.cell(after.get("processes"), "d"),
    common.cell(before.get("own_mb"), ".0f"),
    common.cell(after.get("own_mb"), ".0f"),
    common.cell(row["growth_mb"], "+.1f"),
    common.cell(after.get("mapped_mb"), ".0f"),
  ]


if __name__ == "__main__":
  common.command(main)
