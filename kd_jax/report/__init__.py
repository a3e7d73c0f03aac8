"""Pages and pictures: what people look at.

Numbers come in ready; nothing is scored or averaged here.
"""

USES = ("runtime", "tasks", "metrics", "data", "prediction")
