"""What a folder's predict.json and journals say was written there."""

import json
import threading
from pathlib import Path

import pytest

from kd_jax.data import own_masks
from kd_jax.data.own_masks import Entry, Journal, entries, write_record, written_by_us
from kd_jax.runtime.errors import UserError

FACTS = {"students": [], "labels": "brats2018"}


def entry(*files: str) -> Entry:
  return Entry({"t1ce": {"bytes": 3, "sha256": "ab"}}, dict.fromkeys(files, "cd"))


def journals(folder: Path) -> list[str]:
  return sorted(path.name for path in folder.glob(".predict.*"))


def test_notes_are_known_at_once_and_kept_in_the_record(tmp_path):
  assert written_by_us(tmp_path) == written_by_us(tmp_path / "absent") == frozenset()
  journal = Journal(tmp_path)
  journal.note("A", entry("A.nii.gz", "A_WT.nii.gz"))
  journal.note("\udcff\n", entry("\udcff\n.nii.gz"))
  wanted = {"A.nii.gz", "A_WT.nii.gz", "\udcff\n.nii.gz"}
  assert written_by_us(tmp_path) == wanted
  write_record(tmp_path, FACTS)
  assert written_by_us(tmp_path) == wanted and not journals(tmp_path)
  record = json.loads((tmp_path / "predict.json").read_text())
  assert record["labels"] == "brats2018" and record["students"] == []
  assert entries(tmp_path)["A"] == entry("A.nii.gz", "A_WT.nii.gz")


def test_the_journal_of_a_killed_process_is_taken_over_and_that_of_a_living_one_is_left(
  tmp_path, monkeypatch
):
  for writer, case in {"h-1": "dead", "h-2": "alive"}.items():
    monkeypatch.setattr(own_masks, "_self", lambda writer=writer: writer)
    Journal(tmp_path).note(case, entry(f"{case}.nii.gz"))
  with (tmp_path / ".predict.h-1.jsonl").open("a") as file:
    file.write('{"case": "torn", "inputs": {}, "outp')
  monkeypatch.setattr(own_masks, "_self", lambda: "h-3")
  monkeypatch.setattr(own_masks, "is_abandoned", lambda path, writer: writer == "h-1")
  write_record(tmp_path, FACTS)
  assert journals(tmp_path) == [".predict.h-2.jsonl"]
  assert set(entries(tmp_path)) == {"dead", "alive"}
  write_record(tmp_path, FACTS, done=[".predict.h-2.jsonl"])
  assert not journals(tmp_path) and set(entries(tmp_path)) == {"dead", "alive"}


def test_a_later_note_of_a_case_replaces_the_earlier_one(tmp_path):
  Journal(tmp_path).note("A", entry("A.nii.gz", "A_WT.nii.gz"))
  write_record(tmp_path, FACTS)
  Journal(tmp_path).note("A", entry("A.nii.gz"))
  assert written_by_us(tmp_path) == {"A.nii.gz"}


def test_runs_that_end_together_lose_no_note(tmp_path):
  write_record(tmp_path, FACTS)

  def end(i: int) -> None:
    path = tmp_path / f".predict.elsewhere-{i}.jsonl"
    content = {"case": f"{i}", **entry(f"{i}.nii.gz")._asdict()}
    path.write_text(json.dumps(content) + "\n")
    write_record(tmp_path, FACTS, done=[path.name])

  threads = [threading.Thread(target=end, args=(i,)) for i in range(16)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert set(entries(tmp_path)) == {str(i) for i in range(16)} and not journals(tmp_path)


@pytest.mark.parametrize(
  "content", ['{"cases": []}', '{"cases": {"A": 1}}', '{"cases": {"A": {"outputs": []}}}', "{"]
)
def test_a_record_that_is_none_of_ours(tmp_path, content):
  (tmp_path / "predict.json").write_text(content)
  assert written_by_us(tmp_path) == frozenset()
  with pytest.raises(UserError, match=r"predict\.json"):
    entries(tmp_path)


def test_a_record_of_an_earlier_version_has_no_cases(tmp_path):
  (tmp_path / "predict.json").write_text(json.dumps(FACTS))
  assert entries(tmp_path) == {} and written_by_us(tmp_path) == frozenset()
