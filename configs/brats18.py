"""BraTS 2018 (285 training cases).

python main.py --config=configs/brats18.py --config.data.root=/data/BraTS2018
"""

from configs import common


def get_config(arg: str = ""):
  return common.with_variants(common.base("brats18", "data/BraTS2018"), arg)
