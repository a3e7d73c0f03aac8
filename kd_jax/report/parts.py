"""Pieces of a report's page: its words about what was scored, numbers as text, lists, boxes.

What comes from outside (names, paths, reasons) is escaped here; what these functions give is HTML.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from kd_jax.metrics.case import METRICS

NOTHING = "–"
_NAMES = {
  "dice": "Dice",
  "hd95_mm": "HD95",
  "lesionwise_dice": "Lesion-wise Dice",
  "nsd_1mm": "Surface Dice at 1 mm",
  "slice_dice_reference": "Slice Dice of the published code",
  "truth_mm3": "True volume",
  "predicted_mm3": "Predicted volume",
}
_SPLITS = {"train": "training", "val": "validation"}
_LISTED = 10  # entries, above which a list is folded away


def statement(summary: Mapping, scored: int) -> str:
  """What was scored, in a few plain sentences (text, not escaped)."""
  data, prediction = summary.get("data") or {}, summary.get("prediction") or {}
  subject = count(scored, "case") if scored else "No case"
  if scored and data.get("patients"):
    subject += f" of {count(data['patients'], 'patient')}"
  if data.get("root"):
    subject += f" from {data['root']}"
  place = [_SPLITS.get(data["split"], str(data["split"]))] if data.get("split") else []
  fold = data.get("fold")
  if isinstance(fold, int):
    place.append(f"fold {fold}" + (f" of {data['folds']}" if data.get("folds") else ""))
  elif fold:
    place.append(str(fold))
  verb = "were" if scored > 1 else "was"
  sentences = [
    f"{subject}{_bracketed(place)} {verb} scored against the reference segmentation.",
    *_makers(summary.get("students")),
  ]
  if space := prediction.get("space"):
    sentences.append(f"Each case is scored as a whole volume, in {space} space.")
  return " ".join(sentences)


def count(n: int, what: str) -> str:
  """2, "case" -> "2 cases"."""
  return f"{n} {what}" if n == 1 else f"{n} {what}s"


def metric_name(metric: str) -> str:
  """ "lesionwise_hd95_mm" -> "Lesion-wise HD95"."""
  plain = metric.removesuffix("_mm").removesuffix("_mm3").replace("_", " ")
  plain = plain.replace("lesionwise", "lesion-wise").replace("hd95", "HD95")
  return _NAMES.get(metric, plain[:1].upper() + plain[1:])


def unit(metric: str) -> str:
  """As the page shows it: volumes in ml."""
  if metric.endswith("_mm3"):
    return "ml"
  return "mm" if metric.endswith("_mm") else str(METRICS.get(metric, ("",))[0])


def metric_heading(metric: str) -> str:
  """Name, unit and direction, with the description at the pointer."""
  _, better, description = METRICS.get(metric, ("", "", ""))
  arrow = {"higher": " ↑", "lower": " ↓"}.get(better, "")
  small = f" <small>{escape(unit(metric))}{arrow}</small>"
  return f'<span title="{escape(description)}">{escape(metric_name(metric))}</span>{small}'


def number(metric: str, value: object) -> str:
  """A value of a metric as text, in unit(metric); "–" for what is missing or not a number."""
  x = as_float(value)
  if np.isnan(x):
    return NOTHING
  if np.isinf(x):
    return "∞" if x > 0 else "−∞"
  if metric.endswith("_mm3"):
    return f"{x / 1000:.2f}"
  if metric.endswith("_mm"):
    return f"{x:.2f}"
  return f"{x:.3g}" if metric.startswith("lesions_") else f"{x:.3f}"


def as_float(value: object) -> float:
  """A number as float; NaN for None and anything else."""
  return float(value) if isinstance(value, int | float | np.number) else float("nan")


def facts(entries: Mapping) -> str:
  """Nested settings as a list of terms, dotted names."""
  flat = _flat(entries)
  rows = "\n".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in flat.items())
  return f'<dl class="facts">\n{rows}\n</dl>' if flat else ""


def box(kind: str, lead: str, entries: Mapping[str, str] | Sequence[str]) -> str:
  """A box that stands out: kind "alarm" or "note"; names with their reasons, or lines."""
  if isinstance(entries, Mapping):
    lines = [f"<b>{escape(str(k))}</b>: {escape(str(v))}" for k, v in entries.items()]
  else:
    lines = [escape(str(line)) for line in entries]
  listed = "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
  if len(lines) > _LISTED:
    listed = f"<details><summary>All {len(lines)}</summary>{listed}</details>"
  return f'<div class="box {kind}" role="note"><p><strong>{escape(lead)}</strong></p>{listed}</div>'


def folded(summary: str, content: str) -> str:
  """Content that opens at a click; nothing if there is none."""
  return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def _makers(students: Sequence[Mapping] | None) -> list[str]:
  if students is None:
    return []
  if not students:
    return ["The segmentations were read from files: no network was run here."]
  inputs = {" + ".join(s.get("modalities") or ["unknown input"]) for s in students}
  names = ", ".join(str(s.get("name", "unnamed")) for s in students)
  alone = " alone" if all(len(s.get("modalities") or ()) == 1 for s in students) else ""
  source = f"which saw {', '.join(sorted(inputs))}{alone}"
  if len(students) > 1:
    return [f"The segmentations come from {len(students)} students ({names}), {source}."]
  only = students[0]
  details = [f"step {only['step']}"] if only.get("step") is not None else []
  details += ["averaged weights"] if only.get("averaged") else []
  return [f"The segmentations come from the student {names}, {source}{_bracketed(details)}."]


def _bracketed(parts: Sequence[str]) -> str:
  return f" ({', '.join(parts)})" if parts else ""


def _flat(entries: Mapping, prefix: str = "") -> dict[str, str]:
  flat = {}
  for name, value in entries.items():
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
      flat[f"{prefix}{name}"] = ", ".join(map(str, value)) or "none"
    elif isinstance(value, bool):
      flat[f"{prefix}{name}"] = "yes" if value else "no"
    else:
      flat[f"{prefix}{name}"] = NOTHING if value in (None, "", {}) else str(value)
  return flat
