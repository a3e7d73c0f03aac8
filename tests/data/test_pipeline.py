"""Patches and batches: where they are cut, and that the stream depends on the seed alone."""

import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from synthetic import make_case

from kd_jax.data.cache import prepare
from kd_jax.data.cases import find_cases
from kd_jax.data.entry import Entry, open_entry
from kd_jax.data.pipeline import crop, draw_start, rows_here, to_devices, training_batches
from kd_jax.data.preprocess import foreground_voxels
from kd_jax.runtime.errors import UserError
from kd_jax.settings.data import CacheSettings, SamplingSettings
from kd_jax.training.mesh import make_mesh
from kd_jax.training.step import batch_sharding

SMALL = SamplingSettings(patch=(6, 4, 8), workers=0)
WHOLE = SamplingSettings(patch=(10, 10, 10), workers=0)  # the box of every synthetic case


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
  """Four cases of 10x10x10 voxels in a cache."""
  root = tmp_path_factory.mktemp("pipeline")
  for seed, name in enumerate("ABCD"):
    make_case(root / "data" / name, seed=seed)
  ready, errors = prepare(
    find_cases(root / "data"), root / "cache", CacheSettings(spacing=3.0), workers=1
  )
  assert not errors
  return list(ready.values())


def take(count, entries, sampling=SMALL, batch=2, seed=0, **options):
  """The first batches of a stream, copied: what workers send lies in memory that goes with them."""
  stream = training_batches(entries, sampling, batch=batch, seed=seed, **options)
  try:
    return [{k: np.array(v) for k, v in next(stream).items()} for _ in range(count)]
  finally:
    stream.close()
    gc.collect()


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys() == {"image", "label"}
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])


def fake(labels, images=None):
  """An entry in memory, as open_entry would map it."""
  labels = np.asarray(labels, np.uint8)
  if images is None:
    images = np.ones((4, *labels.shape), np.float16)
  counts = np.bincount(labels.ravel(), minlength=4)[1:]
  foreground = tuple(f[:n] for f, n in zip(foreground_voxels(labels), counts, strict=True))
  return Entry(Path("fake"), images, labels, foreground, {})


def patches(entry, patch, tumour, count, seed=0):
  rng = np.random.default_rng(seed)
  return [draw_start(entry, patch, tumour, rng) for _ in range(count)]


# --- Where a patch is cut ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
  st.tuples(*[st.integers(1, 6)] * 3),
  st.tuples(*[st.integers(1, 9)] * 3),
  st.tuples(*[st.integers(-4, 5)] * 3),
)
def test_crop_is_the_volume_with_zeros_around(shape, patch, start):
  x = np.arange(1, 1 + 2 * np.prod(shape), dtype=np.int32).reshape(2, *shape)
  start = tuple(min(a, n - 1) for a, n in zip(start, shape, strict=True))
  start = tuple(max(a, 1 - p) for a, p in zip(start, patch, strict=True))  # they overlap
  padded = np.pad(x, ((0, 0), *[(9, 15)] * 3))
  box = tuple(slice(a + 9, a + 9 + p) for a, p in zip(start, patch, strict=True))
  np.testing.assert_array_equal(crop(x, start, patch), padded[(slice(None), *box)])


def test_a_volume_smaller_than_the_patch_lies_in_its_middle():
  labels = np.zeros((5, 4, 9), np.uint8)
  labels[2, 1, 8] = 3
  entry = fake(labels, np.random.default_rng(0).random((4, 5, 4, 9)).astype(np.float16) + 1)
  for tumour in (0.0, 1.0):
    for start in patches(entry, (8, 8, 4), tumour, 20):
      assert start[:2] == (-1, -2)  # as prediction/sliding_window.py has it
      image = crop(entry.images, start, (8, 8, 4))
      inside = entry.images[..., start[2] : start[2] + 4]
      np.testing.assert_array_equal(image, np.pad(inside, ((0, 0), (1, 2), (2, 2), (0, 0))))


@settings(max_examples=60, deadline=None)
@given(
  st.tuples(*[st.integers(1, 12)] * 3),
  st.tuples(*[st.integers(1, 12)] * 3),
  st.sampled_from([0.0, 0.5, 1.0]),
  st.integers(0, 2**31),
)
def test_patches_stay_inside_and_a_patch_for_the_tumour_holds_tumour(shape, patch, tumour, seed):
  rng = np.random.default_rng(seed)
  labels = np.zeros(shape, np.uint8)
  corner = tuple(n - 1 if rng.random() < 0.5 else int(rng.integers(n)) for n in shape)
  labels[corner] = rng.integers(1, 4)
  for start in patches(fake(labels), patch, tumour, 8, seed):
    for a, p, n in zip(start, patch, shape, strict=True):
      assert 0 <= a <= n - p if p <= n else -a == (p - n) // 2
    if tumour == 1:
      assert crop(labels, start, patch).any()


