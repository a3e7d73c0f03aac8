"""train.remat = "auto": what a step takes is estimated, and the first remat that fits is taken."""

import functools

import jax
import jax.numpy as jnp
import pytest

from kd_jax.models.conv import Forms
from kd_jax.models.conv_choice import Convolutions, of_platform
from kd_jax.models.remat import REMATS
from kd_jax.runtime import processes
from kd_jax.runtime.errors import UserError
from kd_jax.settings import presets
from kd_jax.training import memory, program

ONE = {"data": 1, "space": 1}
CPU, GPU = map(of_platform, ("cpu", "gpu"))
STATE = 0.5e9  # of four networks of the paper's size, with AdamW and the student's average
STATES = {"student_only": 0.17e9, "": 0.26e9, "mtcm_kd": STATE}
_kept_bytes = memory.kept_bytes

# GB of whole steps, by XLA's account for an H200; see the table in training/memory.py.
COMPILED = {
  ("student_only", 1): {"none": 3.27, "norms": 2.29, "stages": 1.90},
  ("student_only", 2): {"none": 6.37, "norms": 4.13},
  ("mtcm_kd", 1): {"none": 11.65, "norms": 7.03, "stages": 5.47},
  ("", 1): {"none": 8.20, "norms": 4.43},
  ("", 2): {"none": 16.12, "norms": 8.85},
}


def paper(variants="", batch=1, **changes):
  """A recipe at the paper's size on an accelerator."""
  settings = {
    "model.filters": (32, 64, 128, 256),
    "model.dtype": "bfloat16",
    "data.patch": (128, 128, 128),
    "data.batch": batch,
    **changes,
  }
  return presets.settings(f"brats21:{variants}", settings)


@functools.cache
def kept(variants, batch, remat):
  """As `memory.kept_bytes`; tracing four networks takes seconds."""
  return _kept_bytes(paper(variants, batch), remat, GPU)


def first(limit, variants="", batch=1):
  settings = paper(variants, batch)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(memory, "kept_bytes", lambda _, remat, **__: kept(variants, batch, remat))
    return memory.first_that_fits(settings, GPU, ONE, STATES[variants], limit)


def test_less_is_kept_where_less_fits():
  """Batch 2 of the default recipe fits into 24 GB, batch 1 into 12, with all that is kept."""
  for batch, limit in ((2, 24e9), (1, 12e9)):
    choice = first(limit, batch=batch)
    assert choice.remats == REMATS
    assert memory.SAVES_MORE not in choice.line
  assert first(12e9, batch=2).remats == ("norms", "stages")
  assert first(12e9, "mtcm_kd").remats == ("norms", "stages")
  assert first(6.3e9, "mtcm_kd").remats == ("stages",)


@pytest.mark.parametrize(("variants", "batch"), COMPILED)
def test_the_estimate_is_near_what_xla_takes(variants, batch):
  """A little above it: a step that does not fit costs a second compilation."""
  for remat, gb in COMPILED[variants, batch].items():
    own = functools.partial(kept, variants, batch)
    settings, state = paper(variants, batch), STATES[variants]
    estimate = memory.step_bytes(settings, 2, ONE, state, remat, own)
    assert 0.97 < estimate / (gb * 1e9) < 1.15, (remat, estimate)


def test_where_nothing_fits_it_is_tried_and_remedies_are_named():
  choice = first(3e9)
  assert choice.remats == ("stages",)
  assert "train.accumulate" in choice.line and "of 3.0 GB" in choice.line


def test_what_the_remedies_save():
  def norms(mesh=ONE, **changes):
    settings = paper("student_only", 4, **changes)
    own = functools.partial(memory.kept_bytes, settings, convolutions=GPU)
    return memory.step_bytes(settings, 2, mesh, STATE, "norms", own) - STATE

  usual = norms()
  assert norms(**{"train.accumulate": 4}) < 0.5 * usual
  assert norms({"data": 2, "space": 2}) == pytest.approx(usual / 4)
  assert norms(**{"data.patch": (64, 128, 128)}) == pytest.approx(usual / 2, rel=0.02)
  assert norms(**{"train.skip_nonfinite": 3}) == usual + STATE


