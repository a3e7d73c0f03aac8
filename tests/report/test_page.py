import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest

from kd_jax.metrics.case import METRICS
from kd_jax.report import figures
from kd_jax.report.cases import mean_dice, showcase
from kd_jax.report.page import Report, render, write
from kd_jax.report.slices import to_png

REGIONS = ("WT", "TC", "ET")
HOSTILE = "<script>window.hacked = 1</script>\"quoted\" & 'single' $title <img src=x onerror=a()>"
JINJA = "{{ 7*7 }}{% raw %}{% for %}{{ nowhere }}{# gone #}{{ '<b>' | safe }}"


def scores(n: int, seed: int = 0) -> dict[str, dict[str, float]]:
  """case000, case001, ...; every 10th has no ET in the truth."""
  rng = np.random.default_rng(seed)
  found = {}
  for i in range(n):
    values = {f"{m}_{region}": float(rng.uniform()) for m in METRICS for region in REGIONS}
    for region in REGIONS:
      absent = region == "ET" and i % 10 == 9
      values[f"truth_mm3_{region}"] = 0.0 if absent else float(rng.uniform(1e3, 1e5))
      values[f"hd95_mm_{region}"] = 373.13 if absent else float(rng.uniform(0, 40))
    found[f"case{i:03}"] = values
  return found


def history(n: int = 5) -> list[dict[str, float]]:
  lines = []
  for i in range(1, n + 1):
    line = {"step": 10 * i, "train/loss/student": 1 / i, "train/lr/student": 0.1}
    for teacher in ("flair", "t2"):
      line[f"train/loss/teacher/{teacher}"] = 0.5 / i
      line[f"train/confidence/weight/{teacher}"] = 0.25
      line[f"train/confidence/score/{teacher}"] = 0.5
    for kind in ("train", "val"):
      for network in ("student", "flair", "t2"):
        best = 0.9 if kind == "val" else 1
        line |= {f"{kind}/dice/{network}/{region}": best - 1 / i for region in REGIONS}
    lines.append(line)
  return lines


def report(n: int, **changes: object) -> Report:
  values = scores(n)
  stats = {"n": n, "mean": 0.81234, "sd": 0.1, "median": 0.85, "low": 0.7, "high": 0.9}
  summary = {
    "schema": 1,
    "title": "brats21: validation cases of fold 0",
    "created": "2026-11-23T12:00:00+00:00",
    "students": [
      {"name": "brats21", "modalities": ["t1ce"], "step": 160, "averaged": True, "source": "runs/x"}
    ],
    "data": {"root": "/data/B", "split": "val", "fold": 0, "folds": 5, "patients": n},
    "failed": {"broken1": "no seg"},
    "excluded": {"twin1": "same patient id as case000"},
    "notes": ["one thing to know"],
    "prediction": {"mode": "sliding", "mirror": False, "space": "the scan's own"},
    "rules": {"empty_masks": "both empty: Dice 1"},
    "software": {"kd_jax": "0.1.0", "jax": "0.10.2"},
    "hardware": {"device": "cpu", "processors": 2},
    "settings": {"data": {"patch": [48, 48, 48], "workers": 0}},
    "regions": {region: dict.fromkeys(METRICS, stats) for region in REGIONS} if n else {},
  }
  png = to_png(np.zeros((8, 32, 3), np.uint8))
  made = Report(
    summary,
    values,
    dict.fromkeys(showcase(values).values(), png),
    {"brats21-fold0": history()},
    {case: f"viewers/{case}.html" for case in list(values)[:1]},
  )
  return dataclasses.replace(made, **changes)


@pytest.fixture
def no_figures(monkeypatch):
  """For tests of everything else: drawing takes most of the time."""
  for name in ("boxes", "against_volume", "curves"):
    monkeypatch.setattr(figures, name, lambda *_: "<svg></svg>")


