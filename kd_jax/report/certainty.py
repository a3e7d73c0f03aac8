"""The section of a report on how sure the student is: reliability, and predicted against true Dice.

What it draws is computed in evaluation/certainty.py; here it gets words and figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from kd_jax.report.figures import REGION_COLOURS, new_figure, style, to_svg
from kd_jax.report.parts import NOTHING, as_float, count
from kd_jax.tasks.labels import REGIONS

ERRORS = {
  "ece": ("ECE", "expected calibration error, the mean gap to the diagonal, each voxel alike"),
  "ace": ("ACE", "average calibration error, the same, each bin alike"),
  "brier": ("Brier", "mean squared difference of probability and truth"),
}
_RASTER_FROM = 500  # cases
_POWERS = {1: "1", 1e3: "10³", 1e6: "10⁶", 1e9: "10⁹"}  # the figures' texts know no formulas
_BEFORE = "#777777"

Chart = tuple[str, str, Markup]  # title, description, SVG
Curve = Sequence[tuple[float, float, int]]  # probability, share, voxels of each bin


class CertaintySection(NamedTuple):
  """What the template shows.

  Attributes:
    intro: what was calibrated on whom, a sentence.
    bins: how many there are, at most.
    reliability, dice: a chart a region.
    errors: heading -> what it means.
    rows: region -> its cells, the temperature first.
  """

  intro: str
  bins: int
  reliability: list[Chart]
  dice: list[Chart]
  errors: dict[str, str]
  rows: dict[str, list[str]]


def certainty_of(
  certainty: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]
) -> CertaintySection | None:
  """The section of a summary's "certainty"; None if there is nothing in it."""
  regions = {r: certainty["regions"][r] for r in REGIONS if r in (certainty.get("regions") or {})}
  if not regions:
    return None
  predicted = certainty.get("predicted_dice") or {}
  bins = max(len(f["before"]["reliability"]) for f in regions.values())
  return CertaintySection(
    intro=_intro(int(certainty.get("fitted_on") or 0)),
    bins=bins,
    reliability=[_reliability(region, facts) for region, facts in regions.items()],
    dice=[_dice(r, facts["predicted_dice"], predicted, scores) for r, facts in regions.items()],
    errors=dict(ERRORS.values()),
    rows={region: _row(facts) for region, facts in regions.items()},
  )


def _intro(fitted_on: int) -> str:
  if not fitted_on:
    return "The student has no temperatures: its probabilities are shown as predicted."
  return (
    "Probabilities before and after one temperature a region, which was fitted on "
    f"{count(fitted_on, 'validation case')}; where the cases here are the same, what is shown of "
    "after is slightly optimistic."
  )


def _row(facts: Mapping[str, Any]) -> list[str]:
  temperature = facts["temperature"]
  several = temperature if isinstance(temperature, list) else [temperature]
  cells = [", ".join(f"{t:.2f}" for t in several)]
  for name in ERRORS:
    stages = [facts[stage][name] for stage in ("before", "after") if stage in facts]
    cells.append(" → ".join(f"{value:.4f}" for value in stages))
  return cells


def _reliability(region: str, facts: Mapping[str, Any]) -> Chart:
  curves = {stage: facts[stage]["reliability"] for stage in ("before", "after") if stage in facts}
  errors = " → ".join(f"{facts[stage]['ece']:.4f}" for stage in curves)
  # Safe: the SVG is matplotlib's, which escapes what it draws.
  return f"Reliability of {region}", f"ECE {errors}.", Markup(reliability(curves, region))


def _dice(
  region: str,
  facts: Mapping[str, Any],
  predicted: Mapping[str, Mapping[str, float]],
  scores: Mapping[str, Mapping[str, float]],
) -> Chart:
  names = [name for name in predicted if name in scores]
  x = [as_float(predicted[name].get(region)) for name in names]
  y = [as_float(scores[name].get(f"dice_{region}")) for name in names]
  rank, linear = (
    NOTHING if facts.get(kind) is None else f"{facts[kind]:.2f}" for kind in ("spearman", "pearson")
  )
  words = (
    f"Correlation by rank {rank}, linear {linear}; mean error {facts['mean_absolute_error']:.3f}; "
    f"{count(facts['n'], 'case')}."
  )
  return f"Dice of {region}, predicted and true", words, Markup(agreement(x, y, region))


def reliability(curves: Mapping[str, Curve], region: str) -> str:
  """A reliability diagram as SVG, with the number of voxels of each bin below.

  Args:
    curves: "before", "after" -> bins.
  """
  colours = {"before": _BEFORE, "after": REGION_COLOURS.get(region, "#0072b2")}
  with style():
    fig = Figure(figsize=(3.4, 3.9), layout="constrained")
    upper, lower = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3.2, 1)})
    upper.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    for i, (stage, curve) in enumerate(curves.items()):
      p, share, voxels = np.asarray(curve, float).reshape(-1, 3).T
      line: dict[str, Any] = {"color": colours[stage], "linewidth": 1.6, "marker": "o", "ms": 4}
      if stage == "before":
        line |= {"linestyle": (0, (4, 1.5)), "mfc": "white"}
      upper.plot(p, share, label=stage, **line)
      side = (i - (len(curves) - 1) / 2) * 0.018
      lower.bar(p + side, voxels, width=0.016, color=colours[stage])
    upper.set_ylim(-0.03, 1.03)
    upper.set_ylabel(f"share that is {region}")
    upper.legend(loc="upper left", fontsize=9)
    lower.set_yscale("log")
    lower.set_yticks(list(_POWERS), _POWERS.values())
    lower.set_yticks([], minor=True)
    most = max((voxels for curve in curves.values() for _, _, voxels in curve), default=1)
    lower.set_ylim(0.8, 2 * most)
    lower.set_ylabel("voxels")
    lower.set_xlim(-0.04, 1.04)
    lower.set_xlabel(f"probability of {region}")
    return to_svg(fig)


def agreement(predicted: Sequence[float], true: Sequence[float], region: str) -> str:
  """A point a case: true against predicted Dice, as SVG."""
  with style():
    fig, ax = new_figure(3.4, 3.2)
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    point: dict[str, Any] = {"color": REGION_COLOURS.get(region, "#666666"), "linestyle": "none"}
    raster = len(predicted) > _RASTER_FROM
    ax.plot(predicted, true, marker="o", ms=4.5, mew=0, alpha=0.6, rasterized=raster, **point)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    ax.set_xlabel(f"predicted Dice of {region}")
    ax.set_ylabel(f"Dice of {region}")
    return to_svg(fig)
