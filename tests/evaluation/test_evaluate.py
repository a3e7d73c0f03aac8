"""Evaluations: of runs on their own and on other data, never on training subjects; of masks."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runs import make_data, make_run
from synthetic import LARGE, images, make_case, seg, write

from kd_jax.data.cases import Naming
from kd_jax.evaluation.case_results import check_complete
from kd_jax.evaluation.choice import Choice
from kd_jax.evaluation.masks import evaluate_masks
from kd_jax.evaluation.students import evaluate
from kd_jax.metrics.case import columns
from kd_jax.prediction.predictor import Predictor
from kd_jax.prediction.student_directory import export
from kd_jax.runs.students import open_student, open_students
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.labels import from_classes, to_classes

REAL_SCORES = Path(__file__).parents[2].parent / "shared" / "scores"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
  """data/, other/ (cases that no one was trained on), and two folds' runs."""
  place = tmp_path_factory.mktemp("place")
  make_data(place / "data")
  make_data(place / "other", cases=2, first=50)
  for fold in (0, 1):
    make_run(place / f"fold{fold}", place / "data", fold, seed=fold)
  return place


def predictor(*paths: Path) -> Predictor:
  return Predictor(open_students(",".join(map(str, paths))))


def rows(folder: Path) -> dict[str, dict[str, float]]:
  with (folder / "scores.csv").open() as f:
    return {row.pop("case"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(f)}


def validation_cases(run: Path, fold: int) -> list[str]:
  return sorted(json.loads((run / "folds.json").read_text())["folds"][fold])


def test_a_run_is_scored_on_its_validation_cases(place, terminal):
  summary = evaluate(predictor(place / "fold0"), Choice(), None, terminal)
  folder = place / "fold0" / "evaluation" / "val"
  assert sorted(rows(folder)) == validation_cases(place / "fold0", 0)
  assert all(list(row) == columns() for row in rows(folder).values())
  assert json.loads((folder / "summary.json").read_text()) == summary
  assert summary["data"]["cases"] == len(rows(folder)) and summary["failed"] == {}
  assert summary["data"]["fold"] == 0 and summary["data"]["conventions"] == ["brats2018"]
  student = open_student(place / "fold0")
  assert summary["students"][0]["weights_sha256"] == student.digest()
  assert summary["students"][0]["step"] == 7
  for region in ("WT", "TC", "ET"):
    for metric in ("dice", "hd95_mm", "specificity"):
      mean = np.mean([row[f"{metric}_{region}"] for row in rows(folder).values()])
      assert summary["regions"][region][metric]["mean"] == pytest.approx(mean, rel=1e-6)
  assert any("chosen by scores" in note for note in summary["notes"])
  page = (folder / "report.html").read_text()
  assert all(name in page for name in rows(folder))
  exported = open_student(place / "fold0").scores  # what an export takes along
  assert exported["regions"] == summary["regions"] and "root" not in exported["data"]


def test_training_subjects_are_refused(place, terminal):
  data = Choice(data_root=place / "data")
  with pytest.raises(UserError, match="REFUSED: 4 of 6 cases") as error:
    evaluate(predictor(place / "fold0"), data, None, terminal)
  assert validation_cases(place / "fold0", 0)[0] not in str(error.value)
  with pytest.raises(UserError, match="REFUSED"):
    evaluate(predictor(place / "fold0"), Choice(split="train"), None, terminal)


def test_training_subjects_can_be_left_out(place, terminal, tmp_path):
  data = Choice(data_root=place / "data", exclude_training_subjects=True)
  summary = evaluate(predictor(place / "fold0"), data, tmp_path, terminal)
  assert sorted(rows(tmp_path)) == validation_cases(place / "fold0", 0)
  assert len(summary["excluded"]) == 4


def test_an_ensemble_was_trained_on_what_any_member_was(place, terminal, tmp_path):
  both = predictor(place / "fold0", place / "fold1")
  with pytest.raises(UserError, match="REFUSED: 6 of 6"):
    evaluate(both, Choice(data_root=place / "data"), tmp_path, terminal)
  with pytest.raises(UserError, match="no case is left"):
    choice = Choice(data_root=place / "data", exclude_training_subjects=True)
    evaluate(both, choice, tmp_path, terminal)
  summary = evaluate(both, Choice(data_root=place / "other"), tmp_path, terminal)
  assert summary["data"]["cases"] == 2 and len(summary["students"]) == 2
  with pytest.raises(ConfigError, match="for one run"):
    evaluate(both, Choice(), None, terminal)
  with pytest.raises(ConfigError, match="give --output"):
    evaluate(both, Choice(data_root=place / "other"), None, terminal)


def renamed_copy(place: Path, case: str, target: Path) -> None:
  """The same patient in another year's set: another name, another storage type, other padding."""
  for file in (place / "data" / case).iterdir():
    data = np.asarray(nib.load(file).dataobj)
    padded = np.pad(data, 2).astype(np.float32 if "seg" not in file.name else np.uint8)
    write(target / f"Other_001_{file.name.split('_')[-1]}", padded, LARGE)


def test_training_subjects_are_known_by_their_images(place, terminal, tmp_path):
  trained = next(n for n in rows_of_fold(place, 1))
  renamed_copy(place, trained, tmp_path / "year" / "Other_001")
  with pytest.raises(UserError, match="Other_001: the same t1ce image"):
    evaluate(predictor(place / "fold0"), Choice(data_root=tmp_path / "year"), None, terminal)


def test_training_subjects_are_known_by_sequences_that_the_student_does_not_read(
  place, terminal, tmp_path
):
  """One voxel of t1ce is another, the files beside it are the same."""
  renamed_copy(place, rows_of_fold(place, 1)[0], tmp_path / "year" / "Other_001")
  t1ce = tmp_path / "year" / "Other_001" / "Other_001_t1ce.nii.gz"
  voxels = np.asarray(nib.load(t1ce).dataobj).copy()
  voxels[8, 8, 8] += 1
  write(t1ce, voxels, LARGE)
  with pytest.raises(UserError, match=r"Other_001: the same (flair|t1|t2) image"):
    evaluate(predictor(place / "fold0"), Choice(data_root=tmp_path / "year"), None, terminal)


@pytest.mark.parametrize("by", ["images", "a name mapping"])
def test_validation_cases_under_another_name_are_told(place, terminal, tmp_path, by):
  own = rows_of_fold(place, 0)[0]
  mapping = None
  if by == "images":
    renamed_copy(place, own, tmp_path / "year" / "Other_001")
  else:
    make_case(tmp_path / "year" / "Other_001", seed=77, affine=LARGE)
    mapping = tmp_path / "name_mapping.csv"
    mapping.write_text(f"BraTS_2020_subject_ID,BraTS_2030_subject_ID\n{own},Other_001\n")
  choice = Choice(data_root=tmp_path / "year", name_mapping=mapping)
  summary = evaluate(predictor(place / "fold0"), choice, tmp_path / "out", terminal)
  assert any("1 of these 1 cases were among them" in note for note in summary["notes"])


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside one that says"])
def test_a_student_whose_training_subjects_are_not_known_is_named(
  place, terminal, tmp_path, beside
):
  """As imported ones are; another student's subjects are no answer for it."""
  silent = dataclasses.replace(
    open_student(place / "fold1"), source="imported", train=[], val=[], settings={}
  )
  students = [open_student(place / "fold0")] * beside + [silent]
  choice = Choice(data_root=place / "other")
  summary = evaluate(Predictor(students), choice, tmp_path / "out", terminal)
  said = "warning: the training subjects of imported are not known"
  assert any(note.startswith(said) for note in summary["notes"])
  assert said in terminal.console.file.getvalue()


def test_what_names_leave_open_is_told(place, terminal, tmp_path):
  for case in ("Other_001", "Other_002"):
    make_case(tmp_path / "other" / case, seed=77, affine=LARGE)
  (tmp_path / "other" / "Other_001" / "Other_001_mask.nii.gz").touch()
  trained = rows_of_fold(place, 1)[0]
  naming = Naming(patients={"Other_001": trained})
  choice = Choice(data_root=tmp_path / "other", naming=naming)
  with pytest.raises(UserError, match=f"Other_001: same patient id {trained}"):
    evaluate(predictor(place / "fold0"), choice, None, terminal)
  told = terminal.console.file.getvalue()
  assert "1 other files beside the cases are not read: Other_001/Other_001_mask.nii.gz" in told
  assert "the table of patients lacks 1 cases, whose names tell the patient: Other_002" in told


def test_names_like_time_points_of_training_subjects_are_told(place, terminal, tmp_path):
  later = rows_of_fold(place, 1)[0] + "_late"
  make_case(tmp_path / "other" / later, seed=77, affine=LARGE)
  choice = Choice(data_root=tmp_path / "other")
  summary = evaluate(predictor(place / "fold0"), choice, tmp_path / "out", terminal)
  assert any(f"time points of training subjects: {later}" in note for note in summary["notes"])


def rows_of_fold(place: Path, fold: int) -> list[str]:
  """Cases that fold 0's run was trained on: another fold's validation cases."""
  return validation_cases(place / "fold0", fold)


def test_training_subjects_are_known_by_a_name_mapping(place, terminal, tmp_path):
  trained = rows_of_fold(place, 1)[0]
  make_case(tmp_path / "year" / "BraTS30_001", seed=77, affine=LARGE)
  mapping = tmp_path / "name_mapping.csv"
  mapping.write_text(f"BraTS_2020_subject_ID,BraTS_2030_subject_ID\n{trained},BraTS30_001\n")
  choice = Choice(data_root=tmp_path / "year", name_mapping=mapping)
  with pytest.raises(UserError, match="BraTS30_001: same patient by the name mapping"):
    evaluate(predictor(place / "fold0"), choice, None, terminal)


def test_an_exported_student_scores_alike_and_refuses_alike(place, terminal, tmp_path):
  export(open_student(place / "fold0"), tmp_path / "shared")
  other = Choice(data_root=place / "other")
  for source, output in [(place / "fold0", "a"), (tmp_path / "shared", "b")]:
    evaluate(predictor(source), other, tmp_path / output, terminal)
  assert rows(tmp_path / "a") == rows(tmp_path / "b")
  with pytest.raises(UserError, match="REFUSED: 4 of 6"):
    choice = Choice(data_root=place / "data")
    evaluate(predictor(tmp_path / "shared"), choice, tmp_path / "c", terminal)
  with pytest.raises(ConfigError, match="has no data of its own"):
    evaluate(predictor(tmp_path / "shared"), Choice(), tmp_path / "c", terminal)
  own = Choice(data_root=place / "other", split="val")
  for students, why in [
    (predictor(tmp_path / "shared"), "an exported student does not say which"),
    (predictor(place / "fold0", place / "fold1"), "students of several folds have no"),
  ]:
    with pytest.raises(ConfigError, match=rf"for one run: {why} .*\. Leave --split out"):
      evaluate(students, own, tmp_path / "c", terminal)


@pytest.mark.parametrize("convention", ["msd", "brats2023"])
def test_the_numbers_in_label_maps_change_no_score(place, terminal, tmp_path, convention):
  """Said by a dataset.json, or judged by the labels; the student was trained with ET = 4."""
  data = shutil.copytree(place / "other", tmp_path / "data")
  for file in data.glob("*/*_seg.nii.gz"):
    write(file, from_classes(to_classes(seg(), "brats2018"), convention), LARGE)
  if convention == "msd":
    said = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
    (data / "dataset.json").write_text(json.dumps({"labels": said}))
  summaries = [
    evaluate(predictor(place / "fold0"), Choice(data_root=root), tmp_path / root.name, terminal)
    for root in (place / "other", data)
  ]
  assert summaries[1]["data"]["conventions"] == [convention]
  assert rows(tmp_path / "other").keys() == rows(tmp_path / "data").keys()
  for metric in ("dice", "truth_mm3", "sensitivity"):
    for region in ("WT", "TC", "ET"):
      means = [summary["regions"][region][metric]["mean"] for summary in summaries]
      assert means[0] == means[1]


def test_an_evaluation_of_nothing_writes_no_report(place, terminal, tmp_path):
  data = shutil.copytree(place / "other", tmp_path / "data")
  for file in data.glob("*/*_seg.nii.gz"):
    file.unlink()
  with pytest.raises(UserError, match=r"no case could be scored(.|\n)*case50: no label map"):
    evaluate(predictor(place / "fold0"), Choice(data_root=data), tmp_path / "out", terminal)
  assert not (tmp_path / "out").exists()


def test_cases_that_cannot_be_scored_are_in_no_mean(place, terminal, tmp_path):
  shutil.copytree(place / "other", tmp_path / "data")
  (tmp_path / "data" / "case50" / "case50_seg.nii.gz").unlink()
  make_case(tmp_path / "data" / "case60", seed=60, affine=LARGE)
  write(tmp_path / "data" / "case60" / "case60_seg.nii.gz", seg()[:-1], LARGE)
  lacking = make_case(tmp_path / "data" / "case61", seed=61, affine=LARGE)
  (lacking / "case61_t1ce.nii.gz").unlink()
  make_case(tmp_path / "data" / "case62", seed=62, affine=LARGE)
  air = np.where(images(62)["t1ce"] == 0, 2, seg()).astype(np.uint8)
  write(tmp_path / "data" / "case62" / "case62_seg.nii.gz", air, LARGE)
  write(tmp_path / "data" / "case63_seg.nii.gz", seg(), LARGE)  # without images
  summary = evaluate(
    predictor(place / "fold0"), Choice(data_root=tmp_path / "data"), tmp_path / "out", terminal
  )
  assert list(rows(tmp_path / "out")) == ["case51"]
  assert summary["failed"].keys() == {"case50", "case60", "case61", "case62"}
  assert "no label map" in summary["failed"]["case50"] and "shape" in summary["failed"]["case60"]
  assert "no t1ce image" in summary["failed"]["case61"]
  assert "of its tumour lies outside the brain" in summary["failed"]["case62"]
  assert "1 other files beside the cases are not read" in terminal.console.file.getvalue()
  (spread,) = (line for line in terminal.console.file.getvalue().splitlines() if "sd  " in line)
  assert set(spread.split()) == {"sd", "-"}  # one case has none
  with pytest.raises(UserError, match="4 cases could not be scored"):
    check_complete(summary)


def test_edited_folds_are_noticed(place, terminal, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(place / "fold0", run)
  folds = json.loads((run / "folds.json").read_text())
  folds["folds"][0].append(folds["folds"][1][0])
  (run / "folds.json").write_text(json.dumps(folds))
  with pytest.raises(UserError, match="REFUSED"):
    evaluate(predictor(run), Choice(), None, terminal)
  (run / "folds.json").unlink()
  with pytest.raises(UserError, match=r"has no folds\.json"):
    evaluate(predictor(run), Choice(), None, terminal)


def test_a_split_that_parts_a_patient_is_refused_with_a_remedy_for_every_mode(
  place, terminal, tmp_path
):
  """Under two names. Cross-validation, which scores its folds so, has no flag to leave them out."""
  data = shutil.copytree(place / "data", tmp_path / "data")
  renamed_copy(place, "case0", data / "Other_001")
  parted = {"train": ["case0", "case1"], "val": ["Other_001", "case2"]}
  run = make_run(tmp_path / "run", data, given=parted)
  with pytest.raises(UserError, match=r"REFUSED: 1 of 2(.|\n)*data\.patients") as error:
    evaluate(predictor(run), Choice(), None, terminal)
  assert f"--mode=evaluate --checkpoint={run} --exclude_training_subjects" in str(error.value)
  evaluate(predictor(run), Choice(exclude_training_subjects=True), None, terminal)
  assert list(rows(run / "evaluation" / "val")) == ["case2"]


# --- Hold-outs --------------------------------------------------------------------------------

FOLDS = {"folds": [["case0", "case1"], ["case2", "case3"]]}  # of six cases


@pytest.fixture(scope="module")
def held_out(place) -> Path:
  """Two folds of a cross-validation that leaves case4 and case5 out."""
  for fold in (0, 1):
    make_run(place / "cv" / f"fold{fold}", place / "data", fold, seed=fold, folds=2, given=FOLDS)
  return place / "cv"


def test_a_holdout_is_scored(held_out, terminal):
  run = held_out / "fold0"
  summary = evaluate(predictor(run), Choice(split="holdout"), None, terminal)
  folder = run / "evaluation" / "holdout"
  assert sorted(rows(folder)) == ["case4", "case5"]
  assert summary["data"]["split"] == "holdout" and summary["data"]["cases"] == 2
  assert summary["data"]["fold"] == 0 and summary["data"]["folds"] == 2
  assert "hold-out" in summary["title"] and summary["notes"] == []
  assert "2 hold-out cases of" in terminal.console.file.getvalue()
  assert "(hold-out, fold 0 of 2)" in (folder / "report.html").read_text()


def test_a_holdout_of_all_folds_together(held_out, terminal, tmp_path):
  with pytest.raises(ConfigError, match="give --output"):
    evaluate(predictor(held_out), Choice(split="holdout"), None, terminal)
  summary = evaluate(predictor(held_out), Choice(split="holdout"), tmp_path, terminal)
  assert sorted(rows(tmp_path)) == ["case4", "case5"] and len(summary["students"]) == 2
  assert "fold" not in summary["data"]


def test_a_holdout_is_what_no_student_has_used(place, terminal, tmp_path):
  """Two runs with lists of their own."""
  make_run(tmp_path / "a", place / "data", given={"train": ["case0"], "val": ["case1"]})
  lists = {"train": ["case2"], "val": ["case3"], "test": ["case0", "case5"]}
  make_run(tmp_path / "b", place / "data", seed=1, given=lists)
  evaluate(predictor(tmp_path / "b"), Choice(split="holdout"), tmp_path / "one", terminal)
  assert sorted(rows(tmp_path / "one")) == ["case0", "case1", "case4", "case5"]
  both = predictor(tmp_path / "a", tmp_path / "b")
  evaluate(both, Choice(split="holdout"), tmp_path / "two", terminal)
  assert sorted(rows(tmp_path / "two")) == ["case4", "case5"]


@pytest.mark.parametrize("known", ["case2", "case0"], ids=["trained on", "validated on"])
def test_a_known_patient_in_a_holdout_is_refused(place, held_out, terminal, tmp_path, known):
  shutil.copytree(place / "data", tmp_path / "data")
  shutil.rmtree(tmp_path / "data" / "case5")
  renamed_copy(place, known, tmp_path / "data" / "Other_001")
  choice = Choice(data_root=tmp_path / "data", split="holdout")
  with pytest.raises(UserError, match=r"1 of 2 cases .* trained or validated on") as error:
    evaluate(predictor(held_out / "fold0"), choice, tmp_path / "out", terminal)
  assert f"Other_001: the same t1ce image as {known}" in str(error.value)
  choice = dataclasses.replace(choice, exclude_training_subjects=True)
  summary = evaluate(predictor(held_out / "fold0"), choice, tmp_path / "out", terminal)
  assert list(rows(tmp_path / "out")) == ["case4"] and list(summary["excluded"]) == ["Other_001"]


def test_where_there_is_no_holdout(place, held_out, terminal, tmp_path):
  holdout = Choice(split="holdout")
  with pytest.raises(UserError, match="there is no hold-out: each case of"):
    evaluate(predictor(place / "fold0"), holdout, None, terminal)
  export(open_student(held_out / "fold0"), tmp_path / "shared")
  for choice in (holdout, dataclasses.replace(holdout, data_root=place / "other")):
    with pytest.raises(ConfigError, match="an exported student"):
      evaluate(predictor(tmp_path / "shared"), choice, tmp_path / "out", terminal)
  other = dataclasses.replace(holdout, data_root=place / "other")
  with pytest.raises(UserError, match=r"lacks cases of .*: case0, case1, case2, case3"):
    evaluate(predictor(held_out / "fold0"), other, tmp_path / "out", terminal)
  assert not (tmp_path / "out").exists()


# --- Masks ------------------------------------------------------------------------------------


def test_masks_of_anyone(tmp_path, terminal):
  """Truth as BraTS cases, predictions as a flat folder; one missing, one too many, one unfit."""
  for i in range(4):
    make_case(tmp_path / "truth" / f"case{i}", seed=i, affine=LARGE)
  shifted = np.roll(seg(), 1, axis=0)
  write(tmp_path / "masks" / "case0.nii.gz", seg(), LARGE)
  write(tmp_path / "masks" / "case1.nii.gz", shifted, LARGE)
  write(tmp_path / "masks" / "case2.nii.gz", seg(et=3), LARGE)  # of another year's labels
  write(tmp_path / "masks" / "stray.nii.gz", seg(), LARGE)
  arguments = (tmp_path / "masks", tmp_path / "truth", ("auto", "auto"), tmp_path / "out")
  summary = evaluate_masks(*arguments, terminal)
  scored = rows(tmp_path / "out")
  assert list(scored) == ["case0", "case1"]
  assert scored["case0"]["dice_WT"] == 1 and scored["case0"]["hd95_mm_ET"] == 0
  block = 6 * 6 * 6
  assert scored["case1"]["dice_WT"] == pytest.approx(2 * (block - 36) / (2 * block))
  assert scored["case1"]["truth_mm3_WT"] == block * 27
  assert "unknown label 3" in summary["failed"]["case2"]
  assert "no prediction" in summary["failed"]["case3"]
  assert any("stray" in note for note in summary["notes"])
  one_sided = evaluate_masks(*arguments[:2], ("auto", "brats2023"), tmp_path / "two", terminal)
  assert "unknown label 4" in one_sided["failed"]["case0"]
  assert list(rows(tmp_path / "two")) == ["case2"]
  assert rows(tmp_path / "two")["case2"]["dice_ET"] == 1


@pytest.mark.parametrize("et", [3, 4])
def test_labels_are_judged_by_the_whole_data_set(tmp_path, terminal, et):
  for name in ("truth", "prediction"):
    write(tmp_path / "pairs" / "a" / f"{name}.nii.gz", seg(et=et))
    write(tmp_path / "pairs" / "b" / f"{name}.nii.gz", np.minimum(seg(et=et), 2))
  pairs = tmp_path / "pairs"
  summary = evaluate_masks(pairs, pairs, ("auto", "auto"), tmp_path / "out", terminal)
  expected = {3: "brats2023", 4: "brats2018"}[et]
  assert summary["data"]["conventions"] == [expected]
  assert all(row["dice_ET"] == 1 for row in rows(tmp_path / "out").values())


def test_masks_that_fit_no_truth(tmp_path, terminal):
  write(tmp_path / "truth" / "a.nii.gz", seg())
  write(tmp_path / "masks" / "b.nii.gz", seg())
  auto = ("auto", "auto")
  with pytest.raises(UserError, match="no prediction fits a truth"):
    evaluate_masks(tmp_path / "masks", tmp_path / "truth", auto, tmp_path / "out", terminal)
  with pytest.raises(UserError, match="no folder"):
    evaluate_masks(tmp_path / "none", tmp_path / "truth", auto, tmp_path / "out", terminal)
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="no segmentation under"):
    evaluate_masks(tmp_path / "empty", tmp_path / "truth", auto, tmp_path / "out", terminal)


def test_official_scores(tmp_path, terminal):
  """The pairs with the organisers' figures, through the command's own path."""
  if not REAL_SCORES.is_dir():
    pytest.skip(f"no score pairs in {REAL_SCORES}")
  summary = evaluate_masks(REAL_SCORES, REAL_SCORES, ("auto", "auto"), tmp_path, terminal)
  assert summary["failed"] == {}
  expected = json.loads((REAL_SCORES / "expected.json").read_text())
  found = rows(tmp_path)
  assert found.keys() == expected.keys()
  for case, regions in expected.items():
    for region, metrics in regions.items():
      for metric, value in metrics.items():
        assert found[case][f"{metric}_{region}"] == pytest.approx(value, rel=1e-6, abs=1e-6)
