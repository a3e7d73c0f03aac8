"""Odd names and broken files from one end to the other: what is written, and what is shown."""

import io
import os
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import rich.console
from students import make_student

from kd_jax.data import nifti
from kd_jax.evaluation.compare import read_scores
from kd_jax.evaluation.masks import evaluate_masks
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict
from kd_jax.prediction.predictor import Predictor, Prepared
from kd_jax.runs.log import RunLog
from kd_jax.runtime.errors import CaseError, UserError, one_line, printable
from kd_jax.runtime.files import write_text
from kd_jax.runtime.terminal import Terminal

NAMES = [
  *("<script>alert(1)<", "<img src=x onerror=a()>", '" onload="a()', "a&amp;b'c", "{{CASE}}$title"),
  *("a\nb", "a\r\x1b]0;owned\x07b", "[bold]x[", "[", "\u202egnp", "größe 日本", "=cmd|' '!A0"),
  *("\udcff\udcfe", "x" * 248, "..a", "%2e%2e%2f", "a\\..\\b", " ", "~", "-rf"),
]
NAMES = [name for name in NAMES if not name.startswith(".")]  # hidden ones are passed over


class Sphere(Predictor):
  """Says ET wherever the scan is bright: nothing is compiled."""

  def probabilities(self, prepared: Prepared) -> np.ndarray:
    et = (prepared.images[0] > 0).astype(np.float32)
    return np.stack([1 - et, 0 * et, 0 * et, et])


def head() -> nib.Nifti1Image:
  """A brain of 1.1 litres, at 5 mm."""
  axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (32, 36, 30)), indexing="ij")
  noise = np.random.default_rng(0).normal(0, 50, axes[0].shape)
  data = np.where(sum(x**2 for x in axes) < 0.8, 500 + noise, 0).astype(np.int16)
  return nib.Nifti1Image(data, np.diag([-5, -5, 5, 1]))


def everything(root: Path) -> set[str]:
  return {os.path.join(folder, name) for folder, _, files in os.walk(root) for name in files}


def test_masks_of_oddly_named_scans_and_what_is_no_scan(tmp_path, terminal):
  scans, output = tmp_path / "scans", tmp_path / "masks"
  scans.mkdir()
  content = head().to_bytes()
  for name in NAMES:
    (scans / f"{name}.nii").write_bytes(content)
  bad = {
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("absent"),
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.touch(),
    "page": lambda path: path.write_text("<html>404</html>"),
    "cut": lambda path: path.write_bytes(content[:-1]),
    "b\x1b[2Jad": lambda path: path.write_bytes(content[:400]),
  }
  for name, make in bad.items():
    make(scans / f"{name}.nii.gz")
  before = everything(tmp_path)
  with pytest.raises(UserError, match=f"{len(bad)} of {len(NAMES) + len(bad)} cases") as e:
    predict(Sphere([make_student()]), scans, Output(output, "brats2018"), terminal)
  assert everything(tmp_path) - before == {
    str(output / name) for name in ("predict.json", *(f"{name}.nii.gz" for name in NAMES))
  }
  for name in NAMES:
    assert nifti.read(output / f"{name}.nii.gz").data.any()
  for text in (str(e.value), terminal.console.file.getvalue()):
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
  assert r"b\x1b[2Jad" in str(e.value)


class Tags(HTMLParser):
  def __init__(self, page: str):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def test_a_report_on_oddly_named_cases(tmp_path, terminal):
  names = [name for name in NAMES if len(name) < 200]
  y = np.zeros((12, 12, 12), np.uint8)
  y[3:8, 3:8, 3:8] = 1
  for folder in ("truth", "masks"):
    (tmp_path / folder).mkdir()
    for name in names:
      image = nib.Nifti1Image(y, np.diag([-1, -1, 1, 1]))
      (tmp_path / folder / f"{name}.nii").write_bytes(image.to_bytes())
  (tmp_path / "masks" / f"{names[0]}.nii").write_bytes(b"broken")
  before = everything(tmp_path)
  folders = (tmp_path / "masks", tmp_path / "truth")
  evaluate_masks(*folders, ("brats2023", "auto"), tmp_path / "out", terminal)
  made = everything(tmp_path) - before
  assert made and all(path.startswith(str(tmp_path / "out") + os.sep) for path in made)
  page = Tags((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
  tags = [tag for tag, _ in page.tags]
  assert tags.count("script") == 1
  assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
  assert all(a.get("src", "data:").startswith("data:") for tag, a in page.tags if tag == "img")
  for name in names:
    if one_line(name) == name:  # control characters are the browser's to show
      assert name.strip() in page.text
  assert len(read_scores(tmp_path / "out" / "scores.csv")) == len(names) - 1
  assert "\x1b" not in terminal.console.file.getvalue()


def test_names_cannot_steer_a_terminal():
  assert printable("a\x1b[2J\x07\x9b\x7f\u202eb\udcff\r") == (
    r"a\x1b[2J\x07\x9b\x7f\u202eb\udcff\r"
  )
  assert printable("größe 日本\n\t[x]") == "größe 日本\n\t[x]"
  assert one_line("a\nb") == r"a\nb"
  assert str(CaseError("a\nb", "c\x1b", "wrong", "Mend.")) == r"case a\nb (c\x1b): wrong. Mend."


@pytest.mark.parametrize("name", ["[/]", "[/bold]", "[red", "\x1b[2J", "a\nb", "\udcff"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_of_any_name(name, is_terminal):
  terminal = Terminal()
  file = io.TextIOWrapper(io.BytesIO(), "utf-8")
  terminal.console = rich.console.Console(
    file=file, width=100, force_terminal=is_terminal, force_interactive=is_terminal
  )
  report = terminal.progress("label [/x]")
  for done in (1, 2):
    report(done, 2, name)
  file.flush()
  assert b"\x1b[2J" not in file.buffer.getvalue()


def test_logs_and_files_take_names_that_are_no_utf8(tmp_path, terminal):
  log = RunLog(tmp_path, terminal, 0)
  log.line("case \udcff\x1b[2J")
  log.close()
  assert (tmp_path / "train.log").read_text(encoding="utf-8").endswith(r"case \udcff\x1b[2J" + "\n")
  write_text(tmp_path / "a.csv", "\udcff,1\n")
  assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "\\udcff,1\n"
