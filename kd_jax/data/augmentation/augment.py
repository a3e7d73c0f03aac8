"""Augmentation on the device, inside the step's program: flips, a warp, intensities by modality."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.data.augmentation import warp
from kd_jax.settings.data import AugmentSettings

BIAS_KNOT = 64  # voxels between the control points of a bias field


def augment(
  key: jax.Array, images: jax.Array, labels: jax.Array, settings: AugmentSettings
) -> tuple[jax.Array, jax.Array]:
  """A random variant of a batch; the same for the same key, on any mesh.

  Voxels of exactly 0 are outside the brain, and give nothing to those inside. Only flips and the
  warp move the border between them.

  Args:
    images: (B, M, D, H, W), normalised.
    labels: (B, D, H, W).

  Returns:
    Images in float32, and labels, in the same shapes.
  """
  batch, modalities = images.shape[:2]
  shape = images.shape[2:]
  draw_key, noise_key = jax.random.split(key)
  # One draw for all: each random program of its own costs a second of compilation on CPU.
  counts = {
    "flips": 3,
    "warp": 5 + 3 * math.prod(warp.control_points(shape, warp.KNOT)) if settings.spatial else 0,
    "intensities": modalities * 8 if settings.intensity else 0,
    "artefacts": modalities * (6 + math.prod(warp.control_points(shape, BIAS_KNOT)))
    if settings.artefact
    else 0,
  }
  ends = np.cumsum(list(counts.values()))
  drawn = jax.random.uniform(draw_key, (batch, int(ends[-1])))
  draws = dict(zip(counts, jnp.split(drawn, ends[:-1], axis=1), strict=True))

  images, labels = _flip(draws["flips"], images.astype(jnp.float32), labels, settings.flip)
  if settings.spatial:
    images, labels = _warp(draws["warp"], images, labels, settings)
  if not (settings.intensity or settings.artefact):
    return images, labels

  inside, log_bias = images != 0, 0.0
  if settings.artefact:
    each = draws["artefacts"].reshape(batch, modalities, -1)
    images = _coarser(each[..., :5], images, inside, settings)
    log_bias = _log_bias(each[..., 5:], shape, settings)
  each = draws["intensities"].reshape(batch, modalities, -1)
  images = _intensities(each, noise_key, images, inside, log_bias, settings)
  return jnp.where(inside, images, 0), labels


# --- Geometry ---------------------------------------------------------------------------------


def _flip(draws, images, labels, probability):
  for axis in (1, 2, 3):  # of the labels; the images have one axis more
    turn = draws[:, axis - 1] < probability
    labels = jnp.where(turn[:, None, None, None], jnp.flip(labels, axis), labels)
    images = jnp.where(turn[:, None, None, None, None], jnp.flip(images, axis + 1), images)
  return images, labels


def _warp(draws, images, labels, settings):
  """Rotation, scale and deformation of the samples whose turn it is; the others to the bit."""
  shape = labels.shape[1:]
  happens = draws[:, 0] < settings.spatial
  to = 2 * draws[:, 1:] - 1  # in [-1, 1)

  def warped(images, labels):
    matrix = warp.matrices(
      jnp.radians(settings.rotate) * to[:, :3], jnp.exp(settings.scale * to[:, 3])
    )
    points = to[:, 4:].reshape(-1, 3, *warp.control_points(shape, warp.KNOT))
    shift = settings.elastic * warp.smooth(points, shape, warp.KNOT)
    return warp.resample(images, labels, warp.sources(matrix, shift, shape))

  # Most batches of two hold no such sample: they skip the work, not only its result.
  new_images, new_labels = jax.lax.cond(
    jnp.any(happens), warped, lambda images, labels: (images, labels), images, labels
  )
  return (
    jnp.where(happens[:, None, None, None, None], new_images, images),
    jnp.where(happens[:, None, None, None], new_labels, labels),
  )


# --- Intensities ------------------------------------------------------------------------------


def _intensities(draws, noise_key, x, inside, log_bias, settings):
  """(B, M, D, H, W) -> the same: bias, gamma, contrast, brightness, noise, each now and then."""
  low = jnp.min(x, axis=(2, 3, 4), keepdims=True, where=inside, initial=0)
  high = jnp.max(x, axis=(2, 3, 4), keepdims=True, where=inside, initial=0)
  span = jnp.maximum(high - low, 1e-3)
  level = jnp.clip((x - low) / span, 0, 1)
  if settings.intensity:
    chances, sizes = (half[..., None, None, None] for half in jnp.split(draws, 2, axis=-1))
    by = jnp.where(chances < settings.intensity, 2 * sizes - 1, 0)  # (B, M, 4, 1, 1, 1) in [-1, 1)
    gamma, contrast, brightness, noise = (by[:, :, change] for change in range(4))
    level = level ** jnp.exp(settings.gamma * gamma)
  x = low + span * level * jnp.exp(log_bias)
  if settings.intensity:
    x = x * jnp.exp(settings.contrast * contrast) + settings.brightness * brightness
    x += jnp.abs(settings.noise * noise) * jax.random.normal(noise_key, x.shape)
  return x


def _log_bias(draws, shape, settings):
  """(B, M, 1 + control points) -> (B, M, D, H, W), a smooth field or 0."""
  points = jnp.where(draws[..., :1] < settings.artefact, 2 * draws[..., 1:] - 1, 0)
  points = points.reshape(*points.shape[:2], *warp.control_points(shape, BIAS_KNOT))
  return settings.bias * warp.smooth(points, shape, BIAS_KNOT)


def _coarser(draws, x, inside, settings):
  """Blur, and thick slices across one axis, now and then; among the voxels inside only.

  Both are averages along one axis after another: a matrix for each axis does them at once, without
  a loop, whatever was drawn. draws: (B, M, 5).
  """
  blurred, sliced = draws[..., 0] < settings.artefact, draws[..., 2] < settings.artefact
  sigma = jnp.where(blurred, settings.blur * draws[..., 1], 0)
  thickness = jnp.where(sliced, 1 + (settings.lowres - 1) * draws[..., 3], 1)
  across = jnp.floor(3 * draws[..., 4])
  d, h, w = (
    _average(n, sigma, jnp.where(across == axis, thickness, 1))
    for axis, n in enumerate(x.shape[2:])
  )

  def averaged(x):
    return jnp.einsum("bmid,bmjh,bmkw,bmdhw->bmijk", d, h, w, x, precision="highest")

  inside = inside.astype(x.dtype)
  new = averaged(x) / jnp.maximum(averaged(inside), 1e-6)  # far less than a voxel's own weight
  return jnp.where((blurred | sliced)[..., None, None, None], new, x).astype(x.dtype)


def _average(n, sigma, thickness):
  """The weights (B, M, n, n) of a blur and then slices along an axis of n voxels, up to a factor.

  sigma, thickness: (B, M); 0 and 1 give the identity.
  """
  sigma, thickness = jnp.maximum(sigma, 1e-3)[..., None, None], thickness[..., None, None]
  voxel = np.arange(n)
  blur = jnp.exp(-0.5 * ((voxel[:, None] - voxel) / sigma) ** 2)
  middle = (voxel * thickness).mT  # (B, M, n, 1) of slices; the last ones may lie beyond the patch
  top = jnp.minimum(voxel + 0.5, middle + thickness / 2)
  bottom = jnp.maximum(voxel - 0.5, middle - thickness / 2)
  down = jnp.maximum(top - bottom, 0)  # (slices, voxels): how much of a voxel a slice holds
  up = jnp.maximum(1 - jnp.abs(voxel - middle) / thickness, 0)  # (slices, voxels)
  return jnp.einsum("bmsi,bmst,bmtj->bmij", up, down, blur, precision="highest")
