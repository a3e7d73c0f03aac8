"""What the documents name exists: settings, flags, modes, presets, files and tests."""

import re
from pathlib import Path

import pytest

from kd_jax import cli, command_flags
from kd_jax.metrics.case import METRICS
from kd_jax.settings import presets, record, schema
from kd_jax.settings.run import Settings

ROOT = Path(__file__).resolve().parents[2]
CHANGES = ROOT / "CHANGELOG.md"  # names what is gone, too
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "RESULTS.md")
LAUNCHERS = sorted(path for path in ROOT.glob("launch/**/*") if path.is_file())
COMMANDS = (*PAGES, *LAUNCHERS, *sorted(ROOT.glob("configs/*.py")))
LONGEST_README = 150

# The other options of main.py, and names of other programs.
OTHER_FLAGS = {"mode", "config", "help", "version", "shm-size", "logdir", "most"}
OTHER_FLAGS |= {"build-context", "gpus", "read-only", "rm", "tmpfs"}  # of docker
OTHER_FILES = {"antsRegistrationSyNQuick.sh"}
EXAMPLES = {"loss.uncertainty"}  # a recipe of docs/architecture.md adds it

_SETTING_FLAG = re.compile(r"--config\.([\w.]+)=")
_INLINE = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?<![\w./-])[\w./-]*\w\.(?:py|sh|sbatch|yaml)\b")
_TEST = re.compile(r"(?:(test_\w+\.py)::)?\b(test_\w+)\b(?!\.py)")

SETTINGS = {setting.name: setting for setting in schema.walk(Settings)}
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}


def is_setting(name: str) -> bool:
  """Whether a dotted name is a setting, a group of settings, or an entry of a setting's table."""
  pattern = re.escape(name).replace(r"\*", r"\w+")
  if any(re.match(rf"{pattern}(\.|$)", known) for known in SETTINGS):
    return True
  parts = name.split(".")
  owners = [".".join(parts[:n]) for n in range(1, len(parts))]
  return any(owner in SETTINGS and SETTINGS[owner].kind.startswith("name ->") for owner in owners)


def settings_named(text: str) -> set[str]:
  """The settings that a text gives as flags, or names in code style."""
  named = set(_SETTING_FLAG.findall(text))
  for code in _INLINE.findall(text):
    if re.fullmatch(r"(\w+)(\.[\w*]+)+( ?=.*)?", code) and code.partition(".")[0] in SECTIONS:
      named.add(re.split(r"[ =]", code)[0])
  files = (".json", ".log", ".py", ".onnx", ".stablehlo")
  return {name for name in named if not name.endswith(files)} - EXAMPLES


def flags_named(text: str) -> set[str]:
  """The flags in code style, and in commands of fences that start our program or a benchmark."""
  commands = [
    command
    for fence in _FENCE.findall(text)
    for command in fence.replace("\\\n", " ").splitlines()
    if re.search(r"main\.py|benchmarks/\w+\.py|^\s*kd-jax ", command)
  ]
  codes = [code for code in _INLINE.findall(_FENCE.sub("", text)) if "xla_" not in code]
  return {flag for part in (*commands, *codes) for flag in _FLAG.findall(part)}


def known_flags() -> set[str]:
  benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
  own = set(re.findall(r'"--([a-z][\w-]*)"', benchmarks))
  return own | set(command_flags.FLAGS) | OTHER_FLAGS


def files_named(text: str) -> set[str]:
  """Paths of scripts and modules, whatever stands before them."""
  return {name for name in _FILE.findall(text) if not name.startswith(("/", "."))} - OTHER_FILES


def exists(name: str) -> bool:
  """From the root, from the package, from its tests; a name without a folder: anywhere in them."""
  places = (ROOT, ROOT / "kd_jax", ROOT / "tests", ROOT / "benchmarks")
  if "/" in name:
    return any((place / name).is_file() for place in places)
  return (
    any(path.name == name for place in places[1:] for path in place.rglob(name))
    or (ROOT / name).is_file()
  )


def ids(path: Path) -> str:
  return path.name


@pytest.mark.parametrize("page", COMMANDS, ids=ids)
def test_settings_exist(page):
  assert not [name for name in sorted(settings_named(page.read_text())) if not is_setting(name)]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_flags_exist(page):
  assert flags_named(page.read_text()) - known_flags() == set()


@pytest.mark.parametrize("page", COMMANDS, ids=ids)
def test_modes_and_presets_exist(page):
  text = page.read_text()
  assert set(re.findall(r"--mode=(\w+)", text)) <= set(cli.MODES)
  words = {
    word.replace("-", "_") for word in re.findall(r"^ *kd-jax (\w[\w-]*)", text, re.MULTILINE)
  }
  assert words <= set(cli.MODES)
  for name in re.findall(r"--config=(\w+(?::[\w,]+)?)(?![\w./])", text):
    presets.settings(name)
  for name, variants in re.findall(r"configs/(\w+)\.py(?::([\w,]+))?", text):
    presets.settings(f"{name}:{variants}")


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_exist(page):
  assert not [name for name in sorted(files_named(page.read_text())) if not exists(name)]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_tests_exist(page):
  found = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
  for file, name in _TEST.findall(page.read_text()):
    places = [text for path, text in found.items() if not file or path.name == file]
    assert any(f"def {name}(" in text for text in places), f"{file}::{name}"


def test_every_mode_is_in_the_readme():
  text = (ROOT / "README.md").read_text()
  assert [mode for mode in cli.MODES if f"| `{mode}`" not in text] == []


def test_the_readme_stays_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_every_preset_is_in_the_documentation():
  rows = [line for line in (ROOT / "docs" / "presets.md").read_text().splitlines() if "|" in line]
  named = {code for row in rows for code in _INLINE.findall(row.split("|")[1])}
  assert set(presets.VARIANTS) <= named
  assert {f"configs/{name}.py" for name in presets.DATASETS} <= named


def test_every_score_is_in_the_documentation():
  rows = [line for line in (ROOT / "docs" / "scores.md").read_text().splitlines() if "|" in line]
  named = {code for row in rows for code in _INLINE.findall(row.split("|")[1])}
  assert set(METRICS) <= named


def test_every_renamed_setting_is_in_the_changes():
  text = CHANGES.read_text()
  assert [name for name in record.RENAMED.values() if name not in text] == []


def test_what_does_not_exist_is_noticed():
  text = """`train.space` and `loss.side.level1.total = 2`, `optim.*.clip_norm`, `train.log`
    --config.predict.mode=whole `--no_flag=1` kd_jax/too_small.py method/losses.py, `too_small.py`
  ```bash
  other --foreign_flag=1
  python main.py --mode=predict \\
    --no_such=1
  ```
  """
  assert {name for name in settings_named(text) if not is_setting(name)} == {
    "train.space",
    "predict.mode",
  }
  assert flags_named(text) - known_flags() == {"no_flag", "no_such"}
  missing = {name for name in files_named(text) if not exists(name)}
  assert missing == {"kd_jax/too_small.py", "too_small.py"}
