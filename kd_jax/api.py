"""The public face: students on arrays and files, training, evaluation (docs/api.md).

This module stands above all rooms, and no room imports it. Use its names as `kd_jax.load`.
"""

import functools
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import jax
import numpy as np

from kd_jax.prediction import segment
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.segment import Image, PathLike, Scan, Segmentation, Warn, warn_caller
from kd_jax.runs.layout import default_workdir
from kd_jax.runs.students import open_students
from kd_jax.runtime import child_processes, startup
from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.files import at_home
from kd_jax.runtime.terminal import Terminal, quiet_libraries
from kd_jax.settings import presets
from kd_jax.settings.run import Settings
from kd_jax.tasks import labels as label_maps

VoxelMM = Sequence[float] | None
Labels = str | Mapping  # see docs/api.md, "Segment a file"


# --- Students ---------------------------------------------------------------------------------


def load(
  path: PathLike,
  *,
  window: str | None = None,
  overlap: float | None = None,
  mirror: bool | None = None,
  min_component_mm3: float | None = None,
  min_et_mm3: float | None = None,
  calibrate: bool | None = None,
  compiler_options: str | None = None,
) -> "Student":
  """Opens a trained student.

  Args:
    path: an exported student, a run or a cross-validation; several, with commas, are averaged.
    window, overlap: "sliding", "whole" or "auto"; of sliding windows, 0 to 0.95.
    mirror: average over the eight mirror images.
    min_component_mm3, min_et_mm3: smaller components of WT are removed, less ET becomes core.
    calibrate: give probabilities with the temperatures that validation has fitted.
      All six: None takes the value that was stored with the student.
    compiler_options: for XLA: "auto" (the same as None), "none", or "xla_NAME=value".

  Raises:
    UserError: no student, a damaged one, several of different input; ConfigError: a wrong value.
  """
  _set_up()
  predictor = Predictor(
    open_students(os.fspath(path), functools.partial(warn_caller, category=UserWarning)),
    window=window,
    overlap=overlap,
    mirror=mirror,
    min_component_mm3=min_component_mm3,
    min_et_mm3=min_et_mm3,
    calibrate=calibrate,
    compiler_options=compiler_options,
  )
  warn_caller(*predictor.notes, category=UserWarning)
  return Student(predictor)


class Student:
  """A trained student, or several that are averaged, ready to segment scans; made by `load`.

  Attributes:
    predictor: what does the work, for code that needs its single steps. It is not part of the
      stable interface.
  """

  def __init__(self, predictor: Predictor):
    self.predictor = predictor

  def __repr__(self) -> str:
    names = ", ".join(student.name for student in self.predictor.students)
    return f"<kd_jax.Student {names}: reads {', '.join(self.modalities)}>"

  @property
  def modalities(self) -> tuple[str, ...]:
    """The sequences that it reads, such as ("t1ce",)."""
    return self.predictor.modalities

  def describe(self) -> dict[str, Any]:
    """Facts as plain values: what it reads, how it predicts, what it was trained on, its scores."""
    return segment.facts(self.predictor)

  @overload
  def segment(
    self,
    image: Image,
    voxel_mm: VoxelMM = None,
    *,
    probabilities: Literal[False] = False,
    warn: Warn | None = None,
  ) -> np.ndarray: ...

  @overload
  def segment(
    self,
    image: Image,
    voxel_mm: VoxelMM = None,
    *,
    probabilities: Literal[True],
    warn: Warn | None = None,
  ) -> Segmentation: ...

  def segment(self, image, voxel_mm=None, *, probabilities=False, warn=None):
    """The tumour in one scan.

    Args:
      image: (D, H, W) numbers, for a student of one modality. D runs from the patient's right to
        the left, H from front to back, W from feet to head ("LPS", as BraTS files are stored). Or
        modality -> such an array. Or a path: a NIfTI file or a case folder; or modality -> file.
      voxel_mm: the edges of an array's voxels in mm, along D, H, W; None for 1 mm. A file has its
        own.
      probabilities: give the regions' probabilities too.
      warn: called with each line that speaks against the scan; None for Python's warnings, as
        ScanWarning.

    Returns:
      (D, H, W) uint8 classes in the image's own grid (of a file: in LPS axes); a Segmentation with
      probabilities=True.

    Raises:
      CaseError: an image that is missing or cannot be used.
      ConfigError: voxel_mm is not three positive numbers, or is given for a file.
      UserError: a path that means no scan or several, or too little device memory.
    """
    prediction = segment.segment(self.predictor, image, voxel_mm, warn or warn_caller)
    classes = prediction.classes()
    return Segmentation(classes, prediction.regions()) if probabilities else classes

  def segment_file(
    self, scan: Scan, mask: PathLike, labels: Labels | None = None, *, warn: Warn | None = None
  ) -> Path:
    """Segments a scan's file and writes the mask in the scan's own space.

    Args:
      scan: a path that means one scan, or modality -> file.
      mask: the file to write, .nii.gz or .nii. It appears whole or not at all; a mask that is
        there already is replaced.
      labels: the convention of the numbers in the mask: "brats2021" (ET is 4), "brats2023" (ET is
        3), {"NCR": 2, "ED": 1, "ET": 3} ...; None for that of the student's training data.
      warn: as in `segment`.

    Returns:
      The mask's path.

    Raises:
      CaseError, UserError: as in `segment`; or the mask would overwrite a file of the scan, or
        cannot be written.
      ConfigError: an unknown convention.
    """
    target = at_home(mask)
    convention = self.predictor.students[0].training["convention"]
    convention = convention if labels is None else label_maps.canonical(labels)
    segment.segment_file(self.predictor, scan, target, convention, warn or warn_caller)
    return target


