"""What does each part of the recipe give? Students side by side, several seeds each.

  python benchmarks/ablation.py --size=cpu                          # demonstration data, hours
  python benchmarks/ablation.py --size=gpu --data=/data/BraTS2021   # full size, any BraTS folder

Every recipe is trained with every seed on the same training cases, without looking at the others:
no checkpoint is chosen, the last one's averaged student is scored. Students are scored as
--mode=evaluate does it, in the scans' own space: on the cases of --test, with generated data on
further generated ones, else on the validation fold. Where that is not what they are scored on, it
chooses what of a prediction is too small (kd_jax/prediction/postprocess.py), and a second table has the scores
without. May be stopped and started again: a run that is
finished leaves OUTPUT/RECIPE/seedN.json, and is not run again. The table (ablation.md,
ablation.json) is written after every run. It needs these records alone; those of the tables in
docs/accuracy.md are kept in benchmarks/records:

  python benchmarks/ablation.py --table --output=benchmarks/records/400-steps

Where cases are few, every one can be scored out of fold: a student is trained for each fold, and
with as many folds as patients one is left out at a time:

  python benchmarks/ablation.py --size=gpu --data=/data/seven --folds=7

A row's differences to the student alone (or to --against=RECIPE) are paired by case, each case's
scores averaged over the seeds that both have: the interval says what other cases might have given,
the sd over seeds what another start might have.
"""

import argparse
import copy
import json
import statistics as stdlib_statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

import scipy.stats
from ml_collections import ConfigDict

from configs import brats21, common, quickstart
from kd_jax.evaluation.case_results import SCORES_FILE
from kd_jax.evaluation.compare import read_scores
from kd_jax.evaluation.intervals import paired
from kd_jax.runs.log import read_numbers
from kd_jax.runtime.errors import ConfigError, UserError, did_you_mean
from kd_jax.runtime.files import read_json, write_text
from kd_jax.runtime.terminal import Terminal, duration, table
from kd_jax.settings import config as config_lib
from kd_jax.tasks.labels import REGIONS

if TYPE_CHECKING:
  from kd_jax.data.cases import Case
  from kd_jax.evaluation.case_results import Scored
  from kd_jax.prediction.postprocess import Smallest

ALONE, PAPER = "student_only", "paper"
CLEANED_FILE, SMALLEST_FILE = "cleaned.csv", "smallest.json"
COLUMNS = [f"{metric}_{region}" for region in REGIONS for metric in ("dice", "hd95_mm")]


class Recipe(NamedTuple):
  """A row of the table.

  Attributes:
    what: in words.
    variants: of configs/common.py, with commas.
    settings: dotted names of configs/common.py -> values, beside those of the size.
  """

  what: str
  variants: str = ""
  settings: Mapping[str, Any] = {}


