"""Scans through students and back into the scans' own space: the one way that predictions are made.

Read, check, prepare, predict, bring back, postprocess: `Predictor` has a function for each step;
`predict_case` and `predict_cases` do them all.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from kd_jax.data import case_checks, nifti, preprocess
from kd_jax.data import grid as grids
from kd_jax.data.cases import Case
from kd_jax.data.preprocess import Image
from kd_jax.data.walk import dead_link
from kd_jax.prediction import sliding_window
from kd_jax.prediction.calibration import NONE, joint
from kd_jax.prediction.prediction import Prediction, Prepared
from kd_jax.prediction.quality import joint_volumes
from kd_jax.prediction.student import Student
from kd_jax.prediction.uncertainty import UNCERTAINTY, Opinions, gather
from kd_jax.runtime import compiler_options as xla
from kd_jax.runtime import cuda
from kd_jax.runtime.errors import CaseError, ConfigError, UserError
from kd_jax.runtime.memory import free_memory
from kd_jax.settings import schema
from kd_jax.settings.inference import BY_VALIDATION, InferenceSettings
from kd_jax.settings.training import CompilerOptions

Warn = Callable[[str], None]


class Predictor:
  """Students that read the same input, and their inference settings; one student is enough.

  Attributes:
    students, preparation, modalities, settings: theirs.
    calibration: of their mean probabilities, as far as it is known.
    volumes: of their training cases, as far as they are known.
    compiler_options: of their programs.
    notes: what is to be said of the machine before they predict.
  """

  def __init__(
    self, students: Sequence[Student], *, compiler_options: str | None = None, **overrides: Any
  ):
    """
    Args:
      students: their probabilities are averaged.
      compiler_options: see runtime/compiler_options.py; None for "auto".
      overrides: fields of InferenceSettings. What is missing or None is as the first student has
        it; minimum sizes are the lower median of the students', each chosen by its validation.

    Raises:
      ConfigError: a setting that does not exist, or a value that is not allowed.
    """
    self.students = students
    self.preparation = students[0].preparation
    self.modalities = students[0].architecture.modalities
    self.settings = _settings(students, overrides)
    self.volumes = joint_volumes([student.volumes for student in students])
    self.calibration = joint(s.calibration for s in students) if self.settings.calibrate else NONE
    networks = [student.architecture for student in students]
    frameworks = [own.framework() for own in networks]
    dtype = frameworks[0].dtype.name  # of all of them
    wanted = schema.build(CompilerOptions, compiler_options or xla.AUTO, "compiler_options")
    self.compiler_options, notes = xla.choose(wanted, dtype)
    self.notes = (*notes, *cuda.doubts(jax.local_devices()[0], dtype))
    self._shapes = sliding_window.shapes(
      self.preparation.patch,
      self.preparation.spacing,
      self.preparation.grid,
      max(own.kind.bytes_per_channel * own.filters[0] for own in networks),
      free_memory() if self.settings.window == "auto" else None,
      multiple=math.lcm(*(own.kind.multiple(own.filters) for own in networks)),
    )
    self._members = [
      (framework.network, jax.device_put(student.params))
      for framework, student in zip(frameworks, students, strict=True)
    ]

  @property
  def uncertainty_maps(self) -> tuple[str, ...]:
    """The names of the maps that Prediction.uncertainty gives."""
    return UNCERTAINTY if self.settings.mirror or len(self.students) > 1 else UNCERTAINTY[:1]

  def load(self, case: Case, warn: Warn) -> Prepared:
    """Reads a case's files, checks that students can be right about them, and prepares them.

    Args:
      warn: called with a line for each finding that speaks against the scan.

    Raises:
      CaseError: a file is missing or cannot be used.
    """
    volumes: dict[str, nifti.Volume] = {}
    for modality in self.modalities:
      if modality not in case.images:
        raise case_checks.lacking(case, modality)
      volumes[modality] = _read(case, modality)
    errors, warnings = case_checks.check_volumes(case, volumes)
    if errors:
      raise errors[0]
    for w in warnings:
      warn(f"warning: {w.case} ({os.path.basename(w.file)}): {w.finding}. {w.remedy}")
    try:
      return self.prepare(volumes)
    except ValueError as e:
      raise CaseError(case.name, case.folder, str(e), "Correct or replace the scan.") from e

  def prepare(self, images: Mapping[str, Image]) -> Prepared:
    """modality -> image, at least those that the students read. ValueError if unusable."""
    own: dict[str, Image] = {modality: images[modality] for modality in self.modalities}
    p = self.preparation
    arrays, grid = preprocess.to_arrays(own, p.grid, p.normalise, p.spacing)
    return Prepared(arrays, grid, own[self.modalities[0]])

  def predict(self, prepared: Prepared, *, opinions: bool = False) -> Prediction:
    """What the students say of a case. UserError if the device has not enough memory.

    Args:
      opinions: keep what each network and mirror image says, too.
    """
    kept = None
    if opinions:
      mean, kept = self.opinions(prepared)
    else:
      mean = self.probabilities(prepared)
    return Prediction(mean, prepared, self.settings.minimum_sizes, self.calibration, kept)

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    """(K, *grid.shape), the students' mean. UserError if the device has not enough memory."""
    with self._enough_memory(prepared):
      return sliding_window.predict(*self._arguments(prepared))

  def opinions(self, prepared: Prepared) -> tuple[np.ndarray, Opinions]:
    """As `probabilities` (up to rounding), and what each network and mirror image says."""
    with self._enough_memory(prepared):
      return gather(sliding_window.opinions(*self._arguments(prepared)))

  def _arguments(self, prepared: Prepared) -> tuple:
    """Of both functions of sliding_window."""
    images, options = prepared.images, self.compiler_options
    return self._members, images, self._shapes, self.settings, options

  @contextlib.contextmanager
  def _enough_memory(self, prepared: Prepared) -> Iterator[None]:
    try:
      yield
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e) and "Out of memory" not in str(e):
        raise
      window, remedy = self.window(prepared), "use --window=sliding"
      if window == self._shapes.patch:  # none is smaller
        remedy = (
          "end other programs on the device, average fewer students, or set JAX_PLATFORMS=cpu, "
          "which is slower"
        )
      raise UserError(
        f"the device has not enough memory for a window of {window} voxels; {remedy}"
      ) from e

  def predict_case(self, case: Case, warn: Warn = lambda text: None) -> Prediction:
    """All steps for one case. CaseError if it cannot be used."""
    return self.predict(self.load(case, warn))

  def window(self, prepared: Prepared) -> grids.Triple:
    """The window that passes over a case, in voxels."""
    return sliding_window.plan(prepared.images.shape[1:], self._shapes, self.settings).window

  def describe(self) -> dict[str, Any]:
    """How it predicts, for records."""
    return dataclasses.asdict(self.settings) | {
      "students": len(self.students),
      "space": "the scan's own",
    }


