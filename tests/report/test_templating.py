import tomllib
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from kd_jax.report import templating

ROOT = Path(__file__).parents[2]


def test_a_page_that_is_not_given_a_value_fails_instead_of_leaving_a_gap():
  with pytest.raises(UndefinedError, match="title"):
    templating.fill("viewer.html", modality="t1ce")


def test_every_template_and_asset_is_in_the_wheel():
  """Else pages could be made from a checkout alone."""
  folder = Path(templating.__file__).parent
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
  patterns = project["tool"]["setuptools"]["package-data"]["kd_jax.report"]
  packed = {path for pattern in patterns for path in folder.glob(pattern)}
  data = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
  assert data == packed and folder / "templates" / "page.html" in data
