"""Flax modules: blocks, networks, the CDSFL fusion, and the framework that holds them all.

Functions of parameters and images: no losses, no labels, no files.
"""

USES = ("tasks", "settings")  # rooms that may be imported here
