"""The tables of the ablation, made of the records of its runs."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from benchmarks.ablations.recipes import ALONE, RECIPES
from benchmarks.ablations.records import COLUMNS, mean_networks, read_records
from kd_jax.evaluation.intervals import paired
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import table
from kd_jax.tasks.labels import REGIONS


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
      "seconds_per_step": statistics.median(r["seconds_per_step"] for r in runs.values()),
      "memory_gb": max(r["memory_gb"] for r in runs.values()),
    }
    others = records.get(against, {}) if name != against else {}
    row |= _columns(*({seed: r["scores"] for seed, r in rs.items()} for rs in (runs, others)))
    postprocessed = [
      {seed: r["cleaned"] for seed, r in rs.items() if "cleaned" in r} for rs in (runs, others)
    ]
    if own := postprocessed[0]:
      row["cleaned"] = _columns(*postprocessed) | {"seeds": len(own)}
      row["cleaned"]["smallest"] = [runs[seed]["smallest"] for seed in own]
    row["networks"] = mean_networks(list(runs.values()))
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
    means = {seed: statistics.fmean(_by_case([run], column)) for seed, run in runs.items()}
    columns[column] = {
      "mean": statistics.fmean(means.values()),
      "sd_over_seeds": statistics.stdev(means.values()) if len(means) > 1 else None,
    }
    if both:
      a, b = (_by_case([own[s] for s in both], column) for own in (others, runs))
      columns[column]["against"] = paired(a, b, higher_is_better=column.startswith("dice"))
      columns[column]["against_by_seed"] = [
        means[s] - statistics.fmean(_by_case([others[s]], column)) for s in both
      ]
  return columns


def _by_case(runs: Sequence[Mapping[str, Sequence[float]]], column: str) -> list[float]:
  """Each case's mean over runs, in the cases' order."""
  i = COLUMNS.index(column)
  return [statistics.fmean(run[case][i] for run in runs) for case in sorted(runs[0])]


def text_of(rows: Sequence[Mapping[str, Any]], against: str = ALONE) -> str:
  """The tables that people read."""
  scores, networks = [], []
  for row in rows:
    cost = [f"{1e3 * row['seconds_per_step']:.0f}", f"{row['memory_gb']:.1f}"]
    scores.append([row["recipe"], row["seeds"], *means(row), *cost])
    for network, regions in row["networks"].items():
      cells = [f"{100 * regions[r]:.1f}" for r in REGIONS]
      networks.append([row["recipe"], network, *cells])
  meanings = [[row["recipe"], RECIPES[row["recipe"]].what] for row in rows]
  parts = [
    "Volumetric Dice (%) and HD95 (mm) in the scans' own space: mean ± sd over seeds\n\n"
    + table([*HEAD, "ms/step", "GB"], scores)
  ]
  parts += comparison(rows, against)
  postprocessed = [{"recipe": row["recipe"], **row["cleaned"]} for row in rows if "cleaned" in row]
  if postprocessed:
    cells = [
      [
        row["recipe"],
        row["seeds"],
        *means(row),
        *(" ".join(f"{mm3[of]:g}" for mm3 in row["smallest"]) for of in ("island", "et")),
      ]
      for row in postprocessed
    ]
    parts.append(
      "Postprocessed, with minimum sizes (mm3, seed by seed) chosen by the run's validation "
      f"cases\n\n{table([*HEAD, 'component', 'ET'], cells)}"
    )
    parts += comparison(postprocessed, against, " postprocessed")
  parts.append(
    "Every network on the training grid, Dice (%)\n\n"
    + table(["recipe", "network", *REGIONS], networks)
  )
  parts.append(table(["recipe", "what it is"], meanings))
  return "\n\n".join(parts) + "\n"


HEAD = ["recipe", "seeds", *(f"{r} Dice" for r in REGIONS), *(f"{r} HD95" for r in REGIONS)]


def means(row: Mapping[str, Any]) -> list[str]:
  """The cells under HEAD from the third on."""
  cells = [_spread(row[f"dice_{r}"], 100, 1) for r in REGIONS]
  return cells + [_spread(row[f"hd95_mm_{r}"], 1, 1) for r in REGIONS]


def comparison(
  rows: Sequence[Mapping[str, Any]], against: str, how: str = "", over: str = "cases"
) -> list[str]:
  """Differences over cases and by seeds; [] if there is nothing to compare with."""
  compared = [row for row in rows if "against" in row["dice_WT"]]
  metrics = (("Dice", "dice", "points", 100), ("HD95", "hd95_mm", "mm; below 0 is better", 1))
  parts = []
  for words, metric, unit, scale in metrics if compared else ():
    title = f"{words}{how} against {against}, {unit}: difference [95% interval over {over}] p"
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
  ends = (d["low"], d["high"])
  low, high = ("-" if end is None else f"{scale * end:+.1f}" for end in ends)  # None: of one case
  return f"{scale * d['difference']:+.1f} [{low}, {high}] p={d['wilcoxon_p']:.2g}"


def _by_seed(value: Mapping[str, Any], scale: float) -> str:
  differences = [scale * d for d in value["against_by_seed"]]
  text, n = " ".join(f"{d:+.1f}" for d in differences), len(differences)
  if n == 1:
    return text
  middle = statistics.fmean(differences)
  half = scipy.stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
  return f"{text} [{middle - half:+.1f}, {middle + half:+.1f}]"


def write_tables(
  output: Path, recipes: Sequence[str], seeds: Sequence[int], against: str = ALONE
) -> str:
  rows = summary_of(output, recipes, seeds, against)
  text = text_of(rows, against)
  write_text(output / "ablation.json", json.dumps(rows, indent=1) + "\n")
  write_text(output / "ablation.md", f"```\n{text}```\n")
  return text