_OWN = {"model.teachers": {"flair": ("flair",), "t2": ("t2",), "t1": ("t1",)}}
_ALL_CLASSES = {"loss.kd_targets": "classes", "loss.kd_regions": tuple(REGIONS)}
_REGION_LOSSES = {
  "loss.targets": "regions",
  "loss.deep_supervision": {"level1": 0.3, "level2": 0.0},
  "model.teacher_side_heads": 1,
}
RECIPES = {
  ALONE: Recipe("the student alone", ALONE),
  "best": Recipe("the default: teachers see T1ce too, and are heard of WT"),
  "classes": Recipe("the default, teachers are heard of all classes", "", _ALL_CLASSES),
  "no_fusion": Recipe("the default without CDSFL", "", {"model.fusion_levels": 0}),
  "no_kd": Recipe(
    "the default without any KD term: the deep supervision of its student alone",
    "",
    {
      "confidence.total": 0.0,
      "loss.side.level1.kd": 0.0,
      "loss.side.level2.kd": 0.0,
    },
  ),
  "response": Recipe("response KD by confidence", "mtcm_kd", {"model.fusion_levels": 0}),
  "cdsfl": Recipe("response KD and CDSFL, each teacher sees its own sequence: MTCM-KD", "mtcm_kd"),
  "two_level": Recipe("CDSFL at two levels", "mtcm_kd,two_level"),
  "detached": Recipe(
    "CDSFL from which teachers do not learn", "mtcm_kd", {"model.fusion_detached": True}
  ),
  "balanced": Recipe(
    "cdsfl, KD balanced over the classes", "mtcm_kd", {"loss.kd_where": "balanced"}
  ),
  "region_wise": Recipe(
    "cdsfl, KD and confidence by region",
    "mtcm_kd",
    {"loss.kd_targets": "regions", "confidence.by": "region"},
  ),
  "above_student": Recipe(
    "region_wise, and a teacher is heard only where it does better than the student",
    "mtcm_kd",
    {
      "loss.kd_targets": "regions",
      "confidence.by": "region",
      "confidence.above_student": True,
    },
  ),
  "gated": Recipe(
    "above_student and balanced at T = 2, a teacher that sees all, losses over the regions",
    "plus_all",
    {
      **_REGION_LOSSES,
      "model.teachers": {
        **_OWN["model.teachers"],
        "all": ("flair", "t1", "t1ce", "t2"),
      },
      "loss.kd_targets": "regions",
      "loss.kd_regions": tuple(REGIONS),
      "loss.kd_where": "balanced",
      "loss.temperature": 2.0,
      "loss.supervised": 0.75,
      "loss.kd_ramp_epochs": 0.0,
      "confidence.by": "region",
      "confidence.above_student": True,
    },
  ),
  "voxel_wise": Recipe("cdsfl, confidence by voxel", "mtcm_kd", {"confidence.by": "voxel"}),
  "privileged": Recipe(
    "cdsfl, each teacher sees T1ce too",
    "mtcm_kd",
    {"model.teachers": {name: (name, "t1ce") for name in ("flair", "t2", "t1")}},
  ),
  "regions_alone": Recipe(
    "the student alone, losses over the regions and deep supervision",
    ALONE,
    _REGION_LOSSES,
  ),
  "regions": Recipe("classes, with these losses", "", _REGION_LOSSES | _ALL_CLASSES),
  "regions_own": Recipe(
    "regions, each teacher sees its own sequence alone", "", _REGION_LOSSES | _ALL_CLASSES | _OWN
  ),
  "plus_all": Recipe("the default and a teacher that sees all sequences", "plus_all"),
  "from_all": Recipe(
    "response KD of one teacher that sees all", "from_all", {"model.fusion_levels": 0}
  ),
  "kd_net": Recipe(
    "KD-Net's style: soft labels, bottleneck of one teacher that sees all", "kd_net"
  ),
  "proto_kd": Recipe(
    "ProtoKD's style: soft labels, prototypes of one teacher that sees all", "proto_kd"
  ),
  PAPER: Recipe("the published protocol; on this size's grid with --size=cpu", PAPER),
}


class Size(NamedTuple):
  """What one machine can do.

  Attributes:
    config: the configuration's module.
    settings: dotted names -> values.
    test_cases: generated cases to score on: indices, of the training cases' seed.
    paper_grid: whether `paper` is run on the published grid; else on this size's.
    recipes: those that are run when none are named.
  """

  config: Any
  settings: Mapping[str, Any]
  test_cases: range
  paper_grid: bool
  recipes: Sequence[str]


SIZES = {
  "cpu": Size(
    quickstart,
    {
      "data.demo_cases": 72,
      "data.root": "runs/ablation-cpu/demo",
      "data.cache": "runs/ablation-cpu/cache",
      "data.folds": 3,
      "train.epochs": 10,
      "train.steps_per_epoch": 40,
      "optim.ema_decay": 0.98,
    },
    test_cases=range(144, 216),  # those before were looked at while recipes were tried
    paper_grid=False,
    recipes=(ALONE, "best", "classes", "cdsfl", "kd_net", "proto_kd", PAPER),
  ),
  "gpu": Size(
    brats21,
    {"data.cache": "runs/ablation-gpu/cache", "train.epochs": 100},
    test_cases=range(0),
    paper_grid=True,
    recipes=tuple(RECIPES),
  ),
}


