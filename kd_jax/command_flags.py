"""The flags of the command line: one table, and how it is read."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kd_jax import command_errors
from kd_jax.runtime.errors import ConfigError, UserError, printable

_CHECKPOINT = (
  "A run, an exported student or hf://OWNER/NAME@REVISION; several, with commas or repeated, are "
  "averaged."
)
_LABELS = (
  "What the numbers in label maps mean: brats2018 ... brats2021, brats2023, brats2024, msd, "
  'brats-ped, a mapping such as \'{"NCR": 2, "ED": 1, "ET": 3}\', or auto.'
)
_NAMES = 'Which file names mean which sequence: {"t1ce": "*post*"}, as data.names.'
_MAPPING = "BraTS name_mapping.csv: who is who across the years."

# Name -> (how absl defines it, default, what it means).
FLAGS: dict[str, tuple[Callable[..., Any], Any, str]] = {
  "workdir": (flags.DEFINE_string, None, "Where the run lies; default runs/NAME-foldK."),
  "checkpoint": (flags.DEFINE_multi_string, None, _CHECKPOINT),
  "input": (flags.DEFINE_string, None, "What to read: a scan, a case, a folder of them, a list."),
  "output": (flags.DEFINE_string, None, "Folder for what is written."),
  "labels": (flags.DEFINE_string, "auto", _LABELS),
  "probabilities": (flags.DEFINE_bool, False, "Write probability maps of WT, TC and ET too."),
  "uncertainty": (
    flags.DEFINE_bool,
    False,
    "Write maps of entropy and, with several students or --mirror, of mutual information too, and "
    "tell between which volumes they lie.",
  ),
  "overwrite": (
    flags.DEFINE_bool,
    False,
    "Replace masks of other programs, and masks that were changed since they were written.",
  ),
  "series": (
    flags.DEFINE_string,
    None,
    "Of a DICOM folder, the series to read: its number or UID; default: chosen by its headers.",
  ),
  "prepare": (
    flags.DEFINE_bool,
    False,
    "Run what a DICOM series needs before a student can read it: HD-BET and antspyx.",
  ),
  "window": (flags.DEFINE_string, None, "sliding, whole or auto; default: the student's."),
  "overlap": (flags.DEFINE_float, None, "Of sliding windows, 0 to 0.95; default: the student's."),
  "mirror": (flags.DEFINE_bool, None, "Average over the eight mirror images."),
  "min_component_mm3": (
    flags.DEFINE_float,
    None,
    "Smaller components of WT are removed; default: the student's.",
  ),
  "min_et_mm3": (
    flags.DEFINE_float,
    None,
    "Less ET than that becomes core; default: the student's.",
  ),
  "calibrate": (
    flags.DEFINE_bool,
    None,
    "Read probabilities with the temperatures that validation has fitted; default: the student's.",
  ),
  "compiler_options": (
    flags.DEFINE_string,
    None,
    "For XLA: auto (the default), none, or xla_NAME=value beside auto's, with commas.",
  ),
  "data_root": (flags.DEFINE_string, None, "Other data than the run's own."),
  "split": (flags.DEFINE_string, None, "val, holdout or all: which cases to score."),
  "exclude_training_subjects": (flags.DEFINE_bool, False, "Leave them out instead of refusing."),
  "name_mapping": (flags.DEFINE_string, None, _MAPPING),
  "names": (flags.DEFINE_string, None, _NAMES),
  "patients": (flags.DEFINE_string, None, "CSV with columns case and patient, as data.patients."),
  "predictions": (flags.DEFINE_string, None, "A folder of masks to score, of any program."),
  "truth": (flags.DEFINE_string, None, "The folder of label maps to score them against."),
  "prediction_labels": (
    flags.DEFINE_string,
    "auto",
    "What the numbers in the masks mean, as for --labels; auto: as said beside them or held by "
    "them, else as in the truths.",
  ),
  "format": (
    flags.DEFINE_string,
    "safetensors",
    "Of an export: safetensors (for kd_jax), stablehlo or onnx (for other runtimes).",
  ),
  "license": (
    flags.DEFINE_string,
    None,
    "Of the exported weights, such as cc-by-4.0; the model card states it.",
  ),
  "modality": (flags.DEFINE_string, "t1ce", "What an imported student reads."),
  "folds": (flags.DEFINE_list, [], "Folds to cross-validate here; default all."),
  "distributed": (flags.DEFINE_bool, None, "One of several processes; default: see for itself."),
  "coordinator": (
    flags.DEFINE_string,
    None,
    "HOST:PORT of process 0, where JAX cannot find out.",
  ),
  "processes": (flags.DEFINE_integer, None, "How many processes there are, with --coordinator."),
  "process": (flags.DEFINE_integer, None, "Which one this is, from 0, with --coordinator."),
}

ONE_PATH = (
  *("input", "output", "workdir", "data_root", "predictions", "truth", "name_mapping"),
  "patients",
)
_HOME = re.compile(r"(?s)\A(--?config=)(~.*)")  # no shell expands it there


def define(modes: Sequence[str]) -> None:
  """Defines --mode, --config and every flag of FLAGS."""
  from ml_collections import config_flags

  config_flags.register_flag_parser_for_type(tuple, _LastTuple())
  flags.DEFINE_enum("mode", "train", list(modes), "What to do.")
  _CONFIG.append(
    config_flags.DEFINE_config_file(
      "config", None, "A preset, or a file of configs/; then [:variant,variant]."
    )
  )
  flags.FLAGS["config"].parser = FileOrPreset(flags.FLAGS["config"].parser)
  for name, (define_flag, default, words) in FLAGS.items():
    define_flag(name, default, words)


class FileOrPreset(flags.ArgumentParser):
  """Reads --config: a file, as ml_collections does it; a preset where there is no file so named."""

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def parse(self, argument: str) -> Any:
    from kd_jax.settings import presets

    name = argument.partition(":")[0]
    if name not in presets.DATASETS:
      return self._files.parse(argument)
    if not os.path.isfile(name):
      return presets.config_dict(argument).lock()
    try:
      settings = self._files.parse(argument)
      _ = settings and settings.to_dict  # that a file cannot be loaded shows only now
      return settings
    except Exception as error:  # whatever such a file holds
      raise ConfigError(
        f"--config={argument}: the file {os.path.abspath(name)} is read instead of the preset of "
        f"this name, and it is no file of settings ({type(error).__name__}). Rename it, or start "
        "in another folder"
      ) from error


class _LastTuple(flags.ArgumentParser):
  """Reads a tuple as ml_collections does; of a setting that is given twice, the last value counts.

  ml_collections joins the values of flags whose parser is of its own type for tuples.
  """

  def parse(self, argument: Any) -> tuple:
    from ml_collections.config_flags.tuple_parser import TupleParser

    return TupleParser().parse(argument)


def parse_flags(argv: list[str]) -> list[str]:
  """As absl does it, but what is wrong is one message instead of a traceback."""
  argv = [_HOME.sub(lambda match: match[1] + os.path.expanduser(match[2]), x) for x in argv]
  try:
    _check_once(argv)
    rest = flags.FLAGS(argv)
    settings = config()
    _ = settings and settings.to_dict  # that a file is missing shows only now
    return rest
  # AttributeError, KeyError: from ml_collections, for a name that is not in the file.
  except (UserError, flags.Error, OSError, AttributeError, KeyError) as error:
    known = ("mode", "config", *FLAGS)
    sys.exit(printable(f"error: {command_errors.explain(error, argv[1:], known)}"))


def _check_once(argv: Sequence[str]) -> None:
  """ConfigError for two values of a path: absl would forget the first in silence."""
  for name in ONE_PATH:
    values = [x for x in argv if re.match(rf"--?{name}(=|\Z)", x)]
    if len(values) > 1:
      raise ConfigError(f"--{name} is given {len(values)} times; give it once")


def config() -> Any:
  """The ConfigDict of --config, or None."""
  return _CONFIG[0].value


_CONFIG: list[flags.FlagHolder] = []  # --config, once it is defined
