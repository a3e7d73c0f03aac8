"""Functions stay short enough to be read at once."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [file for folder in ("kd_jax", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
MOST_LINES = 80  # of a function, with its docstring


def lengths(source: str) -> dict[str, int]:
  """Name of each function, at any depth, with the number of its first line -> how many lines."""
  nodes = ast.walk(ast.parse(source))
  functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
  return {f"{f.name}:{f.lineno}": f.end_lineno - f.lineno + 1 for f in functions}


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_are_short(file):
  """A function that outgrows this does two things."""
  found = {name: n for name, n in lengths(file.read_text()).items() if n > MOST_LINES}
  assert not found


def test_the_files_are_there():
  assert len(FILES) > 100


def test_lines_of_docstrings_and_of_inner_functions_count():
  inner = "\n".join(f"    x = {i}" for i in range(80))
  source = f'class A:\n  def f(self):\n    """Long.\n\n    More.\n    """\n    x = 0\n{inner}\n'
  assert lengths(source) == {"f:2": 86}
  source = f"def outer():\n  def inner():\n{inner}\n  return inner\n"
  assert lengths(source) == {"outer:1": 83, "inner:2": 81}
