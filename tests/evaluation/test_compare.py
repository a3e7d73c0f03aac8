"""Pairing of two evaluations: what is found, read, told and refused."""

import csv
import json
import math

import numpy as np
import pytest

from kd_jax.evaluation.compare import compare, find_scores, read_scores
from kd_jax.evaluation.intervals import paired
from kd_jax.runtime.errors import UserError

REGIONS = ("WT", "TC", "ET")
COLUMNS = [f"{m}_{r}" for m in ("dice", "hd95_mm", "sensitivity") for r in REGIONS]
RULES = {"empty": "both empty: Dice 1", "conventions": ["brats2018"]}


class Lines(list):
  """A terminal that remembers."""

  line = list.append

  def __str__(self):
    return "\n".join(self)


def evaluation(folder, scores, **summary):
  """Writes scores.csv from {case: {column: value}} (and summary.json, if anything is in it)."""
  folder.mkdir(parents=True, exist_ok=True)
  columns = list(next(iter(scores.values())))
  with (folder / "scores.csv").open("w", newline="") as f:
    writer = csv.writer(f)
    writer.writerow(["case", *columns])
    writer.writerows([case, *(row[c] for c in columns)] for case, row in scores.items())
  if summary:
    (folder / "summary.json").write_text(json.dumps(summary))
  return folder


def random_scores(n, seed=0, shift=0.0, columns=COLUMNS):
  """n cases; the Dice of WT is shifted."""
  noise = np.random.default_rng(seed).uniform(0.5, 0.8, (n, len(columns)))
  shifts = np.array([shift * (c == "dice_WT") for c in columns])
  wobble = 1 + 0.1 * np.arange(n)[:, None] / n
  values = (noise + shifts * wobble).round(6)
  return {
    f"case{i:03d}": dict(zip(columns, map(float, row), strict=True)) for i, row in enumerate(values)
  }


@pytest.fixture
def two(tmp_path):
  """B's WT is better by 0.05 to 0.055, everything else is the same; 20 cases."""
  a = evaluation(tmp_path / "a", random_scores(20), title="one teacher", rules=RULES, data="x")
  b = evaluation(
    tmp_path / "b", random_scores(20, shift=0.05), title="three", rules=RULES, data="x"
  )
  return a, b


def test_finds_what_is_meant(tmp_path):
  scores = random_scores(1)
  folder = evaluation(tmp_path / "run" / "evaluation" / "val", scores)
  cv = evaluation(tmp_path / "cv" / "evaluation", scores)
  for path in (folder / "scores.csv", folder, tmp_path / "run"):
    assert find_scores(path) == folder / "scores.csv"
  assert find_scores(tmp_path / "cv") == cv / "scores.csv"
  evaluation(tmp_path / "run" / "evaluation" / "other", scores)
  with pytest.raises(UserError, match=r"2 evaluations.*evaluation/other, .*evaluation/val"):
    find_scores(tmp_path / "run")
  assert find_scores(folder) == folder / "scores.csv"


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_nothing_to_find(tmp_path, name):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=f"no scores.csv in .*{name}.*--mode=evaluate"):
    find_scores(tmp_path / name)


def test_reads_what_was_written(tmp_path):
  scores = random_scores(3)
  scores["case001"]["sensitivity_ET"] = ""
  read = read_scores(evaluation(tmp_path, scores) / "scores.csv")
  assert math.isnan(read["case001"].pop("sensitivity_ET"))
  scores["case001"].pop("sensitivity_ET")
  assert read == scores


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "line 1: expected the header"),
    ("name,dice_WT\nx,1\n", "line 1: expected the header"),
    ("case\nx\n", "line 1: expected the header"),
    ("case,dice_WT\n", "no case"),
    ("case,dice_WT,dice_WT\nx,1,1\n", "line 1: columns stand there twice: dice_WT"),
    ("case,dice_WT\nx,1\ny,1,2\n", "line 3: 3 cells where the header has 2"),
    ("case,dice_WT\nx,1\n\ny\n", "line 4: 1 cells"),
    ("case,dice_WT\nx,1\nx,2\n", "line 3: case x stands there twice"),
    ("case,dice_WT\nx,good\n", "line 2: dice_WT of x is no number: 'good'"),
    ('case,dice_WT\nx,"1\ny,2\n', "line 3: unexpected end"),
  ],
)
def test_broken_files_are_named_with_the_line(tmp_path, text, message):
  path = tmp_path / "scores.csv"
  path.write_text(text)
  with pytest.raises(UserError, match=message) as e:
    read_scores(path)
  assert str(path) in str(e.value)


def test_a_file_that_a_spreadsheet_program_saved(tmp_path):
  (tmp_path / "scores.csv").write_bytes('\ufeffcase,dice_WT\r\n"x, y",0.5\r\n'.encode())
  assert read_scores(tmp_path / "scores.csv") == {"x, y": {"dice_WT": 0.5}}


