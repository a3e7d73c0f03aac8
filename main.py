"""kd_jax on the command line.

  python main.py --config=configs/quickstart.py
  python main.py --config=configs/brats21.py:two_level --config.data.root=/data/BraTS2021
  python main.py --mode=evaluate --checkpoint=runs/brats21-fold0
  python main.py --mode=predict --checkpoint=runs/brats21-fold0 --input=scan.nii.gz --output=masks

What each mode does and which flags it takes: kd_jax/cli.py.
Worker processes import this file again: nothing heavy may happen outside main().
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from kd_jax.runtime.errors import UserError, printable

MODES = (
  *("train", "prepare", "evaluate", "cross_validate", "compare"),
  *("predict", "visualize", "export_student", "import_torch"),
)
_CHECKPOINT = "A run, or an exported student; several, with commas, are averaged."
_LABELS = "Label convention: brats2018 ... brats2021, brats2023, brats2024, or auto."
_MAPPING = "BraTS name_mapping.csv: who is who across the years."

flags.DEFINE_enum("mode", "train", MODES, "What to do.")
CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, [:variant,variant].")
flags.DEFINE_string("workdir", None, "Where the run lies; default runs/NAME-foldK.")
flags.DEFINE_string("checkpoint", None, _CHECKPOINT)
flags.DEFINE_string("input", None, "What to read: a scan, a case, a folder of them, a list.")
flags.DEFINE_string("output", None, "Folder for what is written.")
flags.DEFINE_string("labels", "auto", _LABELS)
flags.DEFINE_bool("probabilities", False, "Write probability maps of WT, TC and ET too.")
flags.DEFINE_string("window", None, "sliding, whole or auto (by memory); default: the student's.")
flags.DEFINE_float("overlap", None, "Of sliding windows, 0 to 0.95; default: the student's.")
flags.DEFINE_bool("mirror", None, "Average over the eight mirror images.")
flags.DEFINE_float("smallest_island", None, "mm3; less WT apart is none; default: the student's.")
flags.DEFINE_float("smallest_et", None, "mm3; less ET than that is core; default: the student's.")
flags.DEFINE_string("data_root", None, "Other data than the run's own.")
flags.DEFINE_string("split", None, "val or all: which cases to score.")
flags.DEFINE_bool("exclude_training_subjects", False, "Leave them out instead of refusing.")
flags.DEFINE_string("name_mapping", None, _MAPPING)
flags.DEFINE_string("predictions", None, "A folder of masks to score, of any program.")
flags.DEFINE_string("truth", None, "The folder of label maps to score them against.")
flags.DEFINE_string("prediction_labels", "auto", "Label convention of the masks; as the truth's.")
flags.DEFINE_string("modality", "t1ce", "What an imported student reads.")
flags.DEFINE_list("folds", [], "Folds to cross-validate here; default all.")
flags.DEFINE_bool("distributed", None, "One of several processes; default: see for itself.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot find out.")
flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.")
flags.DEFINE_integer("process", None, "Which one this is, from 0, with --coordinator.")


def main(argv: list[str]) -> None:
  from kd_jax import cli as modes

  try:
    modes.run(flags.FLAGS, CONFIG.value, argv[1:])
  except UserError as error:
    sys.exit(printable(f"error: {error}"))


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
