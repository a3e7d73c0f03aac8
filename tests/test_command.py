"""kd-jax as its users type it: modes as words, help, wrong names; presets by name."""

import os
import re
import sys

import pytest
from ml_collections.config_flags import config_flags
from test_command_line import REPOSITORY, forked_main

from kd_jax import cli, command_flags, command_help
from kd_jax.runtime import commands
from kd_jax.runtime.errors import ConfigError
from kd_jax.settings import presets

# --- Words --------------------------------------------------------------------------------------

LAST = "doctor"  # the last of the known modes
ANSWERS = [
  (["trian"], rf"unknown mode 'trian'; did you mean 'train'\? known: train, .*{LAST}$"),
  (["help", "predikt"], r"unknown mode 'predikt'; did you mean 'predict'\?"),
  (["--mode=predict", "--input=a"], "the mode comes first .* such as kd-jax predict"),
  (["--config=quickstart", "train"], "the mode comes first .* such as kd-jax train"),
  (["train", "--mode=predict"], "the mode is the first word of kd-jax; leave --mode out"),
  (["train"], r"kd-jax train needs --config=\.\.\."),
  (["train", "quickstart"], r"what is 'quickstart'\? Did you mean --config=quickstart\?"),
  (["train", "predict"], r"what is 'predict'\? Did you mean kd-jax predict\?"),
  (["train", "--config=quikstart"], r"no file quikstart for --config; did you mean quickstart\?"),
  (["train", "--config=configs/brats12.py"], r"did you mean .*brats2.*\?"),
  (["train", "--config=quickstart:cbma"], r"unknown variant 'cbma'; did you mean 'cbam'\?"),
  (["train", "--config=quickstart", "--config.sed=1"], r"setting sed; did you mean seed\?"),
  (["predict", "--imput=x"], r"unknown flag --imput; did you mean --input\?"),
  (["predict", "--qqq=x"], "unknown flag --qqq; kd-jax predict --help lists all"),
  (["cross-validate", "--input=x"], r"kd-jax cross-validate needs --config=\.\.\."),
  (["cross_validate", "--nowhere"], "unknown flag --nowhere"),
  (["compare", "a"], "kd-jax compare takes two evaluations: kd-jax compare A B"),
  (["evaluate", "--data-root=x"], r"unknown flag --data-root; did you mean --data_root\?"),
]
HELP = [["--help"], ["-h"], ["help"], ["help", "export-student"], ["export_student", "--help"]]
HELP += [["export-student", "--checkpoint=x", "-h"], ["--help", "export-student"], []]


@pytest.fixture(scope="module")
def answers() -> list:
  return forked_main([*(words for words, _ in ANSWERS), *HELP], commands.COMMAND)


@pytest.mark.parametrize("number", range(len(ANSWERS)), ids=lambda i: " ".join(ANSWERS[i][0]))
def test_a_wrong_word_is_answered_with_the_right_one(answers, number):
  status, said = answers[number]
  assert status == 1 and len(said.splitlines()) == 1, said
  assert said.startswith("error: ") and re.search(ANSWERS[number][1], said.strip()), said


def test_help_in_every_form(answers):
  helped = answers[len(ANSWERS) :]
  assert [status for status, _ in helped] == [0] * 7 + [1]
  overview, of_a_mode = helped[0][1], helped[3][1]
  assert [said for _, said in helped] == [overview] * 3 + [of_a_mode] * 4 + [overview]
  assert "export-student" in overview and "usage: kd-jax export-student" in of_a_mode


# --- Help ---------------------------------------------------------------------------------------


def own_flags(name: str) -> set[str]:
  mode = cli.MODES[name]
  return {*mode.needs, *mode.optional, *(command_help.SEVERAL if mode.shared else ())}


def test_every_mode_has_help_and_no_other():
  assert set(command_help.WORDS) == set(cli.MODES)
  shown = command_help.overview()
  assert [name for name in cli.MODES if f"  {commands.word(name)} " not in shown] == []


@pytest.mark.parametrize("name", cli.MODES)
def test_help_of_a_mode_has_its_own_flags_and_two_examples_that_can_be_typed(name):
  page = command_help.of_mode(name)
  flags, _, examples = page.partition("\nexamples\n")
  assert set(re.findall(r"^  --(?:\[no\])?(\w+)", flags, re.MULTILINE)) == own_flags(name)
  lines = examples.splitlines()
  assert len(set(lines)) == 2
  for line in lines:
    assert line.startswith(f"  kd-jax {commands.word(name)}")
    words = line.split()[2:]
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert set(cli.MODES[name].needs) <= given or name == "evaluate"
    assert {flag for flag in given if not flag.startswith("config.")} <= own_flags(name)
    assert sum(not word.startswith("--") for word in words) == cli.MODES[name].arguments
    for word in words:
      if word.startswith("--config="):
        presets.settings(word.partition("=")[2])


def test_help_fits_into_the_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  narrow = command_help.of_mode("predict").partition("\nexamples\n")[0].splitlines()
  assert max(map(len, narrow)) <= 60
  monkeypatch.setenv("COLUMNS", "1")
  assert "--checkpoint=PATH" in command_help.of_mode("predict")


# --- How messages name commands -----------------------------------------------------------------


@pytest.mark.parametrize(
  ("program", "named", "typed"),
  [
    ("main.py", "--mode=cross_validate", "python main.py --mode=cross_validate"),
    ("/venv/bin/kd-jax", "kd-jax cross-validate", "kd-jax cross-validate"),
    (r"kd-jax.exe", "kd-jax cross-validate", "kd-jax cross-validate"),
    ("/x/kd_jax/__main__.py", *["python -m kd_jax cross-validate"] * 2),
    ("", "--mode=cross_validate", "python main.py --mode=cross_validate"),
  ],
)
def test_commands_are_shown_as_they_can_be_typed_here(monkeypatch, program, named, typed):
  monkeypatch.setattr("sys.argv", [program])
  assert (commands.named("cross_validate"), commands.typed("cross_validate")) == (named, typed)


# --- Presets by name ----------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path, monkeypatch):
  """What --config holds, in a folder of its own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delitem(sys.modules, "config_config", raising=False)  # of the file before
  parser = command_flags.FileOrPreset(config_flags.ConfigFileFlagParser("config"))
  return lambda text: parser.parse(text).to_dict()


@pytest.mark.parametrize("text", ["quickstart", "brats21:t1,two_level", "brats23:"])
def test_a_preset_by_name_is_what_its_file_gives(read, text):
  name, colon, variants = text.partition(":")
  assert read(text) == read(f"{REPOSITORY}/configs/{name}.py{colon}{variants}")


def test_settings_of_a_preset_by_name_are_locked():
  parser = command_flags.FileOrPreset(config_flags.ConfigFileFlagParser("config"))
  assert parser.parse("quickstart").is_locked


def test_a_file_comes_before_a_preset_of_its_name(read, tmp_path):
  os.mkdir("brats21")  # a data set
  assert read("brats21")["name"] == "brats21"
  source = (REPOSITORY / "configs" / "quickstart.py").read_text()
  (tmp_path / "brats23").write_text(source)
  assert read("brats23:t1")["name"] == "quickstart-t1"


@pytest.mark.parametrize("content", [b"case1\ncase2\n", b"\0\xff", b"", b"raise OSError"])
def test_a_file_that_hides_a_preset_is_named(read, tmp_path, content):
  (tmp_path / "brats23").write_bytes(content)
  with pytest.raises(ConfigError, match=r"--config=brats23:t1: the file .*brats23 is read instead"):
    read("brats23:t1")
