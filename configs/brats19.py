"""BraTS 2019 (335 training cases).

python main.py --config=configs/brats19.py --config.data.root=/data/BraTS2019
"""

from configs import common


def get_config(arg: str = ""):
  return common.with_variants(common.base("brats19", "data/BraTS2019"), arg)
