"""Settings that must be in place before JAX starts: eight fake devices for the mesh tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

from absl import flags

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags
