"""Pictures of an evaluation: its best, median and worst case, flat and to turn in 3-D."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.cases import Case
from kd_jax.report import slices as pictures
from kd_jax.report import viewer
from kd_jax.report.cases import showcase
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels


class Illustrated(NamedTuple):
  """Case -> PNG bytes; case -> the viewer's page, relative to the evaluation's folder."""

  pictures: dict[str, bytes]
  viewers: dict[str, str]


def illustrate(
  folder: Path,
  scores: Mapping[str, Mapping[str, float]],
  predicted: Callable[[Case], np.ndarray],
  cases: Sequence[Case],
  modalities: Sequence[str],
  terminal: Terminal,
) -> Illustrated:
  """Draws the cases that the report shows; viewer pages only where the [report] extra is installed.

  Args:
    predicted: a case's classes, (D, H, W) uint8 in the scan's space.
    modalities: the first one that a case has is the background.
  """
  shown = Illustrated({}, {})
  drawable = _viewer_is_installed()
  by_name = {case.name: case for case in cases}
  for name in showcase(scores).values():
    case = by_name[name]
    path, convention = case.label_map
    seg = nifti.read(path)
    truth = labels.to_classes(seg.data, convention, seg.step)
    classes = predicted(case)
    modality = next((m for m in (*modalities, *case.images) if m in case.images), None)
    scan = nifti.read(case.images[modality]) if modality else None
    image = np.zeros(truth.shape, np.uint8) if scan is None else scan.data
    panel = pictures.error_panel(image, truth, classes, seg.voxel_mm)
    shown.pictures[name] = pictures.to_png(panel)
    if modality and scan is not None and drawable:
      page = Path("viewer") / f"{name}.html"
      viewer.write_page(folder / page, name, scan, classes, truth, modality)
      shown.viewers[name] = page.as_posix()
  if any(case.images for case in cases) and not drawable:
    terminal.line(f"3-D pages in the report need one more package: {viewer.INSTALL}")
  return shown


def _viewer_is_installed() -> bool:
  try:
    viewer.niivue()
  except UserError:
    return False
  return True