def settings_of(
  size: Size,
  name: str,
  seed: int,
  data: Path | None,
  epochs: int | None = None,
  folds: int | None = None,
) -> ConfigDict:
  """The configuration of one run. ConfigError for an unknown recipe.

  Args:
    data: a folder of BraTS cases; None: generated ones.
    epochs, folds: None: those of the size.
  """
  if name not in RECIPES:
    raise ConfigError(did_you_mean("recipe", name, tuple(RECIPES)))
  config = size.config.get_config("")
  grid = {key: config.data[key] for key in ("grid", "patch", "tumour", "batch")}
  mode = config.predict.mode
  common.with_variants(config, RECIPES[name].variants)
  if name == PAPER and not size.paper_grid:
    config.data.update(grid)
    config.predict.mode = mode
  own = {**size.settings, **RECIPES[name].settings}
  for key, value in own.items():
    *path, last = key.split(".")
    section = config
    for part in path:
      section = section[part]
    section[last] = ConfigDict(copy.deepcopy(value)) if isinstance(value, dict) else value
  if data:
    config.data.root, config.data.demo_cases = str(data), 0
  if epochs:
    config.train.epochs = epochs
  if folds:
    config.data.folds = folds
  config.seed = seed
  config.name = f"{name}-{seed}"
  config.train.validate_every = config.train.epochs  # nothing is chosen by validation
  config.train.validate_cases = 0
  return config


# --- One run ----------------------------------------------------------------------------------


def run(config: ConfigDict, folder: Path, test: Path | None) -> None:
  """Trains and scores one student, and leaves its record; goes on where it was stopped.

  Args:
    folder: of the run; the record lies beside it.
    test: the cases to score on; None for the validation fold.

  Raises:
    UserError: as `train`; training subjects among the cases, or cases that cannot be scored.
  """
  # Imported here: the table needs no JAX.
  from kd_jax.data import subjects
  from kd_jax.data.cases import find_cases
  from kd_jax.evaluation import summary as scores_lib
  from kd_jax.evaluation.students import find_training_subjects, score_students
  from kd_jax.prediction.predictor import Ensemble
  from kd_jax.runs.students import open_student
  from kd_jax.runtime.startup import keep_compiled
  from kd_jax.runtime.terminal import quiet_libraries
  from kd_jax.training.train import train

  quiet_libraries()
  keep_compiled()
  terminal = Terminal(0)
  train(config_lib.to_dict(config), folder, terminal)
  student = open_student(folder)
  ensemble = Ensemble([student], smallest_island=0.0, smallest_et=0.0)
  if test:
    cases = find_cases(test, config.data.labels)
    if found := find_training_subjects(ensemble, cases, terminal):
      raise subjects.refuse(found, len(cases))
  else:
    names = {subject.name for subject in student.val}
    cases = [c for c in find_cases(config.data.root, config.data.labels) if c.name in names]
  scored = score_students(ensemble, cases, terminal)
  if scored.failed:
    raise UserError(f"{folder}: cases could not be scored: {scored.failed}")
  write_text(folder / SCORES_FILE, scores_lib.to_csv(scored.scores))
  if test:  # cases that have not chosen the thresholds
    cleaned = _cleaned(scored, cases, ensemble.modalities[0], student.predict.smallest)
    write_text(folder / CLEANED_FILE, scores_lib.to_csv(cleaned))
    write_text(folder / SMALLEST_FILE, json.dumps(student.predict.smallest._asdict()) + "\n")
  write_text(record_file(folder), json.dumps(record_of(folder)) + "\n")


def _cleaned(
  scored: "Scored", cases: Sequence["Case"], modality: str, smallest: "Smallest"
) -> dict[str, dict[str, float]]:
  """The scores of predictions without what is too small."""
  from kd_jax.data import nifti
  from kd_jax.evaluation.case_results import score_against
  from kd_jax.prediction.postprocess import clean

  scores, progress = {}, Terminal(0).progress("scoring without what is too small")
  for done, case in enumerate(cases, 1):
    scan = nifti.read(case.images[modality])
    predicted = clean(scored.mask(case), smallest, scan.voxel_mm)
    scores[case.name] = score_against(case, predicted, scan)
    progress(done, len(cases), case.name)
  return scores


def run_folds(config: ConfigDict, folder: Path) -> None:
  """Trains a student a fold, scores each on its own fold, and leaves one record of all cases.

  Args:
    folder: of the folds' runs and records; those that are finished are not run again.

  Raises:
    UserError: as `run`.
  """
  records, folds = [], config.data.folds
  for fold in range(folds):
    part = folder / f"fold{fold}of{folds}"  # a seed may be run anew with other folds
    if not record_file(part).is_file():
      config.data.fold = fold
      run(config, part, None)
    records.append(read_record(record_file(part)))
  write_text(record_file(folder), json.dumps(joined(records)) + "\n")


# --- Records ----------------------------------------------------------------------------------


def record_file(folder: Path) -> Path:
  return folder.with_name(f"{folder.name}.json")


