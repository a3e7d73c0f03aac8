"""Is student B better than student A? Two evaluations, paired case by case."""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_jax.evaluation.intervals import paired
from kd_jax.metrics.case import METRICS
from kd_jax.runs.layout import EVALUATION, SCORES_FILE, SUMMARY_FILE
from kd_jax.runtime import commands
from kd_jax.runtime.errors import UserError, some
from kd_jax.runtime.files import read_json, read_user_text, write_text
from kd_jax.runtime.terminal import Terminal, table
from kd_jax.tasks.labels import REGIONS

COMPARED = ("dice", "hd95_mm", "nsd_1mm", "lesionwise_dice")
MUST_AGREE = ("rules", "data")  # of summary.json
# Of the data: what masks of other programs are, which two evaluations differ in by design, and
# what only students' evaluations have.
_OF_MASKS = ("predictions", "prediction_conventions", "dropped_prediction_labels")
_OF_STUDENTS = ("split", "fold", "folds")
SIGNIFICANT = 0.05
_FEWEST = 6  # pairs: 2 / 2^6 = 0.031 is the smallest two-sided p, 2 / 2^5 = 0.0625

Scores = dict[str, dict[str, float]]


def find_scores(path: Path) -> Path:
  """The scores.csv that is meant by a file, an evaluation's folder or a work directory.

  Raises:
    UserError: there is none, or a work directory holds several.
  """
  path = Path(os.path.expanduser(path))
  if path.is_file():
    return path
  if (path / SCORES_FILE).is_file():
    return path / SCORES_FILE
  found = sorted(path.glob(f"{EVALUATION}/**/{SCORES_FILE}"))
  if len(found) > 1:
    raise UserError(
      f"{path} holds {len(found)} evaluations; name the one that is meant: "
      + ", ".join(str(f.parent) for f in found)
    )
  if not found:
    missing = "" if path.exists() else " (there is no such file or folder)"
    raise UserError(
      f"no {SCORES_FILE} in {path}{missing}; run {commands.named('evaluate')} first, or give the "
      "folder of an evaluation"
    )
  return found[0]


def read_scores(path: Path) -> Scores:
  """{case: {column: score}} of a scores.csv; an empty cell is NaN (undefined for that case).

  Raises:
    UserError: what is no such file, with the line at fault.
  """

  def broken(line: int, finding: str) -> UserError:
    return UserError(
      f"{path}, line {line}: {finding}; write it again with {commands.named('evaluate')}"
    )

  reader = csv.reader(io.StringIO(read_user_text(path)), strict=True)
  try:
    head = next(reader, [])
    rows = [(reader.line_num, row) for row in reader if row]
  except csv.Error as e:
    raise broken(reader.line_num, str(e)) from e
  if head[:1] != ["case"] or len(head) < 2:
    raise broken(1, f"expected the header case,dice_WT,..., found {','.join(head)[:60]!r}")
  if twice := sorted({column for column in head if head.count(column) > 1}):
    raise broken(1, f"columns stand there twice: {', '.join(twice)}")
  scores: Scores = {}
  for line, row in rows:
    if len(row) != len(head):
      raise broken(line, f"{len(row)} cells where the header has {len(head)}")
    if row[0] in scores:
      raise broken(line, f"case {row[0]} stands there twice")
    scores[row[0]] = {}
    for column, cell in zip(head[1:], row[1:], strict=True):
      try:
        scores[row[0]][column] = float(cell) if cell.strip() else math.nan
      except ValueError:
        raise broken(line, f"{column} of {row[0]} is no number: {cell!r}") from None
  if not scores:
    raise broken(1, "no case follows the header")
  return scores


