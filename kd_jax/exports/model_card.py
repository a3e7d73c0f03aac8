"""The model card: README.md of an export, in the format of the Hugging Face Hub.

It says nothing that the student does not know. What it takes from a student (names, training facts,
scores) may come from a file of strangers, so that it is written as plain text.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from kd_jax.exports.data_terms import references, terms
from kd_jax.prediction.student import Student, parameter_count
from kd_jax.runtime.errors import ConfigError, one_line
from kd_jax.settings.inference import InferenceSettings
from kd_jax.tasks.labels import REGIONS, meaning

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~]")
_NAMES = {"t1ce": "contrast-enhanced T1 (T1ce)", "t1": "T1", "t2": "T2", "flair": "FLAIR"}
_RULES = ("space", "empty_masks", "hd95")
_SCORES = {"dice": ("Dice", 3), "hd95_mm": ("HD95 (mm)", 1)}


def checked(licence: str | None) -> str | None:
  """A licence's identifier as the Hub writes it. ConfigError if it is none."""
  if licence is None:
    return None
  if not _LICENCE.fullmatch(licence):
    raise ConfigError(
      f"--license={licence}: expected an identifier from https://spdx.org/licenses, such as "
      "cc-by-4.0 or mit"
    )
  return licence.lower()


def write(
  students: Sequence[Student],
  settings: InferenceSettings,
  licence: str | None,
  digests: Mapping[str, str],
  form: str,
) -> str:
  """The card's text.

  Args:
    students: those that are exported together.
    settings: how they predict.
    licence: of the weights, as `checked` gives it.
    digests: file -> SHA-256.
    form: of the export, see export.FORMATS.
  """
  first = students[0]
  sections = {
    "What it reads": _reads(first),
    "What it gives": _gives(first, settings, len(students)),
    "How to use it": _use(form),
    "Who it was trained on": [line for student in students for line in _training(student)],
    "Scores": [line for student in students for line in _score_lines(student)],
    "Limits": _limits(first),
    "Licence and data terms": terms(first.training, licence),
    "How to cite": [f"- {reference}" for reference in references(first.training)],
    "Files": [
      *("| file | SHA-256 |", "|---|---|"),
      *(f"| `{name}` | `{digest}` |" for name, digest in digests.items()),
    ],
  }
  head = yaml.safe_dump(_front(students, licence, form), sort_keys=False, allow_unicode=True)
  parts = [f"---\n{head}---\n", f"# {_name(students)}\n", f"{_summary(students)}\n"]
  parts += [
    f"## {title}\n\n" + "\n".join(lines).rstrip() + "\n" for title, lines in sections.items()
  ]
  return "\n".join(parts)


def _front(students: Sequence[Student], licence: str | None, form: str) -> dict[str, Any]:
  tags = ["medical", "mri", "brain-tumor", "image-segmentation", "jax", form]
  stated = {"license": licence} if licence else {"license": "other", "license_name": "not-stated"}
  results = [
    {
      "task": {"type": "image-segmentation", "name": "Brain tumour segmentation"},
      "dataset": {"type": "other", "name": _data(student)},
      "metrics": [
        {"type": metric, "name": f"{name} {region}", "value": round(float(found["mean"]), 4)}
        for region, own in _regions(student).items()
        for metric, (name, _) in _SCORES.items()
        if (found := own.get(metric))
      ],
    }
    for student in students
    if _regions(student)
  ]
  index = {"model-index": [{"name": _name(students), "results": results}]} if results else {}
  return {**stated, "library_name": "kd_jax", "tags": tags, **index}


def _name(students: Sequence[Student]) -> str:
  return " + ".join(dict.fromkeys(plain(student.name) for student in students))


def _summary(students: Sequence[Student]) -> str:
  read = " and ".join(_NAMES[m] for m in students[0].architecture.modalities)
  count = sum(parameter_count(student.architecture.framework()) for student in students)
  many = f"The mean of {len(students)} networks" if len(students) > 1 else "A network"
  return (
    f"{many} ({count:,} parameters, training heads included) that marks brain tumours in {read} "
    "MRI, made with kd_jax. **Research software, not a medical device.**"
  )


def _reads(student: Student) -> list[str]:
  own = student.preparation
  if own.normalise == "zscore":
    values = "z-scores within the brain, each sequence for itself; 0 outside"
  else:
    values = "as the published code has them: intensities less their minimum"
  if own.grid == "brain":
    grid = f"the brain's bounding box at {own.spacing:g} mm"
  else:
    grid = (
      "the published protocol's: nearest neighbour to 128 x 128 x 128, whatever the brain's size"
    )
  window = " x ".join(map(str, own.patch))
  return [
    f"- Sequences: {', '.join(student.architecture.modalities)}; skull-stripped, in atlas space "
    "(SRI24, as BraTS has them), 0 outside the brain.",
    f"- Grid: {grid}.",
    f"- Intensities: {values}.",
    f"- Windows of {window} voxels.",
  ]


