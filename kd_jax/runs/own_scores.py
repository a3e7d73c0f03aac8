"""What a run's student scored on the run's own validation cases, where an evaluation is kept."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kd_jax.prediction.student import Student
from kd_jax.runs.layout import SCORES_FILE, validation_summary
from kd_jax.runtime.errors import ConfigError, UserError, one_line
from kd_jax.runtime.files import read_json, read_user_text
from kd_jax.settings import record, schema
from kd_jax.settings.inference import InferenceSettings

_KEPT = ("title", "data", "prediction", "rules", "regions")  # of summary.json


def read(workdir: Path, student: Student) -> dict[str, Any] | None:
  """What of the evaluation's summary.json may be handed on with the student.

  Args:
    student: of that run.

  Returns:
    Without names of cases and places, and "failed" as a number; None if there is no evaluation, or
    it is of other weights, of other inference settings (flags can change them) or of other cases
    (earlier versions wrote those of a data folder named "val" there).

  Raises:
    UserError: summary.json cannot be read.
  """
  path = validation_summary(workdir)
  if not path.is_file():
    return None
  summary = read_json(path)
  data = summary.get("data") or {}
  if (data.get("split"), data.get("fold")) != ("val", student.settings["data"]["fold"]):
    return None
  if [own.get("weights_sha256") for own in summary.get("students", [])] != [student.digest()]:
    return None
  if not _predicted_alike(summary.get("prediction") or {}, student.inference):
    return None
  if _cases(path.with_name(SCORES_FILE), summary) != {one_line(case.name) for case in student.val}:
    return None
  scores = {key: summary.get(key) for key in _KEPT}
  scores["data"] = {key: value for key, value in data.items() if key != "root"}
  subjects = (*student.train, *student.val)
  names = [data.get("root"), *(name for own in subjects for name in (own.name, own.patient))]
  scores["notes"] = _without(names, summary.get("notes") or [])
  return scores | {"failed": len(summary.get("failed") or {})}


def _predicted_alike(prediction: Mapping[str, Any], own: InferenceSettings) -> bool:
  """Whether a summary's inference settings are a student's own."""
  known = schema.plain(own)
  recorded = record.modernised(prediction, "predict")
  try:
    used = schema.build(
      InferenceSettings,
      {name: value for name, value in recorded.items() if name in known},
      "prediction",
      recorded=True,
    )
  except ConfigError:  # what cannot be a student's are not its own
    return False
  return used == own


def _cases(path: Path, summary: Mapping[str, Any]) -> set[str]:
  """All cases of an evaluation, scored or not; path: of its scores.csv. Empty if it is broken."""
  try:
    rows = list(csv.reader(io.StringIO(read_user_text(path)), strict=True))
  except (UserError, csv.Error):
    return set()
  unscored = [name for key in ("failed", "excluded") for name in summary.get(key) or ()]
  return {row[0] for row in rows[1:] if row} | {one_line(name) for name in unscored}


def _without(names: Iterable[str | None], notes: Iterable[str]) -> list[str]:
  """Notes with an ellipsis for each name: the student may be shared, who its cases are may not."""
  known = sorted({name for name in names if name}, key=len, reverse=True)
  pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)"
  return [re.sub(pattern, "…", note) for note in notes]
