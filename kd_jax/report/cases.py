"""The parts of a report's page that show single cases: pictures of a few, scores of all."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

import numpy as np

from kd_jax.report import slices as pictures
from kd_jax.report.parts import as_float, folded, metric_heading, number
from kd_jax.tasks.labels import CLASSES, REGIONS

_COLUMNS = ("dice", "hd95_mm", "lesionwise_dice", "sensitivity", "truth_mm3")
_MORE_PICTURES = 12

Scores = Mapping[str, Mapping[str, float]]  # case -> METRIC_REGION -> value


def showcase(scores: Scores) -> dict[str, str]:
  """What ("Best", "Median", "Worst", or "Only") -> case, by the mean Dice over the regions.

  Cases without any Dice are passed over; equal ones are ranked by name.
  """
  ranked = _ranked(scores)
  if len(ranked) < 2:
    return {"Only": ranked[0]} if ranked else {}
  chosen = {"Best": ranked[-1], "Median": ranked[(len(ranked) - 1) // 2], "Worst": ranked[0]}
  return chosen if len(ranked) > 2 else {"Best": ranked[1], "Worst": ranked[0]}


def mean_dice(scores: Mapping[str, float]) -> float:
  """The mean of a case's Dice over the regions that have one; NaN if none has."""
  found = [as_float(scores.get(f"dice_{region}")) for region in REGIONS]
  found = [x for x in found if np.isfinite(x)]
  return float(np.mean(found)) if found else float("nan")


def pictures_section(scores: Scores, drawn: Mapping[str, bytes], viewers: Mapping[str, str]) -> str:
  """showcase's cases with their scores and pictures; others that were drawn, folded away."""
  chosen = showcase(scores)
  if not chosen:
    return ""
  shown = [_case(f"{what} case", c, scores, drawn, viewers) for what, c in chosen.items()]
  further = [case for case in _ranked(scores) if case in drawn and case not in chosen.values()]
  further = further[:_MORE_PICTURES]
  more = "".join(_case("Case", case, scores, drawn, viewers) for case in further)
  hint = (
    "By the mean Dice over the regions. The axial slice in which the true tumour is largest, seen "
    "from the feet: the patient’s right is on the left."
  )
  return (
    f'<p class="hint">{hint}</p>\n{_legend()}\n{"".join(shown)}\n'
    f"{folded(f'{len(further)} more, the worst cases first', more)}"
  )


def case_table(scores: Scores, failed: Mapping[str, str], viewers: Mapping[str, str]) -> str:
  """All cases, sortable by each column; failed ones with their reason instead of scores."""
  if not scores and not failed:
    return ""
  metrics = _columns(column for values in scores.values() for column in values)
  width = 1 + len(metrics) * len(REGIONS) + bool(viewers)
  rows = {case: _row(case, values, metrics, viewers) for case, values in scores.items()}
  for case, reason in failed.items():
    rows[case] = (
      f'<tr><th scope="row">{escape(case)}</th>'
      f'<td class="reason" colspan="{width}">not scored: {escape(str(reason))}</td></tr>'
    )
  single = '<td colspan="2"></td>'
  groups = "".join(
    f'<th class="first centre" colspan="{len(REGIONS)}" scope="colgroup">{metric_heading(m)}</th>'
    for m in metrics
  )
  headings = [
    _heading(0, "Case", ' class="name" aria-sort="ascending"'),
    _heading(1, "mean&nbsp;Dice"),
  ]
  for at, region in enumerate(region for _ in metrics for region in REGIONS):
    headings.append(_heading(at + 2, region, "" if at % len(REGIONS) else ' class="first"'))
  if viewers:
    groups += '<td class="first"></td>'
    headings.append('<th class="first" scope="col">3-D</th>')
  return f"""<div class="scroll wide tall" tabindex="0" role="region" aria-label="Scores by case">
<table class="sortable"><caption><span>Click a heading to sort. Mean Dice is that of the case’s
regions; scores.csv has every metric.</span></caption>
<thead><tr>{single}{groups}</tr>
<tr>{"".join(headings)}</tr></thead>
<tbody>
{chr(10).join(rows[case] for case in sorted(rows))}
</tbody></table></div>"""


