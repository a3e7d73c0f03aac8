"""The files of a work directory: every name once."""
