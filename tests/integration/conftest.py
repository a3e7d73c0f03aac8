"""One small run for all tests of this folder."""

from pathlib import Path

import pytest
from program import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
  return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def finished(place) -> Path:
  """A run that nothing interrupted."""
  place.finish(place.start("finished"))
  return place.folder / "finished"
