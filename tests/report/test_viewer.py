import base64
import gzip
import importlib.metadata
import io
import json
import re
import struct

import browser
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from kd_jax.data import nifti
from kd_jax.report import viewer
from kd_jax.report.slices import COLOURS
from kd_jax.runtime.errors import UserError

SHAPE = (40, 48, 32)
# Turned and not cubic: a mistake in any axis shows.
AFFINE = np.array(
  [[-1.0, 0.05, 0, 30], [-0.05, -1.2, 0.1, 25], [0, 0.1, 1.5, -20], [0, 0, 0, 1]], float
)
PLAIN = np.array([[-1, 0, 0, 20], [0, -1, 0, 24], [0, 0, 1, -16], [0, 0, 0, 1]], float)
# Chromium draws WebGL without a GPU.
WEBGL = ("--enable-unsafe-swiftshader", "--use-angle=swiftshader")
MAIN = (336, 42)  # where the drawing begins on the page: left, top


def scan(affine=AFFINE, fill=100):
  """A box of tissue in an empty background, bright at the front."""
  data = np.zeros(SHAPE, np.int16)
  data[6:34, 6:42, 4:28] = fill
  data[6:34, 6:12, 4:28] = 400
  image = nib.Nifti1Image(data, affine)
  return nifti.decode(image.to_bytes())


def classes(shift=0):
  """On the right and high up: a block of ED with ET on one side and NCR in it."""
  y = np.zeros(SHAPE, np.uint8)
  y[8 + shift : 18 + shift, 14:24, 16:25] = 2
  y[10 + shift : 12 + shift, 16:22, 18:23] = 1
  y[12 + shift : 15 + shift, 16:22, 18:23] = 3
  return y


@pytest.fixture
def no_script(monkeypatch):
  """Pages without NiiVue, which these tests do not need."""
  monkeypatch.setattr(viewer, "niivue", lambda: ('x = "</script><!--";', "0"))


def written(folder, title="case", truth=True, affine=AFFINE):
  path = folder / "case.html"
  viewer.write_page(path, title, scan(affine), classes(), classes(3) if truth else None, "t1ce")
  return path


def case_of(path):
  found = re.search(r'<script type="application/json" id="case">(.*?)</script>', path.read_text())
  return json.loads(found[1])


def volume_of(text):
  return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_the_embedded_volumes_are_the_given_ones_on_the_scans_grid(tmp_path, no_script):
  case = case_of(written(tmp_path))

  expected = {"prediction": classes(), "truth": classes(3)}
  assert list(case["maps"]) == list(expected)
  for name, data in expected.items():
    image = volume_of(case["maps"][name])
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), data)
    np.testing.assert_allclose(image.affine, scan().affine, atol=1e-5)
    assert image.get_data_dtype() == np.uint8
  image = volume_of(case["scan"])
  np.testing.assert_allclose(image.affine, scan().affine, atol=1e-5)
  np.testing.assert_array_equal(np.asanyarray(image.dataobj) > 0, scan().data > 0)


def test_the_affine_is_of_the_axes_that_the_maps_are_in(tmp_path, no_script):
  stored = scan(np.diag([1, 1, 1, 1.0]))  # RAS in the file: turned on reading
  assert stored.affine[0, 0] == -1
  predicted = np.zeros(SHAPE, np.uint8)
  predicted[3, 4, 5] = 3
  viewer.write_page(tmp_path / "p.html", "case", stored, predicted, None, "t1")

  image = volume_of(case_of(tmp_path / "p.html")["maps"]["prediction"])
  at = np.argwhere(np.asanyarray(image.dataobj))[0]
  expected = [SHAPE[0] - 1 - 3, SHAPE[1] - 1 - 4, 5]
  np.testing.assert_allclose(image.affine @ [*at, 1], [*expected, 1])


