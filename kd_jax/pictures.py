"""Pictures of slices: image, truth, prediction."""

import numpy as np

# NCR red, ED green, ET yellow: the usual colours of BraTS figures.
COLOURS = np.array([[0, 0, 0], [220, 50, 47], [60, 180, 75], [255, 225, 25]], np.float32)
_OPACITY = 0.5


def panel(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """The axial slice with most tumour: image, with the truth, with the prediction, side by side.

  Args:
    image: (D, H, W) in LPS axes, any intensities.
    truth, predicted: (D, H, W) classes.

  Returns:
    (H, 3 * D, 3) uint8; the patient's right is on the left, the front is up, as radiologists see.
  """
  k = int(np.argmax((truth > 0).sum(axis=(0, 1)))) if truth.any() else truth.shape[2] // 2
  x = image[:, :, k].astype(np.float32).T  # (H, D)
  inside = x[x != 0]
  low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
  grey = np.clip((x - low) / max(high - low, 1e-6), 0, 1) * (x != 0) * 255
  grey = np.repeat(grey[..., None], 3, axis=-1)  # (H, D, 3)
  views = [grey] + [_overlay(grey, classes[:, :, k].T) for classes in (truth, predicted)]
  return np.concatenate(views, axis=1).astype(np.uint8)


def _overlay(grey: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """(H, D, 3) grey and (H, D) classes -> (H, D, 3)."""
  painted = (1 - _OPACITY) * grey + _OPACITY * COLOURS[classes]
  return np.where(classes[..., None] > 0, painted, grey)
