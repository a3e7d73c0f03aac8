"""BraTS 2018 (285 training cases).

python main.py --config=configs/brats18.py --config.data.root=/data/BraTS2018
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"brats18:{variants}")
