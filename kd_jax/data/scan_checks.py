"""Whether a scan looks like what a student can read: an MR image of one skull-stripped brain.

The networks saw BraTS: skull-stripped brains, aligned with an atlas, 1 mm voxels, background 0.
They answer for anything else too, but wrongly; this says so before anybody looks at a mask.

Limits are set well outside what was measured: "real" stands for the T1 and T1ce images of seven
BraTS cases of 2018, 2021 and 2023, "generated" for twenty demonstration cases (phantom.py).
"""

from collections.abc import Iterable
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from kd_jax.data.nifti import Volume
from kd_jax.data.preprocess import Image

VOXEL_MM = (0.2, 10.0)
EXTENT_MM = 32  # no head is smaller
COARSE_MM = 2.5
OBLIQUE_DEGREES = 10
FORMS_APART_MM = 1
# Real 1.15-1.48 l, generated 1.08-1.41 l. Adult intracranial volumes lie between 1.0 and 2.0 l; a
# head with its skull and skin has 3 l and more.
BRAIN_LITRES = (0.7, 2.1)
# Real 0.13-0.17, and 0.41-0.44 once cropped to the brain's box; an ellipsoid fills 0.52 of its box.
BRAIN_SHARE = 0.65
FEW_VALUES = 20  # real images have 265 and more; label maps 2 to 5
NEGATIVE_SHARE = 0.05  # real and generated 0; interpolation leaves some at edges
CT_AIR = -500  # Hounsfield units: air is at -1000, the head's own tissue above -200
CT_SHARE = 0.05
# T1 and T1ce against T2: see _t2_contrast.
T2_SURFACE = 1.15
T2_TAILS = 2.0

_GUIDE = "docs/clinical-scans.md"


class Finding(NamedTuple):
  """What is odd about a scan.

  Attributes:
    severity: "error" (a prediction would be meaningless) or "warning" (it may be).
    text: what was measured, without a full stop.
    remedy: what to do about it, a sentence.
  """

  severity: str
  text: str
  remedy: str


def check_scan(image: Image, modality: str) -> list[Finding]:
  """What speaks against predicting from a scan, errors first; nothing for a BraTS image.

  Args:
    image: the scan, (D, H, W) in LPS axes. Only a nifti.Volume has a header to be checked.
    modality: what it should be, a key of cases.MODALITIES.
  """
  if findings := _check_voxel_size(image):
    return findings  # what is measured in mm would be wrong
  findings = _check_grid(image)
  if isinstance(image, Volume):
    findings += _check_axes(image) + _check_header(image)
  findings += _check_values(image, modality)
  return sorted(findings, key=lambda finding: finding.severity)  # "error" < "warning"; stable


def _check_voxel_size(image: Image) -> list[Finding]:
  mm = image.voxel_mm
  if min(mm) >= VOXEL_MM[0] and max(mm) <= VOXEL_MM[1]:
    return []
  text = f"its voxels are {_by(mm, '.3g')} mm, which is no brain scan's"
  remedy = "Correct the voxel size in the header (pixdim and affine, in mm), or convert again."
  return [Finding("error", text, remedy)]


def _by(lengths: Iterable[float], form: str) -> str:
  return " x ".join(format(length, form) for length in lengths)


def _check_grid(image: Image) -> list[Finding]:
  """Extent and spacing."""
  mm = np.array(image.voxel_mm)
  findings = []
  extent = mm * image.data.shape
  if extent.min() < EXTENT_MM:
    text = f"it measures {_by(extent, '.0f')} mm, too little to hold a brain"
    remedy = "Give the whole series as one 3-D volume."
    findings.append(Finding("error", text, remedy))
  if mm.max() > COARSE_MM:
    text = f"its voxels are {_by(mm, '.3g')} mm, coarser than the networks' grid"
    remedy = (
      "It is resampled, and small structures may be lost: prefer a 3-D series if there is one."
    )
    findings.append(Finding("warning", text, remedy))
  return findings


def _check_axes(volume: Volume) -> list[Finding]:
  """Whether the scan stands upright."""
  mm = np.array(volume.voxel_mm)
  cosines = np.abs(np.diag(volume.affine[:3, :3])) / mm  # of voxel axis and scanner axis, in pairs
  angle = float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))
  if angle <= OBLIQUE_DEGREES:
    return []
  text = f"its axes are {angle:.0f} degrees off the scanner's, and training scans were aligned"
  remedy = f"Register it to the SRI24 atlas first ({_GUIDE})."
  return [Finding("warning", text, remedy)]


def _check_header(volume: Volume) -> list[Finding]:
  """Whether the header says one thing about where the scan is."""
  header = volume.header
  if header["qform_code"] == 0 and header["sform_code"] == 0:
    text = "its header has no orientation (qform_code and sform_code are 0)"
    remedy = "Convert the series again, or make sure that left and right are where they should be."
    return [Finding("warning", text, remedy)]
  if header["qform_code"] == 0 or header["sform_code"] == 0:
    return []
  remedy = "The sform is used; make them agree if a viewer shows the mask beside the tumour."
  try:
    difference = header.get_sform() - header.get_qform()
  except (ValueError, nib.spatialimages.HeaderDataError):
    text = "its header has an sform, and a qform that is no rotation"
    return [Finding("warning", text, remedy)]
  corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.file_shape[:3]) - 1)  # (8, 3)
  apart = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
  if apart > FORMS_APART_MM:
    text = f"its header's sform and qform place it up to {apart:.0f} mm apart"
    return [Finding("warning", text, remedy)]
  return []


def _check_values(image: Image, modality: str) -> list[Finding]:
  """Whether the voxels can be an MR image, of a brain alone, of this modality."""
  x = image.data
  if x.dtype.kind == "f":
    bad = x.size - np.count_nonzero(np.isfinite(x))
    if bad:
      remedy = "Export the scan again, or set these voxels to 0 if they are background."
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
    return [Finding("warning", text, f"Give the {modality} series of an MR examination.")]

  background = _background(x)
  brain = x != background
  findings = []
  if background != 0:
    text = f"its background is {background:g} ({1 - brain.mean():.0%} of all voxels) instead of 0"
    remedy = "Set it to 0 with a brain mask: the networks take all else for brain."
    findings.append(Finding("warning", text, remedy))
  findings += _check_brain_size(brain, image.voxel_mm)
  negative = np.count_nonzero((x < 0) & brain) / max(int(np.count_nonzero(brain)), 1)
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


def _background(x: np.ndarray) -> float:
  """The value that most of the corners share and a fifth of the volume has; else 0."""
  corners = x[np.ix_((0, -1), (0, -1), (0, -1))]
  values, counts = np.unique(corners, return_counts=True)
  corner = values[counts.argmax()]
  shared = counts.max() > 4 and (corner == 0 or np.mean(x == corner) > 0.2)
  return corner if shared else 0


def _check_brain_size(brain: np.ndarray, voxel_mm: tuple[float, float, float]) -> list[Finding]:
  litres = np.count_nonzero(brain) * np.prod(voxel_mm) / 1e6
  share = brain.mean()
  measured = f"{litres:.2f} litres ({share:.0%} of the volume) are not background"
  if litres > BRAIN_LITRES[1] or share > BRAIN_SHARE:
    text = f"{measured}, more than a brain: it does not look skull-stripped"
    remedy = f"Extract the brain first, with HD-BET or SynthStrip ({_GUIDE})."
    return [Finding("warning", text, remedy)]
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
  surface = np.percentile(rind, 70) / max(np.median(inside), 1e-6)
  return float(surface), float((high - middle) / max(middle - low, 1e-6))
