"""kd-jax, the command of the installed package; `python -m kd_jax` is the same.

  kd-jax train --config=brats21:t1 --config.data.root=/data/BraTS2021
  kd-jax predict --checkpoint=my_student --input=scans --output=masks

The modes are those of main.py: kd_jax/cli.py. Worker processes import this file again, so nothing
heavy may happen outside main.
"""

import os
import signal
import sys


def main() -> None:
  """The command, from its first word to the exit status."""
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While modules are imported; from then on, cli.run answers Ctrl-C.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
  from kd_jax import command

  command.start(sys.argv)


if __name__ == "__main__":
  main()