def test_unreadable_files(tmp_path):
  with pytest.raises(UserError, match="cannot read"):
    read_scores(tmp_path / "absent.csv")
  (tmp_path / "scores.csv").write_bytes(b"case,\xff\xfe")
  with pytest.raises(UserError, match="not a text file"):
    read_scores(tmp_path / "scores.csv")


def test_numbers_are_those_of_paired_scores(two):
  result = compare(*two, None, Lines())
  a, b = (read_scores(folder / "scores.csv") for folder in two)
  assert list(result["rows"]) == [f"{m}_{r}" for m in ("dice", "hd95_mm") for r in REGIONS]
  for column, row in result["rows"].items():
    values = [[s[case][column] for case in sorted(a)] for s in (a, b)]
    expected = paired(*values, higher_is_better=column.startswith("dice"))
    assert row == {**expected, "left_out": []}
  assert result["rows"]["dice_WT"]["better"] == 20
  assert result["rows"]["dice_TC"]["equal"] == 20


def test_cases_are_paired_by_name_not_by_place(tmp_path, two):
  scores = read_scores(two[1] / "scores.csv")
  shuffled = evaluation(tmp_path / "s", dict(reversed(scores.items())))
  assert compare(two[0], shuffled, None, Lines())["rows"] == compare(*two, None, Lines())["rows"]


def test_what_is_told(two):
  lines = Lines()
  result = compare(*two, None, lines)
  assert lines[0].startswith("A: one teacher (") and lines[1].startswith("B: three (")
  assert "20 cases in both" in lines[2]
  table = next(line for line in lines if "better" in line).splitlines()
  assert len(table) == 2 + 6 and len({len(row) for row in table}) == 1
  wt = table[2].split()
  assert wt[0] == "dice_WT" and wt[-3:] == ["20", "0", "0"] and wt[-4] == "<0.0001"
  assert "not corrected for the number of rows (6)" in str(lines)
  assert lines[-3:] == result["conclusions"]
  assert lines[-3] == (
    "WT Dice: B is better by 0.052 (95% interval 0.052 to 0.053; Wilcoxon p < 0.001)"
  )
  assert lines[-2] == (
    "TC Dice: no difference shown (B - A = 0.000, 95% interval 0.000 to 0.000; Wilcoxon p = 1.000)"
  )
  assert "WARNING" not in str(lines)


def test_the_other_way_round_is_worse(two):
  assert "WT Dice: B is worse by 0.052" in compare(two[1], two[0], None, Lines())["conclusions"][0]


def test_lower_distances_are_better(tmp_path):
  near = {f"c{i}": {"hd95_mm_WT": 2.0 + i} for i in range(7)}
  far = {f"c{i}": {"hd95_mm_WT": 4.0 + i} for i in range(7)}
  result = compare(evaluation(tmp_path / "f", far), evaluation(tmp_path / "n", near), None, Lines())
  row = result["rows"]["hd95_mm_WT"]
  assert (row["difference"], row["better"], row["worse"]) == (-2, 7, 0)
  assert result["conclusions"] == []  # those are about Dice


def test_cases_of_one_only_are_named(tmp_path):
  a = evaluation(tmp_path / "a", random_scores(20))
  b = evaluation(
    tmp_path / "b", {**dict(list(random_scores(8).items())), "new": random_scores(1)["case000"]}
  )
  lines = Lines()
  result = compare(a, b, None, lines)
  assert len(result["cases"]) == 8 and result["only_in_b"] == ["new"]
  assert result["only_in_a"] == [f"case{i:03d}" for i in range(8, 20)]
  assert "12 cases only in A, left out: case008, " in str(lines)
  assert "case017 and 2 more" in str(lines) and "case018" not in str(lines)
  assert "1 cases only in B, left out: new" in str(lines)


def test_nothing_in_common(tmp_path):
  a = evaluation(tmp_path / "a", {"x": {"dice_WT": 1, "volume_WT": 1}})
  b = evaluation(tmp_path / "b", {"y": {"dice_WT": 1}})
  c = evaluation(tmp_path / "c", {"x": {"dice_TC": 1, "volume_WT": 1}})
  with pytest.raises(UserError, match=r"no case in common \(A has x; B has y\)"):
    compare(a, b, None, Lines())
  with pytest.raises(UserError, match="have none of dice, hd95_mm"):
    compare(a, c, None, Lines())


@pytest.mark.parametrize(("n", "said"), [(1, True), (5, True), (6, False)])
def test_too_few_pairs_for_a_test(tmp_path, n, said):
  a = evaluation(tmp_path / "a", random_scores(n))
  b = evaluation(tmp_path / "b", random_scores(n, shift=0.2))
  lines = Lines()
  compare(a, b, None, lines)
  assert (f"With {n} pairs a Wilcoxon test cannot reach p < 0.05" in str(lines)) == said
  assert ("WT Dice: no difference shown" in str(lines)) == said


def test_one_pair_has_no_interval(tmp_path):
  a = evaluation(tmp_path / "a", random_scores(1))
  b = evaluation(tmp_path / "b", random_scores(1, shift=0.2))
  lines = Lines()
  result = compare(a, b, None, lines)
  assert result["conclusions"][0] == (
    "WT Dice: no difference shown (B - A = 0.200 in the one case)"
  )
  (row,) = (row.split() for line in lines for row in line.splitlines() if "dice_WT" in row)
  assert row[4:8] == ["0.2000", "-", "-", "1.0000"]


