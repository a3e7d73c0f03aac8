"""From files on disk to batches: cases, checks, cache, patches, augmentation, generated cases.

No network runs here. It also prepares what a student reads in prediction.
"""

USES = ("runtime", "tasks", "settings")  # rooms that may be imported here
