"""BraTS 2021 (1251 training cases).

python main.py --config=configs/brats21.py --config.data.root=/data/BraTS2021
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"brats21:{variants}")