def test_surfaces_lie_around_their_class_in_mm(tmp_path, no_script):
  case = case_of(written(tmp_path))

  shown = {(s["map"], s["class"]): s for s in case["surfaces"]}
  assert set(shown) == {(m, c) for m in ("prediction", "truth") for c in (1, 2, 3)} | {(None, 0)}
  raw = gzip.decompress(base64.b64decode(shown["truth", 3]["mz3"]))
  magic, kind, faces, count, skip = struct.unpack("<HHIII", raw[:16])
  assert (magic, kind, skip) == (0x5A4D, 3, 0)
  assert len(raw) == 16 + 12 * faces + 12 * count
  triangles = np.frombuffer(raw, "<i4", 3 * faces, 16)
  mm = np.frombuffer(raw, "<f4", 3 * count, 16 + 12 * faces).reshape(-1, 3)
  assert triangles.max() == count - 1
  back = (mm - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T
  voxels = np.argwhere(classes(3) == 3)
  np.testing.assert_allclose(back.min(axis=0), voxels.min(axis=0) - 0.5, atol=0.4)
  np.testing.assert_allclose(back.max(axis=0), voxels.max(axis=0) + 0.5, atol=0.4)


def test_what_is_seen_through_is_drawn_last(tmp_path, no_script):
  opacities = [s["opacity"] for s in case_of(written(tmp_path))["surfaces"]]
  assert opacities == sorted(opacities, reverse=True)


def test_the_first_view_goes_through_tumour(tmp_path, no_script):
  focus = case_of(written(tmp_path))["focus_mm"]
  at = np.rint(np.linalg.inv(AFFINE) @ [*focus, 1])[:3].astype(int)
  assert classes()[tuple(at)] > 0


def test_no_tumour_at_all_is_a_page_too(tmp_path, no_script):
  nothing = np.zeros(SHAPE, np.uint8)
  viewer.write_page(tmp_path / "p.html", "case", scan(), nothing, nothing, "t1ce")
  case = case_of(tmp_path / "p.html")
  assert case["focus_mm"] is None
  assert [s["class"] for s in case["surfaces"]] == [0]


def test_a_page_without_truth_has_none(tmp_path, no_script):
  path = written(tmp_path, truth=False)
  assert list(case_of(path)["maps"]) == ["prediction"]
  assert 'data-truth="no"' in path.read_text()
  assert 'class="truth"' not in path.read_text()


def test_the_page_asks_for_no_other_file(tmp_path, no_script):
  text = written(tmp_path).read_text()
  without_notice = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  assert not re.search(r"\b(src|href|srcset|action)\s*=", without_notice)
  assert "url(" not in without_notice and "@import" not in without_notice
  assert "default-src 'none'" in text


def test_text_from_outside_stays_text(tmp_path, no_script):
  title = '</title><script>alert(1)</script>&"{{CASE}}{% raw %}'
  text = written(tmp_path, title).read_text()
  assert "<script>alert" not in text
  escaped = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;&#34;{{CASE}}{% raw %}"
  assert f"<h1>{escaped}</h1>" in text and f"<title>{escaped}</title>" in text
  assert 'x = "<\\/script><\\!--";' in text  # of the script, which may hold these too


def test_the_page_says_what_it_is_and_keeps_the_viewers_notice(tmp_path, no_script):
  text = written(tmp_path).read_text()
  assert "not a medical device" in text
  assert "Redistributions in binary form must reproduce the above copyright" in text


def test_the_table_has_volumes_and_dice(tmp_path, no_script):
  text = written(tmp_path).read_text()
  ml = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
  predicted = (classes() > 0).sum() * ml
  assert f"<tr><th>WT</th><td>{predicted:.1f}</td><td>{predicted:.1f}</td><td>0.700</td>" in text


def test_intensities_are_windowed_and_the_background_stays():
  x = np.zeros((10, 10, 30), np.float32)
  x[..., 1:] = np.linspace(-50, 1000, 2900).reshape(10, 10, 29)
  x[0, 0, 5] = np.nan
  grey = viewer.intensities(x)
  assert (grey[..., 0] == 0).all() and grey[0, 0, 5] == 0
  assert grey[0, 0, 1] == 1 and grey[9, 9, 29] == 255
  assert grey[..., 1:].reshape(-1)[1450] == pytest.approx(1 + 254 * 0.498, abs=2)
  assert not viewer.intensities(np.zeros((2, 2, 2))).any()


@pytest.mark.parametrize("broken", [np.zeros((2, 3, 4), np.uint8), np.full(SHAPE, 4, np.uint8)])
def test_maps_that_do_not_fit_are_refused(tmp_path, no_script, broken):
  with pytest.raises(ValueError, match="truth has"):
    viewer.write_page(tmp_path / "p.html", "case", scan(), classes(), broken, "t1ce")
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "distribution", missing)
  with pytest.raises(UserError, match=r"nilearn.*pip install 'kd_jax\[report\]'"):
    written(tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_package_without_the_viewer_is_named(monkeypatch):
  class Package:
    version, files = "0.13.1", ()

  monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Package)
  with pytest.raises(UserError, match=r"nilearn 0\.13\.1 has no NiiVue; pip install"):
    viewer.niivue()