class Parsed(HTMLParser):
  """Checks that elements nest, and collects what a page loads, links to and says."""

  VOID = ("meta", "img", "br", "link", "input")
  LOADS = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")

  def __init__(self, page: str):
    super().__init__()
    self.open, self.tags, self.ids, self.targets, self.text = [], [], [], [], ""
    self.feed(page)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self.ids += [value for name, value in attrs if name == "id"]
    self.targets += [value for name, value in attrs if name in self.LOADS]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data if self.open[-1:] not in (["script"], ["style"]) else ""


def headings(page: str) -> list[str]:
  return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_a_full_report_has_all_sections_in_order():
  page = render(report(12))
  assert headings(page) == [
    "Scores",
    "Distribution over cases",
    "Dice and tumour volume",
    "Best, median and worst case",
    "All cases",
    "Training",
    "How this was made",
  ]
  text = Parsed(page).text
  for said in (
    "12 cases of 12 patients from /data/B (validation, fold 0 of 5) were scored",
    "come from the student brats21, which saw t1ce alone (step 160, averaged weights)",
    "in the scan's own space",
    "1 case could not be scored",
    "same patient id as case000",
    "one thing to know",
    "0.812 ± 0.100",
    "0.700 – 0.900",
    "not comparable",
    "data.patch",
    "48, 48, 48",
    "not a medical device",
  ):
    assert said in text, said
  table = page[page.index("<tbody>") :]
  assert table.index("Predicted volume") < table.index('class="apart"') < table.index("published")


@pytest.mark.parametrize("n", [0, 1, 12, 300, 600])
def test_pages_of_any_number_of_cases_are_well_formed_and_load_nothing(n):
  page = render(report(n) if n == 12 else report(n, histories={}))
  parsed = Parsed(page)
  assert "http:" not in page and "https:" not in page and "@import" not in page
  pictures = [t for t in parsed.targets if t.startswith("data:image/png;base64,")]
  inside = [t for t in parsed.targets if t.startswith("#")]
  links = [t for t in parsed.targets if t.startswith("./viewers/")]
  assert len(pictures) + len(inside) + len(links) == len(parsed.targets)
  assert {t[1:] for t in inside} <= set(parsed.ids) and len(parsed.ids) == len(set(parsed.ids))
  for tag, attributes in parsed.tags:
    assert tag != "img" or attributes["alt"]
    assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
  rows = re.findall(r'<tr><th scope="row">(case\d+|broken1)</th>', page)
  assert rows == ["broken1", *sorted(report(n).scores)]
  # Points of very many cases are one picture, so that the page stays small.
  assert ("<image" in page) == (n > 500) and len(page) < 100_000 + 2_000 * n + 300_000


@pytest.mark.parametrize("hostile", [HOSTILE, JINJA], ids=("html", "jinja"))
def test_names_and_texts_are_escaped(hostile):
  # With figures: names stand in them too.
  full = report(4)
  values = {hostile: full.scores["case000"], **full.scores}
  summary = full.summary | {
    "title": hostile,
    "created": hostile,
    "notes": [hostile],
    "failed": {hostile + "2": hostile},
    "excluded": {hostile: hostile},
    "students": [{"name": hostile, "modalities": [hostile]}],
    "data": {"root": hostile, "split": hostile, "fold": hostile},
    "settings": {hostile: {hostile: hostile}},
    "rules": {hostile: hostile},
    "regions": {r: {hostile: {"mean": 1}} for r in REGIONS},
  }
  runs = {hostile: [{"step": 1, f"train/loss/teacher/{hostile}": 1.0}]}
  pictures = dict.fromkeys(values, b"png")
  links = {hostile: "javascript:alert(1)", "case000": 'x" onclick="alert(1)'}
  page = render(Report(summary, values, pictures, runs, links))
  parsed = Parsed(page)
  tags = [tag for tag, _ in parsed.tags]
  assert tags.count("script") == 1 and tags.count("img") == 5
  assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
  assert "./javascript%3Aalert%281%29" in parsed.targets  # a path beside the page, not a script
  assert parsed.text.count(hostile) >= 12


@pytest.mark.parametrize("key", [*report(2).summary, None])
def test_missing_parts_are_left_out(no_figures, key):
  full = report(2)
  summary = {k: v for k, v in full.summary.items() if key and k != key}
  page = render(dataclasses.replace(full, summary=summary))
  Parsed(page)
  assert ("Scores" in headings(page)) == (key not in ("regions", None))
  assert "All cases" in headings(page)


