"""Scores of many cases: students and masks, summaries, intervals, comparisons, cross-validation.

Only cross_validate.py trains; all else imports neither the training room nor Orbax.
"""

USES = (
  "runtime",
  "tasks",
  "settings",
  "metrics",
  "data",
  "prediction",
  "report",
  "runs",
  "training",
)