def _settings(students: Sequence[Student], overrides: Mapping[str, Any]) -> InferenceSettings:
  values = schema.plain(students[0].inference)
  for name in ("min_component_mm3", "min_et_mm3"):
    values[name] = statistics.median_low(getattr(s.inference, name) for s in students)
  values |= {name: value for name, value in overrides.items() if value is not None}
  settings: InferenceSettings = schema.build(InferenceSettings, values, "inference")
  for name in ("min_component_mm3", "min_et_mm3"):
    if getattr(settings, name) == BY_VALIDATION:
      raise ConfigError(
        f"inference.{name} = {BY_VALIDATION}: only a run has validation cases to choose it by"
      )
  return settings


def _read(case: Case, modality: str) -> nifti.Volume:
  path = case.images[modality]
  try:
    return nifti.read(path)
  except ValueError as e:
    dead = dead_link(path)
    remedy = dead[1] if dead else "Give a 3-D NIfTI volume; if it was one, copy it again."
    raise CaseError(case.name, path, str(e), remedy) from e


def predict_cases(
  predictor: Predictor,
  cases: Sequence[Case],
  finish: Callable[[Case, Prediction], None],
  *,
  warn: Warn,
  progress: Callable[[int, int, str], None],
) -> list[CaseError]:
  """Predicts every case; the next is read and the last one finished while the device works.

  Args:
    finish: called with each case and its prediction; may raise CaseError.
    warn: see `Predictor.load`.
    progress: called with (cases done, cases in all, name of the latest).

  Returns:
    What was wrong with the cases that were left out.
  """

  def load(case: Case) -> Prepared:
    return predictor.load(case, warn)

  return overlapped(cases, load, predictor.predict, finish, progress)


class Named(Protocol):
  @property
  def name(self) -> str: ...


Job = TypeVar("Job", bound=Named)
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def overlapped(
  jobs: Sequence[Job],
  load: Callable[[Job], Loaded],
  compute: Callable[[Loaded], Result],
  finish: Callable[[Job, Result], None],
  progress: Callable[[int, int, str], None],
) -> list[CaseError]:
  """Runs load, compute and finish on every job, each in a thread of its own, in order.

  At most three jobs are in memory. A CaseError of any stage drops its job and is returned; any
  other exception ends the work.
  """
  failed: list[CaseError] = []
  done = 0

  def settle(job: Job, outcome: Future[None]) -> None:
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
      assert ahead is not None  # this job was submitted with the one before it
      current, ahead = ahead, loader.submit(load, following) if following else None
      try:
        outcome = finisher.submit(finish, job, compute(current.result()))
      except CaseError as e:
        outcome = Future()
        outcome.set_exception(e)
      if behind:
        settle(*behind)
      behind = job, outcome
    if behind:
      settle(*behind)
  return failed