def test_a_report_of_nothing_says_so():
  page = render(Report({}))
  assert headings(page) == [] and "No case was scored." in Parsed(page).text


def test_odd_numbers_and_statistics_are_shown_as_missing(no_figures):
  stats = {"n": 1, "mean": None, "sd": float("nan"), "median": float("inf")}
  summary = {"regions": {"ET": {"dice": stats, "hd95_mm": None, "new_thing": {"mean": 2.5}}}}
  values = {"a": {"dice_WT": None, "dice_ET": float("nan")}, "b": {}}
  text = Parsed(render(Report(summary, values))).text
  assert "– (n = 1)∞–" in text and "New thing" in text and "2.500" in text


def test_folders_without_a_network_and_cross_validation_are_stated(no_figures):
  full = report(3)
  given = dataclasses.replace(full, summary=full.summary | {"students": []})
  assert "no network was run" in render(given)
  students = [{"name": f"fold{i}", "modalities": ["t1ce", "t2"]} for i in range(5)]
  crossed = full.summary | {"students": students, "data": {"fold": "out of fold"}}
  text = Parsed(render(dataclasses.replace(full, summary=crossed))).text
  assert "3 cases (out of fold) were scored" in text
  assert "5 students (fold0, fold1, fold2, fold3, fold4), which saw t1ce + t2." in text


def test_best_median_and_worst_are_by_the_mean_dice():
  values = {f"c{i}": {"dice_WT": i / 10, "dice_ET": i / 10} for i in (3, 1, 5, 2, 4)}
  assert mean_dice({"dice_WT": 0.5, "dice_TC": float("nan"), "dice_ET": 0.7}) == pytest.approx(0.6)
  assert np.isnan(mean_dice({"hd95_mm_WT": 1.0}))
  assert showcase(values) == {"Best": "c5", "Median": "c3", "Worst": "c1"}
  assert showcase(values | {"none": {}}) == showcase(values)
  assert showcase({c: values[c] for c in ("c3", "c1")}) == {"Best": "c3", "Worst": "c1"}
  assert showcase({"c1": values["c1"]}) == {"Only": "c1"} and showcase({}) == {}


def test_further_pictures_are_folded_away_worst_first(no_figures):
  full = report(30)
  page = render(dataclasses.replace(full, pictures=dict.fromkeys(full.scores, b"png")))
  assert page.count("<img") == 3 + 12
  shown = re.findall(r"<h3>Case: (case\d+)", page)
  ranked = sorted(full.scores, key=lambda case: mean_dice(full.scores[case]))
  chosen = showcase(full.scores).values()
  assert shown == [case for case in ranked if case not in chosen][:12]


def test_a_run_has_its_charts_and_runs_without_numbers_have_none():
  charts = figures.training(history())
  assert [title for title, _, _ in charts] == [
    "Training loss",
    "Training Dice, mean over regions",
    "Validation Dice, mean over regions",
    "Validation Dice of the student",
    "Teachers' confidence: score",
    "Teachers' confidence: weight",
  ]
  assert charts[0][1] == "At step 50: student 0.2, flair 0.1, t2 0.1."
  assert charts[1][1] == "At step 50: student 0.8, flair 0.8, t2 0.8."
  for _, _, svg in charts:
    assert svg.startswith("<svg") and "<text" in svg and ">step</text>" in svg
  assert figures.training([]) == [] and figures.training([{"step": 1, "val/seconds": 2.0}]) == []
  assert [title for title, _, _ in figures.training([{"step": 1, "val/dice/student/WT": 0.5}])] == [
    "Validation Dice, mean over regions",
    "Validation Dice of the student",
  ]


def test_long_runs_are_thinned_and_gaps_stay_gaps():
  long = [{"step": i, "train/loss/student": 1.0} for i in range(20_000)]
  long[5]["train/loss/student"] = float("nan")
  ((_, _, svg),) = figures.training(long)
  assert len(svg) < 30_000


