"""One case as a page to look at: the scan, the prediction and the truth, in slices and in 3-D.

The page is one HTML file that needs no network. What draws is NiiVue (BSD 2-Clause), taken from
the installed nilearn, which ships it as one script; nilearn itself is not imported.
"""

import base64
import gzip
import importlib.metadata
import json
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from markupsafe import Markup
from scipy import ndimage

from kd_jax.data import nifti
from kd_jax.metrics import volumetric
from kd_jax.report import mesh
from kd_jax.report.slices import COLOURS
from kd_jax.report.templating import fill
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.files import write_text
from kd_jax.tasks.labels import CLASSES, REGIONS

INSTALL = "pip install 'kd_jax[report]' (or: pip install 'nilearn>=0.14.1,<0.15')"
_NIIVUE = re.compile(r"niivue\.umd(\.min)?\.js")  # the build that a plain script element can hold
_LABEL = 1002  # NIFTI_INTENT_LABEL: NiiVue outlines such a map

_OPACITY = {"NCR": 1.0, "ET": 0.8, "ED": 0.3}  # in 3-D; from inside outwards, to be drawn so
_PALE = 0.55  # how far towards white the truth's colours are
_BRAIN_STEP = 3  # voxels; the outline of the head needs no detail


def write_page(
  path: Path,
  title: str,
  scan: nifti.Volume,
  predicted: np.ndarray,
  truth: np.ndarray | None,
  modality: str,
) -> None:
  """Writes the page of one case, complete or not at all.

  Args:
    path: the HTML file.
    title: text, such as the case's name.
    scan: what lies under the class maps.
    predicted, truth: (D, H, W) classes 0..3 on the scan's grid; truth None where there is none.
    modality: the scan's sequence, as text.

  Raises:
    UserError: nilearn is missing or has no NiiVue, or path cannot be written.
    ValueError: class maps of another shape than the scan, or other classes.
  """
  maps = {"prediction": predicted} | ({} if truth is None else {"truth": truth})
  for name, classes in maps.items():
    if classes.shape != scan.data.shape:
      raise ValueError(f"{name} has shape {classes.shape}, the scan {scan.data.shape}")
    if not np.isin(np.unique(classes), range(len(CLASSES))).all():
      raise ValueError(f"{name} has classes other than 0..{len(CLASSES) - 1}")
  script, version = niivue()
  grey = intensities(scan.data)
  colours = {name: _colours(name).tolist() for name in maps}

  case = {
    "scan": _embedded(grey, scan.affine),
    "maps": {n: _embedded(c, scan.affine, _LABEL * (n == "truth")) for n, c in maps.items()},
    "surfaces": _surfaces(maps, scan.affine) + _brain(grey, scan.affine),
    "colours": colours,
    "classes": CLASSES,
    "focus_mm": _focus_mm(maps, scan.affine),
  }
  page = fill(
    "viewer.html",
    title=title,
    modality=modality,
    has_truth=truth is not None,
    classes=CLASSES,
    colours=colours,
    regions=_regions(maps, float(np.prod(scan.voxel_mm)) / 1000),
    nilearn=version,
    # Safe: JSON without "<" can neither end the script element nor begin a comment in it.
    case=Markup(json.dumps(case).replace("<", "\\u003c")),
    niivue=_within_script(script),
  )
  write_text(path, page)


def niivue() -> tuple[str, str]:
  """NiiVue's script and the version of the nilearn that holds it. UserError if there is none."""
  try:
    package = importlib.metadata.distribution("nilearn")
  except importlib.metadata.PackageNotFoundError as e:
    raise UserError(f"the page needs the package nilearn, which has NiiVue; {INSTALL}") from e
  for file in package.files or ():
    if _NIIVUE.fullmatch(file.name):
      return Path(file.locate()).read_text(encoding="utf-8"), package.version
  raise UserError(f"the installed nilearn {package.version} has no NiiVue; {INSTALL}")


def intensities(data: np.ndarray) -> np.ndarray:
  """(D, H, W) intensities -> uint8: 0 stays 0; the rest, 1st to 99.5th percentile, is 1..255."""
  x = data.astype(np.float32)
  inside = np.isfinite(x) & (x != 0)
  if not inside.any():
    return np.zeros(x.shape, np.uint8)
  low, high = np.percentile(x[inside], (1, 99.5))
  scaled = np.clip((np.where(inside, x, low) - low) / max(high - low, 1e-6), 0, 1)
  return np.where(inside, 1 + np.rint(254 * scaled), 0).astype(np.uint8)


