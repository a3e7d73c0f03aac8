"""A mask of one scan by an ONNX export of kd_jax: numpy, nibabel and onnxruntime are enough.

  python main.py --mode=export --format=onnx --checkpoint=my_student --output=my_onnx
  python examples/onnx_predict.py my_onnx scan.nii.gz mask.nii.gz
  python examples/onnx_predict.py my_onnx t1ce=a_t1ce.nii.gz flair=a_flair.nii.gz mask.nii.gz

It gives the mask that `--mode=predict --window=sliding` gives. Unlike that, it does not check
whether the scan is skull-stripped, aligned and sound. Research software, not a medical device.
"""

import gzip
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

KIND, FORMAT = "kd_jax program", 1
LPS = orientations.axcodes2ornt(("L", "P", "S"))
# (image (B, M, d, h, w), mean (B, M), deviation (B, M)) -> class probabilities (B, K, d, h, w)
Run = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Unusable(Exception):
  """An export or a scan that cannot be used; the message says why."""


# --- The export -----------------------------------------------------------------------------------


def read_export(folder: Path, runtime: str) -> tuple[dict, bytes]:
  """model.json, and the content of the program that it describes."""
  try:
    model = json.loads((folder / "model.json").read_text())
    if (model["kind"], model["format"]) != (KIND, FORMAT):
      raise Unusable(f"{folder} holds a {model['kind']} of format {model['format']}, not {KIND}")
    program = model["program"]
    if program["runtime"] != runtime:
      raise Unusable(f"{folder} is an export for {program['runtime']}, not for {runtime}")
    path = folder / os.path.basename(program["file"])
    content, digest = path.read_bytes(), program["sha256"]
  except OSError as e:
    raise Unusable(f"{folder} is no complete export: {e.strerror or e} ({e.filename})") from e
  except (ValueError, KeyError, TypeError) as e:
    raise Unusable(f"{folder / 'model.json'} is damaged: {e!r}") from e
  if hashlib.sha256(content).hexdigest() != digest:
    raise Unusable(f"{path} is damaged or was changed: its SHA-256 is not that of model.json")
  return model, content


def open_onnx(folder: Path) -> tuple[dict, Run]:
  model, content = read_export(folder, "onnx")
  import onnxruntime

  session = onnxruntime.InferenceSession(content)

  def run(image: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    inputs = {"image": image, "mean": mean, "deviation": deviation}
    return session.run(["probabilities"], inputs)[0]

  return model, run


# --- Files ----------------------------------------------------------------------------------------


def read_scan(path: Path) -> tuple[np.ndarray, nib.Nifti1Image]:
  """The voxels, (D, H, W) float32 in LPS axes, and the file."""
  try:
    file = nib.load(path)
    data = np.asarray(file.dataobj, np.float32).reshape(file.shape[:3])
  except Exception as e:  # nibabel has no common base for what it raises
    raise Unusable(f"cannot read {path}: {e}") from e
  if not np.isfinite(data).all():
    raise Unusable(f"{path} holds NaN or infinite numbers")
  turn = orientations.ornt_transform(orientations.io_orientation(file.affine), LPS)
  return orientations.apply_orientation(data, turn), file


def voxel_mm(file: nib.Nifti1Image) -> tuple[float, ...]:
  """The edges of a voxel along D, H and W."""
  turn = orientations.ornt_transform(orientations.io_orientation(file.affine), LPS)
  affine = file.affine @ orientations.inv_ornt_aff(turn, file.shape[:3])
  return tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0))


def write_mask(path: Path, labels: np.ndarray, file: nib.Nifti1Image) -> None:
  """labels (D, H, W) in the scan's own axes, with its header; complete or not at all."""
  back = orientations.ornt_transform(LPS, orientations.io_orientation(file.affine))
  labels = orientations.apply_orientation(labels, back).reshape(file.shape)
  header = file.header.copy()
  header.set_data_dtype(np.uint8)
  header.set_slope_inter(1, 0)
  header["cal_min"] = header["cal_max"] = 0
  content = type(file)(labels, None, header).to_bytes()
  if path.name.endswith(".gz"):
    content = gzip.compress(content, compresslevel=6, mtime=0)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as e:
    raise Unusable(f"cannot write {path}: {e.strerror or e}") from e
  finally:
    temporary.unlink(missing_ok=True)