def compare(a: Path, b: Path, output: Path | None, terminal: Terminal) -> dict[str, Any]:
  """Compares two evaluations on the cases that both scored.

  Args:
    a, b: what find_scores understands.
    output: a folder for compare.json (all numbers) and compare.csv (B - A of every case), or None.
    terminal: where to tell.

  Returns:
    What compare.json holds: a and b (title, scores), cases in common, only_in_a, only_in_b,
    warnings, rows (statistics.paired by column, with the cases "left_out" of it), conclusions.

  Raises:
    UserError: no evaluation found, a broken file, no case or no score in common.
  """
  files = [find_scores(a), find_scores(b)]
  scores = [read_scores(file) for file in files]
  beside = [file.parent / SUMMARY_FILE for file in files]
  summaries = [read_json(path) if path.exists() else {} for path in beside]
  titles = [str(s.get("title") or file.parent) for s, file in zip(summaries, files, strict=True)]
  common = sorted(scores[0].keys() & scores[1].keys())
  if not common:
    raise UserError(
      f"{files[0]} and {files[1]} have no case in common (A has {some(sorted(scores[0]))}; "
      f"B has {some(sorted(scores[1]))}); evaluate both students on the same cases"
    )
  columns = [_columns(s) for s in scores]
  compared = [column for column in columns[0] if column in columns[1]]
  if not compared:
    raise UserError(
      f"{files[0]} and {files[1]} have none of {', '.join(COMPARED)} in common; evaluate both again"
    )

  rows = {column: _row(column, common, *scores) for column in compared}
  result = {
    "a": {"title": titles[0], "scores": str(files[0])},
    "b": {"title": titles[1], "scores": str(files[1])},
    "cases": common,
    "only_in_a": sorted(scores[0].keys() - scores[1].keys()),
    "only_in_b": sorted(scores[1].keys() - scores[0].keys()),
    "warnings": _warnings(summaries, columns),
    "rows": rows,
    "conclusions": [
      _conclusion(region, rows[f"dice_{region}"])
      for region in REGIONS
      if f"dice_{region}" in compared
    ],
  }
  _tell(result, terminal)
  if output is not None:
    write_text(output / "compare.json", json.dumps(result, indent=1) + "\n")
    write_text(output / "compare.csv", _differences(common, compared, *scores))
    terminal.line(f"written: {output / 'compare.json'}, {output / 'compare.csv'}")
  return result


def _columns(scores: Scores) -> list[str]:
  """The columns of scores that are compared, in the order they are shown."""
  present = next(iter(scores.values()))
  wanted = [f"{metric}_{region}" for metric in COMPARED for region in REGIONS]
  return [column for column in wanted if column in present]


def _row(column: str, cases: Sequence[str], a: Scores, b: Scores) -> dict[str, Any]:
  """statistics.paired over the cases where both scores are numbers, and the others by name."""
  both = [n for n in cases if math.isfinite(a[n][column]) and math.isfinite(b[n][column])]
  left_out = sorted(set(cases) - set(both))
  if not both:
    return {"n": 0, "left_out": left_out}
  higher = METRICS[column.rpartition("_")[0]].better == "higher"
  pairs = paired([a[n][column] for n in both], [b[n][column] for n in both], 0, higher)
  return {**pairs, "left_out": left_out}


def _warnings(summaries: Sequence[Mapping[str, Any]], columns: Sequence[list[str]]) -> list[str]:
  """Why the two may not be comparable."""
  found = []
  for letter, summary in zip("AB", summaries, strict=True):
    if not summary:
      found.append(f"{letter} has no {SUMMARY_FILE}: by which rules it was scored is not known")
    if failed := summary.get("failed"):
      reasons = some([f"{case} ({reason})" for case, reason in sorted(failed.items())])
      found.append(f"{letter} could not score {len(failed)} cases: {reasons}")
  if all(summaries):
    one, other = _compared(summaries)
    for key in MUST_AGREE:
      if differing := _differing(key, one.get(key), other.get(key)):
        found.append(
          f"A and B are not comparable as they stand, {key} differ: {'; '.join(differing)}"
        )
  a, b = columns
  for letter, ours, theirs in (("A", a, b), ("B", b, a)):
    if extra := [column for column in ours if column not in theirs]:
      found.append(f"only {letter} has {', '.join(extra)}")
  return found