def _gives(student: Student, settings: InferenceSettings, count: int) -> list[str]:
  convention = student.training["convention"]
  lines = [
    f"- Labels ({plain(convention)}): {meaning(convention)}.",
    f"- Probabilities of {', '.join(REGIONS)}.",
    f"- Windows overlap by {settings.overlap:.0%} or more"
    + ("; all eight mirror images are averaged." if settings.mirror else "."),
  ]
  if count > 1:
    lines.append(f"- The probabilities of {count} networks are averaged.")
  if settings.min_component_mm3:
    lines.append(
      f"- Connected components of less than {settings.min_component_mm3:g} mm3 are removed."
    )
  if settings.min_et_mm3:
    lines.append(f"- Enhancing tumour of less than {settings.min_et_mm3:g} mm3 becomes core.")
  return lines


def _use(form: str) -> list[str]:
  if form == "safetensors":
    command = "python main.py --mode=predict --checkpoint=THIS_FOLDER --input=scans --output=masks"
    words = "With kd_jax (`--checkpoint=hf://OWNER/NAME@REVISION` fetches it from the Hub):"
  else:
    command = f"python examples/{form}_predict.py THIS_FOLDER scan.nii.gz mask.nii.gz"
    packages = "onnxruntime" if form == "onnx" else "jax with flatbuffers"
    words = (
      f"With numpy, nibabel and {packages} (the example is in kd_jax's repository, where "
      "docs/exports.md says what the program expects):"
    )
  return [words, "", "```bash", command, "```"]


def _training(student: Student) -> list[str]:
  own = student.training
  facts = [f"- Data: {_data(student)}."]
  if own.get("cases") is not None:
    more = own.get("validation_cases")
    chosen = "" if more is None else f"; the checkpoint was chosen by {plain(more)} others"
    facts.append(f"- Cases: {plain(own['cases'])} trained on{chosen}.")
  teachers = own.get("teachers")
  if isinstance(teachers, Mapping) and teachers:
    read = (f"{plain(name)} ({plain('+'.join(map(str, m)))})" for name, m in teachers.items())
    facts.append(f"- Teachers: {', '.join(read)}.")
  if own.get("step") is not None:
    facts.append(f"- Training steps: {plain(own['step'])}.")
  return [f"`{student.digest()[:12]}` ({plain(student.name)})", "", *facts, ""]


def _data(student: Student) -> str:
  data = plain(student.training.get("data", "unknown"))
  return "generated cases (no patients)" if data == "quickstart" else f"{data} (the run's name)"


def _regions(student: Student) -> dict[str, dict[str, Mapping[str, float]]]:
  """Region -> score -> mean and n, low and high where it has an interval: more than one case.

  Without what is not there or is no such numbers.
  """
  found: dict[str, dict[str, Mapping[str, float]]] = {}
  for region, metric in itertools.product(REGIONS, _SCORES):
    own: Any = student.scores
    for key in ("regions", region, metric):
      own = own.get(key) if isinstance(own, Mapping) else None
    if not isinstance(own, Mapping):
      continue
    keys = ("mean", "n") if own.get("n") == 1 else ("mean", "n", "low", "high")
    if all(isinstance(own.get(key), int | float) for key in keys):
      found.setdefault(region, {})[metric] = {key: own[key] for key in keys}
  return found


def _score_lines(student: Student) -> list[str]:
  regions = _regions(student)
  if not regions:
    return [f"No evaluation is kept with `{student.digest()[:12]}`.", ""]
  scores = student.scores or {}
  lines = [
    f"`{student.digest()[:12]}`: {plain(scores.get('title', 'evaluation'))}. Means over cases "
    "(95% bootstrap interval of the mean).",
    "",
    f"| region | cases | {' | '.join(name for name, _ in _SCORES.values())} |",
    f"|---|---|{'---|' * len(_SCORES)}",
  ]
  for region, own in regions.items():
    cells = [_interval(own.get(metric), digits) for metric, (_, digits) in _SCORES.items()]
    lines.append(f"| {region} | {next(iter(own.values()))['n']:g} | {' | '.join(cells)} |")
  rules = scores.get("rules")
  said = [rules[key] for key in _RULES if key in rules] if isinstance(rules, Mapping) else []
  notes, failed = scores.get("notes"), scores.get("failed")
  said += notes if isinstance(notes, list) else []
  if isinstance(failed, int) and failed:
    said.append(f"cases that could not be scored and are in no mean: {failed}")
  return [*lines, "", *(f"- {plain(sentence)}." for sentence in said), ""]


def _interval(found: Mapping[str, float] | None, digits: int) -> str:
  if not found:
    return "–"
  mean = f"{found['mean']:.{digits}f}"
  if "low" not in found:
    return mean
  return f"{mean} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _limits(student: Student) -> list[str]:
  lines = [
    "- It expects what it was trained on: other scanners, other diseases, children, scans after "
    "surgery and scans that are not skull-stripped or not aligned may give wrong masks.",
    "- It always gives a mask. An empty one does not show that there is no tumour.",
    "- Scores on the cases of one data set say little of another hospital's patients.",
  ]
  missing = {"t2", "flair"}.isdisjoint(student.architecture.modalities)
  if missing:
    lines.insert(1, "- Oedema is hard to see without T2 or FLAIR: its outline is the least sure.")
  return lines


def plain(value: Any) -> str:
  """Text that is no markup: in one line, of at most 300 characters."""
  return _MARKUP.sub(lambda found: "\\" + found[0], one_line(str(value))[:300])
