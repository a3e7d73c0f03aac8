"""How sure is a mean, and do two evaluations of the same cases differ?

Intervals are 95% percentile bootstrap intervals of a mean: the cases are drawn again with
replacement, 10,000 times (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter
13). With few cases they are too narrow: of ten Beta(8, 2) scores they hold the true mean in 88% of
samples, of forty in 94%.

The test is Wilcoxon's signed-rank test, two-sided, zero differences treated as Pratt (1959) does:
they take part in the ranking, then their ranks are dropped.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

DRAWS = 10_000
LEVEL = 95  # %
_AT_ONCE = 2_000_000  # values resampled in one piece: bounds the memory to some 30 MB
_EXACT_UP_TO = 13  # pairs: 2^13 sign patterns are enumerated in no time
_DECIMALS = 9  # differences are rounded to these: 0.9 - 0.8 and 0.8 - 0.7 must tie


def describe(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, float | int | None]:
  """Mean, spread and the mean's interval.

  Args:
    values: (n,), one a case.
    seed: of the bootstrap; the same seed and values give the same interval.

  Returns:
    n, mean, sd (n - 1 in the denominator), median, low and high (95% interval of the mean), in the
    values' unit. Of one value sd, low and high are None: how sure it is, it does not tell.

  Raises:
    ValueError: no values, or one that is NaN or infinite, which no mean may swallow.
  """
  x = _checked(values, "values")
  low, high = bootstrap_interval(x, seed) if len(x) > 1 else (None, None)
  return {
    "n": len(x),
    "mean": float(x.mean()),
    "sd": float(x.std(ddof=1)) if len(x) > 1 else None,
    "median": float(np.median(x)),
    "low": low,
    "high": high,
  }


def paired(
  a: Sequence[float] | np.ndarray,
  b: Sequence[float] | np.ndarray,
  seed: int = 0,
  higher_is_better: bool = True,
) -> dict[str, Any]:
  """Two evaluations of the same cases, case by case.

  Args:
    a, b: (n,), in the same order of cases.
    seed: of the bootstrap.
    higher_is_better: what "better" means.

  Returns:
    n, mean_a, mean_b, difference (mean of b - a), low and high (its 95% interval; None of one
    pair), wilcoxon_p (two-sided; 1 where no case differs), and the number of cases where b is
    better, worse, equal.

  Raises:
    ValueError: different lengths, no values, or one that is NaN or infinite.
  """
  a, b = _checked(a, "a"), _checked(b, "b")
  if len(a) != len(b):
    raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
  d = np.round(b - a, _DECIMALS)
  low, high = bootstrap_interval(d, seed) if len(d) > 1 else (None, None)
  rises, falls = int((d > 0).sum()), int((d < 0).sum())
  return {
    "n": len(d),
    "mean_a": float(a.mean()),
    "mean_b": float(b.mean()),
    "difference": float(d.mean()),
    "low": low,
    "high": high,
    "wilcoxon_p": signed_rank_p(d),
    "better": rises if higher_is_better else falls,
    "worse": falls if higher_is_better else rises,
    "equal": len(d) - rises - falls,
  }


def bootstrap_interval(x: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The percentile interval of the mean of (n,) values; see the module."""
  rng = np.random.default_rng(seed)
  n = len(x)
  rows = max(1, _AT_ONCE // n)
  means = np.empty(DRAWS)
  for start in range(0, DRAWS, rows):
    draws = means[start : start + rows]  # a view
    cases = rng.integers(0, n, (len(draws), n), dtype=np.int32)
    draws[:] = x[cases].mean(axis=1)  # (rows, n) -> (rows,)
  low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
  return float(low), float(high)


def signed_rank_p(d: np.ndarray) -> float:
  """Two-sided p of Wilcoxon's signed-rank test of (n,) differences; 1.0 if all are zero.

  Up to 13 pairs by all 2^n sign patterns, which is exact with ties and zeros too; what SciPy does
  with those in small samples depends on its version, and its normal approximation can give five
  pairs a p below the 0.0625 that is possible. Beyond, SciPy's own choice.
  """
  if not d.any():
    return 1.0
  if len(d) > _EXACT_UP_TO:
    return float(stats.wilcoxon(d, zero_method="pratt").pvalue)
  ranks = stats.rankdata(np.abs(d))[d != 0]
  patterns = (np.arange(2 ** len(ranks))[:, None] >> np.arange(len(ranks))) & 1  # (2^m, m)
  sums = patterns @ ranks  # of the positive ranks; halves at most, so comparisons are exact
  observed = ranks[d[d != 0] > 0].sum()
  return float(min(1.0, 2 * min((sums >= observed).mean(), (sums <= observed).mean())))


def _checked(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
  x = np.asarray(values, np.float64)
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{name}: expected one or more numbers in a row, got shape {x.shape}")
  if not np.isfinite(x).all():
    bad = np.flatnonzero(~np.isfinite(x))
    raise ValueError(
      f"{name}: {len(bad)} of {len(x)} are not numbers that can be averaged, the first is "
      f"{'NaN' if np.isnan(x[bad[0]]) else x[bad[0]]} at position {bad[0]}"
    )
  return x
