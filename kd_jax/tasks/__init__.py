"""What is segmented: sequences, classes, regions, label conventions, names of files and patients.

This room reads no voxels and computes nothing: it holds tables and looks things up.
"""

USES = ("runtime",)  # rooms that may be imported here
