"""Simulated subjects: anatomy, tumour and the four sequences, from the SRI24 atlas.

Every (seed, index) gives another subject: a deformed anatomy, a tumour of necrosis, enhancing ring
and oedema, and four sequences with their own contrast, bias field, noise and intensity scale. The
images stand in for patients' where none are at hand; they prove no clinical result.

Sources: T. Rohlfing et al., "The SRI24 multichannel atlas of normal adult human brain structure",
Human Brain Mapping 31(5), 2010 (CC BY-SA 3.0, which the generated images inherit); free-form
deformation by cubic B-splines, D. Rueckert et al., IEEE TMI 18(8), 1999; growth as arrival times of
a front that runs faster in white matter, E. Konukoglu et al., IEEE TMI 29(1), 2010.
"""

import functools
import importlib.resources
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.transform import Rotation

Array = np.ndarray
Rng = np.random.Generator

SEQUENCES = ("flair", "t1", "t1ce", "t2")
NCR, ED, ET = 1, 2, 4  # BraTS labels: necrotic or non-enhancing core, oedema, enhancing tumour

# Signal relative to normal white matter, drawn uniformly for each subject. `ed` is added to the
# tissue (oedema is water in it), the core replaces the tissue; `et` is relative to the oedematous
# white matter on FLAIR and T2, `nct` is a core that does not enhance.
CONTRAST: dict[str, dict[str, tuple[float, float]]] = {
  "flair": dict(
    gm=(1.04, 1.18), csf=(0.32, 0.5), ed=(0.3, 0.8), ncr=(1.0, 2.3), et=(0.8, 1.1), nct=(1.2, 2)
  ),
  "t1": dict(
    gm=(0.75, 0.85), csf=(0.34, 0.48), ed=(-0.2, -0.06), ncr=(0.58, 0.84), et=(0.76, 0.94),
    nct=(0.66, 0.86),
  ),
  "t1ce": dict(
    gm=(0.80, 0.90), csf=(0.36, 0.5), ed=(-0.22, -0.08), ncr=(0.5, 0.8), et=(1.4, 1.9),
    nct=(0.66, 0.88),
  ),
  "t2": dict(
    gm=(1.15, 1.32), csf=(2.2, 3.0), ed=(0.6, 1.3), ncr=(1.7, 2.6), et=(0.8, 1.1), nct=(1.7, 2.4)
  ),
}  # fmt: skip
DETAIL = {"flair": -0.2, "t1": 0.9, "t1ce": 0.75, "t2": -0.9}  # share of the atlas' fine structure
NOISE = {"flair": 0.09, "t1": 0.06, "t1ce": 0.05, "t2": 0.09}  # σ relative to white matter

PAD = 6  # voxels around the atlas' crop: room for brains that reach beyond it
STEP = 3  # mm between the nodes of the coarse grid, on which anatomy and growth are worked out


@dataclass(frozen=True)
class Subject:
  """One generated subject on the BraTS grid, 1 mm voxels.

  Attributes:
    images: sequence ("flair", "t1", "t1ce", "t2") → (240, 240, 155) int16, 0 outside the brain.
    labels: (240, 240, 155) uint8, BraTS values 0, 1 (NCR/NET), 2 (ED), 4 (ET).
  """

  images: dict[str, Array]
  labels: Array


class Atlas(NamedTuple):
  """The atlas, padded by PAD on every side."""

  tissue: Array  # (4, X, Y, Z) float32: grey matter, white matter, softened brain mask, detail
  offset: Array  # where the padded crop starts in the full grid, voxels
  grid: tuple[int, ...]  # shape of the full grid
  affine: Array  # (4, 4) voxel to world, mm