def test_every_place_in_the_box_can_be_drawn():
  starts = patches(fake(np.zeros((5, 3, 4))), (2, 3, 3), 0.0, 400)
  assert set(starts) == {(a, 0, c) for a in range(4) for c in range(2)}
  counts = np.bincount([a for a, _, _ in starts])
  assert counts.min() > 60  # of 100 each


def test_classes_are_drawn_evenly_whatever_their_size():
  labels = np.zeros((10, 10, 10), np.uint8)
  labels[:8] = 2
  labels[9, 9, 9] = 3  # one voxel, and no class 1
  drawn = [labels[start] for start in patches(fake(labels), (1, 1, 1), 1.0, 400)]
  counts = np.bincount(drawn, minlength=4)
  assert counts[:2].tolist() == [0, 0]
  assert 160 < counts[3] < 240


def test_voxels_of_a_class_are_drawn_evenly():
  labels = np.zeros((4, 4, 4), np.uint8)
  labels[0, 0, 0] = labels[0, 0, 1] = labels[3, 3, 3] = 1
  starts = patches(fake(labels), (1, 1, 1), 1.0, 300)
  counts = [starts.count(where) for where in ((0, 0, 0), (0, 0, 1), (3, 3, 3))]
  assert sum(counts) == 300
  assert min(counts) > 65


def test_a_voxel_away_from_the_border_is_in_the_middle():
  labels = np.zeros((12, 12, 12), np.uint8)
  labels[5, 6, 7] = 2
  assert set(patches(fake(labels), (4, 5, 6), 1.0, 10)) == {(3, 4, 4)}


@pytest.mark.parametrize("share", [0.25, 0.67])
def test_the_share_of_tumour_patches_is_as_set(share):
  labels = np.zeros((30, 30, 30), np.uint8)
  labels[29, 29, 29] = 1
  hits = [start == (29, 29, 29) for start in patches(fake(labels), (1, 1, 1), share, 600)]
  assert abs(np.mean(hits) - share) < 0.08


def test_a_case_without_tumour_gives_patches_from_anywhere():
  starts = patches(fake(np.zeros((6, 6, 6))), (4, 4, 4), 1.0, 100)
  assert len(set(starts)) > 20


# --- The stream -------------------------------------------------------------------------------


def test_batches_are_patches_of_the_cases(entries):
  opened = [open_entry(path) for path in entries]
  for batch in take(4, entries, WHOLE, batch=3):
    assert (batch["image"].shape, batch["image"].dtype) == ((3, 4, 10, 10, 10), np.float16)
    assert (batch["label"].shape, batch["label"].dtype) == ((3, 10, 10, 10), np.uint8)
    for image, label in zip(batch["image"], batch["label"], strict=True):
      (case,) = (e for e in opened if np.array_equal(e.images, image))
      np.testing.assert_array_equal(label, case.labels)


def test_image_and_label_are_cut_at_the_same_place(entries):
  """Every patch is looked for in every case: the image's place must be the label's."""
  opened = [open_entry(path) for path in entries]
  places = [(a, b, c) for a in range(5) for b in range(7) for c in range(3)]
  for batch in take(4, entries):
    for image, label in zip(batch["image"], batch["label"], strict=True):
      found = [
        np.array_equal(crop(e.labels, start, SMALL.patch), label)
        for e in opened
        for start in places
        if np.array_equal(crop(e.images, start, SMALL.patch), image)
      ]
      assert found == [True]


def test_a_tumour_share_of_one_always_shows_tumour(entries):
  tiny = SamplingSettings(patch=(2, 2, 2), foreground_oversampling=1.0, workers=0)
  for batch in take(6, entries, tiny, batch=4):
    assert batch["label"].any((1, 2, 3)).all()


def test_a_patch_beyond_the_case_is_padded_with_zeros(entries):
  for batch in take(2, entries, SamplingSettings(patch=(16, 8, 16), workers=0)):
    edges = np.ones((16, 8, 16), bool)
    edges[3:13, :, 3:13] = False
    assert (batch["image"][..., edges] == 0).all()
    assert (batch["label"][..., edges] == 0).all()
    assert (batch["image"][..., ~edges] != 0).mean() > 0.99


def test_the_seed_alone_decides(entries):
  first, again, other = (take(5, entries, seed=seed) for seed in (3, 3, 4))
  assert_same(first, again)
  assert not all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("first", [1, 5])
def test_a_stream_that_starts_at_a_batch_is_the_rest_of_the_whole(entries, first):
  rest = take(3, entries, batch=3, first=first)
  assert_same(rest, take(first + 3, entries, batch=3)[first:])


