"""Steps whose numbers can be compared to the last digits: plain descent, in float64."""

import jax
import numpy as np
import optax

from kd_jax.settings.training import GROUPS


def optimizers(rate):
  """By group. Adam would blow rounding noise in dead gradients up to whole steps."""
  return {group: optax.sgd(rate) for group in GROUPS}


def widened(tree):
  """On the host, its real numbers in float64."""

  def widen(x):
    x = np.array(x)
    return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x

  return jax.tree.map(widen, tree)