# --- Training and evaluation ------------------------------------------------------------------


def preset(name: str, overrides: Mapping[str, Any] | None = None) -> Settings:
  """The settings of a preset.

  Args:
    name: a data set, then a colon and variants with commas: "brats21:t1,two_level".
    overrides: dotted setting -> value, such as {"data.root": "/data/BraTS2021"}.

  Raises:
    ConfigError: a name that does not exist, or a value that is not allowed.
  """
  return presets.settings(name, overrides)


def train(
  config: str | Settings,
  workdir: PathLike | None = None,
  overrides: Mapping[str, Any] | None = None,
  *,
  quiet: bool = False,
) -> Path:
  """Trains, or goes on where the work directory's last checkpoint stands.

  Args:
    config: a preset's name ("brats21:t1"), or settings.
    workdir: made if need be; None for runs/NAME-foldK.
    overrides: dotted setting -> value, applied last.
    quiet: write nothing to the terminal; the log in the work directory is written all the same.

  Returns:
    The work directory, for `load` and `evaluate`.

  Raises:
    ConfigError: a setting that does not exist or is not allowed.
    UserError: a case, a file or a loss that a person has to look at; another run in the same
      directory; a script without `if __name__ == "__main__":`.
    KeyboardInterrupt: Ctrl-C; a checkpoint is saved, and the same call goes on from there.
  """
  child_processes.refuse_second_run()
  settings = _settings(config, overrides or {})
  folder = at_home(workdir) if workdir else default_workdir(settings.name, settings.data.fold)
  terminal = _terminal(quiet)
  from kd_jax.training.train import train  # an exported student needs no optimiser

  try:
    train(settings, folder, terminal)
  except SystemExit as e:  # by a signal, once the checkpoint is saved
    if e.code != 128 + signal.SIGINT:
      raise
    raise KeyboardInterrupt(f"stopped; the same call goes on from {folder}") from None
  return folder


def evaluate(
  student: PathLike | Student,
  data_root: PathLike | None = None,
  *,
  output: PathLike | None = None,
  split: Literal["val", "holdout", "all"] | None = None,
  labels: Labels = "auto",
  exclude_training_subjects: bool = False,
  name_mapping: PathLike | None = None,
  quiet: bool = False,
) -> dict[str, Any]:
  """Scores a student on cases that it was not trained on, in the scans' own space.

  Args:
    student: as for `load`, or what it returned.
    data_root: a folder of cases; None for the run's own data.
    output: of summary.json, scores.csv and report.html; None for a run's evaluation folder.
    split: "val", a run's validation cases; "holdout", those that it neither trained nor validated
      on; or "all". None for "val" of the run's own data and "all" of another folder.
    labels: the data's label convention, as in `Student.segment_file`, or "auto".
    exclude_training_subjects: leave them out instead of refusing.
    name_mapping: a BraTS name_mapping.csv, by which patients are recognised across the years.
    quiet: write nothing to the terminal.

  Returns:
    What summary.json holds.

  Raises:
    UserError: training subjects among the cases; nothing to score; or, after all files were
      written, cases that could not be scored.
  """
  child_processes.refuse_second_run()
  opened = student if isinstance(student, Student) else load(student)
  from kd_jax.evaluation.case_results import check_complete
  from kd_jax.evaluation.choice import Choice
  from kd_jax.evaluation.students import evaluate as evaluate_students

  choice = Choice(
    data_root=at_home(data_root) if data_root else None,
    split=split,
    labels=label_maps.canonical(labels, auto=True),
    exclude_training_subjects=exclude_training_subjects,
    name_mapping=at_home(name_mapping) if name_mapping else None,
  )
  folder = at_home(output) if output else None
  summary = evaluate_students(opened.predictor, choice, folder, _terminal(quiet))
  check_complete(summary)
  return summary


# --- Pieces -----------------------------------------------------------------------------------


@functools.cache
def _set_up() -> None:
  """What the command line does at its start; what the caller's code has set stays."""
  quiet_libraries(unless_set=True)
  startup.keep_compiled()
  startup.check_devices()


def _terminal(quiet: bool) -> Terminal:
  _set_up()
  return Terminal(jax.process_index(), quiet)


def _settings(config: str | Settings, overrides: Mapping[str, Any]) -> Settings:
  if isinstance(config, str):
    return presets.settings(config, overrides)
  if not isinstance(config, Settings):
    raise ConfigError(f"config is a {type(config).__name__}, no preset's name or kd_jax.Settings")
  return presets.override(config, overrides)
