"""The forms of the 3-D convolution: one result, the same gradients, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from quick import QUICK

from kd_jax.models import conv_forms
from kd_jax.models.conv import Forms, conv3d
from kd_jax.models.conv_forms import DIRECTIONS
from kd_jax.training.mesh import make_mesh

SHAPES = {  # (B, D, H, W), C, F, window, stride
  "even depth": ((2, 6, 4, 5), 5, 4, (3, 3, 3), 1),
  "odd depth": ((1, 7, 4, 3), 3, 6, (3, 3, 3), 1),
  "one slice": ((2, 1, 5, 4), 5, 2, (3, 3, 3), 1),
  "one channel": ((1, 5, 6, 4), 1, 8, (3, 3, 3), 1),
  "stride 2": ((1, 6, 4, 8), 3, 2, (3, 3, 3), 2),
  "stride 2, odd sides": ((2, 7, 5, 3), 2, 3, (3, 3, 3), 2),
  "wide window": ((1, 5, 4, 6), 2, 1, (7, 7, 7), 1),
  "uneven window": ((1, 4, 5, 6), 2, 3, (1, 3, 5), 2),
}


def naive_conv3d(x, kernel, stride):
  """Tap by tap, in float64, padded by k // 2 on both sides."""
  pads = [(k // 2, k // 2) for k in kernel.shape[:3]]
  padded = np.pad(x, [(0, 0), *pads, (0, 0)])
  shape = [-(-n // stride) for n in x.shape[1:4]]
  out = np.zeros((x.shape[0], *shape, kernel.shape[-1]))
  for tap in np.ndindex(kernel.shape[:3]):
    box = [slice(t, t + (n - 1) * stride + 1, stride) for t, n in zip(tap, shape, strict=True)]
    out += padded[(slice(None), *box)] @ kernel[tap]
  return out


def arrays(case, seed=0):
  """Image, kernel, what is pulled back, and the output."""
  shape, channels, features, window, stride = SHAPES[case]
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((*shape, channels))
  kernel = rng.standard_normal((*window, channels, features))
  y = naive_conv3d(x, kernel, stride)
  return x, kernel, rng.standard_normal(y.shape), y


def every_form(case, dtype):
  """(direction, form) -> result, of all forms that can be, from one compiled program."""
  *_, window, stride = SHAPES[case]
  x, kernel, pull, _ = arrays(case)

  def run(x, kernel, pull):
    results = {}
    for direction in DIRECTIONS:
      for form in conv_forms.names(direction):
        if not conv_forms.possible(form, direction, window, stride):
          continue
        if direction == "forward":
          y = conv_forms.forward(form, x, kernel, stride)
        elif direction == "to_input":
          y = conv_forms.to_input(form, pull, kernel, stride, x.shape)
        else:
          y = conv_forms.to_kernel(form, x, pull, stride, kernel.shape)
        results[direction, form] = y
    return results

  with jax.enable_x64(dtype == "float64"):
    arguments = [jnp.asarray(a, dtype) for a in (x, kernel, pull)]
    return jax.device_get(jax.jit(run, compiler_options=QUICK)(*arguments))


@pytest.mark.parametrize("case", SHAPES)
def test_all_forms_agree_in_all_directions(case):
  """In float64 to 1e-12 of the largest value; XLA's own form with a sum over taps."""
  *_, expected = arrays(case)
  got = every_form(case, "float64")
  np.testing.assert_allclose(got["forward", "native"], expected, atol=1e-10)
  own = {"forward": "native", "to_input": "transposed_native", "to_kernel": "native"}
  for (direction, form), actual in got.items():
    reference = got[direction, own[direction]]
    assert (actual.dtype, actual.shape) == (np.dtype("float64"), reference.shape)
    error = np.abs(actual - reference).max() / np.abs(reference).max()
    assert error < 1e-12, (direction, form)
  # Are the gradients gradients? The convolution is linear in each argument.
  x, kernel, pull, _ = arrays(case)
  for name, by in (("to_input", x), ("to_kernel", kernel)):
    np.testing.assert_allclose(
      (got[name, own[name]] * by).sum(), (pull * expected).sum(), rtol=1e-9
    )


@pytest.mark.parametrize("case", ["even depth", "one channel", "stride 2"])
def test_the_error_of_16_bits_is_that_of_their_rounding(case):
  """Against float64, of the largest value: bfloat16 rounds by 2^-9, Winograd's sums by more."""
  exact, got = every_form(case, "float64"), every_form(case, "bfloat16")
  for (direction, form), actual in got.items():
    reference = exact[direction, form]
    error = np.abs(actual.astype(float) - reference).max() / np.abs(reference).max()
    assert error < (0.05 if "winograd" in form else 0.02), (direction, form, error)


@pytest.mark.parametrize(
  ("form", "direction", "window", "stride"),
  [
    ("winograd", "forward", (3, 3, 3), 2),
    ("winograd", "to_kernel", (5, 3, 3), 1),
    ("depth", "forward", (3, 3, 3), 1),
    ("native", "to_input", (3, 3, 3), 2),
    ("cubes", "to_input", (3, 3, 3), 1),
    ("cubes", "forward", (3, 3, 3), 2),
  ],
)
def test_a_form_that_cannot_be_is_refused(form, direction, window, stride):
  assert not conv_forms.possible(form, direction, window, stride)
  x, kernel = jnp.zeros((1, 4, 4, 4, 2)), jnp.zeros((*window, 2, 2))
  with pytest.raises(ValueError, match=f"form = '{form}' is none for {direction}"):
    if direction == "forward":
      conv_forms.forward(form, x, kernel, stride)
    elif direction == "to_input":
      conv_forms.to_input(form, x, kernel, stride, x.shape)
    else:
      conv_forms.to_kernel(form, x, x, stride, kernel.shape)


def convolutions(form, channels=16, depth=8):
  """(batch, window, inputs, outputs) of every convolution that a form makes."""
  x = jax.ShapeDtypeStruct((1, depth, 8, 8, channels), "float32")
  kernel = jax.ShapeDtypeStruct((3, 3, 3, channels, 16), "float32")
  program = jax.make_jaxpr(lambda x, kernel: conv_forms.forward(form, x, kernel, 1))(x, kernel)
  made = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
  return [(e.invars[0].aval.shape[0], *e.invars[1].aval.shape) for e in made]


def test_each_form_does_the_products_that_its_name_says():
  assert convolutions("native") == [(1, 3, 3, 3, 16, 16)]
  assert convolutions("native_2") == [(1, 4, 3, 3, 16, 32)]
  assert convolutions("native_4") == [(1, 6, 3, 3, 16, 64)]
  assert convolutions("depth_taps") == [(8, 3, 3, 16, 16)] * 3
  assert convolutions("depth_stack") == [(8, 3, 3, 48, 16)]
  assert convolutions("depth_stack_2") == [(4, 3, 3, 64, 32)]
  assert convolutions("depth_stack_4") == [(2, 3, 3, 96, 64)]
  assert convolutions("winograd") == convolutions("winograd", depth=7) == [(4, 3, 3, 16, 16)] * 4
  assert convolutions("patches") == []


# --- With a gradient of its own ---------------------------------------------------------------

STACKED = Forms("depth_stack_2", "depth_stack", "depth_stack_4", apart=True)


def test_nothing_but_image_and_kernel_is_kept_for_the_gradients():
  x = jax.ShapeDtypeStruct((1, 16, 16, 16, 8), jnp.bfloat16)
  kernel = jax.ShapeDtypeStruct((3, 3, 3, 8, 8), jnp.bfloat16)

  def kept(forms):
    def backward(x, kernel):
      return jax.vjp(lambda *args: jnp.sum(conv3d(*args, 1, forms)), x, kernel)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, x, kernel))
    return sum(r.size * r.dtype.itemsize for r in residuals)

  arguments = sum(a.size * a.dtype.itemsize for a in (x, kernel))
  assert kept(STACKED) == kept(Forms("native")) == arguments
  assert kept(Forms("depth_stack")) > 2 * arguments  # what JAX would keep


def test_what_is_stacked_is_stacked_again():
  """XLA would find the same stack in forward and backward pass, and keep it in between."""

  def loss(x, kernel):
    return jnp.sum(jnp.sin(conv3d(x, kernel, 1, STACKED)))

  x, kernel = jnp.zeros((1, 8, 8, 8, 4)), jnp.zeros((3, 3, 3, 4, 4))
  program = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
  assert program.count("optimization_barrier") == 2  # after the convolution, before its gradients


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradients_are_those_of_the_forms(dtype):
  """Also under jax.checkpoint, which the networks' stages use."""
  x, kernel, pull, _ = (jnp.asarray(a, dtype) for a in arrays("odd depth"))

  def gradients(forms, wrap):
    return jax.vjp(wrap(lambda x, kernel: conv3d(x, kernel, 1, forms)), x, kernel)[1](pull)

  def run():
    return [
      gradients(Forms("native"), lambda f: f),
      gradients(STACKED, lambda f: f),
      gradients(STACKED, jax.checkpoint),
    ]

  expected, *others = jax.device_get(jax.jit(run, compiler_options=QUICK)())
  bound = 1e-5 if dtype == "float32" else 0.02
  for got in others:
    for actual, reference in zip(got, expected, strict=True):
      assert actual.dtype == jnp.dtype(dtype)
      actual, reference = actual.astype(float), reference.astype(float)
      assert np.abs(actual - reference).max() < bound * np.abs(reference).max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mesh", [(2, 2), (2, 4)])
@pytest.mark.parametrize(
  "forms",
  [
    Forms("winograd"),
    Forms("depth_stack_2"),
    Forms("depth_stack_4"),
    Forms("depth_stack", "depth_stack_2", "depth_stack"),
    Forms("native_2", "native", "native_2", apart=True),
    Forms("depth_stack_4", "transposed_depth_stack", "depth_stack_4"),
    Forms("patches", "depth_taps", "patches"),
  ],
  ids=lambda forms: f"{forms.forward} {forms.to_input}".strip(),
)
def test_on_a_mesh_everything_is_as_on_one_device(forms, mesh, stride):
  """Two in a row, so that the first one's output and pulled-back array are split too."""
  if stride == 2 and forms.to_input:
    forms = forms._replace(to_input="cubes")
  rng = np.random.default_rng(0)
  sides = [side // stride for side in (16, 6, 4)]
  shapes = (4, 16, 6, 4, 6), (3, 3, 3, 6, 8), (3, 3, 3, 8, 8), (4, *sides, 8)
  x, first, second, pull = (rng.standard_normal(s).astype(np.float32) for s in shapes)

  def gradients(forms, x, first, second, pull):
    def chain(*args):
      x, first, second = args
      last = Forms("native") if stride == 2 and forms.forward == "winograd" else forms
      one = forms if stride == 1 else forms._replace(to_input=forms.to_input and "depth_stack")
      return conv3d(jnp.sin(conv3d(x, first, 1, one)), second, stride, last)

    y, back = jax.vjp(chain, x, first, second)
    return y, *back(pull)

  devices = make_mesh(*mesh)
  whole, split = NamedSharding(devices, P()), NamedSharding(devices, P("data", "space"))
  expected = jax.jit(lambda *a: gradients(Forms("native"), *a), compiler_options=QUICK)
  program = jax.jit(
    lambda *a: gradients(forms, *a),
    in_shardings=(split, whole, whole, split),
    out_shardings=(split, split, whole, whole),
    compiler_options=QUICK,
  )
  args = (x, first, second, pull)
  names = ("output", "to x", "to the first kernel", "to the second")
  for what, got, want in zip(names, program(*args), expected(*args), strict=True):
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max(), what
