"""What every program needs from the machine: errors, files, processes, terminal, memory.

Nothing about brains, networks or settings: this room imports no other one.
"""

USES = ()  # rooms that may be imported here