def test_undefined_scores_are_left_out_by_name(tmp_path, two):
  scores = read_scores(two[0] / "scores.csv")
  scores["case004"]["dice_ET"] = math.nan
  for row in scores.values():
    row["hd95_mm_ET"] = ""
  a = evaluation(tmp_path / "undefined", scores)
  lines = Lines()
  result = compare(a, two[1], tmp_path / "out", lines)
  assert result["rows"]["dice_ET"]["n"] == 19
  assert result["rows"]["dice_ET"]["left_out"] == ["case004"]
  assert result["rows"]["dice_WT"]["n"] == 20
  assert result["rows"]["hd95_mm_ET"]["n"] == 0
  assert "WARNING: dice_ET is undefined in A or B, left out there: case004" in lines
  assert "NaN" not in (tmp_path / "out" / "compare.json").read_text()


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ({"rules": {**RULES, "empty": "NaN"}}, 'rules.empty: "both empty: Dice 1" in A, "NaN" in B'),
    ({"rules": {**RULES, "conventions": ["brats2024"]}}, "rules.conventions:"),
    ({"data": "y"}, 'data differ: data: "x" in A, "y" in B'),
    ({"data": None}, 'data differ: data: "x" in A, null in B'),
  ],
)
def test_evaluations_by_other_rules_get_a_warning(tmp_path, two, change, expected):
  summary = {"title": "B", "rules": RULES, "data": "x"} | change
  b = evaluation(tmp_path / "b", read_scores(two[1] / "scores.csv"), **summary)
  lines = Lines()
  warning = next(iter(compare(two[0], b, None, lines)["warnings"]))
  assert expected in warning
  assert f"WARNING: {warning}" in lines


def test_masks_of_two_programs_are_comparable(tmp_path, two):
  """They lie in different folders by design; a student's evaluation has a split, they have none."""
  truth = {"root": "/truth", "cases": 20, "conventions": ["brats2018"], "dropped_labels": {}}
  masks = {"predictions": "m_ext", "prediction_conventions": ["msd"]}
  other = {"predictions": "m_other", "prediction_conventions": ["brats2018"]}
  other |= {"dropped_prediction_labels": {"4": {"cases": 1, "voxels": 3}}}
  data = {"masks": truth | masks, "others": truth | other, "student": truth | {"split": "all"}}
  scores = read_scores(two[0] / "scores.csv")
  made = {
    name: evaluation(tmp_path / name, scores, rules=RULES, data=own) for name, own in data.items()
  }
  for a, b in (("masks", "others"), ("masks", "student"), ("student", "others")):
    assert compare(made[a], made[b], None, Lines())["warnings"] == []
  elsewhere = data["others"] | {"root": "/other"}
  far = evaluation(tmp_path / "far", scores, rules=RULES, data=elsewhere)
  (warning,) = compare(made["masks"], far, None, Lines())["warnings"]
  assert warning.endswith('data differ: data.root: "/truth" in A, "/other" in B')


def test_failed_cases_and_a_missing_summary_are_told(tmp_path, two):
  scores = read_scores(two[1] / "scores.csv")
  b = evaluation(tmp_path / "b", scores, rules=RULES, data="x", failed={"c9": "no label map"})
  bare = evaluation(tmp_path / "bare", scores)
  lines = Lines()
  compare(two[0], b, None, lines)
  assert "WARNING: B could not score 1 cases: c9 (no label map)" in lines
  compare(bare, b, None, lines)
  assert any(line.startswith("WARNING: A has no summary.json") for line in lines)
  (b / "summary.json").write_text("[1]")
  with pytest.raises(UserError, match=r"cannot read .*summary\.json: no JSON object"):
    compare(bare, b, None, lines)


def test_a_metric_of_one_only_is_told(tmp_path, two):
  columns = ["dice_WT", "nsd_1mm_WT"]
  b = evaluation(tmp_path / "c", random_scores(20, columns=columns), rules=RULES, data="x")
  warnings = compare(two[0], b, None, Lines())["warnings"]
  assert warnings[0].startswith("only A has dice_TC, dice_ET, hd95_mm_WT")
  assert warnings[1] == "only B has nsd_1mm_WT"


def test_files_hold_what_was_returned(tmp_path, two):
  lines, out = Lines(), tmp_path / "new" / "out"
  result = compare(*two, out, lines)
  assert json.loads((out / "compare.json").read_text()) == result
  with (out / "compare.csv").open(newline="") as f:
    rows = list(csv.DictReader(f))
  assert [row["case"] for row in rows] == result["cases"]
  assert list(rows[0]) == ["case", *result["rows"]]
  mean = np.mean([float(row["dice_WT"]) for row in rows])
  assert mean == pytest.approx(result["rows"]["dice_WT"]["difference"], abs=1e-6)
  assert str(out / "compare.json") in lines[-1]
