"""Scans through students and back into the scans' own space.

The next case is read and the last one finished (written, scored) while the device works.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from kd_jax.data import case_checks as check
from kd_jax.data import grid as grids
from kd_jax.data import nifti, preprocess
from kd_jax.data.cases import Case
from kd_jax.data.scan_checks import check_scan
from kd_jax.data.scans import Scan
from kd_jax.prediction import sliding_window as inference
from kd_jax.prediction.postprocess import Smallest, clean
from kd_jax.prediction.sliding_window import MODES, PredictSettings
from kd_jax.prediction.student import Student
from kd_jax.runtime.errors import (
  CaseError,
  ConfigError,
  UserError,
  did_you_mean,
)
from kd_jax.runtime.memory import free_memory
from kd_jax.tasks.labels import CLASSES

# Bytes of device memory a voxel of the window and channel of the first level: what XLA's memory
# analysis says of the whole network (64 to 71 on CPU in float32, jax 0.10.2).
_BYTES_PER_CHANNEL = 70


class Prepared(NamedTuple):
  """A case as the network reads it.

  Attributes:
    images: (M, *grid.shape).
    grid: where that lies in the scan.
    reference: the scan, of the first modality.
  """

  images: np.ndarray
  grid: grids.Grid
  reference: nifti.Volume


class Ensemble:
  """Students that read the same input, and how they look at volumes; one of them is enough."""

  def __init__(
    self,
    students: Sequence[Student],
    mode: str | None = None,
    overlap: float | None = None,
    mirror: bool | None = None,
    smallest_island: float | None = None,
    smallest_et: float | None = None,
  ):
    """Settings that are None are the first student's own, thresholds the students' lower median.

    Raises:
      ConfigError: a setting is impossible.
    """
    self.students = students
    self.preparation = students[0].preparation
    self.modalities = students[0].architecture.modalities
    # Each student's own validation has chosen its thresholds.
    if smallest_island is None:
      smallest_island = statistics.median_low(s.predict.smallest_island for s in students)
    if smallest_et is None:
      smallest_et = statistics.median_low(s.predict.smallest_et for s in students)
    given = {"mode": mode, "overlap": overlap, "mirror": mirror}
    given |= {"smallest_island": smallest_island, "smallest_et": smallest_et}
    self.settings: PredictSettings = dataclasses.replace(
      students[0].predict, **{name: value for name, value in given.items() if value is not None}
    )
    if self.settings.mode not in MODES:
      raise ConfigError(did_you_mean("--window", self.settings.mode, MODES))
    if not 0 <= self.settings.overlap <= 0.95:
      raise ConfigError(f"--overlap={self.settings.overlap} is not between 0 and 0.95")
    for name, value in self.settings.smallest._asdict().items():
      if not 0 <= value <= 1e6:
        raise ConfigError(f"--smallest_{name}={value} is not between 0 and 1e6 mm3")
    channels = max(student.architecture.filters[0] for student in students)
    self._sizes = inference.sizes(
      self.preparation.patch,
      self.preparation.spacing,
      self.preparation.grid,
      _BYTES_PER_CHANNEL * channels,
      free_memory() if self.settings.mode == "auto" else None,
    )
    self._members = [
      (student.architecture.framework().network, jax.device_put(student.params))
      for student in students
    ]

  def prepare(self, volumes: Mapping[str, nifti.Volume]) -> Prepared:
    """modality -> scan, at least those that the students read."""
    own = {modality: volumes[modality] for modality in self.modalities}
    p = self.preparation
    images, grid = preprocess.to_arrays(own, p.grid, p.normalise, p.spacing)
    return Prepared(images, grid, own[self.modalities[0]])

  def predict(self, prepared: Prepared) -> np.ndarray:
    """(K, *grid.shape) class probabilities. UserError if the device has not enough memory."""
    try:
      return inference.predict(self._members, prepared.images, self._sizes, self.settings)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e) and "Out of memory" not in str(e):
        raise
      raise UserError(
        f"the device has not enough memory for a window of {self.window(prepared)} voxels; "
        "use --window=sliding"
      ) from e

  def window(self, prepared: Prepared) -> grids.Triple:
    """The window that passes over a case."""
    return inference.plan(prepared.images.shape[1:], self._sizes, self.settings).window

  def describe(self) -> dict[str, Any]:
    """How it predicts, for records."""
    return dataclasses.asdict(self.settings) | {
      "students": len(self.students),
      "space": "the scan's own",
    }


def load_scan(ensemble: Ensemble, scan: Case | Scan, tell: Callable[[str], None]) -> Prepared:
  """Reads, looks for what a student cannot be right about, prepares. CaseError if unusable."""
  volumes = {}
  for modality in ensemble.modalities:
    if modality not in scan.images:
      finding = f"no {modality} image"
      raise CaseError(scan.name, scan.folder, finding, "Add the file, or remove the case.")
    path = scan.images[modality]
    try:
      volumes[modality] = nifti.read(path)
    except ValueError as e:
      remedy = "Give a 3-D NIfTI volume; if it was one, copy it again."
      raise CaseError(scan.name, path, str(e), remedy) from e
    for finding in check_scan(volumes[modality], modality):
      if finding.severity == "error":
        raise CaseError(scan.name, path, finding.text, finding.remedy)
      tell(f"warning: {scan.name} ({path.name}): {finding.text}. {finding.remedy}")
  if errors := check.check_volumes(scan, volumes):
    raise errors[0]
  try:
    return ensemble.prepare(volumes)
  except ValueError as e:
    raise CaseError(scan.name, scan.folder, str(e), "Correct or replace the scan.") from e


def native_probabilities(probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
  """(K, *grid.shape) -> (K, D, H, W) of the scan; background outside the grid's box."""
  outside = [1.0] + [0.0] * (len(CLASSES) - 1)
  return grids.from_grid(probabilities, prepared.grid, outside)


