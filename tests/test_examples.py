"""The notebooks in examples/: in step with their scripts, and running to their end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import notebooks
import numpy as np
import pytest
from quick import FLAGS
from students import make_student

from kd_jax.prediction.student_directory import export

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
  path for path in (ROOT / "examples").glob("*.py") if path.read_text().startswith("# ---\n")
)  # the others are programs: tests/exports/test_exported_masks.py
TINY = """{
  "data.demo_cases": 5, "data.patch": (16, 16, 16), "model.filters": (4, 4, 8, 8),
  "train.epochs": 1, "train.steps_per_epoch": 2, "train.validate_every": 1,
}"""


def execute(script: Path, folder: Path, **environment: str) -> str:
  """What a script prints; each cell's code as the notebook has it, in one program."""
  own = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "XLA_FLAGS": FLAGS}
  done = subprocess.run(
    [sys.executable, str(script)],
    **{"capture_output": True, "text": True, "cwd": folder, "timeout": 600, "check": False},
    env=os.environ | own | environment,
  )
  assert done.returncode == 0, done.stderr + done.stdout
  return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_hold_the_same_cells(script):
  notebook = script.with_suffix(".ipynb")
  assert notebook.read_text() == notebooks.text(script), (
    f"python tests/helpers/notebooks.py {script.relative_to(ROOT)}"
  )
  cells = json.loads(notebook.read_text())["cells"]
  code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
  assert len(code) >= 3
  for source in code:
    compile(source, notebook.name, "exec")
  assert not any(line.startswith("# %%") for cell in cells for line in cell["source"])


def test_cells_of_a_script():
  script = '# ---\n# x: 1\n# ---\n\n# %% [markdown]\n# # A\n#\n# b\n\n# %% tags=["p"]\nx = 1\n'
  text, code = notebooks.notebook(script)["cells"]
  assert (text["cell_type"], "".join(text["source"])) == ("markdown", "# A\n\nb")
  assert (code["cell_type"], code["source"]) == ("code", ["x = 1"])
  assert code["metadata"] == {"tags": ["p"]}


def check_segmented(folder: Path, output: str) -> None:
  assert "written: runs/example/mask.nii.gz" in output and "Dice of the whole tumour" in output
  mask = nib.load(folder / "runs/example/mask.nii.gz")
  assert mask.shape == (240, 240, 155) and set(np.unique(mask.dataobj)) <= {0, 1, 2, 4}
  assert (folder / "runs/example/slices.png").stat().st_size > 10_000


def test_the_segmentation_notebook_with_a_student(tmp_path):
  export(make_student(spacing=3.0), tmp_path / "student")
  output = execute(ROOT / "examples" / "segment.py", tmp_path, KD_JAX_STUDENT="student")
  check_segmented(tmp_path, output)
  assert "<kd_jax.Student small: reads t1ce>" in output


@pytest.mark.slow
def test_the_segmentation_notebook_that_trains(tmp_path):
  source = (ROOT / "examples" / "segment.py").read_text()
  assert source.count('OVERRIDES = {"train.epochs": 6}') == 1
  script = tmp_path / "segment.py"
  script.write_text(source.replace('OVERRIDES = {"train.epochs": 6}', f"OVERRIDES = {TINY}"))
  check_segmented(tmp_path, execute(script, tmp_path))
  assert (tmp_path / "runs/example/run/train.log").is_file()
