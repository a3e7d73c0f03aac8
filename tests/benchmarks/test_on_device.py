"""The benchmark for a device that is at hand for minutes: order, turns, budget, crashes, record."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick import FLAGS

from benchmarks import on_device
from benchmarks.device.runner import Runner, Section
from benchmarks.device.sections import JOBS
from kd_jax.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
TALK = """
import os, sys, time
sys.path.insert(0, {root!r})
from benchmarks.device.turns import Turns
turns = Turns(runner=True)
"""
MEASURE = """
time.sleep({before})
with turns.alone():
  began = time.time()
  time.sleep(0.3)
  ended = time.time()
turns.result("measured", began=began, ended=ended)
"""
WORK = """
last, gaps, end = time.time(), [], time.time() + 2.5
while time.time() < end:
  time.sleep(0.01)
  gaps += [(last, time.time())] if time.time() - last > 0.2 else []
  last = time.time()
turns.result("worked", gaps=gaps)
"""


def section(name, code, **changes):
  script = TALK.format(root=str(ROOT)) + code
  return Section(name, [sys.executable, "-c", script], 0.1, 30.0)._replace(**changes)


def run(sections, seconds=60.0, ahead=2):
  """Records by name, and what was reported in between."""
  reports = []
  report = lambda records: reports.append(json.dumps(records))  # noqa: E731
  runner = Runner(sections, time.monotonic() + seconds, ahead, report, lambda line: None)
  found = {record["section"]: record for record in runner.run()}
  assert json.loads(reports[-1]) == list(found.values())
  return found, reports


def test_while_one_measures_all_others_are_stopped():
  found, _ = run(
    [
      section("a", MEASURE.format(before=0.1)),
      section("b", MEASURE.format(before=0.1)),
      section("c", WORK, beside=True),
    ]
  )
  assert {record["status"] for record in found.values()} == {"done"}
  (a,), (b,), (c,) = (found[name]["rows"] for name in "abc")
  assert a["ended"] <= b["began"] or b["ended"] <= a["began"]
  stopped = sum(late - early for early, late in c["gaps"])
  alive = c["gaps"] and min(a["began"], b["began"]) > c["gaps"][0][0] - 0.5
  assert stopped > 0.5 and alive  # both turns of 0.3 s fell into its 2.5 s of work


def test_a_crash_ends_its_section_alone_and_leaves_its_results():
  crash = 'turns.result("before", value=1)\nsys.exit("out of memory")'
  killed = MEASURE.format(before=0).replace("time.sleep(0.3)", "os.kill(os.getpid(), 9)")
  found, reports = run(
    [
      section("crash", crash),
      section("killed", killed),
      section("after", MEASURE.format(before=0)),
    ],
    ahead=1,
  )
  assert [record["status"] for record in found.values()] == ["failed", "failed", "done"]
  assert found["crash"]["rows"] == [{"text": "before", "value": 1}]
  assert found["crash"]["why"] == "exit status 1\nout of memory"
  assert found["killed"]["why"].startswith("signal 9")
  # What was there was reported before the crash.
  first = next(report for report in reports if '"value": 1' in report)
  assert json.loads(first)[0]["status"] == "running"


def test_what_does_not_fit_is_skipped_and_what_takes_too_long_is_cut_off():
  began = time.monotonic()
  forever = 'turns.result("begun")\ntime.sleep(600)'
  found, _ = run(
    [
      section("limited", forever, limit=1.0),
      section("long", MEASURE.format(before=0), estimate=500.0),
      section("last", forever),
      section("never", MEASURE.format(before=0), estimate=3.0),
    ],
    seconds=5.0,
    ahead=1,
  )
  assert time.monotonic() - began < 8
  assert {name: record["status"] for name, record in found.items()} == {
    **{"limited": "cut off", "long": "skipped", "last": "cut off", "never": "skipped"},
  }
  assert "500 s" in found["long"]["why"] and found["last"]["why"] == "the time was up"
  assert found["last"]["rows"] == [{"text": "begun"}]


def test_one_is_begun_after_the_other_in_order():
  code = 'time.sleep(0.3)\nturns.result("", at=time.time())'
  names = ["a", "b", "c", "d"]
  found, _ = run([section(name, code, beside=name == "d") for name in names], ahead=1)
  at = [found[name]["rows"][0]["at"] for name in names]
  assert at[:3] == sorted(at[:3])
  assert at[3] < at[1]  # begun at once


def test_a_quiet_one_has_the_machine_to_itself():
  code = 'began = time.time()\ntime.sleep(0.4)\nturns.result("", began=began, ended=time.time())'
  beside = section("beside", code, beside=True)
  quiet = [section("first", code, quiet=True), section("second", code, quiet=True)]
  found, _ = run([section("usual", code), beside, *quiet])
  first, second, *others = ((found[n]["rows"][0]) for n in ("first", "second", "usual", "beside"))
  assert first["ended"] < second["began"]
  assert all(second["ended"] < other["began"] for other in others)


def test_words_that_are_no_text_end_one_section_alone():
  code = 'sys.stderr.buffer.write(b"bad \\xff byte")\nsys.exit(3)'
  found, _ = run([section("bytes", code), section("after", MEASURE.format(before=0))])
  assert found["bytes"]["why"].startswith("exit status 3\nbad") and "byte" in found["bytes"]["why"]
  assert found["after"]["status"] == "done"


def test_sections_are_chosen_by_their_beginnings():
  assert on_device.chosen(None) == list(JOBS)
  assert on_device.chosen(["torch", "facts"]) == ["facts", "torch"]
  assert on_device.chosen(["step default"]) == ["step default"]
  with pytest.raises(ConfigError, match="golden"):
    on_device.chosen(["nothing"])


def small_run(folder, *flags):
  """The record of a run of tiny networks, its sections by name, and what it printed."""
  path = folder / "record.json"
  command = [sys.executable, ROOT / "benchmarks" / "on_device.py", "--small", f"--json={path}"]
  done = subprocess.run(
    [*command, *flags],
    cwd=folder,
    env=os.environ | {"XLA_FLAGS": FLAGS},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads(path.read_text())
  found = {one["section"]: one for one in record["sections"]}
  assert list(found) == [name for name in JOBS if name in found]
  return record, found, done.stdout


def test_a_small_run(tmp_path):
  """Two real sections: what they find is in the record."""
  only = ("--only", "facts", "step student_only", "--minutes=5", "--ahead=1")
  record, found, printed = small_run(tmp_path, *only)
  assert record["machine"]["jax"] and record["settings"]["small"]
  assert len(record["machine"]["source"]) == 64
  assert {one["status"] for one in found.values()} == {"done"}, found
  step = found["step student_only"]["rows"][-1]
  assert step["milliseconds"]["median"] > 0 and step["flops_per_second"] > 0
  assert step["text"] in printed


@pytest.mark.slow
def test_every_section_runs(tmp_path):
  _, found, _ = small_run(tmp_path, "--minutes=30")
  assert list(found) == list(JOBS)
  bad = {name: one for name, one in found.items() if one["status"] != "done"}
  assert all(one["why"] == "PyTorch is not installed" for one in bad.values()), bad
  readers = found["readers"]["rows"]
  assert [row["workers"] for row in readers] == [1, 2]
  assert all(row["share_of_bare_step"] > 0 for row in readers)
  assert all("milliseconds" in found[name]["rows"][-1] for name in JOBS if name.startswith("step"))
