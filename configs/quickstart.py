"""The embedded demonstration data set; minutes on two CPU cores.

  python main.py --config=configs/quickstart.py

Everything is as in a real run but small: generated cases, 3 mm voxels, a quarter of the channels.
Its scores show that the program learns; they say nothing about patients.
"""

from kd_jax.settings import presets


def get_config(variants: str = ""):
  return presets.config_dict(f"quickstart:{variants}")
