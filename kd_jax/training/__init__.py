"""A run: its set-up, the one compiled step, optimisers, devices, validation, and the loop.

What a loss means is method's business, what a file is called is runs'.
"""

USES = (
  "runtime",
  "tasks",
  "settings",
  "metrics",
  "data",
  "models",
  "method",
  "prediction",
  "report",
  "runs",
)
