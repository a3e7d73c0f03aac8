"""Means, intervals and the paired test, against hand calculation, theory and SciPy."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from kd_jax.evaluation.intervals import bootstrap_interval, describe, paired, signed_rank_p

NAN, INF = float("nan"), float("inf")


def test_describe_by_hand():
  d = describe([1, 2, 3, 4, 10])
  assert d["n"] == 5 and d["mean"] == 4 and d["median"] == 3
  assert d["sd"] == pytest.approx(12.5**0.5)  # (9 + 4 + 1 + 0 + 36) / 4
  assert 1 < d["low"] < 4 < d["high"] < 10
  assert {type(v) for v in d.values()} == {int, float}  # ready for JSON


def test_one_value_has_no_spread_and_no_interval():
  none = dict.fromkeys(("sd", "low", "high"))
  assert describe([0.7]) == {"n": 1, "mean": 0.7, "median": 0.7} | none
  pair = paired([0.5], [0.7])
  assert (pair["difference"], pair["low"], pair["high"]) == (pytest.approx(0.2), None, None)


def test_equal_values_have_an_interval_of_no_width():
  d = describe([0.5] * 9)
  assert (d["low"], d["high"], d["sd"]) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ([], "one or more"),
    ([[1.0, 2.0]], "shape"),
    ([1.0, NAN, NAN], "2 of 3 .* NaN at position 1"),
    ([1.0, 2.0, INF], "inf at position 2"),
  ],
)
def test_nothing_is_averaged_away(values, message):
  with pytest.raises(ValueError, match=message):
    describe(values)
  with pytest.raises(ValueError, match=f"b: .*{message}"):
    paired([0.0] * max(1, len(values)), values)


def test_the_seed_decides():
  x = np.random.default_rng(1).normal(size=37)
  assert describe(x) == describe(list(x)) == describe(x, seed=0)
  assert describe(x, seed=1)["low"] != describe(x)["low"]
  assert paired(x, x[::-1], seed=3) == paired(x, x[::-1], seed=3)


def test_interval_of_three_values_is_that_of_the_27_resamples():
  """1 in 27 draws the 0 three times, 1 in 27 the 5: both more than 2.5%."""
  assert bootstrap_interval(np.array([0.0, 1, 5])) == (0, 5)
  x = np.array([0.0] * 19 + [1.0])  # the mean is Binomial(20, 1/20) / 20
  low, high = bootstrap_interval(x)
  assert (low, high) == (0, pytest.approx(stats.binom.ppf(0.975, 20, 1 / 20) / 20))


def test_interval_agrees_with_the_normal_one_in_large_samples():
  x = np.random.default_rng(2).normal(3, 2, 1500)
  low, high = bootstrap_interval(x)
  half = 1.96 * x.std() / 1500**0.5
  assert low == pytest.approx(x.mean() - half, abs=0.04 * half)
  assert high == pytest.approx(x.mean() + half, abs=0.04 * half)


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
  rng = np.random.default_rng(3)
  samples = rng.beta(8, 2, (300, 40))  # skewed, as Dice is; its mean is 0.8
  intervals = [bootstrap_interval(x, seed) for seed, x in enumerate(samples)]
  covered = np.mean([low <= 0.8 <= high for low, high in intervals])
  assert 0.90 <= covered <= 0.98


def test_memory_stays_bounded():
  x = np.random.default_rng(4).normal(size=2000)
  tracemalloc.start()
  describe(x)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 60e6  # all draws at once: 240e6


def test_paired_by_hand():
  a, b = [0.5, 0.6, 0.7, 0.8], [0.6, 0.8, 0.7, 0.7]
  p = paired(a, b)
  assert p["n"] == 4
  assert (p["mean_a"], p["mean_b"]) == pytest.approx((0.65, 0.7))
  assert p["difference"] == pytest.approx(0.05)
  assert (p["better"], p["worse"], p["equal"]) == (2, 1, 1)
  # |d| = 0.1, 0.2, 0, 0.1: Pratt's ranks 2.5, 4, -, 2.5; W+ = 6.5 of 0, 2.5, 2.5, 4, 5, 6.5, 6.5, 9
  assert p["wilcoxon_p"] == pytest.approx(2 * 3 / 8)
  assert -0.1 <= p["low"] < 0.05 < p["high"] <= 0.2
  lower = paired(a, b, higher_is_better=False)
  assert (lower["better"], lower["worse"], lower["equal"]) == (1, 2, 1)
  assert lower["difference"] == p["difference"]


def test_swapping_turns_the_sign_only():
  a, b = np.random.default_rng(5).uniform(size=(2, 25))
  there, back = paired(a, b), paired(b, a)
  assert there["difference"] == -back["difference"]
  assert there["low"] == pytest.approx(-back["high"])
  assert there["wilcoxon_p"] == back["wilcoxon_p"]
  assert (there["better"], there["worse"]) == (back["worse"], back["better"])


def test_equal_evaluations():
  a = [0.3, 0.9, 0.5]
  p = paired(a, a)
  assert (p["difference"], p["low"], p["high"], p["wilcoxon_p"]) == (0, 0, 0, 1)
  assert (p["better"], p["worse"], p["equal"]) == (0, 0, 3)


def test_rounding_noise_is_no_difference():
  assert 0.9 - 0.8 != 0.8 - 0.7 and 0.1 + 0.2 != 0.3
  p = paired([0.3, 0.8, 0.8], [0.1 + 0.2, 0.9, 0.7])
  assert (p["better"], p["worse"], p["equal"]) == (1, 1, 1)
  assert p["wilcoxon_p"] == 1  # the two others tie


def test_different_lengths():
  with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
    paired([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
  ("d", "p"),
  [
    ([1.0], 1.0),
    ([1, 2, 3, 4, 5], 0.0625),  # the smallest p of five pairs
    ([1, 1, 1, 1, 1], 0.0625),  # the normal approximation says 0.025
    ([0, 1, 1, 1, 1], 0.125),  # it says 0.046
    ([1, 2, 3, 4, 5, 6], 0.03125),
    ([1, 2, 3, 4, 5, -6], 0.4375),  # W- = 6: 14 of 64 patterns have 6 or less
    ([0, 0, 0], 1.0),
  ],
)
def test_signed_rank_by_hand(d, p):
  assert signed_rank_p(np.array(d, float)) == p
  assert signed_rank_p(-np.array(d, float)) == p


@pytest.mark.parametrize("n", [4, 8, 13, 14, 30, 50, 51, 400])
def test_signed_rank_agrees_with_scipy(n):
  d = np.random.default_rng(n).normal(0.3, 1, n)
  expected = stats.wilcoxon(d, zero_method="pratt").pvalue
  assert signed_rank_p(d) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [6, 9, 40, 200])
def test_signed_rank_agrees_with_scipy_on_ties_and_zeros(n):
  d = np.random.default_rng(n).integers(-2, 4, n).astype(float)
  d[:2] = 0
  method = stats.PermutationMethod() if n <= 13 else "auto"
  expected = stats.wilcoxon(d, zero_method="pratt", method=method).pvalue
  assert signed_rank_p(d) == pytest.approx(expected, rel=1e-9)
