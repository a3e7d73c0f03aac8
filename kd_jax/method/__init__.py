"""The paper in one room: losses, distillation, confidence weights, and their sum, the objective.

Pure functions of arrays, compiled into the training step; docs/method.md has the equations.
"""

USES = ("tasks", "settings", "models")  # rooms that may be imported here