# --- Before the program: brain, grid, intensities -------------------------------------------------


def components(mask: np.ndarray, corners: bool = True) -> tuple[np.ndarray, int]:
  """Connected components, as scipy.ndimage.label counts them: 1, 2, ... and 0 elsewhere.

  Voxels that touch at a face are connected; with `corners`, at an edge or a corner too.
  """
  shape = mask.shape
  steps = np.diff(np.pad(mask.reshape(-1, shape[2]).astype(np.int8), ((0, 0), (1, 1))))
  row, first = np.nonzero(steps == 1)  # runs of voxels along the last axis: [first, end)
  end = np.nonzero(steps == -1)[1]
  width, touch = shape[2] + 2, int(corners)
  begins, ends = row * width + first, row * width + end
  pairs = []
  offsets = ((0, 1), (1, -1), (1, 0), (1, 1)) if corners else ((0, 1), (1, 0))
  for d, h in offsets:
    at_d, at_h = row // shape[1] + d, row % shape[1] + h
    inside = (at_d < shape[0]) & (at_h >= 0) & (at_h < shape[1])
    other = (at_d * shape[1] + at_h) * width
    low = np.searchsorted(ends, other + first + 1 - touch)  # the first run that ends late enough
    high = np.searchsorted(begins, other + end - 1 + touch, side="right")
    count = np.where(inside, np.maximum(high - low, 0), 0)
    one = np.repeat(np.arange(len(row)), count)
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    pairs.append((one, np.repeat(low, count) + nth))
  a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
  root = np.arange(len(row))
  while (root[a] != root[b]).any():
    smaller = np.minimum(root[a], root[b])
    np.minimum.at(root, root[a], smaller)
    np.minimum.at(root, root[b], smaller)
    while (root[root] != root).any():
      root = root[root]
  roots, number = np.unique(root, return_inverse=True)
  labels = np.zeros(shape, np.int32)
  labels[mask] = np.repeat(number + 1, end - first)
  return labels, len(roots)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
  places = (np.flatnonzero(mask.any(axis=(*{0, 1, 2} - {axis},))) for axis in range(3))
  return tuple(slice(int(own[0]), int(own[-1]) + 1) for own in places)


def brain_of(x: np.ndarray, mm: tuple[float, ...], rule: dict) -> np.ndarray:
  """Which voxels are brain: all that are not 0, without specks outside (kd_jax/data/brain.py)."""
  mask = x != 0
  if not mask.any():
    raise Unusable("the scan is empty")
  box = bounding_box(mask)
  inside = mask[box]
  grown = inside.copy()
  for axis, edge in enumerate(mm):
    line = np.moveaxis(grown, axis, 0)
    source = line.copy()
    for step in range(1, int(rule["gap_mm"] / 2 / edge) + 1):
      line[step:] |= source[:-step]
      line[:-step] |= source[step:]
  labels, count = components(grown)
  sizes = np.bincount(labels[inside], minlength=count + 1)
  main = int(sizes.argmax())
  kept = sizes >= rule["part_share"] * sizes.sum()
  for i in np.flatnonzero(kept):
    kept[i] = i == main or holds_cube((labels == i) & inside, mm, rule["thick_mm"])
  around, _ = components(np.pad(labels != main, 1, constant_values=True), corners=False)
  air = (around == around[0, 0, 0])[1:-1, 1:-1, 1:-1]
  enclosed = np.ones(count + 1, bool)
  enclosed[np.unique(labels[air])] = False
  kept |= enclosed
  kept[0] = False
  mask[box] = kept[labels] & inside
  return mask


def holds_cube(part: np.ndarray, mm: tuple[float, ...], thick: float) -> bool:
  for axis, edge in enumerate(mm):
    line, size = np.moveaxis(part, axis, 0), max(1, round(thick / edge))
    last = len(line) - size + 1
    if last < 1:
      return False
    line = np.logical_and.reduce([line[i : i + last] for i in range(size)])
    part = np.moveaxis(line, 0, axis)
  return bool(part.any())


