"""Command lines that cannot be meant: one message each, and exit status 1."""

import json

import pytest
from program import REPOSITORY

MISUSES = [
  ([], "--mode=train needs --config"),
  (
    ["--config=configs/brats21.py:papper"],
    "unknown variant 'papper'; did you mean 'paper'? known: paper, mtcm_kd",
  ),
  (["--config=configs/brats21.py", "--config.data.fld=1"], "fld"),
  (["--config=configs/brats21.py", "--config.data.root=/nowhere"], "no data folder /nowhere"),
  (["--config=configs/brats21.py", "--config.data.patch=(100,128,128)"], "a multiple of 8"),
  (["--config=configs/brats21.py", "stray"], "what is 'stray'?"),
  (["--mode=evaluate"], "give --checkpoint"),
  (["--mode=evaluate", "--workdir=/nowhere"], "no such checkpoint: /nowhere"),
  (["--mode=evaluate", "--checkpoint=configs/"], "holds no student"),
  (["--mode=evaluate", "--predictions=/nowhere"], "go together"),
  (["--mode=evaluate", "--predictions=/a", "--truth=/b", "--mirror"], "--mirror has no meaning"),
  (["--mode=predict", "--checkpoint=/nowhere", "--output=o"], "needs --input"),
  (["--mode=predict", "--config=configs/brats21.py"], "needs --checkpoint"),
  (["--mode=compare", "a"], "takes two evaluations"),
  (["--mode=compare", "/nowhere", "/nowhere"], "/nowhere"),
  (["--mode=dance", "--config=configs/brats21.py"], "known: train, prepare, evaluate"),
  (["--config=configs/brats21.py", "--labels=brats2021"], "--labels has no meaning"),
  (["--config=configs/brats21.py", "--min_et_mm3=9"], "--min_et_mm3 has no meaning"),
  (["--config=configs/brats21.py", "--config.inference.min_et_mm3=-9"], "min_et_mm3 = -9.0 is not"),
]


@pytest.fixture(scope="module")
def answers(place):
  """(status, output) of all misuses, in forks of one process: each start costs seconds."""
  commands = [
    [flag.replace("configs/", f"{REPOSITORY}/configs/") for flag in c] for c, _ in MISUSES
  ]
  forked = REPOSITORY / "tests" / "helpers" / "forked_main.py"
  return json.loads(place.finish(place.python(str(forked), json.dumps(commands))).splitlines()[-1])


@pytest.mark.parametrize("number", range(len(MISUSES)), ids=lambda i: MISUSES[i][1])
def test_misuse_is_answered_in_one_message(answers, number):
  status, output = answers[number]
  assert status == 1, output
  assert MISUSES[number][1] in output
  assert "Traceback" not in output
