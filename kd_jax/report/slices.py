"""Pictures of slices: image, truth, prediction, and where the two differ."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kd_jax.runtime.arrays import bounding_box

# NCR red, ED green, ET yellow: the usual colours of BraTS figures.
COLOURS = np.array([[0, 0, 0], [220, 50, 47], [60, 180, 75], [255, 225, 25]], np.float32)
# Kinds of error -> colour; told apart by colour-blind readers too (Okabe and Ito, 2008).
ERRORS = {
  "missed": (86, 180, 233),
  "false positive": (230, 120, 0),
  "wrong class": (240, 130, 200),
}
_ERROR_COLOURS = np.array([(0, 0, 0), *ERRORS.values()], np.float32)
_OPACITY = 0.5
_ERROR_OPACITY = 0.8  # nothing else is coloured there
_MARGIN = 4  # pixels around the head


def panel(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """The axial slice with most tumour: image, with the truth, with the prediction, side by side.

  Args:
    image: (D, H, W) in LPS axes, any intensities.
    truth, predicted: (D, H, W) classes.

  Returns:
    (H, 3 * D, 3) uint8; the patient's right is on the left, the front is up, as radiologists see.
  """
  k = _largest_slice(truth, predicted)
  image, truth, predicted = (x[:, :, k].T for x in (image, truth, predicted))  # (H, D)
  grey = _grey(image)
  views = [grey, *(_overlay(grey, classes) for classes in (truth, predicted))]
  return np.concatenate(views, axis=1).astype(np.uint8)


def enlarged(pixels: np.ndarray, height: int = 200) -> np.ndarray:
  """(H, W, 3) -> (n * H, n * W, 3), the least whole n with which it is so high.

  TensorBoard shows a pixel as a pixel, and a grid of 3 mm would be as small as a stamp.
  """
  n = -(-height // pixels.shape[0])
  return pixels.repeat(n, axis=0).repeat(n, axis=1)


def error_panel(
  image: np.ndarray,
  truth: np.ndarray,
  predicted: np.ndarray,
  voxel_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
  """panel with a fourth view, the errors, cropped to the head; for a report.

  Args:
    image: (D, H, W) in LPS axes, any intensities.
    truth, predicted: (D, H, W) classes.
    voxel_mm: edge lengths along those axes. Pixels are square, as large as the smaller edge of
      the two in the slice.

  Returns:
    (height, 4 * width, 3) uint8, oriented as panel's: image, truth, prediction, errors in the
    colours of ERRORS (a wrong class is a voxel that both call tumour).
  """
  k = _largest_slice(truth, predicted)
  image, truth, predicted = (x[:, :, k].T for x in (image, truth, predicted))  # (H, D)
  shown = (image != 0) | (truth > 0) | (predicted > 0)
  box = bounding_box(shown) or (slice(0, shown.shape[0]), slice(0, shown.shape[1]))
  pixel = min(voxel_mm[0], voxel_mm[1])
  height, width = (
    max(1, round((part.stop - part.start) * mm / pixel))
    for part, mm in zip(box, (voxel_mm[1], voxel_mm[0]), strict=True)
  )
  grey = _resize(_grey(image)[box], height, width, Image.Resampling.BICUBIC)
  truth, predicted = (
    _resize(x[box].astype(np.uint8), height, width, Image.Resampling.NEAREST)
    for x in (truth, predicted)
  )
  views = [
    grey,
    _overlay(grey, truth),
    _overlay(grey, predicted),
    _overlay(grey, _errors(truth, predicted), _ERROR_COLOURS, _ERROR_OPACITY),
  ]
  edge = ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0))
  return np.concatenate([np.pad(view, edge) for view in views], axis=1).astype(np.uint8)


def to_png(pixels: np.ndarray) -> bytes:
  """(height, width, 3) uint8 -> a PNG file; the same pixels give the same bytes."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG", optimize=True)
  return file.getvalue()


def _largest_slice(truth: np.ndarray, predicted: np.ndarray) -> int:
  """Where the truth's tumour is largest; the prediction's, if there is none; else the middle."""
  for classes in (truth, predicted):
    if classes.any():
      return int(np.argmax((classes > 0).sum(axis=(0, 1))))
  return truth.shape[2] // 2


def _grey(image: np.ndarray) -> np.ndarray:
  """(H, D) intensities -> (H, D, 3) float32 0..255; what is 0, outside the head, stays black."""
  x = np.nan_to_num(image.astype(np.float32))
  inside = x[x != 0]
  low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
  grey = np.clip((x - low) / max(high - low, 1e-6), 0, 1) * (x != 0) * 255
  return np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)


def _overlay(
  grey: np.ndarray, classes: np.ndarray, colours: np.ndarray = COLOURS, opacity: float = _OPACITY
) -> np.ndarray:
  """(H, D, 3) grey and (H, D) classes -> (H, D, 3)."""
  painted = (1 - opacity) * grey + opacity * colours[classes]
  return np.where(classes[..., None] > 0, painted, grey)


def _errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Classes -> 0 right, or 1 + the position in ERRORS."""
  kinds = [(truth > 0) & (predicted == 0), (truth == 0) & (predicted > 0), truth != predicted]
  return np.select(kinds, [1, 2, 3], 0)


def _resize(x: np.ndarray, height: int, width: int, how: Image.Resampling) -> np.ndarray:
  """(H, D) or (H, D, 3) -> (height, width[, 3]), x's type; x itself if that is its size."""
  if x.shape[:2] == (height, width):
    return x
  if x.ndim == 3:  # grey: three equal channels
    grey = Image.fromarray(np.ascontiguousarray(x[..., 0])).resize((width, height), how)
    return np.repeat(np.clip(np.asarray(grey), 0, 255)[..., None], 3, axis=-1)
  return np.asarray(Image.fromarray(np.ascontiguousarray(x)).resize((width, height), how))
