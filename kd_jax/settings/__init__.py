"""Every setting of a run, once: its type, default, range and words; presets; records of runs.

No setting is acted on here. All rooms above are written against these dataclasses.
"""

USES = ("runtime", "tasks")  # rooms that may be imported here
