"""In place of a framework of networks: one matrix each, so that a step compiles in a second."""

import jax
import jax.numpy as jnp

from kd_jax.models.framework import Outputs
from kd_jax.models.interface import Output
from kd_jax.settings.model import ModelSettings


class Linear:
  """Student and two teachers, voxel by voxel; each reads all four sequences."""

  spec = ModelSettings(
    ("t1ce",), {"flair": ("flair",), "t2": ("t2",)}, filters=(4, 4, 8, 8), fusion_levels=0
  )

  def init(self, key):
    keys = iter(jax.random.split(key, 3))
    teachers = {name: jax.random.normal(next(keys), (4, 4)) for name in self.spec.teachers}
    return {"teachers": teachers, "student": {"kernel": jax.random.normal(next(keys), (4, 4))}}

  def __call__(self, params, images, heard=None):
    def network(kernel):
      return Output(jnp.einsum("bmdhw,mc->bdhwc", images.astype(jnp.float32), kernel), {}, {})

    teachers = {name: network(kernel) for name, kernel in params["teachers"].items()}
    return Outputs(teachers, {}, network(params["student"]["kernel"]))
