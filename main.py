"""kd_jax on the command line.

  python main.py --config=configs/quickstart.py
  python main.py --config=configs/brats21.py:two_level --config.data.root=/data/BraTS2021
  python main.py --mode=evaluate --workdir=runs/brats21-fold0

Modes: prepare (fill the cache, report bad cases), train (start or go on), evaluate (score the best
student). Worker processes import this file again: it must not do or import anything heavy outside
main().
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

MODES = ("train", "prepare", "evaluate")
CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, [:variant,variant].")
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; default runs/NAME-foldK.")
SPLIT = flags.DEFINE_string("split", "val", "Which cases to evaluate on.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes (jax.distributed).")


def main(argv: list[str]) -> None:
  from kd_jax import config as config_lib
  from kd_jax.errors import ConfigError, UserError
  from kd_jax.runlog import Terminal, quiet_libraries

  quiet_libraries()
  terminal = Terminal()
  try:
    if argv[1:]:
      raise ConfigError(f"what is {argv[1]!r}? Settings look like --config.data.fold=1")
    raw = None if CONFIG.value is None else config_lib.to_dict(CONFIG.value)
    if raw is None and not (MODE.value == "evaluate" and WORKDIR.value):
      raise ConfigError("give --config=configs/..., or --mode=evaluate with --workdir=...")
    config = None if raw is None else config_lib.parse(raw)
    workdir = Path(WORKDIR.value or f"runs/{config.name}-fold{config.data.fold}")
    _start_jax()
    _run(config, raw, workdir, terminal)
  except UserError as error:
    terminal.line(f"error: {error}")
    sys.exit(2)


def _start_jax() -> None:
  """Compiled programs are kept between runs; JAX_COMPILATION_CACHE_DIR says where else."""
  import jax

  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(Path("runs/compiled").absolute()))
  if DISTRIBUTED.value:
    jax.distributed.initialize()


def _run(config, raw, workdir: Path, terminal) -> None:
  if MODE.value == "train":
    from kd_jax.train import train

    train(raw, workdir, terminal)
  elif MODE.value == "prepare":
    from kd_jax.data.dataset import report

    report(config.data, terminal.progress, terminal.line)
  else:
    from kd_jax.evaluate import evaluate

    evaluate(workdir, SPLIT.value, raw, terminal)


if __name__ == "__main__":
  app.run(main)
