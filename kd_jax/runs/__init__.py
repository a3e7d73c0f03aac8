"""A work directory: names of its files, checkpoints, logs, provenance, and its student.

Nothing is trained here, and Orbax is imported only where a checkpoint is read or written.
"""

USES = ("runtime", "settings", "data", "prediction")
