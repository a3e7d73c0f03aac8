"""Figures of a report, as SVG to stand inside a page: scores by region, by volume, training curves.

Text stays text, the same numbers give the same bytes, and colours are told apart by colour-blind
readers (Okabe and Ito, 2008).
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_jax.tasks.labels import REGIONS

REGION_COLOURS = {"WT": "#0072b2", "TC": "#d55e00", "ET": "#009e73"}
MIN_BOX = 5  # cases from which on quartiles say something
MAX_POINTS = 300  # of a curve; more are averaged
_RASTER_FROM = 500  # cases, above which points are one picture instead of one shape each
_STUDENT = "#111111"
_TEACHERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_DASHES = ((0, ()), (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # beside the colour
_STYLE: dict[Any, Any] = {
  "font.size": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#666666",
  "axes.labelcolor": "#222222",
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#e6e6e6",
  "legend.frameon": False,
  "text.parse_math": False,  # a "$" in a name is a "$"
  "svg.fonttype": "none",
}

Curve = tuple[list[float], list[float]]  # steps, values


def boxes(values: Mapping[str, Sequence[float]], label: str, distance: bool = False) -> str:
  """Every case's score as a point, with a box a region (from MIN_BOX cases on).

  Args:
    values: region -> one score a case; what is not finite is left out.
    label: of the axis.
    distance: of a distance in mm, with a logarithmic axis above 1; else of a share, 0..1.
  """
  with style():
    fig, ax = new_figure(4.1, 3.1)
    finite = {region: _finite(x) for region, x in values.items()}
    cases = max(map(len, finite.values()), default=0)
    size = 4 if cases > _RASTER_FROM else 6 if cases > 60 else 8
    for at, (region, x) in enumerate(finite.items()):
      colour = REGION_COLOURS.get(region, "#666666")
      offset = ((0.5 + np.arange(len(x)) * 0.618) % 1 - 0.5) * 0.34  # spread evenly, without a draw
      points: dict[str, Any] = {"color": colour, "alpha": 0.6, "ms": size, "mew": 0, "zorder": 3}
      ax.plot(at + offset, x, ".", rasterized=cases > _RASTER_FROM, **points)
      if len(x) >= MIN_BOX:
        line = {"color": "#444444", "linewidth": 1}
        ax.boxplot(
          [x],
          positions=[at],
          widths=0.56,
          showfliers=False,
          boxprops=line,
          medianprops=line | {"color": "#000000", "linewidth": 2.2},
          whiskerprops=line,
          capprops=line,
        )
    ax.set_xticks(range(len(finite)), list(finite))
    ax.set_xlim(-0.6, len(finite) - 0.4)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel(label)
    if distance:
      _distance_axis(ax)
    else:
      ax.set_ylim(-0.03, 1.03)
    return to_svg(fig)


def against_volume(volume_ml: Sequence[float], score: Sequence[float], region: str) -> str:
  """A point a case: score (0..1) against the region's true volume on a logarithmic axis.

  Cases without the region in the truth stand at the left edge, as hollow triangles.
  """
  with style():
    fig, ax = new_figure(3.4, 3.0)
    x, y = np.asarray(volume_ml, float), np.asarray(score, float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    here = x > 0
    low, high = (x[here].min(), x[here].max()) if here.any() else (1.0, 10.0)
    left = low / max(2.0, (high / low) ** 0.15)
    raster = len(x) > _RASTER_FROM
    colour = REGION_COLOURS.get(region, "#666666")
    common: dict[str, Any] = {"color": colour, "linestyle": "none", "rasterized": raster}
    ax.plot(x[here], y[here], marker="o", ms=4.5, mew=0, alpha=0.6, **common)
    ax.set_xscale("log")
    ax.set_xlim(low / 1.3, high * 1.3)
    if not here.all():
      absent = y[~here]
      ax.plot(np.full(len(absent), left), absent, marker="<", ms=6, mfc="none", **common)
      for value, n in zip(*np.unique(absent.round(2), return_counts=True), strict=True):
        if n > 1:  # they lie on top of each other
          ax.text(
            left, value + (0.04 if value < 0.5 else -0.04), n, ha="center", va="center", size=8
          )
      ax.axvline((left * low) ** 0.5, color="#999999", linewidth=0.8, linestyle=":")
      ax.set_xlim(left / 1.3, high * 1.3)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    round_numbers = [step * 10.0**k for k in range(-4, 5) for step in steps]
    ticks = {x: f"{x:g}" for x in round_numbers if low / 1.3 <= x <= high * 1.3}
    if not here.all():
      ticks[left] = "0"
    ax.set_xticks(list(ticks), ticks.values())
    ax.set_xticks([], minor=True)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel(f"true volume of {region} / ml")
    ax.set_ylabel(f"Dice of {region}")
    return to_svg(fig)


def curves(lines: Mapping[str, Curve], label: str, share: bool = False) -> str:
  """One line a name against the training step, with a legend below.

  Args:
    lines: name -> (steps, values); gaps where a value is not finite. "student" is black.
    label: of the vertical axis.
    share: the axis is 0..1.
  """
  with style():
    fig, ax = new_figure(3.6, 3.2)
    styles = _line_styles(lines)
    for name, (steps, values) in lines.items():
      x, y = _thin(np.asarray(steps, float), np.asarray(values, float))
      few = "o" if len(x) <= 25 else None
      ax.plot(x, y, label=name, linewidth=1.5, marker=few, ms=3, **styles[name])
    ax.set_xlabel("step")
    ax.set_ylabel(label)
    if share:
      ax.set_ylim(-0.03, 1.03)
    ax.locator_params(axis="x", nbins=5, integer=True)
    fig.legend(loc="outside lower center", ncols=min(len(lines), 4), fontsize=9, handlelength=2.6)
    return to_svg(fig)


def training(history: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str]]:
  """The charts of one run, as (title, description with the last values, SVG).

  Args:
    history: the lines of the run's metrics.jsonl; a chart without numbers is left out.
  """
  charts = []
  for title, label, lines, share in (
    ("Training loss", "loss", _losses(history), False),
    ("Training Dice, mean over regions", "Dice", _mean_dice(history, "train/dice/"), True),
    ("Validation Dice, mean over regions", "Dice", _mean_dice(history, "val/dice/"), True),
    ("Validation Dice of the student", "Dice", _named(history, "val/dice/student/"), True),
    ("Teachers' confidence: score", "score", _named(history, "train/confidence/score/"), True),
    ("Teachers' confidence: weight", "weight", _named(history, "train/confidence/weight/"), False),
  ):
    if lines:
      last = ", ".join(f"{name} {values[-1]:.3g}" for name, (_, values) in lines.items())
      step = max(steps[-1] for steps, _ in lines.values())
      charts.append((title, f"At step {step:g}: {last}.", curves(lines, label, share)))
  return charts


def _losses(history: Sequence[Mapping]) -> dict[str, Curve]:
  """The totals: student first, then each teacher's own."""
  totals = _named(history, "train/loss/")
  student = {"student": totals["student"]} if "student" in totals else {}
  return student | _named(history, "train/loss/teacher/")