def _embedded(data: np.ndarray, affine: np.ndarray, intent: int = 0) -> str:
  """A .nii.gz of uint8 data in base64."""
  image = nib.Nifti1Image(np.ascontiguousarray(data, np.uint8), affine)
  image.header.set_xyzt_units("mm")
  image.header["intent_code"] = intent
  return _base64(image.to_bytes())


def _surfaces(maps: dict[str, np.ndarray], affine: np.ndarray) -> list[dict]:
  """The classes' surfaces, from inside outwards: what is seen through comes last."""
  surfaces = []
  for cls, opacity in _OPACITY.items():
    number = CLASSES.index(cls)
    for name, classes in maps.items():
      vertices, triangles = mesh.surface(classes == number)
      if len(triangles):
        shown = {"map": name, "class": number, "opacity": opacity}
        shown["colour"] = _colours(name)[number].tolist()
        surfaces.append(shown | {"mz3": _mz3(vertices, triangles, affine)})
  return surfaces


def _brain(grey: np.ndarray, affine: np.ndarray) -> list[dict]:
  """The outline of a skull-stripped brain; nothing for a scan without a background."""
  inside = ndimage.binary_fill_holes(grey[(slice(None, None, _BRAIN_STEP),) * 3] > 0)
  if not 0 < inside.mean() < 0.6:
    return []
  vertices, triangles = mesh.surface(inside)
  mz3 = _mz3(vertices * _BRAIN_STEP, triangles, affine)
  return [{"map": None, "class": 0, "opacity": 0.2, "colour": [235, 235, 235], "mz3": mz3}]


def _mz3(vertices: np.ndarray, triangles: np.ndarray, affine: np.ndarray) -> str:
  """A gzipped MZ3 mesh in mm, in base64; NiiVue's own format, the smallest that it reads."""
  mm = vertices @ affine[:3, :3].T + affine[:3, 3]
  mm = np.round(mm * 32) / 32  # shorter numbers, which compress better
  head = struct.pack("<HHIII", 0x5A4D, 1 | 2, len(triangles), len(mm), 0)  # faces and vertices
  return _base64(head + triangles.astype("<i4").tobytes() + mm.astype("<f4").tobytes())


def _base64(raw: bytes) -> str:
  return base64.b64encode(gzip.compress(raw, compresslevel=9, mtime=0)).decode()


def _colours(name: str) -> np.ndarray:
  """(4, 3) uint8 of a map's classes: the usual ones, and paler ones for the truth."""
  pale = _PALE if name == "truth" else 0
  return np.rint(COLOURS + pale * (255 - COLOURS)).astype(np.uint8)


def _focus_mm(maps: dict[str, np.ndarray], affine: np.ndarray) -> list[float] | None:
  """The tumour voxel nearest to the middle of the axial slice with most tumour, in mm."""
  for classes in maps.values():
    if classes.any():
      k = int(np.argmax((classes > 0).sum(axis=(0, 1))))
      there = np.argwhere(classes[:, :, k])
      i, j = there[np.argmin(((there - there.mean(axis=0)) ** 2).sum(axis=1))]
      return (affine @ [i, j, k, 1])[:3].tolist()
  return None


def _regions(maps: dict[str, np.ndarray], voxel_ml: float) -> dict[str, list[str]]:
  """Region -> its volume in each map in ml and, with a truth, its Dice."""
  rows = {}
  for region in REGIONS:
    masks = {name: volumetric.region_mask(classes, region) for name, classes in maps.items()}
    rows[region] = [f"{mask.sum() * voxel_ml:.1f}" for mask in masks.values()]
    if "truth" in masks:
      rows[region].append(f"{volumetric.dice(masks['prediction'], masks['truth']):.3f}")
  return rows


def _within_script(script: str) -> Markup:
  """JavaScript that cannot end the element around it; the escapes change no string's value."""
  # Safe: NiiVue's own code from the installed nilearn, and what follows cannot leave its element.
  escaped = re.sub(r"<(/script|!--)", lambda found: "<\\" + found[1], script, flags=re.IGNORECASE)
  return Markup(escaped)
