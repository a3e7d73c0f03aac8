"""Students: opened from their directory, run on whole volumes, postprocessed, written as masks.

No optimiser, no training step, no checkpoints: an exported student needs only this room.
"""

USES = ("runtime", "tasks", "settings", "metrics", "data", "models")
