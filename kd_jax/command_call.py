"""What a command line says: its flags and settings, and what these stand for."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.files import at_home

# Imported where they are needed: a mistyped flag is answered at once.
if TYPE_CHECKING:
  from kd_jax.data.cases import Naming
  from kd_jax.prediction.predictor import Predictor
  from kd_jax.runtime.terminal import Terminal
  from kd_jax.settings.run import Settings

INFERENCE = (
  *("window", "overlap", "mirror", "min_component_mm3", "min_et_mm3", "calibrate"),
  "compiler_options",
)


class Call(NamedTuple):
  """What the command line says.

  Attributes:
    flags: absl's.
    settings: of the run, or None.
    arguments: what stands without a flag.
    terminal: where to tell.
  """

  flags: flags.FlagValues
  settings: "Settings | None"
  arguments: list[str]
  terminal: "Terminal"

  def path(self, name: str) -> Path | None:
    value = self.flags[name].value
    return at_home(value) if value else None

  def needed_path(self, name: str) -> Path:
    """Of a flag that the mode needs."""
    path = self.path(name)
    assert path is not None, f"--{name} is not among the flags that the mode needs"
    return path

  def needed_settings(self) -> "Settings":
    """Of a mode that needs --config."""
    assert self.settings is not None, "--config is not among the flags that the mode needs"
    return self.settings

  def ensemble(self) -> "Predictor":
    """The students of --checkpoint (or --workdir), with the inference settings of the flags."""
    from kd_jax.prediction.predictor import Predictor
    from kd_jax.runs.students import open_students

    values = self.flags
    if values.checkpoint and values.workdir:
      raise ConfigError("--checkpoint and --workdir both name the student; give one")
    students = open_students(values.checkpoint or values.workdir, self.terminal.line)
    predictor = Predictor(students, **{name: values[name].value for name in INFERENCE})
    for note in predictor.notes:
      self.terminal.line(note)
    return predictor

  def naming(self) -> "Naming":
    """Of --names and --patients."""
    from kd_jax.data.cases import naming_of

    return naming_of(self.flags.names or "", self.flags.patients or "")

  def convention(self, flag: str) -> str:
    """Of a flag, as labels.canonical has it. ConfigError if it is none."""
    from kd_jax.tasks import labels

    try:
      return labels.canonical(str(self.flags[flag].value), auto=True)
    except ConfigError as e:
      raise ConfigError(f"--{flag}: {e}") from e

  def output_convention(self, predictor: "Predictor") -> str:
    """Of the masks to write: as asked, or as the student's training data had it."""
    asked = self.convention("labels")
    return predictor.students[0].training["convention"] if asked == "auto" else asked
