"""What a run tells people."""

import io
import json
import shutil

import numpy as np
import pytest
import rich.console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_jax.report.slices import panel
from kd_jax.runs.log import RunLog, read_numbers
from kd_jax.runtime.errors import UserError
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


# --- What is taken away while a run goes on -----------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_a_work_directory_that_is_renamed_ends_the_run_and_is_not_made_again(
  tmp_path, terminal, replaced
):
  place = tmp_path / "run"
  log = RunLog(place, terminal, 0)
  log.scalars(1, {"loss": 0.5})
  place.rename(tmp_path / "moved")
  if replaced:
    place.mkdir()
  writers = (
    lambda: log.line("x"),
    lambda: log.scalars(2, {"loss": 0.1}),
    lambda: log.picture(2, "p", np.zeros((4, 4, 3), np.uint8)),
    lambda: log.text("t", "x"),
  )
  for write in writers:
    with pytest.raises(UserError, match=r"run was moved, renamed or removed.*--workdir="):
      write()
  log.close()
  assert replaced == place.exists() and not (replaced and list(place.iterdir()))
  assert read_numbers(tmp_path / "moved") == [{"step": 1, "loss": 0.5}]


def test_a_tensorboard_folder_that_is_removed_is_made_again_and_told(tmp_path, terminal):
  log = RunLog(tmp_path, terminal, 0)
  for step in (1, 2):
    log.scalars(step, {"loss": step / 2})
  shutil.rmtree(tmp_path / "tensorboard")
  for step in (3, 4):
    log.scalars(step, {"loss": step / 2})
  log.close()
  events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
  assert [(e.step, e.value) for e in events.Scalars("loss")] == [(s, s / 2) for s in (1, 2, 3, 4)]
  said = terminal.console.file.getvalue()
  assert said.count("warning: tensorboard in") == 1 and "was removed" in said
  assert "tensorboard" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log"])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_log_that_is_removed_is_begun_anew_and_told(tmp_path, terminal, name, renamed):
  log = RunLog(tmp_path, terminal, 0)
  log.line("before")
  log.scalars(1, {"loss": 1.0})
  if renamed:  # as a program that rotates logs does
    (tmp_path / name).rename(tmp_path / "old")
  else:
    (tmp_path / name).unlink()
  log.line("after")
  log.scalars(2, {"loss": 0.5})
  log.close()
  assert f"warning: {name} in" in terminal.console.file.getvalue()
  assert read_numbers(tmp_path)[-1] == {"step": 2, "loss": 0.5}
  assert "after" in (tmp_path / "train.log").read_text()
