"""The packages of the extra [dicom], imported when they are needed."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from kd_jax.runtime.errors import UserError

INSTALL = "pip install 'kd_jax[dicom]' (or: pip install pydicom highdicom dcm2niix)"
_TALKATIVE = ("pydicom", "highdicom")


def needed(name: str) -> Any:
  """A package of the extra. UserError, with the command that installs it, if it is not there."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise UserError(f"DICOM files need {name}, which is not installed: {INSTALL}") from e


@contextlib.contextmanager
def unheard() -> Iterator[None]:
  """Keeps pydicom's and highdicom's own words away from logs: they quote values, names too."""
  pydicom = needed("pydicom")
  settings, loggers = pydicom.config.settings, [logging.getLogger(name) for name in _TALKATIVE]
  modes = settings.reading_validation_mode, settings.writing_validation_mode
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL + 1)
  # Filters of warnings are one for all threads, and another one may reset them: so these too.
  settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
    settings.reading_validation_mode, settings.writing_validation_mode = modes
