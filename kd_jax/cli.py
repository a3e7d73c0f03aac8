"""The command line: what each --mode does, and which flags it takes."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from kd_jax import command_errors, command_flags
from kd_jax.command_call import INFERENCE, Call
from kd_jax.command_flags import parse_flags
from kd_jax.runtime import commands, startup
from kd_jax.runtime.errors import ConfigError, UserError, printable
from kd_jax.runtime.files import at_home

# A mode imports what it needs itself: a mistyped flag is answered at once, and training does not
# wait for what draws reports.


# --- Start and end ------------------------------------------------------------------------------


def start(argv: list[str] | None = None) -> None:
  """The program, from its command line to its exit status; Ctrl-C is one line and 130.

  Args:
    argv: the command line; None for sys.argv.
  """
  try:
    app.run(main, argv, flags_parser=parse_flags)
  except (Exception, KeyboardInterrupt):
    if not startup.interrupted():  # what is interrupted may raise errors of its own
      raise
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more ends it at once
    print("\nstopped by Ctrl-C; what was finished is kept", file=sys.stderr)
    startup.end_at_once(128 + signal.SIGINT)


def main(argv: list[str]) -> None:
  """What absl's app runs, once the flags are parsed."""
  try:
    run(flags.FLAGS, command_flags.config(), argv[1:])
  except UserError as error:
    sys.exit(printable(f"error: {error}"))


def run(values: flags.FlagValues, config: Any, arguments: list[str]) -> None:
  """Does what the flags say. UserError, before any work, if they make no sense together."""
  mode = MODES[values.mode]
  if len(arguments) != mode.arguments:
    raise ConfigError(
      f"{commands.named(values.mode)} takes two evaluations: {commands.named(values.mode)} A B"
      if mode.arguments
      else command_errors.stray(arguments[0], list(MODES))
    )
  _check_flags(values, mode)
  from kd_jax.runtime.terminal import Terminal, quiet_libraries

  if not mode.computes:
    mode.act(Call(values, None, arguments, Terminal()))
    return
  import jax

  from kd_jax.runtime import processes
  from kd_jax.settings.run import parse

  startup.interruptible()
  quiet_libraries()
  settings = None if config is None else parse(config.to_dict())
  startup.keep_compiled()
  processes.join(values.distributed, values.coordinator, values.processes, values.process)
  startup.check_devices()
  if jax.process_count() > 1 and not mode.shared:
    raise ConfigError(f"{commands.named(values.mode)} is work for one process; start it alone")
  with processes.none_left_waiting():
    mode.act(Call(values, settings, arguments, Terminal(jax.process_index())))
    processes.wait()  # the first process to leave would end those that still write


# --- The modes --------------------------------------------------------------------------------


def train(call: Call) -> None:
  """Trains, or goes on where the work directory's last checkpoint stands."""
  from kd_jax.runs.layout import default_workdir
  from kd_jax.training.train import train

  settings = call.needed_settings()
  workdir = call.path("workdir") or default_workdir(settings.name, settings.data.fold)
  train(settings, workdir, call.terminal)


def prepare(call: Call) -> None:
  """Checks every case and fills the cache."""
  from kd_jax.data import dataset

  settings = call.needed_settings()
  sequences = settings.model.sequences
  dataset.report(settings.data, sequences, call.terminal.progress, call.terminal.line)


def evaluate(call: Call) -> None:
  """Scores students on cases that they were not trained on, or masks against truths."""
  predictions, truth = call.path("predictions"), call.path("truth")
  if predictions or truth:
    if not (predictions and truth):
      raise ConfigError("--predictions and --truth go together")
    _check_flags(call.flags, Mode(evaluate, optional=_MASKS))
  elif not (call.flags.checkpoint or call.flags.workdir):
    raise ConfigError("give --checkpoint=RUN, or --predictions=DIR with --truth=DIR")
  from kd_jax.evaluation.case_results import check_complete
  from kd_jax.evaluation.choice import Choice
  from kd_jax.evaluation.masks import evaluate_masks
  from kd_jax.evaluation.students import evaluate as evaluate_students

  if predictions and truth:
    conventions = (call.convention("labels"), call.convention("prediction_labels"))
    output = call.path("output")
    summary = evaluate_masks(predictions, truth, conventions, output, call.terminal)
  else:
    choice = Choice(
      data_root=call.path("data_root"),
      split=call.flags.split,
      labels=call.convention("labels"),
      exclude_training_subjects=call.flags.exclude_training_subjects,
      name_mapping=call.path("name_mapping"),
      naming=call.naming() if call.flags.names or call.flags.patients else None,
    )
    summary = evaluate_students(call.ensemble(), choice, call.path("output"), call.terminal)
  check_complete(summary)


def cross_validate(call: Call) -> None:
  """Trains and scores every fold, then all cases out of fold."""
  from kd_jax.evaluation.case_results import check_complete
  from kd_jax.evaluation.cross_validate import cross_validate

  settings = call.needed_settings()
  workdir = call.path("workdir") or Path(f"runs/{settings.name}-cv")
  try:
    only = [int(fold) for fold in call.flags.folds]
  except ValueError as e:
    raise ConfigError(f"--folds={','.join(call.flags.folds)}: expected numbers") from e
  if summary := cross_validate(settings, workdir, only, call.terminal):
    check_complete(summary)