def test_the_same_report_gives_the_same_page_in_another_process(tmp_path):
  path = tmp_path / "new" / "report.html"
  write(path, report(6))
  code = "import sys, test_page as t; sys.stdout.write(t.render(t.report(6)))"
  path_list = os.pathsep.join(map(str, sys.path))
  environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": path_list, "PYTHONUTF8": "1"}
  done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
  assert done.stdout.decode() == path.read_text(encoding="utf-8"), done.stderr.decode()


# --- In a browser ---


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
  full = report(12)
  values = {HOSTILE: full.scores["case000"], **full.scores}
  values["case003"] = values["case003"] | {"dice_WT": float("nan")}
  path = tmp_path_factory.mktemp("report") / "report.html"
  write(path, dataclasses.replace(full, scores=values))
  return path


FIRST = "[...document.querySelectorAll('.sortable tbody th')].map(e => e.textContent)"
COLUMN = "[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[{}]?.textContent)"
SORTED = "[...document.querySelectorAll('.sortable [aria-sort]')].map(e => [+e.dataset.column, e.ariaSort])"  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_the_page_shows_without_network_errors_or_overflow(page_file, width, dark):
  with browser.page(page_file, width=width, dark=dark) as page:
    assert page.errors == [] and page.requests == []
    assert page.files == [page_file.resolve().as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("window.hacked === undefined")
    light = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (light == "rgb(255, 255, 255)") == (not dark)
    card = page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert card == "rgb(255, 255, 255)"
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    drawn = "[...document.querySelectorAll('.card svg')].every(s => s.getBBox().width > 200)"
    assert page.evaluate(drawn)


def test_headings_sort_by_mouse_and_by_keyboard(page_file):
  with browser.page(page_file) as page:
    names = page.evaluate(FIRST)
    assert page.evaluate(SORTED) == [[0, "ascending"]]

    page.click('.sortable [data-column="2"] button')  # Dice of WT
    assert page.evaluate(SORTED) == [[2, "ascending"]]
    column = page.evaluate(COLUMN.format(2))
    numbers = [float(x) for x in column[:-2]]
    assert len(numbers) == 12 and numbers == sorted(numbers)
    assert column[-2:] in (["–", None], [None, "–"])
    assert {page.evaluate(FIRST)[i] for i in (-1, -2)} == {"case003", "broken1"}

    page.evaluate("document.activeElement.blur()")
    page.evaluate("document.querySelector('.sortable [data-column=\"2\"] button').focus()")
    page.press("Enter")
    assert page.evaluate(SORTED) == [[2, "descending"]]
    column = page.evaluate(COLUMN.format(2))
    assert [float(x) for x in column[:-2]] == sorted(numbers, reverse=True)
    assert column[-2:] in (["–", None], [None, "–"])  # what has no number stays last

    page.click('.sortable [data-column="0"] button')
    assert sorted(page.evaluate(FIRST)) == sorted(names)
    ordered = [name for name in page.evaluate(FIRST) if name.startswith("case")]
    assert ordered == [f"case{i:03}" for i in range(12)]
    page.press("Tab")
    page.press(" ")
    assert page.evaluate(SORTED) == [[1, "ascending"]]
    assert page.errors == []


def test_folded_parts_are_open_on_paper(page_file):
  with browser.page(page_file, width=1030, media="print") as page:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1030


def test_the_browser_sees_errors_and_requests(tmp_path):
  """Else the tests above could not fail."""
  path = tmp_path / "bad.html"
  script = "console.error('wrong'); setTimeout(() => { throw new Error('later'); })"
  path.write_text(f'<img src="http://a.invalid/x.png"><script>{script}</script>')
  with browser.page(path, fragment="part") as page:
    assert page.evaluate("location.hash + innerWidth") == "#part1280"
    assert page.requests == ["http://a.invalid/x.png"]
    assert json.dumps(page.errors).count("wrong") == 1 and "later" in json.dumps(page.errors)
    assert page.screenshot().startswith(b"\x89PNG")
    with pytest.raises(AssertionError, match="nowhere"):
      page.evaluate("nowhere")
