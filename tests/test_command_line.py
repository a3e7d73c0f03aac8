"""The command line as its users type it: wrong names, paths with commas and ~, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from students import make_student
from test_hostile import head

from kd_jax.prediction.student_directory import export
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.runtime.files import at_home
from kd_jax.settings import presets, record
from kd_jax.settings.run import to_dict

REPOSITORY = Path(__file__).parents[1]


def main(*flags: str, **environment: str) -> tuple[int, str]:
  command = [sys.executable, str(REPOSITORY / "main.py"), *flags]
  done = subprocess.run(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | environment,
    timeout=300,
    check=False,
  )
  return done.returncode, done.stdout


# --- Names ------------------------------------------------------------------------------------

CONFIG = f"--config={REPOSITORY}/configs/quickstart.py"
ANSWERS = [
  ([CONFIG, "--config.data.fol=1"], "unknown setting data.fol; did you mean data.fold?"),
  ([CONFIG, "--config.traim.epochs=1"], "unknown setting traim.epochs; did you mean train.epochs?"),
  ([CONFIG, "--config.spacing=1"], "unknown setting spacing; did you mean data.spacing?"),
  (
    [CONFIG, "--config.train.lr=1"],
    "unknown setting train.lr; python -m kd_jax.settings.run lists all",
  ),
  ([CONFIG, "--config.data.fold.k=1"], "unknown setting data.fold.k; did you mean data.fold?"),
  ([CONFIG, "--config.qqq=1"], "unknown setting qqq; python -m kd_jax.settings.run lists all"),
  (
    [CONFIG, "--config.data.tumour=1"],
    "the setting data.tumour is now called data.foreground_oversampling",
  ),
  (
    [CONFIG, "--config.predict.smallest_et=1"],
    "the setting predict.smallest_et is now called inference.min_et_mm3",
  ),
  (["--smallest_island=9"], "--smallest_island is now called --min_component_mm3"),
  (["--smallest_et", "9"], "--smallest_et is now called --min_et_mm3"),
  (["--imput=x"], "unknown flag --imput; did you mean --input?"),
  (["--nomirrr"], "unknown flag --nomirrr; did you mean --mirror?"),
  (["--qqq=1"], "unknown flag --qqq; python main.py --help lists all"),
  (["--config.data.fold=1"], "--config.data.fold needs a preset or a file of settings too"),
  ([f"{CONFIG[:-3]}"], "configs/quickstart.py?"),
  (["--config", f"{REPOSITORY}/configs/brats12.py:t1"], "for --config; did you mean "),
  (["--config=brats12:t1"], "no file brats12 for --config; did you mean brats2"),
  (["--config", "brats21.py"], "no file brats21.py for --config; did you mean brats21?"),
  (["--config=brats21:t1,two_levle"], "unknown variant 'two_levle'; did you mean 'two_level'?"),
  (
    ["--config=brats21", "--config.data.fol=1"],
    "unknown setting data.fol; did you mean data.fold?",
  ),
  (["--mode=trian"], "unknown mode 'trian'; did you mean 'train'?"),
  (["--mode=export-student"], "unknown mode 'export-student'; did you mean 'export_student'?"),
  (["predict"], "what is 'predict'? Did you mean --mode=predict?"),
  (["quickstart:t1"], "what is 'quickstart:t1'? Did you mean --config=quickstart:t1?"),
  (["scan.nii.gz"], "what is 'scan.nii.gz'? Settings look like --config.data.fold=1"),
  (["--inp=x"], "unknown flag --inp; did you mean --input?"),
  (["--mode=predict", "--input=a", "--input=b"], "--input is given 2 times; give it once"),
  (["--mode=predict", "--output", "a", "--output=b"], "--output is given 2 times"),
]


@pytest.fixture(scope="module")
def answers() -> list:
  return forked_main([flags for flags, _ in ANSWERS])


def forked_main(commands: list[list[str]], program: str = "main.py") -> list:
  """(status, output) of all, in forks of one process: each start costs seconds."""
  forked = REPOSITORY / "tests" / "helpers" / "forked_main.py"
  command = [sys.executable, str(forked), json.dumps(commands), program]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(ANSWERS)), ids=lambda i: " ".join(ANSWERS[i][0][-1:]))
def test_a_wrong_name_is_answered_with_the_right_one(answers, number):
  status, output = answers[number]
  assert status == 1, output
  assert output.startswith("error: ") and ANSWERS[number][1] in output
  assert len(output.splitlines()) == 1, output


def test_what_is_a_setting_is_not_called_unknown():
  for name in ("data.fold", "data", "optim.student", "model.teachers.own", "loss.side.level1"):
    assert record.explain_unknown(name) == "", name


def test_every_renamed_setting_is_answered_with_its_name():
  for old in record.RENAMED:
    assert "is now called" in record.explain_unknown(old), old


# --- Devices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cuda", "tpu", "gpus"])
def test_devices_that_are_not_there_are_named_with_the_variable(tmp_path, platform):
  flags = ("--mode=predict", "--checkpoint=x", "--input=x", f"--output={tmp_path / 'out'}")
  status, output = main(*flags, JAX_PLATFORMS=platform)
  if "no such checkpoint" in output:
    pytest.skip(f"this machine has {platform}")
  assert status == 1 and len(output.splitlines()) == 1
  assert output.startswith(f"error: JAX_PLATFORMS={platform}: ") and "JAX_PLATFORMS=cpu" in output
  assert not (tmp_path / "out").exists()


# --- Paths ------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  return tmp_path / "home"


def test_home_in_every_setting_that_is_a_path(home):
  names = ("data.root", "data.cache", "data.folds_file")
  settings = presets.settings("brats21", {name: f"~/{name}" for name in names})
  for name in names:
    assert getattr(settings.data, name.removeprefix("data.")) == str(home / name)
  assert "~" not in json.dumps(to_dict(settings))


def test_a_record_with_home_is_read_as_a_new_one_is(home, tmp_path):
  settings = presets.settings("brats21", {"data.cache": "~/cache"})
  record.write(tmp_path / "config.json", settings)
  content = (tmp_path / "config.json").read_text()
  (tmp_path / "config.json").write_text(content.replace(str(home), "~"))
  assert record.read(tmp_path / "config.json") == settings


@pytest.mark.parametrize("name", ["data.cache", "data.root", "data.folds_file"])
def test_a_home_that_is_not_known_is_named_and_no_folder_is_called_so(home, name):
  with pytest.raises(ConfigError, match=rf"{name} = ~nobody_here/x: no home folder is known for ~"):
    presets.settings("brats21", {name: "~nobody_here/x"})
  assert at_home("./~nobody_here") == Path("~nobody_here") and at_home("a~") == Path("a~")
  with pytest.raises(UserError, match="no home folder"):
    at_home("~nobody_here")


def test_students_in_folders_with_commas(home, tmp_path):
  from kd_jax.runs.students import open_students

  for seed, name in enumerate(("a", "b,c", "d,e,f", "~")):
    export(make_student(seed), tmp_path / name)
  export(make_student(4), home / "g, h")

  def sources(paths) -> list[str]:
    return [Path(student.source).name for student in open_students(paths)]

  assert sources("b,c") == ["b,c"]
  assert sources("a, b,c,d,e,f") == ["a", "b,c", "d,e,f"]
  assert sources(["d,e,f", "a,b,c"]) == ["d,e,f", "a", "b,c"]
  assert sources("~/g, h,a,") == ["g, h", "a"]
  with pytest.raises(UserError, match="no such checkpoint: z"):
    open_students("a,z")
  for name in "bc":
    export(make_student(), tmp_path / name)
  with pytest.raises(ConfigError, match="b,c is one path and also 2"):
    open_students("b,c")
  with pytest.raises(ConfigError, match="--checkpoint names a twice"):
    open_students("a,d,e,f,a")  # it would count double in the average


def test_commands_that_are_shown_can_be_typed(tmp_path):
  from kd_jax.training import messages

  said = []

  class Log:
    def line(self, text):
      said.append(text)

  class Data:
    bad = ()

  workdir = tmp_path / "my runs; $HOME"
  messages.conclude(Log(), workdir, Data(), {}, False)
  words = [shlex.split(line.partition(": ")[2]) for line in said[0].splitlines()]
  assert f"--workdir={workdir}" in words[2] and str(workdir / "tensorboard") in words[1]


# --- Ctrl-C -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.3, 1.0, "compiling", "one is done"])
def test_ctrl_c_is_one_line_and_keeps_what_is_finished(tmp_path, seconds):
  export(make_student(), tmp_path / "student")
  (tmp_path / "in").mkdir()
  for i in range(40):
    (tmp_path / "in" / f"scan{i:02}.nii").write_bytes(head().to_bytes())
  flags = [f"--checkpoint={tmp_path / 'student'}", f"--input={tmp_path / 'in'}"]
  output = tmp_path / "out"
  command = [sys.executable, str(REPOSITORY / "main.py"), "--mode=predict", *flags]
  process = subprocess.Popen(
    [*command, f"--output={output}"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
    env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")},
  )
  try:
    _wait(process, output, seconds)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=200)[0]
  finally:
    process.kill()
  assert process.returncode == 130, said
  assert "Traceback" not in said and "Error" not in said
  lines = [line for line in said.splitlines() if line and not re.match(r"predicting|warning", line)]
  assert lines in ([], ["stopped by Ctrl-C; what was finished is kept"])
  masks = {path.name for path in output.glob("*.nii.gz")}
  recorded = json.loads((output / "predict.json").read_text())["cases"] if masks else {}
  assert masks == {name for case in recorded.values() for name in case["outputs"]}
  assert not list(output.glob(".*"))
  if seconds == "one is done":
    assert masks


def _wait(process: subprocess.Popen, output: Path, until: float | str) -> None:
  if not isinstance(until, str):
    time.sleep(until)
    return
  wanted = "*.nii.gz" if until == "one is done" else "predict.json"
  deadline = time.monotonic() + 200
  while not list(output.glob(wanted)):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.05)
  time.sleep(0.0 if until == "one is done" else 0.5)
