"""--mode=visualize: a case to look at: NIfTI files for any viewer, and a page to turn it in 3-D."""

from pathlib import Path

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.scans import Scan, find_scans
from kd_jax.prediction.predictor import Ensemble, load_scan, native_classes
from kd_jax.report import viewer
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels


def visualize(
  ensemble: Ensemble, path: Path, convention: str, output: Path, terminal: Terminal
) -> None:
  """Writes OUTPUT/CASE/{scan,prediction,truth}.nii.gz and view.html for every case that path means.

  Raises:
    UserError: the [report] extra is missing, no case, or (after the others) cases that failed.
  """
  viewer.niivue()  # its absence is told before the work
  scans, failed = find_scans(path, ensemble.modalities)
  progress = terminal.progress("drawing")
  for done, scan in enumerate(scans, 1):
    try:
      page = _draw(ensemble, scan, convention, output / scan.name, terminal)
      terminal.line(f"open {page}")
    except CaseError as e:
      failed.append(e)
    progress(done, len(scans), scan.name)
  if failed:
    raise UserError("\n".join(str(error) for error in failed))


def _draw(
  ensemble: Ensemble, scan: Scan, convention: str, folder: Path, terminal: Terminal
) -> Path:
  prepared = load_scan(ensemble, scan, terminal.line)
  predicted = native_classes(ensemble.predict(prepared), prepared, ensemble.settings.smallest)
  reference, modality = prepared.reference, ensemble.modalities[0]
  truth = None
  if scan.seg:
    try:
      truth = labels.to_classes(nifti.read(scan.seg).data, scan.convention)
    except ValueError as e:
      raise CaseError(scan.name, scan.seg, str(e), "Correct the file, or take it away.") from e
  maps = {"prediction": predicted} | ({} if truth is None else {"truth": truth})
  nifti.write_like(folder / "scan.nii.gz", reference.data.astype(np.float32), reference)
  for name, classes in maps.items():
    nifti.write_like(folder / f"{name}.nii.gz", labels.from_classes(classes, convention), reference)
  page = folder / "view.html"
  viewer.write_page(page, scan.name, reference, predicted, truth, modality)
  return page
