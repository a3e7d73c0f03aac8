"""What kd-jax says of itself: all modes; of each what it does, its flags, two examples."""

import shutil
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from absl import flags

from kd_jax import __version__, cli, command_flags
from kd_jax.runtime import commands
from kd_jax.settings import presets

_WIDEST = 100
_COLUMN = 28  # where the words of a flag begin
SEVERAL = ("distributed", "coordinator", "processes", "process")  # of modes that are shared


class Words(NamedTuple):
  """What help says of a mode beside its flags.

  Attributes:
    what: what it does; text of any width.
    examples: what may follow the mode on a command line.
  """

  what: str
  examples: tuple[str, str]


WORDS = {
  "train": Words(
    "Trains teachers and student together, or continues a run where its last checkpoint stands. "
    "Validates, logs and saves on the way; Ctrl-C saves first. The same command continues a run "
    "that was stopped.",
    (
      "--config=quickstart",
      "--config=brats21:t1,two_level --config.data.root=/data/BraTS2021 --workdir=runs/t1",
    ),
  ),
  "prepare": Words(
    "Checks every case, fills the cache, and lists all bad cases in one table. Training does it, "
    "too; this finds out before it.",
    (
      "--config=brats21 --config.data.root=/data/BraTS2021",
      "--config=brats23 --config.data.root=/data/BraTS2023 --config.data.cache=/scratch/cache",
    ),
  ),
  "evaluate": Words(
    "Scores students on cases that they were not trained on: the validation cases of a run, or "
    "those of --data_root. Or scores a folder of masks of any program against truths. Leaves a "
    "report (HTML), a table of scores for each case, and a summary with 95% intervals.",
    (
      "--checkpoint=runs/brats21-fold0",
      "--predictions=masks --truth=/data/BraTS2021 --output=scores",
    ),
  ),
  "cross_validate": Words(
    "Trains and scores all folds, or those of --folds, then all cases out of fold.",
    (
      "--config=brats21 --config.data.root=/data/BraTS2021",
      "--config=brats21 --config.data.root=/data/BraTS2021 --folds=0,1 --workdir=runs/cv",
    ),
  ),
  "compare": Words(
    "Compares two evaluations case by case: paired differences with intervals and Wilcoxon p.",
    (
      "runs/a/evaluation/val runs/b/evaluation/val",
      "scores_a scores_b --output=compared",
    ),
  ),
  "predict": Words(
    "Writes a mask for each new scan, with the scan's own shape and header. A second start does "
    "what is missing and leaves the rest. The scans must be skull-stripped and in atlas space; a "
    "folder of DICOM files is converted, checked, and with --prepare brought there first.",
    (
      "--checkpoint=my_student --input=scans --output=masks",
      "--checkpoint=runs/brats21-cv --input=scan.nii.gz --output=masks --mirror --probabilities",
    ),
  ),
  "visualize": Words(
    "Shows cases: scan, mask and truth as NIfTI, and a page with slices and a 3-D view.",
    (
      "--checkpoint=my_student --input=/data/BraTS2021/BraTS2021_00000",
      "--checkpoint=my_student --input=scan.nii.gz --output=looked_at",
    ),
  ),
  "export": Words(
    "Writes a student as a directory to give to others: weights, a description, digests of the "
    "training subjects, a model card, no code. Or as a program for other runtimes, StableHLO or "
    "ONNX; several students, with commas, become one program.",
    (
      "--checkpoint=runs/brats21-fold0 --output=my_student",
      "--checkpoint=my_student --format=onnx --output=my_student_onnx",
    ),
  ),
  "export_student": Words(
    "The earlier name of export, for kd_jax alone.",
    (
      "--checkpoint=runs/brats21-fold0 --output=my_student",
      "--checkpoint=runs/t1 --output=/shared/students/t1 --license=cc-by-4.0",
    ),
  ),
  "import_torch": Words(
    "Reads the published PyTorch student and writes it as such a directory. PyTorch is needed for "
    "this: pip install torch.",
    (
      "--input=student.pth --output=published_student",
      "--input=student.pth --modality=t1 --output=published_t1",
    ),
  ),
  "doctor": Words(
    "Checks this machine: packages, devices, cuDNN, memory, disk, cache folder, limits. Says in "
    "plain words what will be slow or fail, and what to do. Exit status 1 if something will fail.",
    ("", "--workdir=/scratch/runs/brats21"),
  ),
}


