"""Notebooks as pairs of files, as Jupytext pairs them: NAME.py in percent format, and NAME.ipynb.

  python tests/helpers/notebooks.py examples/segment.py     # writes examples/segment.ipynb

The .py is the source. The .ipynb has no outputs, so that changes can be read.
"""

import json
import re
import sys
from pathlib import Path

_CELL = re.compile(r"^# %%(?: \[(?P<kind>markdown)\])?(?: tags=(?P<tags>\[.*\]))?$", re.MULTILINE)


def notebook(script: str) -> dict:
  """The notebook (format 4.5) of a script in percent format."""
  found = list(_CELL.finditer(script))
  ends = [match.start() for match in found[1:]] + [len(script)]
  cells = []
  for number, (match, end) in enumerate(zip(found, ends, strict=True)):
    text = script[match.end() : end].strip("\n")
    metadata = {"tags": json.loads(match["tags"])} if match["tags"] else {}
    cell = {"id": f"cell-{number}", "metadata": metadata}
    if match["kind"]:
      text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
      cell |= {"cell_type": "markdown", "source": text.splitlines(keepends=True)}
    else:
      code = {"cell_type": "code", "execution_count": None, "outputs": []}
      cell |= code | {"source": text.splitlines(keepends=True)}
    cells.append(cell)
  return {
    "cells": cells,
    "metadata": {
      "jupytext": {"formats": "ipynb,py:percent"},
      "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
      "language_info": {"name": "python"},
    },
    "nbformat": 4,
    "nbformat_minor": 5,
  }


def text(script: Path) -> str:
  """What the .ipynb beside a script should hold."""
  return json.dumps(notebook(script.read_text()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
  for name in sys.argv[1:]:
    Path(name).with_suffix(".ipynb").write_text(text(Path(name)))
