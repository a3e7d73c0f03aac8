"""BraTS 2023 (1251 training cases).

python main.py --config=configs/brats23.py --config.data.root=/data/BraTS2023
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"brats23:{variants}")
