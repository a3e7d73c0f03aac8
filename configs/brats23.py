"""BraTS 2023 (1251 training cases).

python main.py --config=configs/brats23.py --config.data.root=/data/BraTS2023
"""

from configs import common


def get_config(arg: str = ""):
  return common.with_variants(common.base("brats23", "data/BraTS2023"), arg)
