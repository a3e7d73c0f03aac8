import io

import numpy as np
import pytest
from PIL import Image

from kd_jax.report.slices import COLOURS, ERRORS, enlarged, error_panel, panel, to_png

SHAPE = (20, 30, 5)  # (D, H, W)
MARGIN = 4


def case(head=(slice(2, 18), slice(5, 25))) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A head of 16 x 20 voxels in every slice, with nothing in it."""
  image = np.zeros(SHAPE, np.int16)
  image[head] = 100
  return image, np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)


def views(pixels: np.ndarray) -> list[np.ndarray]:
  """image, truth, prediction, errors without their margins."""
  return [v[MARGIN:-MARGIN, MARGIN:-MARGIN].astype(int) for v in np.split(pixels, 4, axis=1)]


def hue(pixel: np.ndarray, colours: dict[str, tuple]) -> str:
  """The name of the colour with the pixel's direction from grey; "" for grey itself."""
  if np.ptp(pixel) == 0:
    return ""
  centred = {name: np.subtract(c, np.mean(c)) for name, c in colours.items()}
  x = pixel - pixel.mean()
  angles = {n: x @ c / np.linalg.norm(x) / np.linalg.norm(c) for n, c in centred.items()}
  best = max(angles, key=angles.get)
  assert angles[best] > 0.98
  return best


def test_four_views_of_the_head_with_a_margin():
  pixels = error_panel(*case())
  assert pixels.dtype == np.uint8
  assert pixels.shape == (20 + 2 * MARGIN, 4 * (16 + 2 * MARGIN), 3)
  assert all((v == views(pixels)[0]).all() for v in views(pixels))
  assert not pixels[:MARGIN].any() and not pixels[:, :MARGIN].any()


@pytest.mark.parametrize(("height", "times"), [(52, 4), (128, 2), (199, 2), (200, 1), (240, 1)])
def test_small_pictures_are_enlarged_by_whole_numbers(height, times):
  pixels = np.random.default_rng(0).integers(0, 255, (height, 6, 3), np.uint8)
  large = enlarged(pixels)
  assert large.shape == (times * height, times * 6, 3)
  for i in range(times):
    np.testing.assert_array_equal(large[i::times, i::times], pixels)


def test_colours_say_class_and_kind_of_error():
  image, truth, predicted = case()
  # Voxels of slice 3, as (d, h): what is true, what was said.
  wanted = {
    (4, 6): (1, 1, ""),
    (5, 6): (2, 0, "missed"),
    (6, 6): (0, 3, "false positive"),
    (7, 6): (3, 1, "wrong class"),
    (8, 20): (2, 3, "wrong class"),
  }
  for (d, h), (true, said, _) in wanted.items():
    truth[d, h, 3], predicted[d, h, 3] = true, said
  _, shown_truth, shown_prediction, errors = views(error_panel(image, truth, predicted))
  classes = {str(i): tuple(COLOURS[i]) for i in (1, 2, 3)}
  for (d, h), (true, said, kind) in wanted.items():
    at = (h - 5, d - 2)  # the head starts at (2, 5); rows are H, columns D
    assert hue(shown_truth[at], classes) == (str(true) if true else "")
    assert hue(shown_prediction[at], classes) == (str(said) if said else "")
    assert hue(errors[at], ERRORS) == kind
  assert (np.ptp(errors, axis=-1) > 0).sum() == 4


def test_the_slice_is_the_truths_largest_else_the_predictions_else_the_middle():
  image, truth, predicted = case()
  image[2:5, 5:25] = 50  # else all of the head is as dark as its darkest part
  for k in range(5):
    image[10, 10 + k, k] = 0  # a hole in another row in every slice

  def shown() -> int:
    column = views(error_panel(image, truth, predicted))[0][:, 10 - 2, 0]
    return int(column.argmin()) - (10 - 5)  # the head starts at (2, 5)

  assert shown() == 2
  predicted[5, 8, 4] = 1
  assert shown() == 4
  truth[5, 8, 1] = truth[6, 8:10, 3] = 2
  assert shown() == 3


@pytest.mark.parametrize("voxel_mm", [(2.0, 1.0, 5.0), (1.0, 0.5, 1.0)])
def test_pixels_are_square(voxel_mm):
  image, truth, predicted = case()
  truth[2:10, 5:15, 2] = 2  # a quarter of the head, 8 x 10 voxels
  _, shown, _, errors = views(error_panel(image, truth, predicted, voxel_mm))
  assert shown.shape == (20, 32, 3)  # 16 voxels of twice the edge
  green = np.ptp(shown, axis=-1) > 0
  assert green[:10, :16].all() and green.sum() == 160
  assert ((np.ptp(errors, axis=-1) > 0) == green).all()


def test_a_prediction_outside_the_head_is_not_cropped_away():
  image, truth, predicted = case()
  predicted[0, 29, 2] = 3
  pixels = views(error_panel(image, truth, predicted))
  assert pixels[0].shape == (25, 18, 3)
  assert hue(pixels[3][-1, 0], ERRORS) == "false positive"


@pytest.mark.parametrize("fill", [0, np.nan, -5])
def test_images_without_a_head_are_drawn_too(fill):
  nothing = np.zeros(SHAPE, np.uint8)
  pixels = error_panel(np.full(SHAPE, fill, np.float32), nothing, nothing, (1, 1.5, 1))
  assert pixels.shape == (45 + 2 * MARGIN, 4 * (20 + 2 * MARGIN), 3)


def test_the_panel_of_training_shows_the_same_colours():
  image, truth, predicted = case()
  truth[5, 8, 2], predicted[6, 9, 2] = 1, 3
  small, large = panel(image, truth, predicted), views(error_panel(image, truth, predicted))
  assert small.shape == (30, 60, 3)
  for at, view in enumerate(np.split(small.astype(int), 3, axis=1)):
    assert (view[5:25, 2:18] == large[at]).all()


def test_a_png_keeps_the_pixels_and_its_bytes():
  pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 3), np.uint8)
  png = to_png(pixels)
  assert png.startswith(b"\x89PNG") and png == to_png(pixels.copy())
  assert (np.asarray(Image.open(io.BytesIO(png))) == pixels).all()
