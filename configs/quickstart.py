"""The embedded demonstration data set; minutes on two CPU cores.

  python main.py --config=configs/quickstart.py

Everything is as in a real run but small: synthetic cases, 3 mm voxels, a quarter of the channels.
Its scores show that the program learns; they say nothing about patients.
"""

from configs import common


def get_config(arg: str = ""):
  config = common.base("quickstart", "runs/demo")
  config.data.demo_cases = 16
  config.data.spacing = 3.0
  config.data.patch = (32, 32, 32)
  config.data.workers = 0
  config.model.filters = (8, 16, 32, 64)
  config.train.epochs = 6
  config.train.steps_per_epoch = 20
  config.train.validate_every = 3
  config.train.save_every = 50
  for group in ("cohort", "student"):
    config.optim[group].learning_rate = 3e-3
  config.optim.ema_decay = 0.98
  config.augment.elastic = 1.5  # voxels, of 3 mm
  config.augment.blur = 0.6
  config.augment.lowres = 2.0
  config.predict.overlap = 0.25
  return common.with_variants(config, arg)