def record_of(folder: Path) -> dict[str, Any]:
  """What the table needs of a finished run's folder, and on what it ran.

  Returns:
    steps, seconds_per_step (median), memory_gb (highest), networks (each one's Dice on the training
    grid in the last validation), scores {case: [number of each of COLUMNS]}, and git, packages and
    devices of the last start, as in run.json. If others than the cases scored on chose what is too
    small: smallest {of what: mm3}, and cleaned, the scores without it.
  """
  from kd_jax.runs.provenance import RUN_FILE

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
  if (folder / CLEANED_FILE).is_file():
    parts["cleaned"] = _scores(folder / CLEANED_FILE)
    parts["smallest"] = read_json(folder / SMALLEST_FILE)
  start = read_json(folder / RUN_FILE)["starts"][-1]
  return {
    **{key: start[key] for key in ("git", "packages", "devices")},
    "steps": max(line["step"] for line in lines),
    "seconds_per_step": stdlib_statistics.median(seconds),
    "memory_gb": max(memory),
    "networks": networks,
    **parts,
  }


def _scores(path: Path) -> dict[str, list[float]]:
  return {name: [round(case[c], 5) for c in COLUMNS] for name, case in read_scores(path).items()}


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The record of all folds: every case's scores, the networks' mean, the cost of one fold."""
  return {
    **records[-1],
    "steps": max(r["steps"] for r in records),
    "seconds_per_step": stdlib_statistics.median(r["seconds_per_step"] for r in records),
    "memory_gb": max(r["memory_gb"] for r in records),
    "networks": _networks(records),
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
  """{recipe: {seed: record}} of those that are finished.

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


# --- The table --------------------------------------------------------------------------------


def summary_of(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], against: str = ALONE
) -> list[dict[str, Any]]:
  """A row a recipe, of the runs that are finished. UserError: as read_records."""
  records = read_records(output, dict.fromkeys([*recipes, against]), seeds)
  rows = []
  for name in recipes:
    if not (runs := records.get(name)):
      continue
    row: dict[str, Any] = {
      "recipe": name,
      "seeds": len(runs),
      "seconds_per_step": stdlib_statistics.median(r["seconds_per_step"] for r in runs.values()),
      "memory_gb": max(r["memory_gb"] for r in runs.values()),
    }
    others = records.get(against, {}) if name != against else {}
    row |= _columns(*({seed: r["scores"] for seed, r in rs.items()} for rs in (runs, others)))
    cleaned = [
      {seed: r["cleaned"] for seed, r in rs.items() if "cleaned" in r} for rs in (runs, others)
    ]
    if cleaned[0]:
      row["cleaned"] = _columns(*cleaned) | {"seeds": len(cleaned[0])}
      row["cleaned"]["smallest"] = [runs[seed]["smallest"] for seed in cleaned[0]]
    row["networks"] = _networks(list(runs.values()))
    rows.append(row)
  return rows


def _columns(
  runs: Mapping[int, Mapping[str, Sequence[float]]],
  others: Mapping[int, Mapping[str, Sequence[float]]],
) -> dict[str, dict[str, Any]]:
  """Of each of COLUMNS the mean and, in the seeds that both have, the difference to others.

  Args:
    runs, others: {seed: {case: [number of each of COLUMNS]}}.
  """
  columns: dict[str, dict[str, Any]] = {}
  both = [seed for seed in runs if seed in others]
  for column in COLUMNS:
    means = {seed: _mean(_by_case([run], column)) for seed, run in runs.items()}
    columns[column] = {
      "mean": _mean(means.values()),
      "sd_over_seeds": stdlib_statistics.stdev(means.values()) if len(means) > 1 else None,
    }
    if both:
      a, b = (_by_case([own[s] for s in both], column) for own in (others, runs))
      columns[column]["against"] = paired(a, b, higher_is_better=column.startswith("dice"))
      columns[column]["against_by_seed"] = [
        means[s] - _mean(_by_case([others[s]], column)) for s in both
      ]
  return columns


def _by_case(runs: Sequence[Mapping[str, Sequence[float]]], column: str) -> list[float]:
  """Each case's mean over runs, in the cases' order."""
  i = COLUMNS.index(column)
  return [_mean(run[case][i] for run in runs) for case in sorted(runs[0])]


