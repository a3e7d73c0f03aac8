"""What people call the classes, and the conventions that follow."""

import json

import numpy as np
import pytest

from kd_jax.runtime.errors import ConfigError
from kd_jax.tasks.label_names import class_of
from kd_jax.tasks.labels import canonical, from_classes, meaning, to_classes


@pytest.mark.parametrize(
  ("said", "text"),
  [
    ('{"NCR": 2, "ED": 1, "ET": 3}', "msd"),
    ({"ED": 1, "ET": 3, "NCR": 2}, "msd"),
    # nnU-Net's dataset.json: version 2, version 1, and by region
    ({"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}, "msd"),
    ({"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}, "msd"),
    (
      {
        "background": 0,
        "whole tumor": [1, 2, 3],
        "tumor core": [2, 3],
        "enhancing tumor": [3],
      },
      "msd",
    ),
    (
      {
        "necrotic and non-enhancing tumor core": 1,
        "peritumoral edematous/invaded tissue": 2,
        "GD-enhancing tumor": 4,
      },
      "brats2018",
    ),
    ({"NETC": 1, "SNFH": 2, "ET": 3}, "brats2023"),
    ({"ET": 1, "NET": 2, "CC": 3, "ED": 4}, "brats-ped"),
    ("brats2020", "brats2018"),
    ("BraTS2021", "brats2018"),
    ("MSD ", "msd"),
    ('{"ED": 3, "NCR": "1", "ET": 2}', '{"NCR": 1, "ED": 3, "ET": 2}'),
    # in full, a 4 that is no tumour stays said: brats2024 refuses it where no case has a 3
    (
      {"NCR": 1, "ED": 2, "ET": 3, "RC": 4},
      '{"NCR": 1, "ED": 2, "ET": 3, "background": [0, 4]}',
    ),
  ],
)
def test_conventions_in_the_words_of_others(said, text):
  assert canonical(said) == text
  assert canonical(text) == text
  if not isinstance(said, str):
    assert canonical(json.dumps(said)) == text


def test_a_mapping_reads_and_writes():
  convention = canonical('{"NCR": [7, 2], "ED": 200, "ET": 1}')
  classes = np.arange(4, dtype=np.uint8)
  assert from_classes(classes, convention).tolist() == [0, 7, 200, 1]
  assert to_classes(np.array([0, 2, 7, 200, 1]), convention).tolist() == [0, 1, 1, 2, 3]
  with pytest.raises(ValueError, match=r"unknown label 3 \(1 voxels\)"):
    to_classes(np.array([3]), convention)
  assert meaning("brats-ped") == "1 = ET, 2 = NCR, 3 = NCR, 4 = ED"


@pytest.mark.parametrize(
  ("said", "words"),
  [
    ('{"NCR": 1, "ED": 1, "ET": 3}', "label 1 is NCR and ED at once"),
    ({"NCR": 0, "ED": 1, "ET": 3}, "label 0 is background and NCR at once"),
    ('{"NCR": 1, "ED": 2, "EZ": 3}', "'EZ' is no class of a tumour"),
    ('{"NCR": 1, "ET": 3}', "have no ED"),
    ('{"WT": 1}', "whole tumour or core alone cannot be used"),
    ({"background": 0, "tumor": 1}, "whole tumour or core alone cannot be used"),
    ({"WT": [1, 2], "TC": [1, 2], "ET": [2]}, "not which of their voxels"),
    ('{"NCR": 1.5, "ED": 2, "ET": 3}', "no label"),
    ('{"NCR": 1, "ED": 2, "ET": 256}', "no label"),
    ('{"NCR": true, "ED": 2, "ET": 3}', "no label"),
    ('{"NCR": 1, "ED": 2, "ET": 3, "ET": 4}', "a name stands there twice"),
    ('{"NCR": 1, "ED": 2', "no JSON"),
    ("{}", "no mapping of classes"),
    ({"0": "background", "1": "liver"}, "'liver' is no class"),
    ("nnunet", "known: brats2018"),
  ],
)
def test_what_does_not_say_each_class_is_refused(said, words):
  with pytest.raises(ConfigError, match=words) as error:
    canonical(said)
  assert '"ET": 3}' in str(error.value)  # with an example of what can be said


@pytest.mark.parametrize("name", ["ignore", "label 3", "left", "", "ventricles", "ed2core"])
def test_other_names_are_no_classes(name):
  assert class_of(name) is None
