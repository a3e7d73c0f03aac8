"""Settings of the data: which cases, how they are prepared, how patches are drawn and changed."""

from dataclasses import dataclass
from typing import Annotated, Literal

from kd_jax.runtime.errors import ConfigError
from kd_jax.settings.constraints import PathName, Range, Readable
from kd_jax.settings.schema import FREE
from kd_jax.tasks.labels import AUTO, canonical
from kd_jax.tasks.names import MODALITIES, parse_patterns

PATH = PathName()
MAYBE_PATH = PathName(empty=True)
NAMES = Readable(parse_patterns)
SHARE = Range(0, 1)
SEED = Range(0, 2**32 - 1)
MOST_ELASTIC = 12.0  # voxels; a deformation whose control points move 0.4 knots cannot fold

# What a student's description has in common with a run's settings.
Normalisation = Annotated[
  Literal["zscore", "paper"],
  "`zscore`: zero mean, unit deviation over the brain; `paper`: the published code's formula",
]
GridKind = Annotated[
  Literal["brain", "paper"],
  "`brain`: the brain's bounding box; `paper`: slices 3 to 146, resized to 128^3",
]
Spacing = Annotated[float, Range(0.1, 20.0), "mm, edge of the grid's voxels (brain grid only)"]
_Side = Annotated[int, Range(8, 1024)]  # and a multiple of what the networks need
Patch = Annotated[tuple[_Side, _Side, _Side], "voxels along D, H and W of a training patch"]
Oversampling = Annotated[
  float,
  SHARE,
  "share of patches centred on a voxel of tumour, its class drawn evenly from the case's; the "
  "others lie anywhere in the brain's box",
]
Workers = Annotated[
  int, Range(0, 1024), FREE, "processes that read patches; 0 reads in threads of the run itself"
]


@dataclass(frozen=True)
class CacheSettings:
  """What an entry of the cache looks like."""

  spacing: Spacing = 1.0
  normalise: Normalisation = "zscore"
  grid: GridKind = "brain"
  require_seg: Annotated[bool, "a case without a label map is an error"] = True
  sequences: Annotated[
    tuple[str, ...], "a case without one of them is an error; of others, what is there is kept"
  ] = MODALITIES


@dataclass(frozen=True)
class SamplingSettings:
  """How patches are drawn."""

  patch: Patch = (128, 128, 128)
  foreground_oversampling: Oversampling = 0.67
  workers: Workers = 4


@dataclass(frozen=True)
class DataSettings:
  """Which cases, and how they become training samples."""

  root: Annotated[str, PATH, FREE, "folder of cases, in any BraTS year's layout"]
  labels: Annotated[
    str,
    "what the numbers in label maps mean: a year such as `brats2021`, `msd`, `brats-ped`, or a "
    'mapping such as `{"NCR": 2, "ED": 1, "ET": 3}`; `auto`: by what is said, named and held in '
    "the files",
  ] = AUTO
  names: Annotated[
    str, NAMES, FREE, 'which file names mean which sequence, as JSON: `{"t1ce": "*post*"}`'
  ] = ""
  patients: Annotated[
    str, MAYBE_PATH, FREE, "CSV with columns case and patient, where names do not tell"
  ] = ""
  cache: Annotated[
    str, PATH, FREE, "folder of prepared cases; several runs and data sets can share one"
  ] = "runs/cache"
  spacing: Spacing = 1.0
  normalise: Normalisation = "zscore"
  grid: GridKind = "brain"
  patch: Patch = (128, 128, 128)
  foreground_oversampling: Oversampling = 0.67
  workers: Workers = 4
  batch: Annotated[int, Range(1, 1 << 20), "samples a step, over all devices"] = 2
  folds: Annotated[int, Range(2, 1000), "cross-validation by patient"] = 5
  folds_seed: Annotated[int, SEED, "of the split into folds"] = 20
  folds_file: Annotated[
    str, MAYBE_PATH, FREE, "JSON with folds to use instead; cases in none are a hold-out"
  ] = ""
  fold: Annotated[int, Range(0, 999), "the fold to validate on"] = 0
  skip_bad_cases: Annotated[bool, FREE, "go on without cases that cannot be used"] = False
  prepare_workers: Annotated[
    int, Range(0, 1024), FREE, "processes that prepare cases; 0 for one a core"
  ] = 0
  demo_cases: Annotated[
    int, Range(0, 100_000), FREE, "write so many demonstration cases to root first"
  ] = 0
  demo_seed: Annotated[int, SEED, "of the demonstration cases"] = 0

  def __post_init__(self) -> None:
    try:  # one text for all that mean the same, as records are compared
      said = canonical(self.labels, auto=True)
    except ConfigError as e:
      raise ConfigError(f"data.labels: {e}") from e
    object.__setattr__(self, "labels", said)

  def cache_settings(self, sequences: tuple[str, ...] = MODALITIES) -> CacheSettings:
    """Of entries for networks that read these sequences."""
    return CacheSettings(self.spacing, self.normalise, self.grid, sequences=sequences)

  @property
  def sampling(self) -> SamplingSettings:
    return SamplingSettings(self.patch, self.foreground_oversampling, self.workers)


@dataclass(frozen=True)
class AugmentSettings:
  """What happens to a training patch, on the device; a draw each sample, intensities each modality.

  The probabilities `spatial`, `intensity` and `artefact` are constants of the program: what has
  probability 0 is no part of it.
  """

  flip: Annotated[float, SHARE, "probability of a flip, for each of the three axes"] = 0.5
  spatial: Annotated[
    float, SHARE, "probability of rotation, scaling and deformation in one resampling"
  ] = 0.25
  rotate: Annotated[float, Range(0, 180), "degrees, largest angle about each axis"] = 15.0
  scale: Annotated[float, Range(0, 1), "largest |log factor| on the size"] = 0.15
  elastic: Annotated[
    float, Range(0, MOST_ELASTIC), "voxels, largest shift of a control point of the deformation"
  ] = 4.0
  intensity: Annotated[float, SHARE, "probability of each of the four changes below"] = 0.3
  gamma: Annotated[float, Range(0, 10), "largest |log exponent| of a power law"] = 0.4
  contrast: Annotated[float, Range(0, 10), "largest |log factor| on the intensities"] = 0.25
  brightness: Annotated[
    float, Range(0, 10), "largest shift, in standard deviations of the brain"
  ] = 0.25
  noise: Annotated[float, Range(0, 10), "largest deviation of Gaussian noise, in the same unit"] = (
    0.15
  )
  artefact: Annotated[float, SHARE, "probability of each of the three changes below"] = 0.15
  bias: Annotated[
    float, Range(0, 10), "largest |log factor| at a control point of a smooth bias field"
  ] = 0.5
  blur: Annotated[float, Range(0, 10), "voxels, largest deviation of a Gaussian blur"] = 1.0
  lowres: Annotated[
    float, Range(1, 16), "voxels, largest thickness of slices across a drawn axis; 1 for none"
  ] = 3.0

  @property
  def any(self) -> bool:
    """Whether anything may happen."""
    return bool(self.flip or self.spatial or self.intensity or self.artefact)