@pytest.mark.parametrize("remat", ["none", "norms"])
def test_the_estimate_does_not_depend_on_how_convolutions_are_computed(remat):
  forms = Forms("depth_stack_2", "transposed_depth_stack", "depth_stack_4")
  stacked = Convolutions("gpu", forms=forms)
  usual = memory.kept_bytes(paper("student_only"), remat, GPU)
  assert memory.kept_bytes(paper("student_only"), remat, stacked) == usual


def test_cpu_and_devices_that_do_not_tell_keep_everything(monkeypatch):
  assert memory.choose(paper(), CPU, ONE, STATE).remats == ("none",)
  monkeypatch.setattr(memory, "memory_limit", lambda: None)
  assert memory.choose(paper(), of_platform("tpu"), ONE, STATE).remats[0] == "none"


def test_what_the_user_says_holds(monkeypatch):
  monkeypatch.setattr(memory, "memory_limit", lambda: 10**9)
  choice = memory.choose(paper(**{"train.remat": "norms"}), GPU, ONE, STATE)
  assert choice.remats == ("norms",)


def test_all_processes_decide_by_the_smallest_device(monkeypatch):
  monkeypatch.setattr(memory, "kept_bytes", lambda _, remat, **__: kept("", 2, remat))
  monkeypatch.setattr(memory, "memory_limit", lambda: 80 * 10**9)
  monkeypatch.setattr(processes, "gather", lambda own: [own, 12 * 10**9])
  choice = memory.choose(paper(batch=2), GPU, ONE, STATE)
  assert (choice.remats, choice.limit) == (("norms", "stages"), 12 * 10**9)
  monkeypatch.setattr(processes, "gather", lambda own: [own, None])
  assert memory.choose(paper(batch=2), GPU, ONE, STATE).limit is None


# --- What is compiled -------------------------------------------------------------------------


def step_of(remat):
  """A step that takes 4 kB for "stages", and more before it."""
  copies = {"none": 64, "norms": 8, "stages": 1}[remat]
  return jax.jit(lambda x: jnp.tile(x, copies))


def compiled(limit, remats=REMATS, make=step_of):
  told = []
  x = jax.ShapeDtypeStruct((500,), jnp.float32)
  choice = memory.Choice(remats, limit, "")
  return program.compile_step(make, (x,), choice, (), told.append), told


def test_a_program_that_is_too_large_is_compiled_with_less_kept():
  found, told = compiled(10**6)
  assert (found.remat, told) == ("none", [])
  assert found.run(jnp.ones(500)).shape == (64 * 500,)
  found, told = compiled(20_000)
  assert found.remat == "norms" and found.bytes < 20_000
  assert len(told) == 1 and "remat none takes 0.00" in told[0]
  found, told = compiled(100)  # nothing fits: the least is taken all the same
  assert found.remat == "stages" and len(told) == 2
  assert "too much: train.accumulate" in str(found)
  found, told = compiled(None)
  assert found.remat == "none" and "GB" in str(found)


def test_all_processes_compile_the_same(monkeypatch):
  monkeypatch.setattr(processes, "gather", lambda own: [own, False])
  assert compiled(10**6)[0].remat == "stages"


def test_a_compiler_that_runs_out_of_memory_is_no_end():
  """As XLA for TPU does; of a user's own choice the error has remedies."""

  class TooLarge:
    def lower(self, *_):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

  def make(remat):
    return TooLarge() if remat == "none" else step_of(remat)

  found, told = compiled(10**6, make=make)
  assert found.remat == "norms" and "does not fit" in told[0]
  with pytest.raises(UserError, match=r"does not fit into the device.*train\.accumulate"):
    compiled(10**6, ("none",), make)