def resample(x: np.ndarray, shape: tuple[int, ...], nearest: bool) -> np.ndarray:
  """(..., D, H, W) -> (..., *shape): half-voxel centres, linear; or nearest neighbour."""
  for axis, n in zip((-3, -2, -1), shape, strict=True):
    old = x.shape[axis]
    if old == n:
      continue
    if nearest:
      x = np.take(x, np.arange(n) * old // n, axis=axis)
      continue
    scale = old / n
    centres = (np.arange(n) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)) / max(scale, 1))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    x = np.moveaxis(np.tensordot(x.astype(np.float32, copy=False), weights, (axis, 1)), -1, axis)
  return x


def prepare(scans: list[np.ndarray], mm: tuple[float, ...], model: dict) -> tuple:
  """image (M, *grid), mean (M,), deviation (M,) for the program, and the grid's box in the scan.

  A scan at the model's spacing goes in as it is, with the statistics of its brain. One that has to
  be resampled is normalised before, as in training: then mean is 0 and deviation 1.
  """
  published = model["normalisation"] == "paper"
  if model["grid"] == "paper":
    slices = scans[0].shape[2]
    first, last = (3, 147) if slices == 155 else (0, min(147, slices))
    box, shape = (slice(None), slice(None), slice(first, last)), (128, 128, 128)
  if not (published and model["grid"] == "paper"):
    brains = [brain_of(x, mm, model["brain"]) for x in scans]
    if not published:
      scans = [np.where(brain, x, np.float32(0)) for x, brain in zip(scans, brains, strict=True)]
    if model["grid"] == "brain":
      box = bounding_box(np.logical_or.reduce(brains))
      sides = zip(box, mm, strict=True)
      shape = tuple(max(1, round((s.stop - s.start) * e / model["spacing_mm"])) for s, e in sides)
  crops = np.stack([x[box] for x in scans])
  mean, deviation = np.zeros(len(scans), np.float32), np.ones(len(scans), np.float32)
  for i, x in enumerate(crops):
    inside = x[x != 0]
    if published:
      mean[i] = x.min() / x.max() + x.min()
    elif len(inside):
      mean[i] = inside.mean(dtype=np.float64)
      deviation[i] = inside.std(dtype=np.float64) or 1
  if crops.shape[1:] != shape:
    own = mean[:, None, None, None], deviation[:, None, None, None]
    z = (crops - own[0]) / own[1]
    z = z if published else np.where(crops != 0, z, np.float32(0))
    crops, mean, deviation = resample(z, shape, model["grid"] == "paper"), 0 * mean, 0 * mean + 1
  return crops, mean, deviation, box


# --- The program on windows that overlap ----------------------------------------------------------


