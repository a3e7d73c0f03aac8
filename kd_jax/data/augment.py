"""Augmentation on the device, inside the step's program: flips, and intensities by modality."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class AugmentSettings:
  """What happens to a training patch; every draw is one a sample, intensities one a modality too.

  Attributes:
    flip: the probability of a flip, for each of the three axes.
    intensity: the probability of each of the four changes below.
    gamma: largest |log exponent| of a power law over the patch's intensity range.
    contrast: largest |log factor| on the intensities.
    brightness: largest shift, in the normalised image's unit (a standard deviation of the brain).
    noise: largest standard deviation of Gaussian noise, in the same unit.
  """

  flip: float = 0.5
  intensity: float = 0.3
  gamma: float = 0.4
  contrast: float = 0.25
  brightness: float = 0.25
  noise: float = 0.15


def augment(
  key: jax.Array, images: jax.Array, labels: jax.Array, settings: AugmentSettings
) -> tuple[jax.Array, jax.Array]:
  """A random variant of a batch; the same for the same key, on any mesh.

  Voxels of exactly 0 are outside the brain and stay 0.

  Args:
    images: (B, M, D, H, W), normalised.
    labels: (B, D, H, W).

  Returns:
    Images in float32, and labels, in the same shapes.
  """
  flip_key, intensity_key = jax.random.split(key)
  images, labels = _flip(flip_key, images.astype(jnp.float32), labels, settings.flip)
  if not settings.intensity:
    return images, labels
  inside = images != 0
  return jnp.where(inside, _intensities(intensity_key, images, inside, settings), 0), labels


def _flip(key, images, labels, probability):
  batch = images.shape[0]
  for axis in (1, 2, 3):  # of the labels; the images have one axis more
    turn = jax.random.bernoulli(jax.random.fold_in(key, axis), probability, (batch,))
    labels = jnp.where(turn[:, None, None, None], jnp.flip(labels, axis), labels)
    images = jnp.where(turn[:, None, None, None, None], jnp.flip(images, axis + 1), images)
  return images, labels


def _intensities(key, x, inside, settings):
  """(B, M, D, H, W) -> the same: gamma, contrast, brightness, noise, each now and then."""
  draw_key, noise_key = jax.random.split(key)
  # One draw for all: each random program of its own costs a second of compilation on CPU.
  chances, sizes = jax.random.uniform(draw_key, (2, 4, *x.shape[:2], 1, 1, 1))
  by = jnp.where(chances < settings.intensity, 2 * sizes - 1, 0)  # (4, B, M, 1, 1, 1) in [-1, 1)
  gamma, contrast, brightness, noise = by

  low = jnp.min(x, axis=(2, 3, 4), keepdims=True, where=inside, initial=0)
  high = jnp.max(x, axis=(2, 3, 4), keepdims=True, where=inside, initial=0)
  span = jnp.maximum(high - low, 1e-3)
  level = jnp.clip((x - low) / span, 0, 1)
  x = low + span * level ** jnp.exp(settings.gamma * gamma)
  x = x * jnp.exp(settings.contrast * contrast) + settings.brightness * brightness
  return x + jnp.abs(settings.noise * noise) * jax.random.normal(noise_key, x.shape)
