"""The gradient of a whole batch's loss with the activations of a part of it at a time.

The losses are not sums over samples, for Dice is taken over the batch
(docs/method.md, "Supervised loss"). So gradients of parts cannot simply be added up. All outputs
(small beside the activations) are computed first, the loss is taken on them together, and its
gradient goes back through each part in turn: the same numbers for one more forward pass (Gao et
al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021, do so
for contrastive losses).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Params = Any
Outputs = TypeVar("Outputs")


def grad_in_parts(
  forward: Callable[[Params, jax.Array], Outputs],
  loss: Callable[[Outputs], tuple[jax.Array, Any]],
  params: Params,
  images: jax.Array,
  parts: int,
) -> tuple[Params, Outputs, Any]:
  """The gradient of loss(forward(params, images)), part by part.

  Args:
    forward: (params, images (b, ...)) -> outputs, arrays (b, ...), each sample's from itself alone.
    loss: outputs of the whole batch -> (loss, whatever else there is to know).
    params: to differentiate by.
    images: (B, ...).
    parts: how many; divides B.

  Returns:
    The gradient, the outputs, and what else the loss returned.
  """

  def split(x: jax.Array) -> jax.Array:
    # (B, ...) -> (B / parts, parts, ...) -> (parts, B / parts, ...): where devices share the batch,
    # each has samples of every part.
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

  def join(x: jax.Array) -> jax.Array:  # and back
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0] * parts, *x.shape[2:])

  images = split(images)
  outputs = jax.tree.map(join, lax.map(lambda part: forward(params, part), images))
  pull, rest = jax.grad(loss, has_aux=True)(outputs)

  def add(total: Params, part: tuple[jax.Array, Outputs]) -> tuple[Params, None]:
    images, pull = part
    _, back = jax.vjp(lambda params: forward(params, images), params)
    return jax.tree.map(jnp.add, total, back(pull)[0]), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  grads, _ = lax.scan(add, zeros, (images, jax.tree.map(split, pull)))
  return grads, outputs, rest
