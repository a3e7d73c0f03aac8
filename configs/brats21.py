"""BraTS 2021 (1251 training cases).

python main.py --config=configs/brats21.py --config.data.root=/data/BraTS2021
"""

from configs import common


def get_config(arg: str = ""):
  return common.with_variants(common.base("brats21", "data/BraTS2021"), arg)
