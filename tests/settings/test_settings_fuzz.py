"""Settings out of range, of another type or at odds fail before any work, by their name."""

import copy
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.runtime.errors import ConfigError
from kd_jax.runtime.terminal import Terminal
from kd_jax.settings import presets
from kd_jax.settings import run as run_settings
from kd_jax.training.train import train

MORE = int(os.environ.get("KD_JAX_FUZZ", "0"))  # =20: twenty times as many, other ones each time


def tries(examples: int):
  return settings(
    max_examples=examples * max(MORE, 1), derandomize=not MORE, deadline=None, database=None
  )


PLAIN = run_settings.to_dict(presets.settings("brats21"))


REQUIRED = [("name",), ("data",), ("data", "root")]
# What has another value in a preset than in the default recipe would differ; "brats21" has none.


def plain() -> dict:
  return copy.deepcopy(PLAIN)


def leaves(config: dict, prefix=()) -> list[tuple[str, ...]]:
  found = []
  for key, value in config.items():
    found.append((*prefix, key))
    if isinstance(value, dict):
      found += leaves(value, (*prefix, key))
  return found


NUMBERS = [0, -0.0, 1, -1, 2, 3, 7, 8, 0.5, 1.5, 128, 1e-9, 1e9, 2**31, 2**32, 2**63, 10**400]
ODD = st.one_of(
  st.sampled_from([*NUMBERS, float("nan"), float("inf"), -float("inf"), None, True, False]),
  st.sampled_from(
    ["", "x", "..", "../../etc", "/", "a\0b", "a\nb", "\ud800", "auto", "1", "x" * 300]
  ),
  st.sampled_from([[], {}, [1], ["t1", "t1"], ["t9"], [8, 8, 8], [10**9] * 4, [[]], [None] * 3]),
  st.dictionaries(st.text(max_size=3), st.sampled_from([1, "t1", ["t1"], None]), max_size=2),
  st.integers(),
  st.floats(),
  st.text(max_size=8),
)


def place(config: dict, path: tuple[str, ...], value) -> dict:
  inner = config
  for key in path[:-1]:
    inner = inner[key]
  inner[path[-1]] = value
  return config


@given(st.sampled_from(leaves(plain())), ODD)
@tries(400)
def test_any_value_of_any_setting_is_possible_or_named(path, value):
  raw = place(plain(), path, value)
  try:
    typed = run_settings.parse(raw)
  except ConfigError as e:
    assert path[-1] in str(e) or (path[-1] == "folds" and "data.fold " in str(e))
  else:  # what passes is what is read back from a work directory
    assert run_settings.parse(json.loads(json.dumps(raw))) == typed


@given(st.sampled_from(leaves(plain())), st.text(max_size=10), st.booleans())
@tries(60)
def test_unknown_settings_are_named_and_missing_ones_have_their_default(path, name, away):
  raw = plain()
  inner = raw
  for key in path[:-1]:
    inner = inner[key]
  value = inner.pop(path[-1])
  if not away:
    inner[name] = value
  names_are_free = path[:2] == ("model", "teachers") and len(path) == 3
  if names_are_free or name == path[-1]:
    return
  if away and path not in REQUIRED:
    assert run_settings.parse(raw) == run_settings.parse(plain())
    return
  with pytest.raises(ConfigError) as e:
    run_settings.parse(raw)
  assert path[-1] in str(e.value) or repr(name)[1:-1] in str(e.value) or "level" in str(e.value)


CONTRADICTIONS = [
  ({"data.fold": 5}, r"data.fold = 5 is not between 0 and 4"),
  ({"data.folds_seed": -1}, r"data.folds_seed = -1 is not between 0 and"),
  ({"data.demo_seed": -1}, "data.demo_seed"),
  ({"data.root": ""}, "data.root = '': expected a path"),
  ({"data.cache": "a\0b"}, "data.cache"),
  ({"name": "../../elsewhere"}, "name = '../../elsewhere': it becomes a folder's"),
  ({"name": ""}, "name = ''"),
  ({"model.student": ["t1", "t1"]}, "model.student.*twice"),
  ({"model.teachers": {"a/b": ["t1"]}}, r"model.teachers.a/b.*allowed are"),
  ({"model.teachers": {"": ["t1"]}}, r"model.teachers. = "),
  ({"loss.cooperative": {"level1": 0.1, "level3": 0.1}}, "unknown value 'level3'; .*known: level1"),
  ({"optim.student.beta2": 1.0}, r"optim.student.beta2 = 1.0 is not between 0 and 0.999999"),
  ({"optim.teachers.epsilon": 0.0}, "optim.teachers.epsilon"),
  ({"optim.teachers.plateau.from_epoch": -1}, "optim.teachers.plateau.from_epoch"),
  ({"optim.teachers.learning_rate": 10**400}, "optim.teachers.learning_rate is larger"),
  ({"train.epochs": 1 << 20, "train.steps_per_epoch": 1 << 20}, "train.epochs = .*steps"),
  ({"data.normalise": "max"}, "data.normalise: .*known: zscore, paper"),
  ({"data.spacing": 0.0}, r"data.spacing = 0.0 is not between 0.1 and 20.0"),
]


def changed(changes: dict) -> dict:
  raw = plain()
  for name, value in changes.items():
    place(raw, tuple(name.split(".")), value)
  return raw


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_what_contradicts_is_named_with_what_is_allowed(changes, message):
  with pytest.raises(ConfigError, match=message):
    run_settings.parse(changed(changes))


def test_a_fold_beyond_the_number_of_folds_is_for_a_file_to_judge():
  assert run_settings.parse(changed({"data.fold": 7, "data.folds_file": "my.json"})).data.fold == 7


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.batch": 0}, "data.batch = 0 is not between 1"),
    ({"train.spatial_shards": 3}, "train.spatial_shards = 3 does not divide the 8 devices"),
    ({"data.batch": 3}, "data.batch = 3 cannot be shared by 8 devices"),
    ({"train.spatial_shards": 8, "data.patch": [8, 8, 8]}, "first side must be a multiple of 64"),
  ],
)
def test_nothing_is_done_before_settings_and_devices_fit(tmp_path, changes, message):
  raw = changed({"data.root": str(tmp_path / "data"), **changes})
  (tmp_path / "data").mkdir()
  with pytest.raises(ConfigError, match=message):
    train(run_settings.parse(raw), tmp_path / "run", Terminal())
  assert [path.name for path in tmp_path.iterdir()] == ["data"]
