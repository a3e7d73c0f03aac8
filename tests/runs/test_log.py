"""What a run tells people."""

import io
import json

import numpy as np
import pytest
import rich.console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_jax.report.slices import panel
from kd_jax.runs.log import RunLog
from kd_jax.runtime.terminal import Terminal, duration, table
from kd_jax.training.metric_averages import MetricAverages


def test_scalars_reach_tensorboard_and_json(tmp_path, terminal):
  log = RunLog(tmp_path, terminal, 0)
  for step in (1, 2):
    log.scalars(step, {"loss": step / 2})
  log.picture(2, "val/A", np.zeros((4, 6, 3), np.uint8))
  log.text("config", "a: 1")
  log.close()
  events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]
  assert events.Tags()["images"] == ["val/A"]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
  ]


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path, terminal):
  log = RunLog(tmp_path, terminal, 0)
  for step in (1, 2, 3, 4):
    log.scalars(step, {"loss": 0.0})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 5, "lo')  # killed while writing
  log = RunLog(tmp_path, terminal, 2)
  log.scalars(3, {"loss": 1.0})
  log.close()
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(x["step"], x["loss"]) for x in lines] == [(1, 0.0), (2, 0.0), (3, 1.0)]
  events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]


def test_lines_go_to_terminal_and_file(tmp_path, terminal):
  log = RunLog(tmp_path, terminal, 0)
  log.line("two\nlines [bold]as they are[/bold]")
  log.line("for the file", terminal=False)
  log.close()
  shown = terminal.console.file.getvalue()
  assert "[bold]as they are" in shown and "for the file" not in shown
  assert len((tmp_path / "train.log").read_text().splitlines()) == 3


def test_progress_without_a_terminal_is_a_few_plain_lines(terminal):
  report = terminal.progress("preparing")
  for done in range(1, 1001):
    report(done, 1000, f"case{done}")
  shown = terminal.console.file.getvalue().splitlines()
  assert shown[-1] == "preparing: 1000/1000 case1000" and len(shown) < 5


def test_tables_align():
  text = table(["network", "WT"], [["student", 0.5], ["t1", 1.0]]).splitlines()
  assert text[0] == "network      WT"
  assert text[2:] == ["student  0.5000", "t1       1.0000"]


@pytest.mark.parametrize(
  ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3725, "1:02:05"), (float("inf"), "?")]
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_a_window_means_its_steps_and_finds_the_first_bad_number():
  window = MetricAverages()
  window.add(1, {"loss/student": np.float32(1), "dice/student/WT": np.float32(0)})
  window.add(2, {"loss/student": np.float32(3), "dice/student/WT": np.float32(1)})
  values = window.close(batch=2)
  assert values.non_finite == []
  assert values.means["loss/student"] == 2 and values.means["dice/student/WT"] == 0.5
  assert values.means["samples_per_second"] == pytest.approx(2 / values.means["seconds_per_step"])

  window = MetricAverages()
  window.add(7, {"loss/student": np.float32(1), "grad_norm/student": np.float32(1)})
  bad = {"loss/student": np.nan, "loss/kd/t2": np.inf, "grad_norm/student": np.nan}
  window.add(8, {name: np.float32(x) for name, x in bad.items()})
  assert window.close(batch=1).non_finite == [(8, "loss/kd/t2", float("inf"))]


def test_a_skipped_step_is_named_and_spoils_no_mean():
  window = MetricAverages()
  for step, loss, skipped in ((1, 1.0, 0), (2, np.nan, 1), (3, 3.0, 0)):
    window.add(step, {"loss/student": np.float32(loss), "skipped": np.float32(skipped)})
  values = window.close(batch=1)
  assert values.means["loss/student"] == 2
  assert [bad[:2] for bad in values.non_finite] == [(2, "loss/student")]
  window = MetricAverages()
  window.add(4, {"loss/student": np.float32(np.nan), "skipped": np.float32(1)})
  assert np.isnan(window.close(batch=1).means["loss/student"])


def test_a_picture_shows_the_slice_with_most_tumour():
  image = np.ones((6, 8, 4), np.float16)
  truth = np.zeros((6, 8, 4), np.uint8)
  truth[1, 2, 3] = 3
  pixels = panel(image, truth, np.zeros_like(truth))
  assert pixels.shape == (8, 18, 3) and pixels.dtype == np.uint8
  coloured = np.argwhere(pixels.max(-1) != pixels.min(-1))
  assert coloured.tolist() == [[2, 6 + 1]]  # row: H, column: D, in the middle view
  assert panel(image, np.zeros_like(truth), np.zeros_like(truth)).shape == (8, 18, 3)


def test_a_live_line_within_another_does_not_stop_it():
  terminal = Terminal()
  terminal.console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
  with terminal.live("training", 10) as show:
    show(5, "loss 1")
    report = terminal.progress("validating")
    for done in (1, 2):
      report(done, 2, f"case{done}")
    show(7, "loss 0.5")
  last = terminal.console.file.getvalue()
  assert " 7/10" in last and "/2" in last