def _networks(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Each network's Dice on the training grid, the mean over runs."""
  return {
    network: {r: _mean(run["networks"][network][r] for run in runs) for r in regions}
    for network, regions in runs[0]["networks"].items()
  }


def _mean(values: Any) -> float:
  return float(stdlib_statistics.fmean(values))


def text_of(rows: Sequence[Mapping[str, Any]], against: str = ALONE) -> str:
  """The tables that people read."""
  scores, networks = [], []
  for row in rows:
    cost = [f"{1e3 * row['seconds_per_step']:.0f}", f"{row['memory_gb']:.1f}"]
    scores.append([row["recipe"], row["seeds"], *_means(row), *cost])
    for network, regions in row["networks"].items():
      cells = [f"{100 * regions[r]:.1f}" for r in REGIONS]
      networks.append([row["recipe"], network, *cells])
  meanings = [[row["recipe"], RECIPES[row["recipe"]].what] for row in rows]
  parts = [
    "Volumetric Dice (%) and HD95 (mm) in the scans' own space: mean ± sd over seeds\n\n"
    + table([*_HEAD, "ms/step", "GB"], scores)
  ]
  parts += _comparison(rows, against)
  cleaned = [{"recipe": row["recipe"], **row["cleaned"]} for row in rows if "cleaned" in row]
  if cleaned:
    cells = [
      [
        row["recipe"],
        row["seeds"],
        *_means(row),
        *(" ".join(f"{mm3[of]:g}" for mm3 in row["smallest"]) for of in ("island", "et")),
      ]
      for row in cleaned
    ]
    parts.append(
      "Without islands and ET below thresholds (mm3, seed by seed) chosen by the run's validation "
      f"cases\n\n{table([*_HEAD, 'islands', 'ET'], cells)}"
    )
    parts += _comparison(cleaned, against, " without what is too small")
  parts.append(
    "Every network on the training grid, Dice (%)\n\n"
    + table(["recipe", "network", *REGIONS], networks)
  )
  parts.append(table(["recipe", "what it is"], meanings))
  return "\n\n".join(parts) + "\n"


_HEAD = ["recipe", "seeds", *(f"{r} Dice" for r in REGIONS), *(f"{r} HD95" for r in REGIONS)]


def _means(row: Mapping[str, Any]) -> list[str]:
  cells = [_spread(row[f"dice_{r}"], 100, 1) for r in REGIONS]
  return cells + [_spread(row[f"hd95_mm_{r}"], 1, 1) for r in REGIONS]


def _comparison(rows: Sequence[Mapping[str, Any]], against: str, how: str = "") -> list[str]:
  """Differences over cases and by seeds; [] if there is nothing to compare with."""
  compared = [row for row in rows if "against" in row["dice_WT"]]
  metrics = (("Dice", "dice", "points", 100), ("HD95", "hd95_mm", "mm; below 0 is better", 1))
  parts = []
  for words, metric, unit, scale in metrics if compared else ():
    title = f"{words}{how} against {against}, {unit}: difference [95% interval over cases] p"
    parts.append(_differences(title, compared, metric, scale, _difference))
    title = f"{words}{how} seed by seed: difference [95% interval over seeds, Student's t]"
    parts.append(_differences(title, compared, metric, scale, _by_seed))
  return parts


def _spread(value: Mapping[str, Any], scale: float, digits: int) -> str:
  sd = value["sd_over_seeds"]
  spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
  return f"{scale * value['mean']:.{digits}f}{spread}"


def _differences(
  title: str,
  rows: Sequence[Mapping[str, Any]],
  metric: str,
  scale: float,
  cell: Callable[[Mapping[str, Any], float], str],
) -> str:
  cells = [[row["recipe"], *(cell(row[f"{metric}_{r}"], scale) for r in REGIONS)] for row in rows]
  return f"{title}\n\n" + table(["recipe", *REGIONS], cells)


def _difference(value: Mapping[str, Any], scale: float) -> str:
  d = value["against"]
  low, high = scale * d["low"], scale * d["high"]
  return f"{scale * d['difference']:+.1f} [{low:+.1f}, {high:+.1f}] p={d['wilcoxon_p']:.2g}"


def _by_seed(value: Mapping[str, Any], scale: float) -> str:
  differences = [scale * d for d in value["against_by_seed"]]
  text, n = " ".join(f"{d:+.1f}" for d in differences), len(differences)
  if n == 1:
    return text
  middle = _mean(differences)
  half = scipy.stats.t.ppf(0.975, n - 1) * stdlib_statistics.stdev(differences) / n**0.5
  return f"{text} [{middle - half:+.1f}, {middle + half:+.1f}]"


def write_tables(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], against: str = ALONE
) -> str:
  rows = summary_of(output, recipes, seeds, against)
  text = text_of(rows, against)
  write_text(output / "ablation.json", json.dumps(rows, indent=1) + "\n")
  write_text(output / "ablation.md", f"```\n{text}```\n")
  return text