def overview() -> str:
  """What `kd-jax --help` shows."""
  modes = [(commands.word(name), _first_line(mode)) for name, mode in cli.MODES.items()]
  lines = [
    f"{commands.COMMAND} {__version__}: brain tumours segmented from one MRI sequence",
    "",
    f"usage: {commands.COMMAND} MODE --flag=value ...",
    "",
    "modes",
    *_columns(modes, 18),
    "",
    *_columns(
      [
        (f"{commands.COMMAND} MODE --help", "what a mode does, its flags, two examples"),
        (f"{commands.COMMAND} --version", "versions and devices"),
        (f"{commands.COMMAND} doctor", "what will be slow or fail on this machine"),
      ],
      26,
    ),
    "",
    "examples",
    *_examples("train", WORDS["train"].examples[:1]),
    *_examples("predict", WORDS["predict"].examples[:1]),
  ]
  return "\n".join(lines)


def of_mode(name: str) -> str:
  """What `kd-jax MODE --help` shows."""
  mode = cli.MODES[name]
  words = " A B" if mode.arguments else ""
  lines = [f"usage: {commands.COMMAND} {commands.word(name)}{words} --flag=value ...", ""]
  lines += _wrapped(WORDS[name].what)
  optional = [flag for flag in dict.fromkeys(mode.optional) if flag not in mode.needs]
  for title, names in (("needs", mode.needs), ("takes", optional)):
    if names:
      lines += ["", title, *_columns([_flag(flag) for flag in names], _COLUMN)]
  if "config" in mode.needs:
    lines += ["", *_settings()]
  if mode.shared:
    several = [_flag(flag) for flag in SEVERAL]
    lines += ["", "to be one of several processes", *_columns(several, _COLUMN)]
  lines += ["", "examples", *_examples(name, WORDS[name].examples)]
  return "\n".join(lines)


def _settings() -> list[str]:
  """What --config takes, and how single settings are given."""
  variants = [(name, variant.words) for name, variant in presets.VARIANTS.items()]
  return [
    "presets: " + ", ".join(presets.DATASETS),
    "variants, after a colon, with commas",
    *_columns(variants, 16),
    "",
    "Every setting is a flag, such as --config.data.fold=1. This prints all of them:",
    "  python -m kd_jax.settings.run",
  ]


def _flag(name: str) -> tuple[str, str]:
  """A flag with what it takes, and its words."""
  if name == "config":
    return "--config=NAME", "A preset, or a file of settings; then [:variant,variant]."
  define, default, words = command_flags.FLAGS[name]
  if define is flags.DEFINE_bool:
    return f"--[no]{name}" if default is None else f"--{name}", words
  return f"--{name}={_value(name, define)}", words


def _value(name: str, define: object) -> str:
  """What stands behind a flag's equals sign."""
  if define is flags.DEFINE_float:
    return "NUMBER"
  if define is flags.DEFINE_integer:
    return "N"
  return "PATH" if name in (*command_flags.ONE_PATH, "checkpoint") else "VALUE"


def _first_line(mode: cli.Mode) -> str:
  return (mode.act.__doc__ or "").partition("\n")[0]


def _examples(mode: str, examples: Iterable[str]) -> list[str]:
  start = f"  {commands.COMMAND} {commands.word(mode)}"
  return [f"{start} {example}".rstrip() for example in examples]


def _columns(rows: Iterable[tuple[str, str]], column: int) -> list[str]:
  """Names to the left, their words from a column on."""
  lines: list[str] = []
  for name, words in rows:
    filled = _wrapped(words, " " * column)
    if len(name) + 3 > column:
      lines += [f"  {name}", *filled]
    else:
      lines += [f"  {name}".ljust(column) + filled[0].strip(), *filled[1:]]
  return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
  width = min(shutil.get_terminal_size((_WIDEST, 0)).columns, _WIDEST)
  width = max(width, len(indent) + 20)
  return textwrap.wrap(
    text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
  )
