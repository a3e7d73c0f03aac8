"""The record of a finished run: all that the table needs of it, in one JSON file."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.runs.log import read_numbers
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import read_json
from kd_jax.tasks.labels import REGIONS

# In a run's folder, beside its files.
POSTPROCESSED_FILE, MINIMUM_SIZES_FILE = "postprocessed.csv", "minimum_sizes.json"
COLUMNS = [f"{metric}_{region}" for region in REGIONS for metric in ("dice", "hd95_mm")]


def record_file(folder: Path) -> Path:
  return folder.with_name(f"{folder.name}.json")


def record_of(folder: Path) -> dict[str, Any]:
  """What the table needs of a finished run's folder, and on what it ran.

  Returns:
    steps, seconds_per_step (median), memory_gb (highest), networks (each one's Dice on the training
    grid in the last validation), scores {case: [number of each of COLUMNS]}, and git, packages and
    devices of the last start, as in run.json. If cases other than the scored ones have chosen the
    minimum sizes of the postprocessing: smallest {"island", "et": mm3}, and cleaned, the scores
    after it (the names that finished records have).
  """
  # Imported here: JAX comes with them, and a table of records needs none.
  from kd_jax.runs.layout import RUN_FILE, SCORES_FILE

  lines = read_numbers(folder)
  seconds = [x for line in lines if (x := line.get("train/seconds_per_step")) is not None]
  memory: list[float] = []
  for name in ("train/memory/device_gb", "train/memory/process_gb"):
    memory = memory or [line[name] for line in lines if name in line]
  networks: dict[str, dict[str, float]] = {}
  for line in lines:
    for key, value in line.items():
      if key.startswith("val/dice/"):
        _, _, network, region = key.split("/")
        networks.setdefault(network, {})[region] = round(value, 5)
  parts = {"scores": _scores(folder / SCORES_FILE)}
  if (folder / POSTPROCESSED_FILE).is_file():
    parts["cleaned"] = _scores(folder / POSTPROCESSED_FILE)
    parts["smallest"] = read_json(folder / MINIMUM_SIZES_FILE)
  start = read_json(folder / RUN_FILE)["starts"][-1]
  return {
    **{key: start[key] for key in ("git", "packages", "devices")},
    "steps": max(line["step"] for line in lines),
    "seconds_per_step": statistics.median(seconds),
    "memory_gb": max(memory),
    "networks": networks,
    **parts,
  }


def _scores(path: Path) -> dict[str, list[float]]:
  from kd_jax.evaluation.compare import read_scores  # with JAX, as above

  return {name: [round(case[c], 5) for c in COLUMNS] for name, case in read_scores(path).items()}


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The record of all folds: every case's scores, the networks' mean, the cost of one fold."""
  return {
    **records[-1],
    "steps": max(r["steps"] for r in records),
    "seconds_per_step": statistics.median(r["seconds_per_step"] for r in records),
    "memory_gb": max(r["memory_gb"] for r in records),
    "networks": mean_networks(records),
    "scores": {case: scores for r in records for case, scores in r["scores"].items()},
  }


def read_record(path: Path) -> dict[str, Any]:
  """UserError if there is none in the file."""
  try:
    record = read_json(path)
    if record["steps"] and record["scores"].keys():
      return record
    raise KeyError("nothing in it")
  except (UserError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f"{path} is no record of a run; delete it to run it again ({e})") from e


def read_records(
  output: Path, recipes: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[int, dict[str, Any]]]:
  """{recipe: {seed: record}} of the finished runs.

  Raises:
    UserError: a record that cannot be read; records of another number of steps or of other cases.
  """
  records: dict[str, dict[int, dict[str, Any]]] = {}
  first: tuple[Path, dict[str, Any]] | None = None
  for name in recipes:
    for seed in seeds:
      path = record_file(output / name / f"seed{seed}")
      if not path.is_file():
        continue
      record = read_record(path)
      first = first or (path, record)
      alike = (record["steps"], sorted(record["scores"]))
      if alike != (first[1]["steps"], sorted(first[1]["scores"])):
        raise UserError(
          f"{path} is of {record['steps']} steps, scored on {len(record['scores'])} cases;"
          f" {first[0]} is of {first[1]['steps']} steps, on {len(first[1]['scores'])},"
          " or on others: they do not belong in one table; give each its own --output"
        )
      records.setdefault(name, {})[seed] = record
  return records


def mean_networks(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Each network's Dice on the training grid, the mean over runs."""
  return {
    network: {r: statistics.fmean(run["networks"][network][r] for run in runs) for r in regions}
    for network, regions in runs[0]["networks"].items()
  }
