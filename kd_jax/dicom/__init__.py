"""From a folder of DICOM files to a mask as NIfTI and DICOM-SEG, in the space of the series.

pydicom, highdicom and dcm2niix (the extra [dicom]) are imported here alone, and only when needed.
"""

USES = ("runtime", "tasks", "data", "prediction")
