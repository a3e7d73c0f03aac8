"""The report's section on how sure the student is."""

import re

import numpy as np
import pytest

from kd_jax.report import certainty as section
from kd_jax.report import figures
from kd_jax.report.certainty import agreement, certainty_of, reliability
from kd_jax.report.page import Report, render

REGION_NAMES = ("WT", "TC", "ET")


def stage(shift: float) -> dict:
  p = (np.arange(15) + 0.5) / 15
  bins = [[x, min(1.0, max(0.0, x + shift * (0.5 - x))), 10 ** (6 - abs(i - 7) // 2)] for i, x in enumerate(p.tolist())]  # fmt: skip  # noqa: E501
  return {"ece": shift / 100, "ace": shift / 4, "brier": 0.02, "reliability": bins}


def certainty(after: bool = True) -> dict:
  facts = {
    "temperature": 1.25 if after else 1.0,
    "before": stage(0.4),
    "predicted_dice": {"n": 3, "pearson": 0.5, "spearman": None, "mean_absolute_error": 0.07},
  }
  facts |= {"after": stage(0.05)} if after else {}
  dice = {f"<b>P{i}": dict.fromkeys(REGION_NAMES, 0.6 + i / 10) for i in range(3)}
  return {
    "cases": 3,
    "fitted_on": 8 if after else 0,
    "regions": dict.fromkeys(REGION_NAMES, facts),
    "predicted_dice": dice,
  }


SCORES = {f"<b>P{i}": {f"dice_{r}": 0.5 + i / 10 for r in REGION_NAMES} for i in range(3)}


def test_the_section_has_curves_errors_and_predicted_dice():
  page = render(Report({"title": "x", "certainty": certainty()}, SCORES))
  assert re.search(r'(?s)<section id="certainty".*How sure the student is', page)
  assert page.count("Reliability of ") >= 3
  assert "fitted on 8 validation cases" in page
  assert "0.0040 → 0.0005" in page and "<td>1.25</td>" in page
  assert "Correlation by rank –, linear 0.50; mean error 0.070; 3 cases." in page
  assert "<b>P0" not in page.replace("<figcaption><b>", "")


@pytest.fixture
def no_figures(monkeypatch):
  """Drawing takes long, and is tested elsewhere."""
  for module, name in ((section, "reliability"), (section, "agreement"), (figures, "boxes")):
    monkeypatch.setattr(module, name, lambda *args: "<svg></svg>")


def test_a_student_without_temperatures_and_an_evaluation_without_it(no_figures):
  page = render(Report({"certainty": certainty(after=False)}, SCORES))
  assert "no temperatures" in page and "→" not in page.split('id="certainty"')[1].split("<h3>")[0]
  assert certainty_of({}, {}) is None
  assert 'id="certainty"' not in render(Report({}, SCORES))


def test_folds_have_a_temperature_each(no_figures):
  folds = certainty()
  folds["regions"] = {r: f | {"temperature": [1.2, 0.9]} for r, f in folds["regions"].items()}
  assert certainty_of(folds, SCORES).rows["WT"][0] == "1.20, 0.90"


@pytest.mark.parametrize("cases", [0, 1, 600])
def test_figures_of_any_number_of_cases(cases):
  values = np.linspace(0, 1, cases).tolist()
  assert agreement(values, values, "WT").startswith("<svg")
  assert agreement([float("nan")] * cases, values, "odd").startswith("<svg")


def test_a_curve_of_one_bin():
  svg = reliability({"before": [(0.01, 0.0, 5)]}, "ET")
  assert "share that is ET" in svg and "after" not in svg
  assert "10³" in reliability({"before": [(0.01, 0.0, 10**6)]}, "ET") and "mathdefault" not in svg
