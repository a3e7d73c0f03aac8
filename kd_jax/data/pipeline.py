"""Training batches: cached cases -> random patches -> batches, with Grain.

The stream is a pure function of the seed: batch k is the same whatever the number of worker
processes, and a run that continues at step k starts reading at batch k. No iterator state is
needed beside the step's number.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kd_jax.data import readers
from kd_jax.data.entry import Entry, open_entry
from kd_jax.data.readers import HostBatch
from kd_jax.runtime import child_processes
from kd_jax.settings.data import SamplingSettings

_MANY = 1 << 48  # samples: more than any run sees


def training_batches(
  entries: Sequence[Path],
  settings: SamplingSettings,
  *,
  second: Sequence[Path] = (),
  batch: int,
  parts: int = 1,
  seed: int,
  first: int = 0,
  rows: Sequence[int] | None = None,
  tell: Callable[[str], None] | None = None,
) -> Generator[HostBatch, None, None]:
  """Batches without end, each pass over the cases in another order.

  A script that calls this with settings.workers must do so under `if __name__ == "__main__":`, as
  for all processes that Python starts.

  Args:
    entries: the training cases' cache entries.
    settings: how patches are drawn.
    second: those of a second cohort, whose samples come in turns with the others'.
    batch: samples a batch.
    parts: of a batch, which go through the networks one after the other (training/accumulate.py):
      in each of them the samples come in turns.
    seed: of order and patches.
    first: the batch to start with.
    rows: the samples of each batch that this process needs, in order (see `rows_here`); None for
      all. What row k of a batch holds does not depend on who reads it.
    tell: called with a line if a batch from a worker process is late.

  Yields:
    image (rows, 4, *patch) float16 (float32 with the paper's normalisation), label (rows, *patch)
    uint8.

  Raises:
    UserError: a worker process ended, or has no room for what it sends.
  """
  if settings.workers:
    child_processes.refuse_second_run()
  samples = _samples(entries, seed)
  if second:
    samples = grain.MapDataset.mix([samples, _samples(second, seed)])  # in turns
  # Patches before rows are chosen, so that each row has its own, whatever the parts and who reads
  # it; batches before the iterator: batched after it, their content would depend on the workers.
  samples = samples.random_map(Patch(settings))
  order = _in_parts(batch, parts) if second else list(range(batch))
  own = [order[row] for row in (range(batch) if rows is None else rows)]
  if own != list(range(batch)):
    samples = grain.MapDataset.mix([samples[k::batch] for k in own])  # in turns
  batches = samples.batch(len(own))[first:]
  reading = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
  dataset = batches.to_iter_dataset(reading)
  if settings.workers:
    return readers.read(dataset, settings.workers, tell)
  return _read(iter(dataset))


def _in_parts(batch: int, parts: int) -> list[int]:
  """Which of a batch's samples is its row k, so that the cohorts take turns in each part too.

  The samples come in turns (2 i is the first cohort's, 2 i + 1 the second's); part p has the rows
  p, p + parts, ...
  """
  turns = [(k // parts % 2, k // (2 * parts) * parts + k % parts) for k in range(batch)]
  return [2 * i + cohort for cohort, i in turns]


def _samples(entries: Sequence[Path], seed: int) -> grain.MapDataset:
  """The entries pass after pass, each in another order."""
  # Not repeat() for ever: an endless data set in batches of one is longer than Grain can slice.
  passes = _MANY // len(entries)
  return grain.MapDataset.source(Entries(entries)).seed(seed).shuffle().repeat(passes)


def _read(batches: grain.DatasetIterator) -> Generator[HostBatch, None, None]:
  """The batches, from threads of this process."""
  try:
    while True:
      yield next(batches)
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
    assert entry.labels is not None  # cases without a label map are not trained on
    patch = self._settings.patch
    start = draw_start(entry, patch, self._settings.foreground_oversampling, rng)
    return {
      "image": crop(entry.images, start, patch),
      "label": crop(entry.labels, start, patch),
    }


def draw_start(
  entry: Entry, patch: Sequence[int], foreground_oversampling: float, rng: np.random.Generator
) -> tuple[int, ...]:
  """Where a patch begins, in voxels; negative along axes that are shorter than the patch."""
  shape = entry.images.shape[1:]
  last = [n - p for n, p in zip(shape, patch, strict=True)]
  classes = [voxels for voxels in entry.foreground if len(voxels)]
  if classes and rng.random() < foreground_oversampling:
    voxels = classes[rng.integers(len(classes))]
    centre = voxels[rng.integers(len(voxels))]
    wanted = [int(c) - p // 2 for c, p in zip(centre, patch, strict=True)]
  else:
    wanted = [int(rng.integers(max(end, 0) + 1)) for end in last]
  return tuple(
    min(max(w, 0), end) if end >= 0 else -(-end // 2)  # as in prediction
    for w, end in zip(wanted, last, strict=True)
  )


def crop(x: np.ndarray, start: Sequence[int], patch: Sequence[int]) -> np.ndarray:
  """(..., D, H, W) -> (..., *patch) from start, zeros where the patch leaves the volume."""
  out = np.zeros((*x.shape[:-3], *patch), x.dtype)
  source: list[Any] = [...]
  target: list[Any] = [...]
  for a, p, n in zip(start, patch, x.shape[-3:], strict=True):
    lo, hi = max(a, 0), min(a + p, n)
    source.append(slice(lo, hi))
    target.append(slice(lo - a, hi - a))
  out[tuple(target)] = x[tuple(source)]
  return out


def rows_here(sharding: NamedSharding, batch: int) -> list[int]:
  """The samples of a batch that lie on devices of this process, whole or in part, in order."""
  by_sample = NamedSharding(sharding.mesh, P(*sharding.spec[:1]))
  shards = by_sample.addressable_devices_indices_map((batch,)).values()
  rows = [index[0] for index in shards if index is not None]
  return sorted({row for own in rows for row in range(*own.indices(batch))})


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
    def part(index: Any) -> np.ndarray:  # a tuple of slices
      start, stop, _ = index[0].indices(batch)
      begin = position[start]  # samples of one device are neighbours here too
      return x[(slice(begin, begin + stop - start), *index[1:])]

    return jax.make_array_from_callback((batch, *x.shape[1:]), sharding, part)

  return {name: place(x, shardings[name]) for name, x in samples.items()}
