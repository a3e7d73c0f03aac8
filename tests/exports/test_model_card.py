"""The model card: its head as the Hub reads it, and what it says of a student."""

import dataclasses

import pytest
import yaml
from students import make_student

from kd_jax.exports import model_card
from kd_jax.exports.data_terms import references
from kd_jax.prediction.predictor import Predictor
from kd_jax.runtime.errors import ConfigError

FOUND = {"n": 20, "mean": 0.68712, "low": 0.61, "high": 0.755, "sd": 0.1, "median": 0.7}
SCORES = {
  "title": "brats21-fold0 on val",
  "rules": {"space": "masks are compared voxel by voxel"},
  "regions": {"WT": {"dice": FOUND, "hd95_mm": FOUND | {"mean": 9.4, "low": 7.0, "high": 12.25}}},
}
TRAINING = {
  "data": "brats21",
  "convention": "brats2018",
  "cases": 1000,
  "validation_cases": 251,
  "teachers": {"flair": ["flair", "t1ce"]},
  "step": 300,
}


def student(**changes):
  return dataclasses.replace(make_student(), **changes)


def card(*students, licence=None, form="safetensors", **settings) -> tuple[dict, str]:
  """Its head, and its text below."""
  chosen = Predictor(students, **settings).settings
  text = model_card.write(students, chosen, licence, {"weights.safetensors": "ab" * 32}, form)
  _, head, body = text.split("---\n", 2)
  return yaml.safe_load(head), body


def test_what_is_known_is_said():
  head, body = card(
    student(training=TRAINING, scores=SCORES), licence="cc-by-4.0", min_component_mm3=200.0
  )
  assert head["license"] == "cc-by-4.0" and "image-segmentation" in head["tags"]
  (result,) = head["model-index"][0]["results"]
  assert result["metrics"][0] == {"type": "dice", "name": "Dice WT", "value": 0.6871}
  for line in (
    "- Sequences: t1ce; skull-stripped",
    "- Labels (brats2018): 1 = NCR, 2 = ED, 4 = ET.",
    "- Connected components of less than 200 mm3 are removed.",
    "- Data: brats21 (the run's name).",
    "- Cases: 1000 trained on; the checkpoint was chosen by 251 others.",
    "- Teachers: flair (flair+t1ce).",
    "| WT | 20 | 0.687 (0.610 to 0.755) | 9.4 (7.0 to 12.2) |",
    "- Weights: cc-by-4.0, as stated by whoever exported them.",
    "arxiv.org/abs/2107.02314",
    f"| `weights.safetensors` | `{'ab' * 32}` |",
    "Research software, not a medical device",
  ):
    assert line in body, line


@pytest.mark.parametrize("ends", [None, 0.68712], ids=["today's", "of earlier versions"])
def test_one_case_has_no_interval(ends):
  found = FOUND | {"n": 1, "sd": None, "low": ends, "high": ends}
  scores = SCORES | {"regions": {"WT": {"dice": found, "hd95_mm": found | {"mean": 9.4}}}}
  head, body = card(student(training=TRAINING, scores=scores))
  assert "| WT | 1 | 0.687 | 9.4 |" in body
  assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.6871


def test_what_is_not_known_is_not_said():
  head, body = card(student())
  assert "model-index" not in head
  assert (head["license"], head["license_name"]) == ("other", "not-stated")
  assert "no licence was stated" in body and "No evaluation is kept with" in body
  assert "Cases:" not in body and "Teachers:" not in body


def test_the_hub_s_own_reader_takes_it(tmp_path):
  hub = pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")
  own = student(training=TRAINING, scores=SCORES, name='a: "b"')
  chosen = Predictor([own]).settings
  text = model_card.write([own], chosen, "mit", {}, "onnx")
  (tmp_path / "README.md").write_text(text)
  read = hub.ModelCard.load(tmp_path / "README.md")
  assert read.data.license == "mit" and read.data.library_name == "kd_jax"
  assert [(r.metric_type, r.metric_value) for r in read.data.eval_results] == [
    ("dice", 0.6871),
    ("hd95_mm", 9.4),
  ]


@pytest.mark.parametrize(
  "scores",
  [{}, {"regions": []}, {"regions": {"WT": 3}}, {"regions": {"WT": {"dice": {"mean": "x"}}}}],
)
def test_scores_of_strangers_that_are_none(scores):
  assert "No evaluation is kept with" in card(student(scores=scores))[1]


def test_names_of_strangers_are_no_markup():
  evil = "x](http://evil) <script>\n# Heading | cell\n---\nlicense: mit"
  own = student(name=evil, training=TRAINING | {"data": evil, "teachers": [evil]})
  head, body = card(own)
  assert head["license"] == "other"
  assert "<script>" not in body.replace("\\<script\\>", "")
  assert not any(line.startswith(("# Heading", "license")) for line in body.splitlines())


def test_several_students_are_told_apart():
  other = dataclasses.replace(make_student(1), name="second")
  _, body = card(make_student(), other, form="onnx")
  assert "# small + second" in body and "The mean of 2 networks" in body
  assert make_student().digest()[:12] in body and other.digest()[:12] in body


@pytest.mark.parametrize(
  ("training", "cited"),
  [
    ({"data": "brats18-t1", "convention": "brats2018"}, "1811.02629"),
    ({"data": "brats23", "convention": "brats2023"}, "2107.02314"),
    ({"data": "mine", "convention": "msd"}, "s41467-022-30695-9"),
    ({"data": "quickstart", "convention": "brats2018"}, "111854"),
    ({"data": "unknown: imported from PyTorch", "convention": "brats2018"}, "2377694"),
  ],
)
def test_what_is_cited_fits_the_data(training, cited):
  assert cited in references(training)[-1] + references(training)[1 % len(references(training))]


def test_licences():
  assert model_card.checked("CC-BY-4.0") == "cc-by-4.0" and model_card.checked(None) is None
  for odd in ("", "mit\nx: 1", "a b", "-x"):
    with pytest.raises(ConfigError, match="expected an identifier"):
      model_card.checked(odd)
