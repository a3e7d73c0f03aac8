"""Small helpers on masks and label arrays that several rooms need."""

import numpy as np

Box = tuple[slice, ...]


def bounding_box(mask: np.ndarray) -> Box | None:
  """The smallest box that holds all non-zero elements, as one slice an axis; None if all are 0."""
  box = []
  while True:
    inside = np.flatnonzero(mask.any(axis=tuple(range(1, mask.ndim))))
    if not inside.size:
      return None
    box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    if mask.ndim == 1:
      return tuple(box)
    mask = np.asarray(mask.any(axis=0))  # the other axes' shadows need this one no more


def label_sizes(labels: np.ndarray, count: int) -> np.ndarray:
  """(count,) how often each label 1..count stands in an array of labels."""
  return np.bincount(labels.ravel(), minlength=count + 1)[1:]