def test_a_stream_can_start_far_into_a_run(entries):
  rest = take(2, entries, batch=1, first=1_000_000)
  assert_same(take(1, entries, batch=1, first=1_000_001), rest[1:])


def test_worker_processes_change_nothing(entries):
  alone = take(6, entries)
  assert_same(take(6, entries, SamplingSettings(patch=SMALL.patch, workers=2)), alone)


def test_a_worker_that_dies_is_an_error_not_a_hang(entries):
  """Killed as the system does it when memory runs out."""
  others = set(multiprocessing.active_children())
  stream = training_batches(entries, SamplingSettings(SMALL.patch, workers=2), batch=2, seed=0)
  next(stream)
  worker = next(p for p in multiprocessing.active_children() if p not in others)
  os.kill(worker.pid, signal.SIGKILL)
  began = time.monotonic()
  with pytest.raises(UserError, match=r"exit code -9.*data.workers"):
    for _ in range(1000):
      next(stream)
  assert time.monotonic() - began < 60
  gc.collect()


@pytest.mark.parametrize("rows", [[0, 1, 2], [1], [0, 3], [2, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_some_rows_of_a_batch_are_what_they_are_in_the_whole(entries, rows):
  """So that it does not matter how many processes share a batch."""
  whole = take(5, entries, batch=6, first=7)
  part = take(5, entries, batch=6, first=7, rows=rows)
  assert_same(part, [{name: x[rows] for name, x in batch.items()} for batch in whole])


@pytest.mark.parametrize("parts", [1, 2])
def test_two_cohorts_take_turns_in_each_part_of_a_batch(entries, parts):
  """Part p of a batch has the samples p, p + parts, ...: see training/accumulate.py."""
  first, second = entries[:1], entries[1:]
  stream = take(6, first, WHOLE, batch=4, second=second, parts=parts)
  known = {open_entry(path).images.tobytes(): path in first for path in entries}
  cohorts = [[known[image.tobytes()] for image in batch["image"]] for batch in stream]
  for batch in cohorts:
    for part in range(parts):
      own = batch[part::parts]
      assert own == [True, False] * (len(own) // 2)
  seen = [image.tobytes() for batch in stream[:3] for image in batch["image"]]
  assert len(set(seen)) == len(entries), "each pass has every case of its cohort"
  rest = take(4, first, WHOLE, batch=4, second=second, parts=parts, first=2)
  assert_same(rest, stream[2:])


def test_parts_of_a_batch_change_no_patch(entries):
  """Only the order of a batch's samples; who reads a row of it is another matter."""
  first, second = entries[:1], entries[1:]
  whole, parted = (take(3, first, batch=8, second=second, parts=parts) for parts in (1, 2))
  for one, other in zip(whole, parted, strict=True):
    own, theirs = ({x.tobytes() for x in batch["image"]} for batch in (one, other))
    assert own == theirs and len(own) == 8
  part = take(3, first, batch=8, second=second, parts=2, rows=[1, 2, 6])
  assert_same(part, [{name: x[[1, 2, 6]] for name, x in batch.items()} for batch in parted])


def test_the_rows_of_the_only_process_are_all():
  for shape in ((1, 1), (4, 2), (2, 4)):
    mesh = make_mesh(*shape)
    assert rows_here(batch_sharding(mesh)["image"], 8) == list(range(8))


def test_batches_of_one(entries):
  (four,) = take(1, entries, batch=4)
  singles = take(4, entries, batch=1)
  assert_same([{k: np.concatenate([s[k] for s in singles]) for k in four}], [four])


def test_each_pass_has_every_case_once_and_an_order_of_its_own(entries):
  opened = [open_entry(path).images for path in entries]
  orders = []
  for batch in take(6, entries, WHOLE, batch=len(entries)):  # a pass a batch
    orders.append(
      tuple(next(i for i, x in enumerate(opened) if np.array_equal(x, y)) for y in batch["image"])
    )
  assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
  assert len(set(orders)) > 2


def test_a_case_gives_another_patch_in_every_pass(entries):
  drawn = take(
    8,
    entries[:1],
    SamplingSettings(patch=(4, 4, 4), foreground_oversampling=0.0, workers=0),
    batch=1,
  )
  assert len({batch["image"].tobytes() for batch in drawn}) > 5


def test_batches_come_to_the_devices_in_their_shards(entries):
  mesh = make_mesh(2, 2)
  (batch,) = take(1, entries, SMALL, batch=4)
  arrays = to_devices(batch, range(4), batch_sharding(mesh), 4)
  assert arrays["image"].sharding == NamedSharding(mesh, P("data", None, "space"))
  assert arrays["label"].sharding == NamedSharding(mesh, P("data", "space"))
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, batch[name])
  shapes = {shard.data.shape for shard in arrays["image"].addressable_shards}
  assert shapes == {(2, 4, 3, 4, 8)}