def _mean_dice(history: Sequence[Mapping], prefix: str) -> dict[str, Curve]:
  """Network -> its mean over regions, student first."""
  regions: dict[str, list[Curve]] = {}
  for name, curve in _named(history, prefix).items():
    regions.setdefault(name.rpartition("/")[0] or name, []).append(curve)
  means = {}
  for network in sorted(regions, key=lambda name: (name != "student", name)):
    parts = [dict(zip(*curve, strict=True)) for curve in regions[network]]
    steps = [step for step in parts[0] if all(step in part for part in parts)]
    means[network] = (steps, [float(np.mean([p[step] for p in parts])) for step in steps])
  return {network: curve for network, curve in means.items() if curve[0]}


def _named(history: Sequence[Mapping], prefix: str) -> dict[str, Curve]:
  """What follows prefix -> (steps, values), by order of appearance; regions as WT, TC, ET."""
  found: dict[str, Curve] = {}
  for line in history:
    for name, value in line.items():
      if name.startswith(prefix) and isinstance(value, int | float) and "step" in line:
        steps, values = found.setdefault(name.removeprefix(prefix), ([], []))
        steps.append(line["step"])
        values.append(float(value))
  order = list(REGIONS)
  return dict(sorted(found.items(), key=lambda x: order.index(x[0]) if x[0] in order else -1))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """At most MAX_POINTS points, each the mean of equally many neighbours."""
  each = -(-len(x) // MAX_POINTS)
  if each <= 1:
    return x, y
  starts = np.arange(0, len(x), each)
  counts = np.diff(np.append(starts, len(x)))
  return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _line_styles(names: Mapping[str, object]) -> dict[str, dict]:
  """Colour and dashes of each name: a teacher's are the same in all charts of its run."""
  if set(names) <= set(REGION_COLOURS):
    colours = {name: REGION_COLOURS[name] for name in names}
  else:
    teachers = sorted(set(names) - {"student"})
    colours = {name: _TEACHERS[i % len(_TEACHERS)] for i, name in enumerate(teachers)}
    colours = {"student": _STUDENT} | colours
  return {
    name: {"color": colour, "linestyle": _DASHES[i % len(_DASHES)]}
    for i, (name, colour) in enumerate(colours.items())
  }


def _distance_axis(ax: Axes) -> None:
  ax.set_yscale("symlog", linthresh=1, linscale=0.4)
  ax.set_yticks([0, 1, 3, 10, 30, 100, 300], ["0", "1", "3", "10", "30", "100", "300"])
  ax.set_yticks([], minor=True)
  ax.set_ylim(-0.15, 500)


def _finite(values: Sequence[float]) -> np.ndarray:
  x = np.asarray(values, float)
  return x[np.isfinite(x)]


def style():
  """The look of all figures, as a context."""
  return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
  """Without pyplot: no global state, no window system."""
  fig = Figure(figsize=(width, height), layout="constrained")
  return fig, fig.add_subplot()


def to_svg(fig: Figure) -> str:
  """The <svg> element alone, without what the page says itself: its size, fonts, line ends."""
  file = io.BytesIO()
  with mpl.rc_context({"svg.hashsalt": "kd_jax"}):  # else ids are drawn at random
    fig.savefig(file, format="svg", dpi=200, metadata={"Date": None})
  text = file.getvalue().decode()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
  text = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', text, flags=re.DOTALL)
  text = re.sub(r"<[^>]+>", lambda tag: _shorter(tag[0]), text)
  unique = hashlib.sha256(text.encode()).hexdigest()[:8]  # several figures stand in one page
  return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>f{unique}-", text).strip()


def _shorter(tag: str) -> str:
  """Two decimals are a 5000th of a figure's width; about a third of the size."""
  tag = tag.replace("\n", "") if "base64," in tag else re.sub(r"\s+", " ", tag)
  tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
  return re.sub(r"font-family:[^;\"]*;? ?|(?<=<g) id=\"[^\"]*\"", "", tag)