def compare(call: Call) -> None:
  """Two evaluations, case by case."""
  from kd_jax.evaluation.compare import compare

  a, b = map(at_home, call.arguments)
  compare(a, b, call.path("output"), call.terminal)


def predict(call: Call) -> None:
  """Masks of new scans."""
  from kd_jax.dicom.files import holds_dicom
  from kd_jax.prediction.output import Output
  from kd_jax.prediction.predict import predict

  predictor = call.ensemble()
  convention = call.output_convention(predictor)
  values = call.flags
  output = Output(
    call.needed_path("output"),
    convention,
    values.probabilities,
    overwrite=values.overwrite,
    uncertainty=predictor.uncertainty_maps if values.uncertainty else (),
  )
  source = call.needed_path("input")
  if values.series or values.prepare or holds_dicom(source):
    from kd_jax.dicom import predict as dicom

    request = dicom.Request(source, values.series or "", values.prepare)
    dicom.predict(predictor, request, output, call.terminal)
  else:
    predict(predictor, source, output, call.terminal, call.naming().patterns)


def visualize(call: Call) -> None:
  """Cases to look at, flat and in 3-D."""
  from kd_jax.report.visualize import visualize

  predictor = call.ensemble()
  convention = call.output_convention(predictor)
  output = call.path("output") or Path("runs/visualize")
  source, patterns = call.needed_path("input"), call.naming().patterns
  visualize(predictor, source, convention, output, call.terminal, patterns)


def export(call: Call) -> None:
  """Students as a directory that can be handed on, for kd_jax or for another runtime."""
  from kd_jax.exports.export import export
  from kd_jax.runs.students import open_students

  output, values = call.needed_path("output"), call.flags
  students = open_students(values.checkpoint, call.terminal.line)
  export(students, output, values.format, values.license, call.terminal.line)
  call.terminal.line(f"written: {output}, to hand on")


def import_torch(call: Call) -> None:
  """The published PyTorch student as such a directory."""
  from kd_jax.prediction.import_torch import import_torch

  import_torch(call.needed_path("input"), call.flags.modality, call.needed_path("output"))
  call.terminal.line(f"written: {call.path('output')}, for --checkpoint")


def doctor(call: Call) -> None:
  """What will be slow or fail on this machine."""
  from kd_jax.runtime import doctor
  from kd_jax.runtime.terminal import quiet_libraries

  quiet_libraries()
  doctor.report(call.path("workdir") or Path("runs"))


# --- Flags ------------------------------------------------------------------------------------


class Mode(NamedTuple):
  """A mode: its function, the flags it needs and those it takes, how many arguments.

  Attributes:
    shared: whether several processes can do it together.
    computes: whether it needs devices; without, it is given no settings.
  """

  act: Callable[[Call], None]
  needs: tuple[str, ...] = ()
  optional: tuple[str, ...] = ()
  arguments: int = 0
  shared: bool = False
  computes: bool = True


_MASKS = ("predictions", "truth", "labels", "prediction_labels", "output")
_SCORED = (
  *("data_root", "split", "exclude_training_subjects", "name_mapping", "labels", "output"),
  *("names", "patients"),
)
MODES = {
  "train": Mode(train, ("config",), ("workdir",), shared=True),
  "prepare": Mode(prepare, ("config",), shared=True),
  "evaluate": Mode(
    evaluate, (), ("checkpoint", "workdir", *INFERENCE, *_SCORED, *_MASKS), shared=True
  ),
  "cross_validate": Mode(cross_validate, ("config",), ("workdir", "folds"), shared=True),
  "compare": Mode(compare, (), ("output",), arguments=2),
  "predict": Mode(
    predict,
    ("checkpoint", "input", "output"),
    (
      *("labels", "names", "probabilities", "uncertainty", "overwrite", "series", "prepare"),
      *INFERENCE,
    ),
    shared=True,
  ),
  "visualize": Mode(visualize, ("checkpoint", "input"), ("output", "labels", "names", *INFERENCE)),
  "export": Mode(export, ("checkpoint", "output"), ("format", "license")),
  "export_student": Mode(export, ("checkpoint", "output"), ("license",)),  # its earlier name
  "import_torch": Mode(import_torch, ("input", "output"), ("modality",)),
  "doctor": Mode(doctor, (), ("workdir",), computes=False),
}


def _check_flags(values: flags.FlagValues, mode: Mode) -> None:
  """A flag that is missing, or that would be passed over in silence, is an error."""
  name = commands.named(values.mode)
  if missing := [flag for flag in mode.needs if not values[flag].value]:
    raise ConfigError(f"{name} needs --{missing[0]}=...")
  known = {flag for other in MODES.values() for flag in (*other.needs, *other.optional)}
  for flag in sorted(flag for flag in known if values[flag].present):
    if flag not in (*mode.needs, *mode.optional):
      raise ConfigError(f"--{flag} has no meaning for what {name} is asked to do")