def _ranked(scores: Scores) -> list[str]:
  """Cases that have a Dice, the worst first."""
  means = {case: mean_dice(values) for case, values in scores.items()}
  return sorted((c for c in means if np.isfinite(means[c])), key=lambda c: (means[c], c))


def _legend() -> str:
  colours = dict(zip(CLASSES, pictures.COLOURS.astype(int).tolist(), strict=True))
  named = {
    "NCR: necrotic, non-enhancing core": colours["NCR"],
    "ED: oedema": colours["ED"],
    "ET: enhancing tumour": colours["ET"],
  } | {f"error: {kind}": list(colour) for kind, colour in pictures.ERRORS.items()}
  entries = "".join(
    f'<li><span class="swatch" style="background:rgb({",".join(map(str, colour))})"></span>'
    f"{name}</li>"
    for name, colour in named.items()
  )
  return f'<ul class="legend" aria-label="Colours">{entries}</ul>'


def _case(
  what: str, case: str, scores: Scores, drawn: Mapping[str, bytes], viewers: Mapping[str, str]
) -> str:
  values = scores[case]
  columns = _columns(values)
  head = "".join(f'<th scope="col">{metric_heading(m)}</th>' for m in columns)
  rows = "".join(
    f'<tr><th scope="row">{region}</th>'
    + "".join(f"<td>{number(m, values.get(f'{m}_{region}'))}</td>" for m in columns)
    + "</tr>"
    for region in REGIONS
  )
  mean = number("dice", mean_dice(values))
  picture = '<p class="hint">There is no picture of this case.</p>'
  if png := drawn.get(case):
    alt = f"{case}: image, truth, prediction and errors in one axial slice; mean Dice {mean}"
    picture = (
      '<div class="scroll" tabindex="0" role="region" aria-label="Picture"><div class="picture">'
      '<div class="views"><span>image</span><span>truth</span><span>prediction</span>'
      f'<span>errors</span></div><img alt="{escape(alt)}" '
      f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div></div>'
    )
  link = f" · {_viewer(viewers[case], '3-D view')}" if case in viewers else ""
  return (
    f'<article class="case"><h3>{escape(what)}: {escape(case)} · mean Dice {mean}{link}</h3>'
    f'{picture}<div class="scroll"><table><thead><tr><th class="name" scope="col">Region</th>'
    f"{head}</tr></thead><tbody>{rows}</tbody></table></div></article>"
  )


def _viewer(path: str, text: str) -> str:
  # Whatever a case is called, the link stays a path beside this page: "./", and quoted.
  return f'<a href="./{escape(quote(path))}">{text}</a>'


def _columns(present: Iterable[str]) -> list[str]:
  present = set(present)
  return [m for m in _COLUMNS if any(f"{m}_{region}" in present for region in REGIONS)]


def _heading(column: int, name: str, attributes: str = "") -> str:
  button = f'<button type="button">{name}</button>'
  return f'<th data-column="{column}" scope="col"{attributes}>{button}</th>'


def _row(
  case: str, values: Mapping[str, float], metrics: Sequence[str], viewers: Mapping[str, str]
) -> str:
  cells = [f"<td>{number('dice', mean_dice(values))}</td>"]
  for metric in metrics:
    for at, region in enumerate(REGIONS):
      first = "" if at else ' class="first"'
      cells.append(f"<td{first}>{number(metric, values.get(f'{metric}_{region}'))}</td>")
  if viewers:
    link = _viewer(viewers[case], "view") if case in viewers else ""
    cells.append(f'<td class="first">{link}</td>')
  return f'<tr><th scope="row">{escape(case)}</th>{"".join(cells)}</tr>'
