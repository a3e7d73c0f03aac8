"""Certainty in an evaluation: what summary.json and the report say, of one student and of folds."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special, stats
from students import make_student
from synthetic import make_case

from kd_jax.data import nifti
from kd_jax.evaluation import certainty, summary
from kd_jax.evaluation.certainty import Certainty
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.students import evaluate
from kd_jax.prediction import calibration
from kd_jax.prediction.calibration import NONE, Calibration
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.tasks import labels
from kd_jax.tasks.labels import REGIONS

KNOWN = Calibration({"WT": 3.0, "TC": 2.0, "ET": 1.0}, 6)


class Oracle(Predictor):
  """Sees the truth through noise, more in each case; is three times as sure as it may be."""

  def __init__(self, root, known=KNOWN, **overrides):
    super().__init__([dataclasses.replace(make_student(), calibration=known)], **overrides)
    self.truths = {}
    for path in sorted(root.glob("*/*_t1ce.nii*")):
      seg = next(path.parent.glob("*_seg.nii*"))
      image = nifti.read(path)
      truth = labels.to_classes(nifti.read(seg).data, "brats2018")
      self.truths[image.data.tobytes()] = (len(self.truths), truth)

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    case, truth = self.truths[prepared.reference.data.tobytes()]
    sigma = 1 + 0.25 * case
    noise = np.random.default_rng(case).normal(0, sigma, (4, *truth.shape))
    seen = 2 * np.eye(4)[truth].transpose(3, 0, 1, 2) + noise
    p = special.softmax(3 * 2 * seen / sigma**2, axis=0)  # 2 * seen / sigma**2: its log-likelihood
    return p[(slice(None), *prepared.grid.box)].astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  for i in range(5):
    make_case(root / f"P{i}", seed=i)
  return root


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
  from kd_jax.runtime.terminal import Terminal

  folder = tmp_path_factory.mktemp("out")
  predictor = Oracle(data, min_component_mm3=0.0, min_et_mm3=0.0)
  evaluate(predictor, Choice(data_root=data), folder, Terminal(quiet=True))
  return folder


def test_the_summary_has_errors_before_and_after_and_the_predicted_dice(evaluated):
  found = json.loads((evaluated / "summary.json").read_text())["certainty"]
  assert found["cases"] == 5 and found["fitted_on"] == 6
  scores = [line.split(",") for line in (evaluated / "scores.csv").read_text().splitlines()]
  for region, facts in found["regions"].items():
    assert facts["temperature"] == KNOWN.of(region)
    before, after = facts["before"], facts["after"]
    assert (after == before) == (region == "ET")  # whose temperature changes nothing
    assert region != "WT" or all(after[e] < before[e] for e in ("ece", "ace", "brier"))
    for stage in (before, after):
      assert 0 < stage["ece"] <= stage["ace"] < 1
      voxels = [n for _, _, n in stage["reliability"]]
      assert all(0 <= p <= 1 and 0 <= share <= 1 for p, share, _ in stage["reliability"])
    assert sum(voxels) == 5000
    column = scores[0].index(f"dice_{region}")
    true = [float(row[column]) for row in scores[1:]]
    predicted = [found["predicted_dice"][row[0]][region] for row in scores[1:]]
    agreement = facts["predicted_dice"]
    assert agreement["n"] == 5
    assert agreement["spearman"] == pytest.approx(stats.spearmanr(predicted, true)[0], abs=1e-4)
    assert agreement["pearson"] == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-4)
    errors = np.abs(np.subtract(predicted, true))
    assert agreement["mean_absolute_error"] == pytest.approx(errors.mean(), abs=1e-4)
  assert found["regions"]["WT"]["predicted_dice"]["spearman"] > 0.85  # noisier, and so less sure
  page = (evaluated / "report.html").read_text()
  assert "How sure the student is" in page and "Reliability of ET" in page
  assert "Dice of TC, predicted and true" in page


def test_without_a_calibration_there_is_no_after(data, tmp_path, terminal, monkeypatch):
  monkeypatch.setattr(summary, "write_report", lambda path, report: None)
  for known, chosen in ((NONE, None), (KNOWN, False)):
    predictor = Oracle(data, known, calibrate=chosen)
    found = evaluate(predictor, Choice(data_root=data), tmp_path, terminal)["certainty"]
    assert found["fitted_on"] == 0
    assert all("after" not in f and f["temperature"] == 1 for f in found["regions"].values())
  assert "rank correlation" in terminal.console.file.getvalue()


# --- Folds ------------------------------------------------------------------------------------


def gathered(cases: range, temperature: float) -> Certainty:
  found = Certainty()
  for i in cases:
    rng = np.random.default_rng(i)
    logits = rng.normal(-1, 2, (12, 12, 12))
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    p = (1 / (1 + np.exp(-temperature * logits))).astype(np.float32)
    for region in REGIONS:
      counts = calibration.histogram(p, truth)
      found.histograms[region] = found.histograms.get(region, 0) + counts
    found.predicted_dice[f"P{i}"] = dict.fromkeys(REGIONS, 0.5 + i / 100)
  return found


def dice_of(cases: range) -> dict[str, dict[str, float]]:
  return {f"P{i}": {f"dice_{r}": 0.4 + i / 100 for r in REGIONS} for i in cases}


def test_folds_are_pooled_as_if_they_were_one():
  known = Calibration(dict.fromkeys(REGIONS, 2.0), 4)
  parts = [gathered(range(4), 2.0), gathered(range(4, 9), 2.0)]
  scores = [dice_of(range(4)), dice_of(range(4, 9))]
  folds = [certainty.summarise(p, known, s) for p, s in zip(parts, scores, strict=True)]
  pooled = certainty.pool([{"certainty": fold} for fold in folds], dice_of(range(9)))
  whole = certainty.summarise(gathered(range(9), 2.0), known, dice_of(range(9)))
  assert pooled["cases"] == 9 and pooled["fitted_on"] == 8
  for region, facts in pooled["regions"].items():
    assert facts["temperature"] == [2.0, 2.0]
    for stage in ("before", "after"):
      theirs = whole["regions"][region][stage]
      for name in ("ece", "ace", "brier"):
        assert facts[stage][name] == pytest.approx(theirs[name], abs=1e-5)
      np.testing.assert_allclose(facts[stage]["reliability"], theirs["reliability"], atol=1e-5)
    assert facts["predicted_dice"] == whole["regions"][region]["predicted_dice"]
    assert facts["predicted_dice"]["spearman"] == 1
    assert facts["predicted_dice"]["mean_absolute_error"] == pytest.approx(0.1)
  assert certainty.pool([{"certainty": folds[0]}, {}], dice_of(range(9))) == {}
  assert certainty.pool([], {}) == {}


def test_too_few_cases_have_no_correlation():
  two = certainty.summarise(gathered(range(2), 1.0), NONE, dice_of(range(2)))
  assert two["regions"]["WT"]["predicted_dice"]["spearman"] is None
  same = gathered(range(4), 1.0)
  same.predicted_dice = dict.fromkeys(same.predicted_dice, dict.fromkeys(REGIONS, 0.5))
  facts = certainty.summarise(same, NONE, dice_of(range(4)))["regions"]["ET"]["predicted_dice"]
  assert facts["pearson"] is None and facts["n"] == 4
  assert certainty.lines(two)[0].count("-") and certainty.lines({}) == []
  assert certainty.summarise(Certainty(), NONE, {}) == {}
