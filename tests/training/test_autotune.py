"""Measuring the forms of a run's convolutions: which ones, how, and where the times stay."""

import json
import re

import jax
import jaxlib
import pytest

from kd_jax.models import conv_choice, conv_forms
from kd_jax.models.conv_choice import Convolution, Times
from kd_jax.runs.layout import CONVOLUTIONS_FILE
from kd_jax.runtime import files
from kd_jax.settings import presets
from kd_jax.training import autotune

TINY = Convolution(1, (4, 4, 4), 2, (3, 3, 3), 2, 1, "float32")


def told_progress(done, count, name):
  assert 0 < done <= count and name


def settings(autotune=True, **more):
  overrides = {
    "model.filters": (4, 8, 16, 32),
    "model.dtype": "float32",
    "data.patch": (16, 24, 32),
    "data.batch": 2,
    "train.autotune": autotune,
    **more,
  }
  return presets.settings("brats21:mtcm_kd", overrides)


@pytest.fixture
def measured(monkeypatch, tmp_path):
  """What was measured; nothing is run, and the cache is the test's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  done = []

  def measure(convolution, direction, forms, options):
    done.append((convolution, direction))
    return Times(convolution, direction, tuple((form, 1.0 + n) for n, form in enumerate(forms)))

  monkeypatch.setattr(autotune, "measure", measure)
  return done


def test_all_convolutions_of_the_networks_are_found():
  found = autotune.convolutions_of(settings())
  at = {(c.sides, c.channels, c.features, c.stride): count for c, count in found.items()}
  assert {(c.batch, c.window, c.dtype) for c in found} == {(2, (3, 3, 3), "float32")}
  assert at[(16, 24, 32), 1, 4, 1] == 2 * 4  # stems: two a network
  assert at[(16, 24, 32), 12, 4, 1] == 2 * 4  # of the last decoder stage
  assert at[(16, 24, 32), 4, 8, 2] == 2 * 4
  assert at[(2, 3, 4), 32, 32, 1] == 4
  assert len(at) == 2 + 3 * 2 + 3  # stem, three stages down (a stride each), three up


def test_parts_of_a_batch_are_measured_as_they_are_computed():
  found = autotune.convolutions_of(settings(**{"train.accumulate": 2}))
  assert {c.batch for c in found} == {1}


def test_small_convolutions_take_the_forms_of_others():
  counts = autotune.convolutions_of(settings())
  worth = autotune.worth_measuring(counts)
  assert set(worth) < set(counts)
  assert worth[0].sides == (16, 24, 32) and worth[0].channels == 12  # the largest
  assert {c.sides for c in counts} - {c.sides for c in worth} == {(2, 3, 4)}  # the coarsest level


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_candidate_can_be(platform):
  for stride, channels, features in ((1, 1, 32), (1, 32, 32), (2, 32, 64), (1, 256, 256)):
    for size in (3, 7):
      c = Convolution(1, (8,) * 3, channels, (size,) * 3, features, stride, "bfloat16")
      for direction in conv_forms.DIRECTIONS:
        forms = autotune.candidates(c, direction, platform)
        assert len(forms) == len(set(forms)) >= (1 if size == 7 else 2)
        assert all(conv_forms.possible(form, direction, c.window, stride) for form in forms)
        assert ("winograd" in forms) <= (platform == "cpu")


def test_the_times_are_those_of_the_forms():
  times = autotune.measure(TINY, "to_kernel", ["native", "depth_taps"])
  assert times.convolution == TINY and times.direction == "to_kernel"
  assert [form for form, ms in times.ms] == ["native", "depth_taps"]
  assert all(0 < ms < 1000 for form, ms in times.ms)


def test_a_form_that_fails_is_left_out(monkeypatch):
  def fails(*args):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

  monkeypatch.setitem(conv_forms.FORMS, "native", fails)
  assert [f for f, _ in autotune.measure(TINY, "forward", ["native", "depth_taps"]).ms] == [
    "depth_taps"
  ]


def test_what_was_measured_once_is_not_measured_again(measured, tmp_path):
  told = []
  first = autotune.tuned([TINY], (), tmp_path, told.append, told_progress)
  assert [t.direction for t in first] == ["forward", "to_kernel"]  # an image needs no gradient
  assert re.search("measuring 2 convolutions on cpu", told[0])
  kept = tmp_path / f"cpu-{files.slug(jaxlib.__version__)}.json"
  assert str(kept) in told[1]
  other = TINY._replace(channels=8)
  again = autotune.tuned([TINY, other], (), tmp_path, told.append, told_progress)
  assert again[:2] == first
  assert measured == [(TINY, "forward"), (TINY, "to_kernel")] + [
    (other, direction) for direction in conv_forms.DIRECTIONS
  ]
  other_options = (("xla_cpu_enable_fast_math", True),)
  assert autotune.tuned([TINY], other_options, tmp_path, told.append, told_progress) == first
  assert len(measured) == 2 + 3 + 2
  kept.write_text("{")  # spoilt: measured anew
  assert autotune.tuned([TINY], (), tmp_path, told.append, told_progress) == first
  assert len(measured) == 2 + 3 + 2 + 2


def test_times_that_cannot_be_kept_are_used_all_the_same(measured, tmp_path):
  told = []
  (tmp_path / "file").write_text("")
  times = autotune.tuned([TINY], (), tmp_path / "file", told.append, told_progress)
  assert len(times) == 2
  assert "could not be kept" in told[-1]


def test_a_run_keeps_the_times_that_it_began_with(measured, tmp_path):
  told = []
  began = autotune.for_run(settings(), tmp_path, told.append, lambda label: told_progress)
  assert measured and began.times and began.platform == "cpu"
  record = json.loads((tmp_path / CONVOLUTIONS_FILE).read_text())
  assert record["device"] == "cpu" and len(record["rows"]) == len(measured)
  record["rows"] = [row | {"ms": {"native": 1.0}} for row in record["rows"]]  # as another day says
  (tmp_path / CONVOLUTIONS_FILE).write_text(json.dumps(record))
  count = len(measured)
  later = autotune.for_run(settings(), tmp_path, told.append, lambda label: told_progress)
  assert len(measured) == count
  assert later.choose(TINY).forward == "native"


def test_nothing_is_measured_unless_asked_for(measured, tmp_path):
  usual = autotune.for_run(settings(autotune=False), tmp_path, print, lambda label: told_progress)
  assert usual == conv_choice.of_platform("cpu") and not measured
  assert not list(tmp_path.iterdir())
