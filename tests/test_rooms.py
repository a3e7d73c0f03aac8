"""The package's rooms: no import runs upwards, none in a circle, and prediction stays light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rooms

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("room", sorted(rooms.arrows()))
def test_a_room_imports_only_what_it_says_it_uses(room):
  found = rooms.arrows()[room]
  assert set(found) <= set(rooms.uses(room)), {r: sorted(found[r]) for r in found}


def test_no_room_says_more_than_it_needs():
  for room, found in rooms.arrows().items():
    assert set(rooms.uses(room)) <= set(found), f"{room} uses less than it says"


def test_rooms_have_an_order():
  """`rooms` raises if they have none."""
  order = rooms.rooms()
  assert order[0] == "runtime" and order.index("method") < order.index("training")


def test_no_room_imports_what_stands_above_all_rooms():
  for file in rooms.PACKAGE.glob("*/**/*.py"):
    above = {module.split(".")[0] for module in rooms.imports(file)} & {
      *("__main__", "api", "cli", "command", "command_call", "command_errors"),
      *("command_flags", "command_help"),
    }
    assert not above, f"{file}: {above}"


def test_no_circle_among_modules():
  graph, done = rooms.modules(), set()

  def visit(module, path):
    assert module not in path, f"a circle: {' -> '.join([*path, module])}"
    if module not in done:
      for other in graph[module]:
        visit(other, [*path, module])
      done.add(module)

  for module in graph:
    visit(module, [])


def test_the_map_in_the_documentation_is_the_code_s():
  """python tests/helpers/rooms.py"""
  text = (ROOT / "docs" / "architecture.md").read_text()
  assert f"```mermaid\n{rooms.drawing()}\n```" in text


@pytest.mark.parametrize("file", sorted(rooms.PACKAGE.rglob("*.py")), ids=lambda f: f.stem)
def test_files_have_one_idea(file):
  """A file that outgrows this has two."""
  assert len(file.read_text().splitlines()) <= LONG.get(file.name, 300)


# The simulated patient is one long recipe, made of short functions.
LONG = {"phantom.py": 420}

WHO_IMPORTS = """
import builtins, json, sys
asked, real = [], builtins.__import__

def watched(name, globals=None, locals=None, fromlist=(), level=0):
  who = (globals or {}).get("__name__", "")
  if name.split(".")[0] in ("optax", "orbax") and who.startswith("kd_jax"):
    asked.append([who, name])
  return real(name, globals, locals, fromlist, level)

builtins.__import__ = watched
"""

DEPLOYED = """
from pathlib import Path
import kd_jax.cli, kd_jax.evaluation.masks, kd_jax.evaluation.compare, kd_jax.report.visualize
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.students import evaluate
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict
from kd_jax.prediction.predictor import Predictor
from kd_jax.runs.students import open_students
from kd_jax.runtime.terminal import Terminal
place, data = Path(sys.argv[1]), Path(sys.argv[2])
predictor = Predictor(open_students(str(place / "student")))
predict(predictor, data, Output(place / "masks", "brats2018"), Terminal())
evaluate(predictor, Choice(data_root=data), place / "scores", Terminal())
loaded = [m for m in sys.modules if m.startswith(("kd_jax.training", "orbax"))]
print(json.dumps({"asked": asked, "loaded": loaded}))
"""


def test_opening_predicting_and_evaluating_need_no_optimiser_and_no_checkpoints(tmp_path):
  """Flax itself imports optax; what counts is that we do not, and that Orbax is not loaded."""
  from students import make_student
  from synthetic import LARGE, make_case

  from kd_jax.prediction.student_directory import export

  export(make_student(), tmp_path / "student")
  make_case(tmp_path / "data" / "case0", affine=LARGE)
  command = [sys.executable, "-c", WHO_IMPORTS + DEPLOYED, str(tmp_path), str(tmp_path / "data")]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == {"asked": [], "loaded": []}
  assert (tmp_path / "masks" / "case0.nii.gz").is_file()
