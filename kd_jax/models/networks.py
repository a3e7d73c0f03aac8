"""The networks that `model.network` can name.

A further one needs a line here, its name in settings.model.Network and what it accepts in
settings.model.ACCEPTS.
"""

from kd_jax.models.interface import NetworkKind
from kd_jax.models.resenc import ResEncUNet
from kd_jax.models.resunet import ResUNet

NETWORKS: dict[str, NetworkKind] = {
  "resunet": NetworkKind(
    build=ResUNet,
    # What XLA's memory analysis says of the whole network (64 to 71 on CPU in float32, jax 0.10.2).
    bytes_per_channel=70,
  ),
  "resenc": NetworkKind(
    build=ResEncUNet,
    # The same analysis says 24 to 33 here and 50 to 52 of resunet (CPU, float32, windows of 128^3
    # and 192^3, jax 0.10.2); with the margin that resunet has.
    bytes_per_channel=40,
  ),
}