# In a browser.


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  pytest.importorskip("nilearn", reason="the page's viewer comes with nilearn")
  path = written(tmp_path_factory.mktemp("page"), affine=PLAIN)
  with browser.page(path, width=1400, height=900, flags=WEBGL, seconds=60) as page:
    page.wait_for("document.body.dataset.state")
    page.evaluate("document.querySelector('#crosshair').click()")  # off: it covers colours
    page.evaluate("document.querySelector('#smooth').click()")  # off: no blended colours
    yield page


def drawn(page):
  """(height, width, 3) of the part of the page that NiiVue draws, as left, top, axial first."""
  page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
  shot = Image.open(io.BytesIO(page.screenshot(full=False))).convert("RGB")
  return np.asarray(shot)[MAIN[1] :, MAIN[0] :].astype(int)


def slices(page):
  """The picture without its upper right quarter, where the 3-D view is."""
  picture = drawn(page)
  x, y = page.evaluate(
    "(() => { const r = document.querySelector('#space-pane').getBoundingClientRect();"
    "return [r.left, r.bottom].map(Math.round); })()"
  )
  picture[: y - MAIN[1], x - MAIN[0] :] = 0
  return picture[:-60]  # nor the line of text below


def near(picture, colour, tolerance=6):
  return (np.abs(picture - np.asarray(colour)) <= tolerance).all(axis=-1)


def set_range(page, selector, value):
  page.evaluate(
    f"(() => {{ const e = document.querySelector('{selector}'); e.value = {value};"
    "e.dispatchEvent(new Event('input')); })()"
  )


def test_browser_draws_without_errors_or_network(page):
  assert page.evaluate("document.body.dataset.state") == "ready"
  # Chromium's own remark on drawing without a GPU.
  assert not [e for e in page.errors if "GPU stall due to ReadPixels" not in e]
  assert not page.requests
  assert len(page.files) == 1


def test_browser_overlays_have_the_classes_colours_and_switches(page):
  set_range(page, "#opacity", 1)
  page.click("#truth")
  picture = slices(page)
  for cls in (1, 2, 3):
    assert near(picture, COLOURS[cls]).sum() > 200, cls

  page.press("1")
  picture = slices(page)
  assert not near(picture, COLOURS[1]).any() and near(picture, COLOURS[3]).any()
  page.press("1")
  assert near(slices(page), COLOURS[1]).sum() > 200

  page.press("p")
  assert not near(slices(page), COLOURS[2]).any()
  page.press("t")
  picture = slices(page)
  pale = COLOURS[2] + 0.55 * (255 - COLOURS[2])
  assert near(picture, pale).sum() > 100
  page.press("p")
  assert near(slices(page), COLOURS[2]).any()


