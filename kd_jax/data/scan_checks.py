"""Whether a scan looks like what a student can read: an MR image of one skull-stripped brain.

The networks saw BraTS: skull-stripped brains, aligned with an atlas, 1 mm voxels, background 0.
They answer for anything else too, but wrongly; this says so before anybody trains on a scan or
looks at its mask.
"""

from collections.abc import Iterable

import nibabel as nib
import numpy as np

from kd_jax.data.nifti import Volume, apart_mm
from kd_jax.data.preprocess import Image
from kd_jax.data.voxel_checks import GUIDE, Finding, check_values

VOXEL_MM = (0.2, 10.0)
EXTENT_MM = 32  # no head is smaller
COARSE_MM = 2.5
OBLIQUE_DEGREES = 10
FORMS_APART_MM = 1


def check_scan(image: Image, modality: str) -> list[Finding]:
  """What speaks against a scan, errors first; nothing for a BraTS image.

  Args:
    image: the scan, (D, H, W) in LPS axes. Only a nifti.Volume has a header to be checked.
    modality: what it should be, a key of cases.MODALITIES.
  """
  if findings := _check_voxel_size(image):
    return findings  # what is measured in mm would be wrong
  findings = _check_grid(image)
  if isinstance(image, Volume):
    findings += _check_axes(image) + _check_header(image)
  findings += check_values(image, modality)
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
  remedy = f"Register it to the SRI24 atlas first ({GUIDE})."
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
    apart = apart_mm(volume.file_shape[:3], header.get_sform(), header.get_qform())
  except (ValueError, nib.spatialimages.HeaderDataError):
    text = "its header has an sform, and a qform that is no rotation"
    return [Finding("warning", text, remedy)]
  if apart > FORMS_APART_MM:
    text = f"its header's sform and qform place it up to {apart:.0f} mm apart"
    return [Finding("warning", text, remedy)]
  return []
