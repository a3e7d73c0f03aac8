"""BraTS 2020 (369 training cases).

python main.py --config=configs/brats20.py --config.data.root=/data/BraTS2020
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"brats20:{variants}")
