"""kd_jax on the command line.

  python main.py --config=configs/quickstart.py
  python main.py --config=configs/brats21.py:two_level --config.data.root=/data/BraTS2021
  python main.py --mode=evaluate --checkpoint=runs/brats21-fold0
  python main.py --mode=predict --checkpoint=runs/brats21-fold0 --input=scan.nii.gz --output=masks

What each mode does and which flags it takes: kd_jax/cli.py.
Worker processes import this file again: nothing heavy may happen outside cli.run.
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
  # While modules are imported; from then on, cli.run answers Ctrl-C.
  signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

from absl import flags

from kd_jax import cli, command_flags

command_flags.define(list(cli.MODES))
flags.adopt_module_key_flags(command_flags)  # --help shows them

if __name__ == "__main__":
  cli.start()