# --- All runs ---------------------------------------------------------------------------------


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--size", choices=SIZES, default="cpu")
  parser.add_argument("--data", type=Path, help="a folder of BraTS cases; none: demonstration data")
  parser.add_argument("--test", type=Path, help="a folder of cases to score on; none: see above")
  parser.add_argument("--recipes", help="with commas; none: those that the size can afford")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--epochs", type=int, help="none: those of the size")
  parser.add_argument(
    "--folds", type=int, help="train on each of so many folds, score every case out of fold"
  )
  parser.add_argument("--against", default=ALONE, help="the recipe that the others are compared to")
  parser.add_argument("--output", type=Path, help="none: runs/ablation-SIZE")
  parser.add_argument("--table", action="store_true", help="only the table of what is finished")
  parser.add_argument("--one", nargs=2, metavar=("RECIPE", "SEED"), help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  size = SIZES[arguments.size]
  output = arguments.output or Path(f"runs/ablation-{arguments.size}")
  try:
    if arguments.folds and arguments.test:
      raise UserError("--folds scores every case out of fold; leave --test out, or --folds")
    given = (arguments.data, arguments.epochs, arguments.folds)
    if arguments.one:
      name, seed = arguments.one[0], int(arguments.one[1])
      config, folder = settings_of(size, name, seed, *given), output / name / f"seed{seed}"
      if arguments.folds:
        run_folds(config, folder)
      else:
        run(config, folder, arguments.test)
      return
    usual = list(RECIPES) if arguments.table else list(size.recipes)
    recipes = arguments.recipes.split(",") if arguments.recipes else usual
    for name in [*recipes, arguments.against]:
      config = settings_of(size, name, 0, *given)
      config_lib.parse(config_lib.to_dict(config))
    if not arguments.table:
      if not (arguments.data or arguments.test or arguments.folds) and size.test_cases:
        arguments.test = _generated_test_cases(size)
      _run_all(output, recipes, arguments)
    print(write_tables(output, recipes, range(arguments.seeds), arguments.against))
  except UserError as e:
    sys.exit(f"error: {e}")


def _generated_test_cases(size: Size) -> Path:
  from kd_jax.data.demo import writer as demo

  data = settings_of(size, ALONE, 0, None).data
  root = Path(data.root).parent / "test"
  count, first = len(size.test_cases), size.test_cases.start
  progress = Terminal(0).progress("generating cases to score on")
  demo.write_dataset(root, count, data.demo_seed, progress=progress, first=first)
  return root


def _run_all(output: Path, recipes: Sequence[str], arguments: argparse.Namespace) -> None:
  """Seed by seed, so that a table of all recipes is there early; each in a process of its own."""
  jobs = [(name, seed) for seed in range(arguments.seeds) for name in recipes]
  waiting = [j for j in jobs if not record_file(output / j[0] / f"seed{j[1]}").is_file()]
  began = time.monotonic()
  for done, (name, seed) in enumerate(waiting):
    spent = time.monotonic() - began
    left = duration(spent / done * (len(waiting) - done)) if done else "?"
    print(f"[{done + 1}/{len(waiting)}] {name}, seed {seed}; {left} left", flush=True)
    folder = output / name / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--size", arguments.size, "--output", str(output)]
    for flag in ("data", "test", "epochs", "folds"):
      if value := getattr(arguments, flag):
        command += [f"--{flag}", str(value)]
    with (folder / "terminal.log").open("w") as log:
      code = subprocess.run(
        [*command, "--one", name, str(seed)], stdout=log, stderr=subprocess.STDOUT, check=False
      ).returncode
    if code:
      tail = (folder / "terminal.log").read_text(errors="replace")[-2000:]
      raise UserError(f"{name}, seed {seed} ended with exit status {code}:\n{tail}")
    write_tables(output, recipes, range(arguments.seeds), arguments.against)


if __name__ == "__main__":
  main()
