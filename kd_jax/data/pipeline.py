"""Training batches: cached cases -> random patches -> batches, with Grain.

The stream is a pure function of the seed: batch k is the same whatever the number of worker
processes, and a run that continues at step k starts reading at batch k. No iterator state is
needed beside the step's number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.data.entry import Entry, open_entry
from kd_jax.runtime.errors import UserError

HostBatch = dict[str, np.ndarray]
_MANY = 1 << 48  # samples: more than any run sees


@dataclass(frozen=True)
class SamplingSettings:
  """How patches are drawn.

  Attributes:
    patch: voxels along D, H, W.
    tumour: the share of patches that are centred on a voxel of the tumour, its class drawn evenly
      from those that the case has; the rest lie anywhere in the brain's box.
    workers: processes that read; 0 reads in threads of this one.
  """

  patch: tuple[int, int, int] = (128, 128, 128)
  tumour: float = 0.67
  workers: int = 0


def training_batches(
  entries: Sequence[Path],
  settings: SamplingSettings,
  *,
  batch: int,
  seed: int,
  first: int = 0,
  rows: Sequence[int] | None = None,
) -> Iterator[HostBatch]:
  """Batches without end, each pass over the cases in another order.

  Args:
    entries: the training cases' cache entries.
    settings: how patches are drawn.
    batch: samples a batch.
    seed: of order and patches.
    first: the batch to start with.
    rows: the samples of each batch that this process needs, in order (see `rows_here`); None for
      all. What row k of a batch holds does not depend on who reads it.

  Yields:
    image (rows, 4, *patch) float16 (float32 with the paper's normalisation), label (rows, *patch)
    uint8.

  Raises:
    UserError: a worker process died.
  """
  # Not repeat() for ever: an endless data set in batches of one is longer than Grain can slice.
  passes = _MANY // len(entries)
  samples = grain.MapDataset.source(Entries(entries)).seed(seed).shuffle().repeat(passes)
  # Patches before rows are chosen, so that each row has its own; batches before the iterator:
  # batched after it, their content would depend on the workers.
  samples = samples.random_map(Patch(settings))
  if rows is not None and len(rows) < batch:
    samples = grain.MapDataset.mix([samples[row::batch] for row in rows])  # in turns
  batches = samples.batch(batch if rows is None else len(rows))[first:]
  reading = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
  iterator = batches.to_iter_dataset(reading)
  if settings.workers:
    options = grain.MultiprocessingOptions(num_workers=settings.workers, per_worker_buffer_size=2)
    iterator = iterator.mp_prefetch(options)
  return _read(iter(iterator))


def _read(batches: grain.DatasetIterator) -> Iterator[HostBatch]:
  """The batches; that a worker died is said in words that help."""
  try:
    while True:
      yield next(batches)
  except RuntimeError as e:
    if "terminated unexpectedly" not in str(e):  # Grain has no type of its own for it
      raise
    raise UserError(
      f"a process that reads training patches died: {e} The system may have run out of memory; set "
      "data.workers lower (0 reads in this process). The run goes on from its last checkpoint"
    ) from e
  finally:
    batches.close()


class Entries(grain.sources.RandomAccessDataSource):
  """Cache entries as a Grain source; each is mapped into memory when it is read."""

  def __init__(self, paths: Sequence[Path]):
    self._paths = [str(path) for path in paths]

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> Entry:
    return open_entry(self._paths[index])


class Patch(grain.transforms.RandomMap):
  """One random patch of a case."""

  def __init__(self, settings: SamplingSettings):
    self._settings = settings

  def random_map(self, entry: Entry, rng: np.random.Generator) -> HostBatch:
    patch = self._settings.patch
    start = draw_start(entry, patch, self._settings.tumour, rng)
    return {
      "image": crop(entry.images, start, patch),
      "label": crop(entry.labels, start, patch),
    }


def draw_start(
  entry: Entry, patch: Sequence[int], tumour: float, rng: np.random.Generator
) -> tuple[int, ...]:
  """Where a patch begins, in voxels; negative along axes that are shorter than the patch."""
  shape = entry.images.shape[1:]
  last = [n - p for n, p in zip(shape, patch, strict=True)]
  classes = [voxels for voxels in entry.foreground if len(voxels)]
  if classes and rng.random() < tumour:
    voxels = classes[rng.integers(len(classes))]
    centre = voxels[rng.integers(len(voxels))]
    wanted = [int(c) - p // 2 for c, p in zip(centre, patch, strict=True)]
  else:
    wanted = [int(rng.integers(max(end, 0) + 1)) for end in last]
  return tuple(
    min(max(w, 0), end) if end >= 0 else end // 2 for w, end in zip(wanted, last, strict=True)
  )


def crop(x: np.ndarray, start: Sequence[int], patch: Sequence[int]) -> np.ndarray:
  """(..., D, H, W) -> (..., *patch) from start, zeros where the patch leaves the volume."""
  out = np.zeros((*x.shape[:-3], *patch), x.dtype)
  source, target = [], []
  for a, p, n in zip(start, patch, x.shape[-3:], strict=True):
    lo, hi = max(a, 0), min(a + p, n)
    source.append(slice(lo, hi))
    target.append(slice(lo - a, hi - a))
  out[(..., *target)] = x[(..., *source)]
  return out


def rows_here(sharding: NamedSharding, batch: int) -> list[int]:
  """The samples of a batch that lie on devices of this process, whole or in part, in order."""
  by_sample = NamedSharding(sharding.mesh, P(*sharding.spec[:1]))
  shards = by_sample.addressable_devices_indices_map((batch,)).values()
  return sorted({row for (rows,) in shards for row in range(*rows.indices(batch))})


def to_devices(
  samples: HostBatch, rows: Sequence[int], shardings: Mapping[str, NamedSharding], batch: int
) -> dict[str, jax.Array]:
  """Samples as this process's part of global arrays.

  Args:
    samples: (rows, ...) arrays.
    rows: where in the batch they belong; those that `rows_here` names.
    shardings: of the global arrays, by name.
    batch: samples a batch.
  """
  position = {row: i for i, row in enumerate(rows)}

  def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    def part(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(batch)
      begin = position[start]  # samples of one device are neighbours here too
      return x[(slice(begin, begin + stop - start), *index[1:])]

    return jax.make_array_from_callback((batch, *x.shape[1:]), sharding, part)

  return {name: place(x, shardings[name]) for name, x in samples.items()}
