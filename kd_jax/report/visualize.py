"""--mode=visualize: a case to look at: NIfTI files for any viewer, and a page to turn it in 3-D."""

from pathlib import Path

import numpy as np

from kd_jax.data import conventions, nifti
from kd_jax.data.cases import Case
from kd_jax.data.scans import find_scans
from kd_jax.data.truths import read_truth
from kd_jax.prediction.predictor import Predictor
from kd_jax.report import viewer
from kd_jax.runtime.errors import CaseError, UserError
from kd_jax.runtime.files import check_folder
from kd_jax.runtime.terminal import Terminal
from kd_jax.tasks import labels
from kd_jax.tasks.names import Patterns


def visualize(
  predictor: Predictor,
  path: Path,
  convention: str,
  output: Path,
  terminal: Terminal,
  patterns: Patterns | None = None,
) -> None:
  """Writes OUTPUT/CASE/{scan,prediction,truth}.nii.gz and view.html for every case that path means.

  Raises:
    UserError: the [report] extra is missing, no case, or (after the others) cases that failed.
  """
  viewer.niivue()  # if it is missing, say so before the work
  check_folder(output)
  cases, failed, notes = find_scans(path, predictor.modalities, patterns)
  for note in notes:
    terminal.line(note)
  looking = terminal.progress("looking at the labels")
  root = path if path.is_dir() else path.parent
  cases, _ = conventions.settle(cases, root, labels.AUTO, "", looking, terminal.line)
  progress = terminal.progress("drawing")
  for done, case in enumerate(cases, 1):
    try:
      page = _draw(predictor, case, convention, output / case.name, terminal)
      terminal.line(f"open {page}")
    except CaseError as e:
      failed.append(e)
    progress(done, len(cases), case.name)
  if failed:
    raise UserError("\n".join(str(error) for error in failed))


def _draw(
  predictor: Predictor, case: Case, convention: str, folder: Path, terminal: Terminal
) -> Path:
  prediction = predictor.predict_case(case, terminal.line)
  predicted = prediction.classes()
  reference, modality = prediction.scan, predictor.modalities[0]
  truth = None
  if case.seg:
    _, truth = read_truth(case, reference, flag="")  # --labels says what is written
  maps = {"prediction": predicted} | ({} if truth is None else {"truth": truth})
  nifti.write_like(folder / "scan.nii.gz", reference.data.astype(np.float32), reference)
  for name, classes in maps.items():
    nifti.write_like(folder / f"{name}.nii.gz", labels.from_classes(classes, convention), reference)
  page = folder / "view.html"
  viewer.write_page(page, case.name, reference, predicted, truth, modality)
  return page