def _compared(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """What must agree of each summary, without what may differ by design."""
  kept = [{key: summary.get(key) for key in MUST_AGREE} for summary in summaries]
  described = [own["data"] if isinstance(own["data"], dict) else {} for own in kept]
  masks = ["predictions" in data for data in described]
  left_out = _OF_MASKS + (_OF_STUDENTS if any(masks) else ())
  for own, data in zip(kept, described, strict=True):
    if data:
      own["data"] = {key: value for key, value in data.items() if key not in left_out}
  return kept


def _differing(name: str, a: object, b: object) -> list[str]:
  """Where two JSON values differ, as "rules.empty: 'x' in A, 'y' in B"."""
  if isinstance(a, dict) and isinstance(b, dict):
    keys = sorted(a.keys() | b.keys())
    return [text for k in keys for text in _differing(f"{name}.{k}", a.get(k), b.get(k))]
  return [] if a == b else [f"{name}: {_short(a)} in A, {_short(b)} in B"]


def _conclusion(region: str, row: Mapping[str, Any]) -> str:
  if not row["n"]:
    return f"{region} Dice: no case has a score in both"
  difference = row["difference"]
  if row["n"] == 1:
    return f"{region} Dice: no difference shown (B - A = {difference:.3f} in the one case)"
  evidence = (
    f"95% interval {row['low']:.3f} to {row['high']:.3f}; Wilcoxon p {_equals(row['wilcoxon_p'])}"
  )
  apart = row["low"] > 0 or row["high"] < 0
  if row["wilcoxon_p"] < SIGNIFICANT and apart:
    word = "better" if difference > 0 else "worse"
    return f"{region} Dice: B is {word} by {abs(difference):.3f} ({evidence})"
  return f"{region} Dice: no difference shown (B - A = {difference:.3f}, {evidence})"


def _tell(result: Mapping[str, Any], terminal: Terminal) -> None:
  line, cases = terminal.line, result["cases"]
  for letter in "ab":
    line(f"{letter.upper()}: {result[letter]['title']} ({result[letter]['scores']})")
  line(f"{len(cases)} cases in both, paired by name")
  for letter in "ab":
    if alone := result[f"only_in_{letter}"]:
      line(f"{len(alone)} cases only in {letter.upper()}, left out: {some(alone)}")
  for warning in result["warnings"]:
    line(f"WARNING: {warning}")

  head = ["", "cases", "A", "B", "B - A", "low", "high", "p", "better", "equal", "worse"]
  values = ("mean_a", "mean_b", "difference", "low", "high")
  shown = []
  for column, row in result["rows"].items():
    if not row["n"]:
      shown.append([column, 0, *["-"] * (len(head) - 2)])
      continue
    p = row["wilcoxon_p"]
    shown.append(
      [column, row["n"], *(row[v] for v in values), p if p >= 1e-4 else "<0.0001"]
      + [row[k] for k in ("better", "equal", "worse")]
    )
  line(table(head, shown))
  metrics = dict.fromkeys(column.rpartition("_")[0] for column in result["rows"])
  best = ", ".join(f"{metric}: {METRICS[metric].better}" for metric in metrics)
  line(
    "A, B: means. low, high: 95% bootstrap interval of the mean of B - A. p: Wilcoxon signed-rank, "
    f"two-sided, not corrected for the number of rows ({len(shown)}). better, equal, worse: cases "
    f"in which B is; what is better: {best}."
  )
  for column, row in result["rows"].items():
    if left_out := row["left_out"]:
      line(f"WARNING: {column} is undefined in A or B, left out there: {some(left_out)}")
  fewest = min(row["n"] for row in result["rows"].values())
  if fewest < _FEWEST:
    line(
      f"With {fewest} pairs a Wilcoxon test cannot reach p < {SIGNIFICANT}, however large the "
      f"difference: it takes {_FEWEST} or more."
    )
  for conclusion in result["conclusions"]:
    line(conclusion)


def _differences(cases: Sequence[str], columns: Sequence[str], a: Scores, b: Scores) -> str:
  """compare.csv: B - A by case and column; an empty cell where one of them is undefined."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["case", *columns])
  for name in cases:
    d = [b[name][column] - a[name][column] for column in columns]
    writer.writerow([name, *(f"{x:.6f}" if math.isfinite(x) else "" for x in d)])
  return text.getvalue()


def _equals(p: float) -> str:
  return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _short(value: object) -> str:
  text = json.dumps(value)
  return text if len(text) <= 100 else f"{text[:100]}..."
