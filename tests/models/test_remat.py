"""Less memory for the same numbers: what the stages keep for their backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from quick import QUICK

from kd_jax.models.blocks import Build, ResidualBlock
from kd_jax.models.remat import REMATS, run
from kd_jax.models.resunet import ResUNet


def test_each_keeps_less_than_the_one_before():
  """Bytes that a network's forward pass hands to its backward pass."""
  module = ResUNet(1, 4, (4, 4, 8, 8), rngs=nnx.Rngs(0))
  graph, params = nnx.split(module, nnx.Param)
  x = jax.ShapeDtypeStruct((1, 16, 16, 16, 1), jnp.float32)

  def kept(remat):
    def backward(params, x):
      return jax.vjp(lambda params: nnx.merge(graph, params)(x, remat).logits, params)[1]

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, params, x)))

  nothing, norms, stages = map(kept, REMATS)
  assert norms < 0.6 * nothing
  assert stages < 0.5 * norms


def test_the_gradients_are_the_same():
  with jax.enable_x64(True):
    build = Build("torch", jnp.float64, nnx.Rngs(0))
    graph, params = nnx.split(ResidualBlock(4, 8, 2, build), nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, 6, 4)))

    def gradients(remat):
      def loss(params, x):
        return jnp.mean(jnp.sin(run(nnx.merge(graph, params), x, remat=remat)))

      return jax.grad(loss, (0, 1))(params, x)

    every = jax.jit(lambda: [gradients(remat) for remat in REMATS], compiler_options=QUICK)
    first, *others = jax.device_get(every())
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(first)) > 1e-3
  for other in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15), other, first)