def predict(image: np.ndarray, mean: np.ndarray, deviation: np.ndarray, model: dict, run: Run):
  """Class probabilities (K, D, H, W) of an image (M, D, H, W)."""
  shape, window = image.shape[1:], tuple(model["window"])
  # Smaller than a window, an image lies in its middle; around it is what normalises to 0.
  before = [max(w - n, 0) // 2 for n, w in zip(shape, window, strict=True)]
  box = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
  empty = mean if model["normalisation"] == "paper" else 0 * mean
  sides = [max(n, w) for n, w in zip(shape, window, strict=True)]
  padded = np.empty((len(image), *sides), np.float32)
  padded[:] = empty[:, None, None, None]
  padded[(slice(None), *box)] = image
  weight = np.ones((1, 1, 1))
  starts = []
  for axis, (n, w) in enumerate(zip(shape, window, strict=True)):
    offset = np.arange(w) - (w - 1) / 2
    line = np.exp(-0.5 * (offset / (w * model["weight"]["sigma"])) ** 2)
    weight = weight * np.expand_dims(line, tuple(a for a in range(3) if a != axis))
    last = max(n - w, 0)
    steps = int(np.ceil(last / max(1, int(w * (1 - model["overlap"])))))
    starts.append(np.rint(np.linspace(0, last, steps + 1)).astype(int))
  weight = np.maximum(weight, model["weight"]["least"]).astype(np.float32)
  flips = [()]
  if model["mirror"]:
    flips = [axes for n in range(4) for axes in itertools.combinations((-3, -2, -1), n)]
  total = np.zeros((len(model["classes"]), *sides), np.float32)
  for start in itertools.product(*starts):
    place = (slice(None), *(slice(s, s + w) for s, w in zip(start, window, strict=True)))
    for axes in flips:  # one after the other: a larger batch would need more memory
      x = np.ascontiguousarray(np.flip(padded[place], axes))
      part = run(x[None], mean[None], deviation[None])[0]
      total[place] += weight * np.flip(part, axes) / np.float32(len(flips))
  return (total / np.maximum(total.sum(axis=0), 1e-12))[(slice(None), *box)]


# --- After the program ----------------------------------------------------------------------------


def postprocess(classes: np.ndarray, mm: tuple[float, ...], model: dict) -> np.ndarray:
  """Without small components of the whole tumour; too little enhancing tumour becomes core."""
  voxel, rule = float(np.prod(mm)), model["postprocessing"]
  wt, tc, et = (np.isin(classes, model["regions"][name]) for name in ("WT", "TC", "ET"))
  if rule["min_component_mm3"] and wt.any():
    labels, count = components(wt)
    sizes, core = (np.bincount(labels[own], minlength=count + 1) for own in (wt, tc))
    main = core if core.any() else sizes
    kept = np.round(sizes * voxel, 3) >= rule["min_component_mm3"]
    kept |= main == main.max()  # the largest always stays
    kept[0] = True
    classes = np.where(kept[labels], classes, 0).astype(np.uint8)
    et &= classes > 0
  if 0 < round(np.count_nonzero(et) * voxel, 3) < rule["min_et_mm3"]:
    classes = np.where(et, model["classes"].index("NCR"), classes).astype(np.uint8)
  return classes


def segment(model: dict, run: Run, paths: dict[str, Path]) -> tuple[np.ndarray, nib.Nifti1Image]:
  """The labels (D, H, W) of a scan in LPS axes, and the file of its first sequence.

  Args:
    model, run: as `open_onnx` gives them.
    paths: sequence -> file.
  """
  if missing := [name for name in model["sequences"] if name not in paths]:
    raise Unusable(f"the model reads {', '.join(model['sequences'])}; {missing[0]} is missing")
  scans, files = zip(*(read_scan(paths[name]) for name in model["sequences"]), strict=True)
  if len({x.shape for x in scans}) > 1:
    raise Unusable("the sequences differ in shape; they must lie on one grid")
  mm = voxel_mm(files[0])
  image, mean, deviation, box = prepare(list(scans), mm, model)
  probabilities = predict(image, mean, deviation, model, run)
  classes = np.zeros(scans[0].shape, np.uint8)
  probabilities = resample(probabilities, classes[box].shape, model["grid"] == "paper")
  classes[box] = np.argmax(probabilities, axis=0)
  values = np.asarray(model["labels"]["values"], np.uint8)
  return values[postprocess(classes, mm, model)], files[0]


def main(open_export: Callable[[Path], tuple[dict, Run]], arguments: list[str]) -> None:
  if len(arguments) < 3 or not arguments[-1].endswith((".nii", ".nii.gz")):
    sys.exit("usage: EXPORT SCAN.nii.gz MASK.nii.gz, or EXPORT t1ce=SCAN flair=SCAN ... MASK")
  folder, *given, mask = arguments
  try:
    model, run = open_export(Path(folder))
    pairs = [text.split("=", 1) if "=" in text else (model["sequences"][0], text) for text in given]
    paths = {name: Path(path) for name, path in pairs}
    if any(os.path.realpath(mask) == os.path.realpath(path) for path in paths.values()):
      raise Unusable(f"{mask} is the scan and would be overwritten")
    labels, file = segment(model, run, paths)
    write_mask(Path(mask), labels, file)
  except Unusable as e:
    sys.exit(f"error: {e}")
  print(f"written: {mask} ({model['labels']['meaning']})")


if __name__ == "__main__":
  main(open_onnx, sys.argv[1:])