def native_classes(probabilities: np.ndarray, prepared: Prepared, smallest: Smallest) -> np.ndarray:
  """(K, *grid.shape) probabilities -> (D, H, W) uint8 classes of the scan, cleaned."""
  box = grids.from_grid(probabilities, prepared.grid.cropped)  # no argmax where nothing can be
  classes = np.zeros(prepared.grid.native_shape, np.uint8)
  classes[prepared.grid.box] = np.argmax(box, axis=0)
  return clean(classes, smallest, prepared.reference.voxel_mm)


class Named(Protocol):
  name: str


Job = TypeVar("Job", bound=Named)
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def overlapped(
  jobs: Sequence[Job],
  load: Callable[[Job], Loaded],
  compute: Callable[[Loaded], Result],
  finish: Callable[[Job, Loaded, Result], None],
  progress: Callable[[int, int, str], None],
) -> list[CaseError]:
  """Runs load, compute and finish on every job, each in a thread of its own, in order.

  At most three jobs are in memory. A CaseError of any stage drops its job and is returned; any
  other exception ends the work.
  """
  failed: list[CaseError] = []
  done = 0

  def settle(job: Job, outcome: Future) -> None:
    nonlocal done
    try:
      outcome.result()
    except CaseError as e:
      failed.append(e)
    done += 1
    progress(done, len(jobs), job.name)

  with ThreadPoolExecutor(1, "load") as loader, ThreadPoolExecutor(1, "finish") as finisher:
    ahead = loader.submit(load, jobs[0]) if jobs else None
    behind = None
    for job, following in itertools.zip_longest(jobs, jobs[1:]):
      current, ahead = ahead, loader.submit(load, following) if following else None
      try:
        loaded = current.result()
        outcome = finisher.submit(finish, job, loaded, compute(loaded))
      except CaseError as e:
        outcome = Future()
        outcome.set_exception(e)
      if behind:
        settle(*behind)
      behind = job, outcome
    if behind:
      settle(*behind)
  return failed