@functools.cache
def load_atlas() -> Atlas:
  """The atlas, read once a process."""
  source = importlib.resources.files("kd_jax.data.demo") / "atlas" / "sri24.npz"
  with source.open("rb") as file, np.load(file) as data:
    t1, gm, wm = (np.pad(data[k], PAD).astype(np.float32) / 255 for k in ("t1", "gm", "wm"))
    offset, grid, affine = data["offset"] - PAD, tuple(map(int, data["grid"])), data["affine"]
  mask = t1 > 0
  csf = 1 - gm - wm
  means = [(t1 * p)[mask].sum() / p[mask].sum() for p in (gm, wm, csf)]
  # Fine structure: T1's deviation from what its tissues' means predict, relative to white matter.
  detail = (t1 - sum(m * p for m, p in zip(means, (gm, wm, csf), strict=True))) / means[1]
  brain = ndimage.gaussian_filter(ndimage.binary_fill_holes(mask).astype(np.float32), 1)
  return Atlas(np.stack([gm, wm, brain, detail * mask]), offset, grid, affine)


# Smooth fields


def _spline(knots: Array, step: int, shape: tuple[int, ...]) -> Array:
  """Cubic B-spline surface through a coarse grid; knot i lies at coordinate (i - 1) * step.

  Args:
    knots: float32, at least ceil(n / step) + 3 along each axis of length n.
  Returns:
    float32 of `shape`. Linear functions are reproduced exactly.
  """
  t = (np.arange(step, dtype=np.float32) / step)[None, :, None]
  sixths = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 3 * t * (1 + t - t**2) + 1, t**3)
  weights = [w / 6 for w in sixths]
  for axis, length in enumerate(shape):
    count = -(-length // step)
    before, after = int(np.prod(knots.shape[:axis])), knots.shape[axis + 1 :]
    flat = knots.reshape(before, knots.shape[axis], 1, -1)
    fine = weights[0] * flat[:, :count]
    for k in (1, 2, 3):
      fine += weights[k] * flat[:, k : k + count]
    knots = fine.reshape(before, count * step, -1)[:, :length].reshape(*shape[: axis + 1], *after)
  return knots


def _knots(shape: tuple[int, ...], step: int) -> tuple[int, ...]:
  return tuple(-(-n // step) + 3 for n in shape)


def _field(rng: Rng, shape: tuple[int, ...], step: int) -> Array:
  """A smooth random field of zero mean and unit variance, float32; `step` is its grain."""
  knots = rng.standard_normal(_knots(shape, step), np.float32)
  return _spline(knots, step, shape) / np.float32(0.4794**1.5)  # Σw² of the spline along each axis


def _warp(volume: Array, points: Array) -> Array:
  """Trilinear samples of a volume at `points` (3, ...), float32; 0 outside it."""
  return ndimage.map_coordinates(volume, points, np.float32, order=1, prefilter=False)


# Anatomy and growth on the coarse grid


def _pose(rng: Rng, nodes: Array) -> Array:
  """Where in the atlas each coarse node of a subject lies: (3, ...) float32, voxels."""
  turn = Rotation.from_rotvec(rng.normal(0, [0.05, 0.03, 0.03])).as_matrix()  # nodding varies most
  size = rng.normal(0.965, 0.02) * rng.normal(1, 0.02, 3)  # heads, and their proportions, differ
  centre = np.array(load_atlas().tissue.shape[1:]).reshape(3, 1, 1, 1) / 2
  points = np.einsum("ij,jxyz->ixyz", turn / size, nodes - centre) + centre
  shape = nodes.shape[1:]
  for grain, mm in ((15, 2.5), (6, 1.6), (3, 0.7)):  # lobes, gyri, sulci; grain in nodes
    points += np.stack([mm * _field(rng, shape, grain) for _ in range(3)])
  return points.astype(np.float32)


def _push(points: Array, nodes: Array, centre: Array, reach: float, mm: float) -> Array:
  """Mass effect: tissue around `centre` moves outwards by up to `mm`, most at distance `reach`.

  The outline stays, as the skull does not give way.
  """
  away = nodes - centre.reshape(3, 1, 1, 1)
  distance = np.sqrt((away**2).sum(0)) / reach
  inside = ndimage.gaussian_filter(_warp(load_atlas().tissue[2], points), 2)
  shift = np.exp(1 - distance) / reach * np.clip(2 * inside - 1, 0, 1)
  return (points - mm * shift * away).astype(np.float32)


def _arrival(speed: Array, sources: Array) -> Array:
  """When a front that starts at `sources` reaches each coarse node.

  Args:
    speed: (X, Y, Z), 0 where nothing spreads.
    sources: (X, Y, Z) bool, at least one True where speed is above 0.
  Returns:
    (X, Y, Z) float32: mm at speed 1, at most 300.
  """
  shape, free = speed.shape, speed > 0
  number = np.full(shape, -1, np.int32)
  number[free] = np.arange(free.sum(), dtype=np.int32)
  rows, columns, costs = [], [], []
  for move in itertools.product((-1, 0, 1), repeat=3):
    if move <= (0, 0, 0):
      continue  # each pair of neighbours once
    near = tuple(slice(max(0, -m), n - max(0, m)) for m, n in zip(move, shape, strict=True))
    far = tuple(slice(max(0, m), n - max(0, -m)) for m, n in zip(move, shape, strict=True))
    both = free[near] & free[far]
    rows.append(number[near][both])
    columns.append(number[far][both])
    length = STEP * np.sqrt(sum(m * m for m in move))
    costs.append(length * 0.5 * (1 / speed[near][both] + 1 / speed[far][both]))
  a, b, cost = np.concatenate(rows), np.concatenate(columns), np.concatenate(costs)
  graph = coo_array(
    (np.tile(cost, 2), (np.concatenate([a, b]), np.concatenate([b, a]))), (free.sum(),) * 2
  )
  times = np.full(shape, 300, np.float32)
  starts = number[sources & free]
  times[free] = np.minimum(dijkstra(graph.tocsr(), indices=starts, min_only=True), 300)
  return times


class Plan(NamedTuple):
  """What a subject's tumour is to be."""

  enhancing: bool
  necrotic: bool
  whole: int  # volume, mm³
  core: int  # volume, mm³
  necrosis: float  # share of the core
  foci: int
  push: float  # mass effect relative to the core's radius


def _plan(rng: Rng, seed: int, index: int) -> Plan:
  # Irrational steps spread the rare kinds evenly over the indices: a small set has them too.
  kind, foci = (np.random.default_rng(seed).random(2) + index * np.sqrt([5, 2])) % 1
  enhancing = kind >= 0.15
  whole = float(np.clip(rng.lognormal(np.log(70), 0.55), 15, 200))
  share = np.clip(rng.beta(2.2, 3) * (1 if enhancing else 1.3), 0.12, 0.75)
  return Plan(
    enhancing=enhancing,
    necrotic=not enhancing or kind >= 0.25,
    whole=int(whole * 1000),
    core=int(min(share * whole, 75) * 1000),
    necrosis=rng.uniform(0.1, 0.6),
    foci=1 if foci >= 0.1 else 2 + (foci < 0.03),
    push=rng.uniform(0, 0.3),
  )


def _centres(rng: Rng, points: Array, plan: Plan) -> Array:
  """Coarse nodes (foci, 3) where the tumour starts: in the white matter of the cerebrum."""
  x, y, z = points - PAD  # voxels of the atlas' crop; y runs backwards
  aside = np.abs(x - 66)
  cerebrum = (z > 40) & (aside > np.where(z < 62, 18, 8)) & ~((z < 55) & (y > 115))
  inside = ndimage.gaussian_filter(_warp(load_atlas().tissue[2], points), 2.5) > 0.85
  spots = np.argwhere((_warp(load_atlas().tissue[1], points) > 0.5) & cerebrum & inside)
  first = spots[rng.integers(len(spots))]
  chosen = [first]
  for _ in range(plan.foci - 1):
    distance = STEP * np.sqrt(((spots - first) ** 2).sum(1))
    near = spots[(distance > 28) & (distance < 60)]
    chosen.append(near[rng.integers(len(near))])
  return np.array(chosen)


def _smallest(score: Array, allowed: Array, count: int) -> Array:
  """The `count` allowed voxels of lowest score, as a mask."""
  values = score[allowed]
  count = min(count, len(values))
  return allowed & (score <= np.partition(values, count - 1)[count - 1])


def make_subject(seed: int, index: int) -> Subject:
  """Generates one subject.

  Args:
    seed: of the data set, at least 0.
    index: of the subject, at least 0. A subject does not depend on how many others are made.
  """
  rng = np.random.default_rng([seed, index])
  atlas, plan = load_atlas(), _plan(rng, seed, index)
  shape = atlas.tissue.shape[1:]
  coarse = _knots(shape, STEP)
  nodes = (np.indices(coarse, dtype=np.float32) - 1) * STEP
  points = _pose(rng, nodes)
  starts = _centres(rng, points, plan)
  radius = (3 * plan.core / (4 * np.pi * plan.foci)) ** (1 / 3)
  for start in starts:
    points = _push(points, nodes, nodes[(slice(None), *start)], radius, plan.push * radius)

  # The core grows nearly alike in grey and white matter, the oedema mainly in white.
  gm, wm, inside = (_warp(a, points) for a in atlas.tissue[:3])
  csf = np.clip(1 - gm - wm, 0, 1)
  rough = np.exp(0.35 * _field(rng, coarse, 4))  # makes the front's shape irregular
  seeds = np.zeros(coarse, bool)
  seeds[tuple(starts.T)] = True
  bulk = _arrival(np.where(inside > 0.5, (wm + 0.8 * gm + 0.08 * csf) * rough, 0), seeds)
  bed = _smallest(bulk, inside > 0.5, plan.core // STEP**3)
  leak = _arrival(np.where(inside > 0.5, (wm + 0.22 * gm + 0.02 * csf) * rough, 0), bed | seeds)

  # From here on in 1 mm voxels, within the brain's box.
  points = np.stack([_spline(p, STEP, shape) for p in points])
  brain = _warp(atlas.tissue[2], points)
  # Skull stripping takes a little more here and less there; the limit keeps holes out.
  brain = brain > np.clip(0.65 + 0.12 * _field(rng, shape, 12), 0.35, 0.9)
  blobs, count = ndimage.label(brain)
  brain = blobs == 1 + np.argmax(np.bincount(blobs.ravel(), minlength=count + 1)[1:])
  box = ndimage.find_objects(brain.astype(np.uint8))[0]
  brain, points = brain[box], points[(slice(None), *box)]
  bulk, leak = (_spline(a, STEP, shape)[box] for a in (bulk, leak))
  tissue = _tissue(rng, brain, points)
  labels = _labels(rng, plan, brain, tissue, bulk, leak)
  images = _images(rng, plan, brain, tissue, points, labels, leak)

  place = tuple(slice(o + s.start, o + s.stop) for o, s in zip(atlas.offset, box, strict=True))

  def whole(volume: Array) -> Array:
    full = np.zeros(atlas.grid, volume.dtype, order="F")  # the order of the file
    full[place] = volume
    return full

  return Subject({name: whole(images[name]) for name in SEQUENCES}, whole(labels))


# Tissue, tumour and acquisition on the fine grid


def _tissue(rng: Rng, brain: Array, points: Array) -> Array:
  """(4, X, Y, Z) float32: shares of grey matter, white matter and CSF, and fine structure."""
  sampled = np.zeros((4, *brain.shape), np.float32)
  inside = points[:, brain]
  for k, source in enumerate((0, 1, 3)):
    sampled[3 if source == 3 else k][brain] = _warp(load_atlas().tissue[source], inside)
  gm, wm = sampled[0], sampled[1]
  csf = np.clip(1 - gm - wm, 0, 1)
  # Cortex and sulci of another width than the atlas': atrophy, plus local variation.
  gm *= np.exp(0.5 * _field(rng, brain.shape, 7))
  csf *= np.exp(rng.normal(-0.7, 0.4) + 0.7 * _field(rng, brain.shape, 7))
  for share in (gm, wm, csf):
    share *= np.sqrt(share)  # one subject's borders are sharper than an atlas' mean
  total = gm + wm + csf + 1e-6
  sampled[:3] = gm / total, wm / total, csf / total
  return sampled


def _labels(rng: Rng, plan: Plan, brain: Array, tissue: Array, bulk: Array, leak: Array) -> Array:
  """BraTS labels (X, Y, Z) uint8 from the arrival times of core (`bulk`) and oedema (`leak`)."""
  shape = brain.shape
  fluid = ndimage.gaussian_filter(tissue[2], 1)
  allowed = brain & (fluid < 0.5)
  fine = _field(rng, shape, 4)
  finer = _field(rng, shape, 2)
  core = _smallest(bulk + 1.2 * fine + 0.6 * finer, allowed, plan.core)
  rest = allowed & ~core
  oedema = _smallest(leak + 2 * fine + 0.5 * finer + 8 * fluid, rest, plan.whole - plan.core)
  labels = np.zeros(shape, np.uint8)
  labels[oedema] = ED
  labels[core] = ET if plan.enhancing else NCR
  if plan.enhancing and plan.necrotic:
    where = ndimage.find_objects(core.astype(np.uint8))[0]
    inner = core[where]
    depth = ndimage.distance_transform_edt(np.pad(inner, 1))[1:-1, 1:-1, 1:-1]
    score = depth + 1.2 * _field(rng, inner.shape, 5) + 0.7 * _field(rng, inner.shape, 2)
    necrosis = _smallest(-score, inner, int(plan.necrosis * plan.core))
    labels[where][necrosis] = NCR
  return labels


def _images(
  rng: Rng, plan: Plan, brain: Array, tissue: Array, points: Array, labels: Array, leak: Array
) -> dict[str, Array]:
  """The four sequences, (X, Y, Z) int16 each."""
  shape = brain.shape
  soft = {k: ndimage.gaussian_filter((labels == k).astype(np.float32), 0.6) for k in (NCR, ET)}
  core = soft[NCR] + soft[ET]
  # Oedema fades outwards and is patchy; the label's edge is where a reader stops seeing it.
  wet = ndimage.gaussian_filter((labels > 0).astype(np.float32), 0.8)
  patchy = np.clip(1 + 0.28 * _field(rng, shape, 8) + 0.1 * _field(rng, shape, 3), 0.3, 1.7)
  wet *= patchy * np.clip(1.25 - leak / 45, 0.6, 1.25)
  spots = _hyperintensities(rng, tissue) * (1 - np.minimum(wet, 1))
  vessels = _vessels(rng, brain, tissue, points) * (1 - np.minimum(core, 1))
  texture = _field(rng, shape, 9) + 0.6 * _field(rng, shape, 4)  # no tissue is uniform
  grain = 0.8 * _field(rng, shape, 6) + 0.6 * _field(rng, shape, 3)
  images = {}
  for name in SEQUENCES:
    level = {k: rng.uniform(*span) for k, span in CONTRAST[name].items()}
    et = level["et"] * (1 + level["ed"] if name in ("flair", "t2") else 1)
    ncr = level["ncr" if plan.enhancing else "nct"]
    image = level["gm"] * tissue[0] + tissue[1] + level["csf"] * tissue[2]
    image += DETAIL[name] * tissue[3]
    image *= 1 + 0.035 * texture
    image += level["ed"] * wet
    if name in ("flair", "t2"):
      image += (0.5 if name == "flair" else 0.35) * spots
    if name == "t1ce":
      image += rng.uniform(1.4, 3) * vessels
    uneven = {"t1ce": 0.22, "flair": 0.16, "t2": 0.14, "t1": 0.07}[name]
    image += soft[NCR] * (ncr * (1 + uneven * grain) - image)
    image += soft[ET] * (et * (1 - uneven * grain) - image)
    images[name] = _acquire(rng, name, image, brain)
  return images


def _hyperintensities(rng: Rng, tissue: Array) -> Array:
  """White matter lesions of age, (X, Y, Z) in 0..1: caps at the ventricles and scattered dots."""
  white = tissue[1]
  shape = white.shape
  # Only ventricles survive so wide a filter: sulci are too thin. A low-resolution grid will do.
  small = ndimage.uniform_filter(tissue[2], 3)[::3, ::3, ::3]
  deep = np.zeros(_knots(shape, 3), np.float32)
  deep[1:-2, 1:-2, 1:-2] = ndimage.gaussian_filter(small, 1.5)
  burden = rng.beta(1.5, 3)  # most subjects have few
  caps = np.clip(3 * _spline(deep, 3, shape) - 0.5, 0, 1) * burden
  dots = np.clip(_field(rng, shape, 4) - (3.7 - 1.2 * burden), 0, 0.6) / 0.6
  return (caps + dots) * white**2


def _vessels(rng: Rng, brain: Array, tissue: Array, points: Array) -> Array:
  """What else takes up contrast agent, (X, Y, Z) about 0..1: vessels, meninges, sinus, plexus."""
  shape = brain.shape
  # A vessel is a curve: where two smooth fields both vanish. They run in the sulci.
  miss = _field(rng, shape, 7) ** 2 + _field(rng, shape, 7) ** 2
  outer = ndimage.uniform_filter(brain.astype(np.float32), 5)
  rim = np.clip(2.2 * (0.95 - outer), 0, 1)
  tubes = np.exp(-miss / 0.02) * np.clip(tissue[2] + 0.3 * tissue[0] + rim, 0, 1)
  patches = np.clip(_field(rng, shape, 5) - 0.8, 0, 1)
  falx = np.exp(-(((points[0] - PAD - 66) / 1.5) ** 2)) * (rim + 0.25 * tissue[2])
  plexus = np.clip(3 * (patches - 0.2), 0, 1) * (tissue[2] > 0.9) * (outer > 0.99)
  return tubes + patches * rim * 0.8 + falx + 0.6 * plexus


def _acquire(rng: Rng, name: str, image: Array, brain: Array) -> Array:
  """What the scanner and the registration make of a signal: int16, ≥ 1 in the brain, else 0."""
  shape = image.shape
  bias = np.exp(rng.uniform(0.03, 0.09) * _field(rng, shape, 45))
  sigma = np.float32(rng.uniform(0.6, 1.4) * NOISE[name])
  real = image * bias + sigma * rng.standard_normal(shape, np.float32)
  imaginary = sigma * rng.standard_normal(shape, np.float32)
  magnitude = np.sqrt(real**2 + imaginary**2)  # Rician
  # Interpolation to 1 mm smooths; many scans other than T1ce have thick slices along one axis.
  width = np.full(3, rng.uniform(0.4, 0.6))
  if rng.random() < (0.15 if name == "t1ce" else 0.5):
    width[rng.choice(3, p=(0.15, 0.1, 0.75))] = rng.uniform(0.9, 1.8)
  magnitude = ndimage.gaussian_filter(magnitude, width, truncate=2.5)
  scale = np.exp(rng.uniform(np.log(80), np.log(900)))  # of white matter: arbitrary in MRI
  return np.where(brain, np.clip(np.rint(scale * magnitude), 1, 32767), 0).astype(np.int16)
