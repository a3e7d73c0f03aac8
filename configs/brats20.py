"""BraTS 2020 (369 training cases).

python main.py --config=configs/brats20.py --config.data.root=/data/BraTS2020
"""

from configs import common


def get_config(arg: str = ""):
  return common.with_variants(common.base("brats20", "data/BraTS2020"), arg)
