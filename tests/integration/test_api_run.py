"""kd_jax.train does what main.py does."""

import ast
import json

from program import REPOSITORY, SETTINGS, arrays, numbers

import kd_jax

TRAIN = """
import json, sys
sys.path.insert(0, sys.argv[2])
import kd_jax

if __name__ == "__main__":
  overrides = json.loads(sys.argv[1])
  workdir = kd_jax.train("quickstart:from_flair", "by_api", overrides)
  print(workdir)
"""


def test_the_interface_trains_as_the_command_line_does(place, finished):
  """The same settings: every number is the same, of the log and of the checkpoints."""
  overrides = {
    name: ast.literal_eval(value) if str(value).startswith("(") else value
    for name, value in SETTINGS.items()
  } | {"data.root": str(place.folder / "data"), "data.cache": str(place.folder / "cache")}
  script = place.folder / "train.py"
  script.write_text(TRAIN)
  output = place.finish(place.python(str(script), json.dumps(overrides), str(REPOSITORY)))
  assert "step 12/12" in output and output.splitlines()[-1] == "by_api"
  own = place.folder / "by_api"
  assert numbers(own) == numbers(finished)
  mine, theirs = arrays(own, 12), arrays(finished, 12)
  assert mine.keys() == theirs.keys()
  assert all((mine[name] == theirs[name]).all() for name in mine)
  assert kd_jax.load(own).describe()["students"][0]["training"]["step"] == 12
