"""The words and numbers of a report's page, as plain text: the templates make HTML of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
_SPLITS = {"train": "training", "val": "validation", "holdout": "hold-out"}


class Metric(NamedTuple):
  """What a heading says of a metric.

  Attributes:
    name: in words.
    unit: as the page shows it: volumes in ml.
    arrow: " ↑" where higher is better, " ↓" where lower is, else "".
    description: a sentence.
    comparable: its numbers may be compared with those of the other metrics.
  """

  name: str
  unit: str
  arrow: str
  description: str
  comparable: bool


def statement(summary: Mapping, scored: int) -> str:
  """What was scored, in a few plain sentences."""
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


def metric(key: str) -> Metric:
  """ "lesionwise_hd95_mm" -> "Lesion-wise HD95", "mm", " ↓", ..."""
  plain = key.removesuffix("_mm").removesuffix("_mm3").replace("_", " ")
  plain = plain.replace("lesionwise", "lesion-wise").replace("hd95", "HD95")
  unit, better, description = METRICS[key][:3] if key in METRICS else ("", "", "")
  if key.endswith("_mm3"):
    unit = "ml"
  elif key.endswith("_mm"):
    unit = "mm"
  return Metric(
    name=_NAMES.get(key, plain[:1].upper() + plain[1:]),
    unit=unit,
    arrow={"higher": " ↑", "lower": " ↓"}.get(better, ""),
    description=description,
    comparable=key != "slice_dice_reference",
  )


def number(key: str, value: object) -> str:
  """A value of a metric as text, in its unit; "–" for what is missing or not a number."""
  x = as_float(value)
  if np.isnan(x):
    return NOTHING
  if np.isinf(x):
    return "∞" if x > 0 else "−∞"
  if key.endswith("_mm3"):
    return f"{x / 1000:.2f}"
  if key.endswith("_mm"):
    return f"{x:.2f}"
  return f"{x:.3g}" if key.startswith("lesions_") else f"{x:.3f}"


def as_float(value: object) -> float:
  """A number as float; NaN for None and anything else."""
  return float(value) if isinstance(value, int | float | np.number) else float("nan")


def facts(entries: Mapping, prefix: str = "") -> dict[str, str]:
  """Nested settings as text: dotted name -> value."""
  flat: dict[str, str] = {}
  for name, value in entries.items():
    if isinstance(value, Mapping) and value:
      flat |= facts(value, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
      flat[f"{prefix}{name}"] = ", ".join(map(str, value)) or "none"
    elif isinstance(value, bool):
      flat[f"{prefix}{name}"] = "yes" if value else "no"
    else:
      flat[f"{prefix}{name}"] = NOTHING if value in (None, "", {}) else str(value)
  return flat


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
