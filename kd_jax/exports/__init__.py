"""A student handed on: programs for other runtimes, what is said of them, the model card.

No training and no scoring. Reading an exported student needs `prediction` alone.
"""

USES = ("runtime", "tasks", "settings", "data", "models", "prediction")