def test_browser_shows_the_patients_right_on_the_left_and_the_front_above(page):
  set_range(page, "#opacity", 1)
  picture = slices(page)
  height = round(picture.shape[0] * SHAPE[1] / (SHAPE[1] + SHAPE[2])) - 40
  axial = picture[:height, : picture.shape[1] // 2]  # at the top left
  rows, columns = np.nonzero(near(axial, COLOURS[2]))
  front = np.nonzero(axial.min(axis=-1) > 200)  # the scan's bright band, over its whole width
  assert columns.mean() < front[1].mean() - 20
  assert front[0].mean() < rows.mean() - 20


def test_browser_puts_the_overlay_on_the_scans_voxels(tmp_path):
  """A scan that is bright exactly where the prediction is: both have one outline on the screen."""
  pytest.importorskip("nilearn", reason="the page's viewer comes with nilearn")
  predicted = (classes() > 0).astype(np.uint8)
  data = np.where(predicted, 1000, scan().data // 100)
  bright = nifti.decode(nib.Nifti1Image(data.astype(np.int16), PLAIN).to_bytes())
  viewer.write_page(tmp_path / "p.html", "case", bright, predicted, None, "t1ce")
  with browser.page(tmp_path / "p.html", 1400, 900, flags=WEBGL, seconds=60) as page:
    page.wait_for("document.body.dataset.state")
    page.evaluate("document.querySelector('#crosshair').click()")
    page.evaluate("document.querySelector('#smooth').click()")
    set_range(page, "#opacity", 1)
    overlay = near(slices(page), COLOURS[1])
    page.press("p")
    below = slices(page).min(axis=-1) > 200

  assert overlay.sum() > 5000
  letters = 400  # the bright ones: A, S, R, P
  assert (overlay & ~below).sum() == 0
  assert (below & ~overlay).sum() < letters


def test_browser_turns_the_surfaces_under_the_mouse(page):
  x, y, width, height = page.evaluate(
    "(() => { const r = document.querySelector('#space').getBoundingClientRect();"
    "return [r.x, r.y, r.width, r.height]; })()"
  )

  def view():
    left, top = round(x) - MAIN[0], round(y) - MAIN[1]
    return drawn(page)[top : top + round(height), left : left + round(width)]

  before = view()
  red, green, blue = np.moveaxis(before, -1, 0)
  assert ((green > red + 15) & (green > blue + 15)).sum() > 500  # oedema
  assert ((red > blue + 40) & (green > blue + 15)).sum() > 50  # enhancing tumour
  page.mouse("mousePressed", x + width / 2, y + height / 2)
  page.mouse("mouseMoved", x + width / 2 + 60, y + height / 2 + 20, button="left", buttons=1)
  page.mouse("mouseReleased", x + width / 2 + 60, y + height / 2 + 20)
  assert (np.abs(view() - before).max(axis=-1) > 20).sum() > 1000


def test_browser_moves_through_slices_with_keys_and_sliders(page):
  at = "Number(document.querySelector('.slice[data-axis=\"2\"]').value)"
  first = page.evaluate(at)
  page.press("ArrowUp")
  assert page.evaluate(at) == first + 1
  set_range(page, '.slice[data-axis="2"]', 3)
  assert (
    page.evaluate("Math.round(viewer.planes.frac2vox(viewer.planes.scene.crosshairPos)[2])") == 2
  )
  assert page.evaluate("document.querySelector('#here').textContent").endswith(
    "prediction: background; truth: background"
  )
  page.press("r")
  assert page.evaluate(at) == first
  assert "prediction: E" in page.evaluate("document.querySelector('#here').textContent")


def test_browser_without_webgl_says_so(tmp_path, no_script):
  with browser.page(written(tmp_path), flags=("--disable-3d-apis",)) as page:
    page.wait_for("document.body.dataset.state")
    said = page.evaluate("document.querySelector('#problem').innerText")
    assert "WebGL 2 is missing" in said and "hardware acceleration" in said
    assert page.evaluate("document.querySelector('#problem').checkVisibility()")
    assert not page.errors
