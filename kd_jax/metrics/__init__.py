"""Scores of one case, on the host: masks in, numbers out.

What may be published is computed here; nothing is averaged over cases, nothing is read.
"""

USES = ("runtime", "tasks")  # rooms that may be imported here
