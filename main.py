"""kd_jax on the command line.

  python main.py --config=configs/quickstart.py
  python main.py --config=configs/brats21.py:two_level --config.data.root=/data/BraTS2021
  python main.py --mode=evaluate --workdir=runs/brats21-fold0

Worker processes import this file again: nothing heavy may happen outside main().
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from kd_jax.errors import ConfigError, UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, [:variant,variant].")
MODE = flags.DEFINE_enum(
  "mode", "train", ("train", "prepare", "evaluate"), "Train or go on; fill the cache; score."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; default runs/NAME-foldK.")
SPLIT = flags.DEFINE_string("split", "val", "Which cases to evaluate on.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes (jax.distributed).")


def main(argv: list[str]) -> None:
  try:
    if argv[1:]:
      raise ConfigError(f"what is {argv[1]!r}? Settings look like --config.data.fold=1")
    run()
  except UserError as error:
    sys.exit(f"error: {error}")


def run() -> None:
  import jax

  from kd_jax import config as config_lib
  from kd_jax.data import dataset
  from kd_jax.evaluate import evaluate
  from kd_jax.runlog import Terminal, quiet_libraries
  from kd_jax.train import train

  quiet_libraries()
  if CONFIG.value is None and not (MODE.value == "evaluate" and WORKDIR.value):
    raise ConfigError("give --config=configs/..., or --mode=evaluate with --workdir=...")
  raw = None if CONFIG.value is None else config_lib.to_dict(CONFIG.value)
  config = None if raw is None else config_lib.parse(raw)
  workdir = Path(WORKDIR.value or f"runs/{config.name}-fold{config.data.fold}")
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(Path("runs/compiled").absolute()))
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  terminal = Terminal()
  if MODE.value == "train":
    train(raw, workdir, terminal)
  elif MODE.value == "prepare":
    dataset.report(config.data, terminal.progress, terminal.line)
  else:
    evaluate(workdir, SPLIT.value, raw, terminal)


def parse_flags(argv: list[str]) -> list[str]:
  """As absl does it, but what is wrong is one message instead of a traceback."""
  try:
    rest = flags.FLAGS(argv)
    _ = CONFIG.value and CONFIG.value.to_dict  # that a file is missing shows only now
    return rest
  except AttributeError as error:  # from ml_collections, for a name that is not in the file
    sys.exit(f"error: unknown setting {error}")
  except (UserError, flags.Error, OSError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
