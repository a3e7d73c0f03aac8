"""What the stages of a network keep for their backward pass: memory against time.

"none" keeps what XLA likes to; "norms" keeps what convolutions give, and the numbers by channel
that norms and gates take, and computes norms and activations again; "stages" keeps what goes
into each stage and computes all of it again (a forward pass more). The numbers are the same. XLA
for CPU undoes it: see benchmarks/RESULTS.md.
"""

import functools
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

REMATS = ("none", "norms", "stages")
_CONVOLVED = "convolved"
_POOLED = "pooled"


def convolved(x: jax.Array) -> jax.Array:
  """Marks what a convolution gives."""
  return checkpoint_name(x, _CONVOLVED)


def pooled(x: jax.Array) -> jax.Array:
  """Marks a number by channel: small, and a pass over memory to take again."""
  return checkpoint_name(x, _POOLED)


def run(stage: nnx.Module, *inputs: jax.Array, remat: str) -> Any:
  """stage(*inputs), with a backward pass that remembers as much as `remat`, of REMATS, says."""
  if remat == "none":
    return stage(*inputs)
  policies = jax.checkpoint_policies
  keep = {
    "norms": policies.save_only_these_names(_CONVOLVED, _POOLED),
    "stages": policies.nothing_saveable,
  }[remat]
  graph, params = nnx.split(stage)

  @functools.partial(jax.checkpoint, policy=keep)
  def again(params: nnx.State, *inputs: jax.Array) -> Any:
    return nnx.merge(graph, params)(*inputs)

  return again(params, *inputs)
