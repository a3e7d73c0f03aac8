"""Whether a scan's voxels can be an MR image of one skull-stripped brain, whatever its header says.

Limits are set well outside what was measured: "real" stands for the images of seven BraTS cases of
2018, 2021 and 2023, "at 2 mm" for 32 more whose voxels are means of 2 x 2 x 2, "generated" for
twenty demonstration cases (phantom.py).
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from kd_jax.data.brain import Brain, find_brain
from kd_jax.data.preprocess import Image
from kd_jax.runtime.arrays import bounding_box

# Real 1.15-1.48 l, at 2 mm 1.20-2.04 l, generated 1.08-1.41 l. Adult intracranial volumes lie
# between 1.0 and 2.0 l; a head with its skull and skin has 3 l and more.
BRAIN_LITRES = (0.7, 2.1)
HEAD_LITRES = 2.4
# Real 0.13-0.17, and 0.41-0.50 once cropped to the brain's box; an ellipsoid fills 0.52 of its box.
BRAIN_SHARE = 0.65
BOX_SHARE = (0.25, 0.35)  # below them an error, a warning
SPECK_SHARE = 0.05  # of what is not 0: real 0
SAME_SHARE = 0.2  # of what is not 0 has one value: real at most 0.05
# Of what is not 0, how much is fainter than this share of the 99th percentile: real at most 0.001,
# at 2 mm 0.01. Around a brain that was resampled with splines there is more of it than of brain.
FAINT = 1 / 500
FAINT_SHARE = 0.2
FEW_VALUES = 20  # real images have 265 and more; label maps 2 to 5
NEGATIVE_SHARE = 0.05  # real and generated 0; interpolation leaves some at edges
CT_AIR = -500  # Hounsfield units: air is at -1000, the head's own tissue above -200
CT_SHARE = 0.05
# T1 and T1ce against T2: see _t2_contrast.
T2_SURFACE = 1.15
T2_TAILS = 2.0

GUIDE = "docs/clinical-scans.md"


class Finding(NamedTuple):
  """What is odd about a scan.

  Attributes:
    severity: "error" (no student could read it) or "warning" (it may be unlike the others).
    text: what was measured, without a full stop.
    remedy: what to do about it, a sentence.
  """

  severity: str
  text: str
  remedy: str


def check_values(image: Image, modality: str) -> list[Finding]:
  """Whether the voxels can be an MR image, of a brain alone, of this modality."""
  x = image.data
  if x.dtype.kind == "f":
    bad = x.size - np.count_nonzero(np.isfinite(x))
    if bad:
      remedy = "Set these voxels to 0 if they are background, or export the scan again."
      return [Finding("error", f"{bad} of its voxels are NaN or infinite", remedy)]
  low, high = x.min(), x.max()
  if low == high:
    return [Finding("error", f"every voxel is {low:g}", "Give another file: this one is empty.")]
  values = _few_values(x)
  if values is not None:
    some = ", ".join(f"{v:g}" for v in values[:6]) + (", ..." if len(values) > 6 else "")
    text = f"it has {len(values)} different values ({some}), like a mask or a label map"
    remedy = f"Give the {modality} image; if this was one, convert it without rounding to integers."
    return [Finding("error", text, remedy)]
  if low <= CT_AIR and np.mean(x < CT_AIR) > CT_SHARE:
    text = f"its values run from {low:g} to {high:g}, like a CT's Hounsfield units"
    return [Finding("error", text, f"Give the {modality} series of an MR examination.")]
  if findings := _check_background(x):
    return findings

  brain = find_brain(x, image.voxel_mm)
  findings = _check_parts(brain, image.voxel_mm)
  findings += _check_brain_size(brain.mask, image.voxel_mm)
  negative = np.count_nonzero((x < 0) & brain.mask) / np.count_nonzero(brain.mask)
  if negative > NEGATIVE_SHARE:
    text = f"{negative:.0%} of its brain voxels are negative, and MR images have no such values"
    remedy = "Give the scan as it was before any normalisation: the program normalises by itself."
    findings.append(Finding("warning", text, remedy))
  if not findings and modality in ("t1", "t1ce"):
    findings += _check_contrast(x, image.voxel_mm, modality)
  return findings


def _few_values(x: np.ndarray) -> np.ndarray | None:
  """The values of a volume, None where there are more than FEW_VALUES."""
  if len(np.unique(x[::4, ::4, ::4])) > FEW_VALUES:  # nearly every image ends here
    return None
  values = np.unique(x)
  return values if len(values) <= FEW_VALUES else None


def _check_background(x: np.ndarray) -> list[Finding]:
  """Whether all that is not brain is 0."""
  remedy = f"Set all but the brain to 0: multiply the scan with a brain mask ({GUIDE})."
  for axis, side in np.ndindex(3, 2):
    face = np.moveaxis(x, axis, 0)[-side]  # the first and the last slice
    value, share = _most_common(face)
    if value != 0 and share > 0.5:
      text = f"its background is {value:g} ({share:.0%} of an outer slice) instead of 0"
      return [Finding("error", text, remedy)]
  sample = x[::2, ::2, ::2]
  sample = sample[sample != 0]
  value, share = _most_common(sample)
  if share > SAME_SHARE:
    text = f"{share:.0%} of its voxels that are not 0 have one value, {value:g}, like a background"
    return [Finding("error", text, remedy)]
  size = np.abs(sample.astype(np.float32))
  faint = np.mean(size < FAINT * np.percentile(size, 99)) if size.size else 0
  if faint > FAINT_SHARE:
    text = (
      f"{faint:.0%} of its voxels that are not 0 are nearly 0, as resampling leaves around a brain"
    )
    return [Finding("error", text, remedy)]
  return []


def _most_common(x: np.ndarray) -> tuple[float, float]:
  """The value that most voxels have, and their share; (0, 0) for none."""
  if not x.any():
    return 0.0, float(x.size > 0)
  values, counts = np.unique(x, return_counts=True)
  most = counts.argmax()
  return float(values[most]), float(counts[most] / x.size)


def _check_parts(brain: Brain, voxel_mm: tuple[float, float, float]) -> list[Finding]:
  """Whether what is not 0 is one brain."""
  ml = float(np.prod(voxel_mm)) / 1000
  remedy = f"Extract the brain, or set to 0 what is none ({GUIDE})."
  outside, inside = sum(brain.specks), np.count_nonzero(brain.mask)
  if outside > SPECK_SHARE * (outside + inside):
    share = outside / (outside + inside)
    text = f"{share:.0%} of its voxels that are not 0 lie apart from the brain"
    return [Finding("error", text, remedy)]
  findings = []
  box = bounding_box(brain.mask)
  filled = 1.0 if box is None else float(brain.mask[box].mean())
  if filled < BOX_SHARE[1]:
    text = (
      f"its voxels that are not 0 fill {filled:.0%} of the box around them, and a brain 41 to 50%"
    )
    if filled < BOX_SHARE[0]:
      return [Finding("error", text, remedy)]
    findings.append(Finding("warning", text, remedy))
  if len(brain.parts) > 1:
    litres = " + ".join(f"{part * ml / 1000:.2f}" for part in brain.parts)
    if brain.around:
      text = f"what is not 0 is in parts of {litres} litres, one around another, like a scalp"
      return [Finding("error", text, remedy)]
    text = (
      f"its brain is in parts of {litres} litres that do not touch, and all are taken for brain"
    )
    findings.append(Finding("warning", text, "Set to 0 what is no brain."))
  if brain.specks:
    places = len(brain.specks)
    text = (
      f"it has {outside} voxel{'s' * (outside > 1)} outside the brain, in {places} "
      f"place{'s' * (places > 1)} (the largest of {brain.specks[0] * ml:.2g} ml), left out here"
    )
    findings.append(
      Finding("warning", text, "Set them to 0, or mend the brain mask if they are brain.")
    )
  return findings


def _check_brain_size(brain: np.ndarray, voxel_mm: tuple[float, float, float]) -> list[Finding]:
  litres = np.count_nonzero(brain) * np.prod(voxel_mm) / 1e6
  share = brain.mean()
  measured = f"{litres:.2f} litres ({share:.0%} of the volume) are not background"
  if litres > BRAIN_LITRES[1] or share > BRAIN_SHARE:
    severity = "error" if litres > HEAD_LITRES or share > BRAIN_SHARE else "warning"
    text = f"{measured}, more than a brain: it does not look skull-stripped"
    remedy = f"Extract the brain first, with HD-BET or SynthStrip ({GUIDE})."
    return [Finding(severity, text, remedy)]
  if litres < BRAIN_LITRES[0]:
    text = f"{measured}, less than an adult's brain"
    remedy = "Make sure that the scan covers the whole brain and that brain extraction kept it."
    return [Finding("warning", text, remedy)]
  return []


def _check_contrast(
  x: np.ndarray, voxel_mm: tuple[float, float, float], modality: str
) -> list[Finding]:
  surface, tails = _t2_contrast(x, voxel_mm)
  if surface > T2_SURFACE and tails > T2_TAILS:
    text = (
      f"its brain's surface is {surface:.2f} times as bright as the inside, and bright values "
      f"reach {tails:.1f} times as far from the median as dark ones, as on T2"
    )
    return [Finding("warning", text, f"Make sure that this is the {modality} series.")]
  return []


def _t2_contrast(x: np.ndarray, voxel_mm: tuple[float, float, float]) -> tuple[float, float]:
  """What tells T2 from T1 and T1ce: where cerebrospinal fluid is bright, so is the surface.

  Returns:
    the 70th percentile within 6 mm of the surface over the median deeper than 15 mm: on T1 and
    T1ce at most 1.08 (real) and 0.98 (generated), on T2 at least 1.23 and 1.67; and the upper over
    the lower distance of the 95th and 5th percentile from the median: at most 1.44 and 0.91 against
    2.6 and 2.7 (one real T2: 1.0, which passes for T1). A receive coil's bias field of 60 %, thick
    slices, rotation and gamma move T1 and T1ce to at most 1.31 or 1.84, never past both limits.
    FLAIR overlaps with T1ce in all that was tried, and T1 with T1ce.
  """
  step = [max(1, round(3 / mm)) for mm in voxel_mm]
  coarse = x[tuple(slice(s // 2, None, s) for s in step)].astype(np.float32)
  brain = coarse != 0
  mm = [s * edge for s, edge in zip(step, voxel_mm, strict=True)]
  depth = ndimage.distance_transform_edt(np.pad(brain, 1), sampling=mm)[1:-1, 1:-1, 1:-1]
  rind, inside = coarse[brain & (depth <= 6)], coarse[depth >= 15]
  if not rind.size or not inside.size:
    return 0.0, 0.0
  low, middle, high = np.percentile(coarse[brain], (5, 50, 95))
  unit = 1e-6 * max(high, float(np.finfo(np.float32).tiny))  # whatever the intensities' scale is
  surface = np.percentile(rind, 70) / max(np.median(inside), unit)
  return float(surface), float((high - middle) / max(middle - low, unit))
