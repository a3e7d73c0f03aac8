"""Scores: sums on the device for training, volumes in the scan's own space for evaluation."""
