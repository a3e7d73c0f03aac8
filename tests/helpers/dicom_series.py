"""Series of DICOM files, written with pydicom from arrays, and generated cases to write."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS
SECRETS = {
  "PatientName": "Zuckerfeld^Eulalia",
  "PatientID": "PAT-7741-XQ",
  "PatientBirthDate": "19510417",
  "AccessionNumber": "ACC99812",
  "ReferringPhysicianName": "Quacksalber^Egon",
  "InstitutionName": "Klinikum Hinterwald",
  "StudyDate": "20230908",
  "StudyTime": "081533",
  "AcquisitionTime": "081733.25",
  "ImageComments": "call Eulalia",
  "StudyID": "STU-5",
  "PatientSex": "F",
}
_TELLING = (
  *("Zuckerfeld", "Eulalia", "PAT-7741", "19510417", "ACC99812", "Quacksalber", "Hinterwald"),
  *("20230908", "081533", "081733", "STU-5"),
)
# Plane -> for (column, row, slice): the axis of the volume and whether it runs against it. A volume
# has LPS axes; sagittal and coronal pictures have the head above, so their rows run to the feet.
PLANES = {
  "axial": ((0, False), (1, False), (2, False)),
  "sagittal": ((1, False), (2, True), (0, False)),
  "coronal": ((0, False), (2, True), (1, False)),
}


def leaks(content: str | bytes) -> list[str]:
  """What of the patient and the examination stands in a text or in a file's bytes."""
  text = content.decode("latin-1") if isinstance(content, bytes) else content
  return [word for word in _TELLING if word.lower() in text.lower()]


class Generated(NamedTuple):
  """A generated case at 3 mm, in the atlas' space.

  Attributes:
    image: (80, 80, 52) int16 T1ce, 0 outside the brain, LPS axes.
    classes: (80, 80, 52) uint8, 0 to 3.
    affine: (4, 4) to mm in RAS+.
  """

  image: np.ndarray
  classes: np.ndarray
  affine: np.ndarray


@functools.cache
def generated() -> Generated:
  """One of the demonstration's cases, with all three classes."""
  from kd_jax.data.demo.phantom import load_atlas, make_subject
  from kd_jax.tasks.labels import to_classes

  subject = make_subject(3, 1)
  classes = to_classes(subject.labels[::3, ::3, ::3], "brats2018")
  affine = load_atlas().affine @ np.diag([3.0, 3.0, 3.0, 1.0])
  return Generated(subject.images["t1ce"][::3, ::3, ::3], classes, affine)


def write_series(
  folder: Path,
  image: np.ndarray,
  affine: np.ndarray,
  plane: str = "axial",
  *,
  uid: str = "",
  study: str = "1.2.826.0.1.3680043.8.498.1",
  skip: tuple[int, ...] = (),
  prefix: str = "IM",
  **fields: Any,
) -> list[Path]:
  """Writes a volume as MR images and returns their files, in the order of the slices.

  Args:
    image: (D, H, W) integers in LPS axes; affine: to mm in RAS+.
    uid: of the series; "" for a new one.
    skip: slices to leave out.
    prefix: of the files' names, which have no suffix.
    fields: elements of the headers, beside or in place of the usual ones; None takes one away.
  """
  import pydicom
  from pydicom.uid import ExplicitVRLittleEndian, generate_uid

  uid = uid or generate_uid()
  (column, column_back), (row, row_back), (through, _) = PLANES[plane]
  lps = FLIP @ affine
  start = np.zeros(3)
  start[column] = image.shape[column] - 1 if column_back else 0
  start[row] = image.shape[row] - 1 if row_back else 0
  unit = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
  cosines = [*(unit[:, column] * (-1) ** column_back), *(unit[:, row] * (-1) ** row_back)]
  mm = np.linalg.norm(lps[:3, :3], axis=0)
  folder.mkdir(parents=True, exist_ok=True)
  files = []
  for k in range(image.shape[through]):
    if k in skip:
      continue
    index = start.copy()
    index[through] = k
    plane_pixels = np.take(image, k, axis=through)  # the two others, in the volume's order
    pixels = plane_pixels if row < column else plane_pixels.T
    pixels = pixels[:: -1 if row_back else 1, :: -1 if column_back else 1]
    header = pydicom.Dataset()
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
      "SOPClassUID": MR_IMAGE,
      "SOPInstanceUID": generate_uid(entropy_srcs=[uid, str(k)]),
      "SeriesInstanceUID": uid,
      "StudyInstanceUID": study,
      "FrameOfReferenceUID": study + ".7",
      "Modality": "MR",
      "Manufacturer": "Generated",
      "ImageType": ["ORIGINAL", "PRIMARY", "M"],
      "SeriesDescription": "AX T1 POST",
      "SeriesNumber": 7,
      "InstanceNumber": k + 1,
      "AcquisitionNumber": 1,
      "ScanningSequence": "GR",
      "SequenceVariant": "MP",
      "MRAcquisitionType": "3D",
      "RepetitionTime": 1900.0,
      "EchoTime": 2.5,
      "InversionTime": 900.0,
      "ImagePositionPatient": [round(float(v), 5) for v in (lps @ [*index, 1])[:3]],
      "ImageOrientationPatient": [round(float(v), 8) for v in cosines],
      "PixelSpacing": [float(mm[row]), float(mm[column])],
      "SliceThickness": float(mm[through]),
      "SpacingBetweenSlices": float(mm[through]),
      "Rows": pixels.shape[0],
      "Columns": pixels.shape[1],
      "SamplesPerPixel": 1,
      "PhotometricInterpretation": "MONOCHROME2",
      "BitsAllocated": 16,
      "BitsStored": 16,
      "HighBit": 15,
      "PixelRepresentation": 1,
      "PixelData": np.ascontiguousarray(pixels, "<i2").tobytes(),
    }
    for name, value in (values | SECRETS | fields).items():
      if value is not None:
        setattr(header, name, value)
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta = meta
    files.append(folder / f"{prefix}{k:04}")
    header.save_as(files[-1], enforce_file_format=True)
  return files
