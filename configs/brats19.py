"""BraTS 2019 (335 training cases).

python main.py --config=configs/brats19.py --config.data.root=/data/BraTS2019
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"brats19:{variants}")
