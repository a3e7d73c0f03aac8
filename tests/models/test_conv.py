"""The forms of the 3-D convolution: one result, the same gradients, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models.conv import conv3d
from kd_jax.training.mesh import make_mesh

OTHERS = ("depth_taps", "depth_stack", "winograd", "auto")
SHAPES = {  # (B, D, H, W), C, F
  "even depth": ((2, 8, 6, 5), 5, 4),
  "odd depth": ((1, 7, 4, 6), 6, 3),
  "one slice": ((2, 1, 5, 4), 5, 2),
  "two slices": ((1, 2, 3, 4), 8, 8),
  "one channel": ((2, 5, 6, 4), 1, 8),
}


def arrays(shape, channels, features, dtype, seed=0):
  """Image, kernel and what is pulled back."""
  rng = np.random.default_rng(seed)
  shapes = (*shape, channels), (3, 3, 3, channels, features), (*shape, features)
  return [rng.standard_normal(s).astype(dtype) for s in shapes]


def output_and_gradients(impl, x, kernel, pull):
  y, back = jax.vjp(lambda x, kernel: conv3d(x, kernel, impl=impl), x, kernel)
  return dict(zip(("output", "to x", "to kernel"), (y, *back(pull)), strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("case", SHAPES)
def test_all_forms_agree_with_the_native_one(case, dtype, bound):
  """To `bound` of the largest value, also in the gradients."""

  def every(*args):
    return {impl: output_and_gradients(impl, *args) for impl in ("native", *OTHERS)}

  with jax.enable_x64(dtype == "float64"):
    got = jax.device_get(jax.jit(every, compiler_options=QUICK)(*arrays(*SHAPES[case], dtype)))
  for impl in OTHERS:
    for what, expected in got["native"].items():
      actual = got[impl][what]
      assert (actual.dtype, actual.shape) == (np.dtype(dtype), expected.shape)
      error = np.abs(actual - expected).max() / np.abs(expected).max()
      assert error < bound, (impl, what)


def convolutions(impl, channels, dtype, *, stride=1, size=3, depth=8):
  """(batch, channels in, channels out) of every convolution that conv3d makes."""
  x = jax.ShapeDtypeStruct((1, depth, 8, 8, channels), dtype)
  kernel = jax.ShapeDtypeStruct((size, size, size, channels, 16), dtype)
  program = jax.make_jaxpr(lambda x, kernel: conv3d(x, kernel, stride, impl=impl))(x, kernel)
  made = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
  return [(e.invars[0].aval.shape[0], *e.invars[1].aval.shape[-2:]) for e in made]


def test_each_form_does_the_products_that_its_name_says():
  assert convolutions("native", 16, "float32") == [(1, 16, 16)]
  assert convolutions("depth_taps", 16, "float32") == [(8, 16, 16)] * 3
  assert convolutions("depth_stack", 16, "float32") == [(8, 48, 16)]
  assert convolutions("winograd", 16, "float32") == [(4, 16, 16)] * 4
  assert convolutions("winograd", 16, "float32", depth=7) == [(4, 16, 16)] * 4


@pytest.mark.parametrize(
  ("form", "channels", "dtype", "options"),
  [
    ("winograd", 16, "float32", {}),
    ("depth_stack", 1, "float32", {}),
    ("depth_taps", 16, "bfloat16", {}),
    ("depth_taps", 1, "bfloat16", {}),
    ("depth_taps", 16, "float32", {"stride": 2}),
    ("depth_taps", 2, "float32", {"size": 7}),
    ("depth_taps", 16, "float32", {"depth": 1}),
  ],
)
def test_auto_chooses_by_backend_shape_and_type(monkeypatch, form, channels, dtype, options):
  auto = convolutions("auto", channels, dtype, **options)
  assert auto == convolutions(form, channels, dtype, **options)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert convolutions("auto", channels, dtype, **options) == [(1, channels, 16)]


@pytest.mark.parametrize(
  ("impl", "size", "stride"), [("winograd", 3, 2), ("winograd", 5, 1), ("depth", 3, 1)]
)
def test_a_form_that_cannot_be_is_refused(impl, size, stride):
  with pytest.raises(ValueError, match="impl = "):
    convolutions(impl, 8, "float32", size=size, stride=stride)


@pytest.mark.parametrize(
  ("impl", "mesh", "depth"),
  [
    ("winograd", (4, 1), 4),
    ("winograd", (2, 2), 4),
    ("winograd", (2, 4), 16),
    ("depth_stack", (2, 2), 4),
    ("depth_stack", (2, 4), 16),
  ],
)
def test_on_a_mesh_everything_is_as_on_one_device(impl, mesh, depth):
  """Two in a row, so that the first one's output and pulled-back array are split too."""
  x, first, pull = arrays((4, depth, 6, 4), 6, 8, "float32")
  second = arrays((1, 1, 1, 1), 8, 8, "float32", seed=1)[1]

  def gradients(form, x, first, second, pull):
    def chain(*args):
      x, first, second = args
      return conv3d(jnp.sin(conv3d(x, first, impl=form)), second, impl=form)

    y, back = jax.vjp(chain, x, first, second)
    return y, *back(pull)

  devices = make_mesh(*mesh)
  whole, split = NamedSharding(devices, P()), NamedSharding(devices, P("data", "space"))
  expected = jax.jit(lambda *a: gradients("native", *a), compiler_options=QUICK)
  program = jax.jit(
    lambda *a: gradients(impl, *a),
    in_shardings=(split, whole, whole, split),
    out_shardings=(split, split, whole, whole),
    compiler_options=QUICK,
  )
  args = (x, first, second, pull)
  names = ("output", "to x", "to the first kernel", "to the second")
  for what, got, want in zip(names, program(*args), expected(*args), strict=True):
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), what
