"""A mask as DICOM segmentation (DICOM-SEG), which refers to the images of its series.

Segments are the three classes, coded as the standard's context group 7168 (types of brain lesions)
has them. Patient and study are those of the series: the standard needs them, and a PACS files the
mask by them.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.data.nifti import Volume
from kd_jax.dicom.geometry import Stack
from kd_jax.dicom.packages import needed, unheard
from kd_jax.dicom.series import Header, Series, text
from kd_jax.runtime.errors import UserError, one_line
from kd_jax.tasks.labels import CLASSES

RESEARCH_ONLY = "research only, not for diagnosis"
_SERIES_NUMBER = 9000  # above those of scanners
_ON_GRID = 0.01  # voxels by which a mask's grid may be beside the series'


class Code(NamedTuple):
  """A coded concept: value, coding scheme, meaning."""

  value: str
  scheme: str
  meaning: str


# Class -> (label, type of lesion).
SEGMENTS: Mapping[int, tuple[str, Code]] = {
  1: ("NCR: necrotic and non-enhancing tumor core", Code("6574001", "SCT", "Necrosis")),
  2: ("ED: peritumoral edema", Code("79654002", "SCT", "Edema")),
  3: ("ET: enhancing tumor", Code("C113842", "NCIt", "Enhancing Lesion")),
}
CATEGORY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
REGION = Code("12738006", "SCT", "Brain")
_FAMILY = Code("123109", "DCM", "Artificial Intelligence")

# A segmentation copies these of its source. Anonymisers take them away or garble them: empty is
# allowed. Name -> pydicom's type of it, where not every text is one.
_MAY_BE_EMPTY = {
  **dict.fromkeys(("PatientID", "PatientName", "PatientSex", "StudyID", "AccessionNumber"), ""),
  **{"ReferringPhysicianName": "", "PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM"},
}


def obstacle(series: Series, images: Sequence[Header]) -> str:
  """Why a series can have no segmentation; "" if it can. One of one voxel is made to find out.

  Args:
    images: as for `encode`.
  """
  if not text(series.first, "FrameOfReferenceUID"):
    return f"{series.name} has no frame of reference, which a DICOM segmentation must name"
  if len({text(header, "FrameOfReferenceUID") for header in series.headers}) > 1:
    return f"the images of {series.name} have several frames of reference"
  one_voxel = np.zeros((len(images), images[0].Rows, images[0].Columns), np.uint8)
  one_voxel[0, 0, 0] = 1  # else all images would be written, empty
  try:
    encode(one_voxel, images, {}, "0")
  except UserError as e:
    return str(e)
  return ""


def frames(classes: np.ndarray, scan: Volume, where: Stack) -> np.ndarray:
  """Classes on the images of a series: (slices, rows, columns) uint8, slices in the stack's order.

  Args:
    classes: (D, H, W) on the scan's grid.
    scan: the series as it was converted.
    where: the series' images.

  Raises:
    UserError: the two grids differ: nothing is resampled here.
  """
  to_scan = np.linalg.inv(scan.affine) @ where.affine  # (column, row, slice) -> (D, H, W)
  turn = np.rint(to_scan[:3, :3]).astype(int)
  start = np.rint(to_scan[:3, 3]).astype(int)
  corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(where.shape) - 1)
  exact = corners @ to_scan[:3, :3].T + to_scan[:3, 3]
  axes = np.abs(turn).argmax(axis=1)  # of the series, for each of the scan's
  one_each = np.array_equal(np.abs(turn), np.eye(3, dtype=int)[axes])
  shape = tuple(where.shape[axis] for axis in axes)
  if not one_each or shape != classes.shape or np.abs(exact - corners @ turn.T - start).max() > 0.5:
    raise UserError("the mask does not lie on the grid of the series")
  if np.abs(exact - np.rint(exact)).max() > _ON_GRID * max(where.shape):
    raise UserError("the mask does not lie on the grid of the series")
  flips = tuple(
    slice(None, None, -1) if turn[axis, axes[axis]] < 0 else slice(None) for axis in range(3)
  )
  in_series = np.transpose(classes[flips], np.argsort(axes))  # (columns, rows, slices)
  return np.ascontiguousarray(in_series.transpose(2, 1, 0))


def encode(
  classes: np.ndarray,
  images: Sequence[Header],
  algorithm: Mapping[str, str],
  version: str,
) -> bytes:
  """The file of a segmentation.

  Args:
    classes: (slices, rows, columns), in the order of images.
    images: of the series, sorted along its normal, with their whole headers.
    algorithm: parameters that tell which students made it.
    version: of this program.

  Raises:
    UserError: highdicom refuses the headers of the series.
  """
  highdicom, pydicom = needed("highdicom"), needed("pydicom")
  sources = [_source(image) for image in images]
  try:
    with unheard():
      identification = highdicom.AlgorithmIdentificationSequence(
        name="kd_jax", version=version, family=_concept(_FAMILY), parameters=dict(algorithm)
      )
      # One bit a voxel for each class: zero where a class is nowhere, so that all three are named.
      present = np.stack([classes == cls for cls in SEGMENTS], axis=-1)
      segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=present,
        segmentation_type="BINARY",
        segment_descriptions=[
          highdicom.seg.SegmentDescription(
            segment_number=cls,
            segment_label=label,
            segmented_property_category=_concept(CATEGORY),
            segmented_property_type=_concept(code),
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            tracking_id=f"{CLASSES[cls]} of kd_jax",
            tracking_uid=pydicom.uid.generate_uid(),
            anatomic_regions=[_concept(REGION)],
          )
          for cls, (label, code) in SEGMENTS.items()
        ],
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="kd_jax",
        manufacturer_model_name="kd_jax",
        software_versions=version,
        device_serial_number=next(iter(algorithm.values()), "none"),
        content_label="BRAIN_TUMOR",
        content_description=f"Brain tumor, {RESEARCH_ONLY}",
        series_description=f"kd_jax brain tumor ({RESEARCH_ONLY})",
      )
      file = io.BytesIO()
      segmentation.save_as(file)
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    # A message may quote a header's value, and that may be a name.
    raise UserError(
      "the DICOM segmentation could not be made: highdicom does not accept the headers of the "
      f"series ({type(e).__name__}{_attribute(e)})"
    ) from e
  return file.getvalue()


def _concept(code: Code) -> Any:
  return needed("highdicom").sr.CodedConcept(code.value, code.scheme, code.meaning)


def _source(image: Header) -> Header:
  """An image as highdicom reads it: with every element that may be empty, and without pixels."""
  pydicom = needed("pydicom")
  source = pydicom.Dataset()
  with unheard():
    source.update({tag: element for tag, element in image.items() if tag.group != 0x7FE0})
    for name, kind in _MAY_BE_EMPTY.items():
      try:
        value = source.get(name) or ""
        if kind and value:
          getattr(pydicom.valuerep, kind)(value)
      except ValueError:
        value = ""
      setattr(source, name, value)
  return source


def _attribute(error: Exception) -> str:
  """The name of a missing element, which quotes no value."""
  name = getattr(error, "name", None) if isinstance(error, AttributeError) else None
  return f": {one_line(name)}" if name else ""
