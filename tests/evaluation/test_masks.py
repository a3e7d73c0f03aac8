"""Masks of other houses against truths: other numbers, other files, and who is to blame."""

import json

import numpy as np
import pytest
from synthetic import LARGE, NEW, SHAPE, images, make_case, seg, write

from kd_jax.evaluation.case_results import check_complete
from kd_jax.evaluation.masks import evaluate_masks
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.labels import canonical, from_classes, to_classes

CLASSES = to_classes(seg(), "brats2018")
AUTO = ("auto", "auto")


def msd(y: np.ndarray = CLASSES) -> np.ndarray:
  return from_classes(y, "msd")


def told(terminal) -> str:
  return terminal.console.file.getvalue()


def gli(root, number: int, et: int = 3):
  return make_case(root / f"BraTS-GLI-{number:05}-000", NEW, "-", et=et, affine=LARGE)


@pytest.mark.parametrize(("truth_et", "mask_et"), [(3, 4), (4, 3), (4, 4), (3, 3)])
def test_et_is_et_on_both_sides(tmp_path, terminal, truth_et, mask_et):
  """Whatever years the names and the numbers are of."""
  for i in range(2):
    name = gli(tmp_path / "truth", i, truth_et).name
    write(tmp_path / "masks" / f"{name}.nii.gz", seg(et=mask_et), LARGE)
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert summary["regions"]["ET"]["dice"]["mean"] == 1
  assert summary["data"]["dropped_labels"] == summary["data"]["dropped_prediction_labels"] == {}
  years = {3: "brats2024", 4: "brats2018"}
  assert summary["data"]["conventions"] == [years[truth_et]]
  assert "predictions: the labels of 2 label maps are read as brats20" in told(terminal)


@pytest.mark.parametrize("said", ["brats2018", '{"NCR": 2, "ED": 3, "ET": 1}'])
def test_the_record_of_predict_is_believed(tmp_path, terminal, said):
  name = gli(tmp_path / "truth", 1).name
  write(tmp_path / "masks" / f"{name}.nii.gz", from_classes(CLASSES, canonical(said)), LARGE)
  (tmp_path / "masks" / "predict.json").write_text(json.dumps({"labels": said, "students": []}))
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert all(summary["regions"][region]["dice"]["mean"] == 1 for region in ("WT", "TC", "ET"))
  assert summary["data"]["prediction_conventions"] == [canonical(said)]


def test_nnunet_s_own_order(tmp_path, terminal):
  """labelsTr with its dataset.json, and masks of nnUNetv2_predict, which copies it."""
  said = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
  write(tmp_path / "set" / "labelsTr" / "BRATS_001.nii.gz", msd())
  write(tmp_path / "masks" / "BRATS_001.nii.gz", msd(np.where(CLASSES == 2, 0, CLASSES)))
  for folder in ("set", "masks"):
    (tmp_path / folder / "dataset.json").write_text(json.dumps({"labels": said}))
  truth, output = tmp_path / "set" / "labelsTr", tmp_path / "out"
  summary = evaluate_masks(tmp_path / "masks", truth, AUTO, output, terminal)
  assert summary["regions"]["TC"]["dice"]["mean"] == 1  # only the oedema is missing
  assert summary["regions"]["WT"]["dice"]["mean"] < 0.8
  assert summary["data"]["conventions"] == ["msd"]


@pytest.mark.parametrize("said", ["msd", '{"NCR": 2, "ED": 1, "ET": 3}'])
def test_orders_that_are_said_for_one_side(tmp_path, terminal, said):
  write(tmp_path / "truth" / "a.nii.gz", seg(et=4))
  write(tmp_path / "masks" / "a.nii.gz", msd())
  sides = ("auto", canonical(said))
  summary = evaluate_masks(
    tmp_path / "masks", tmp_path / "truth", sides, tmp_path / "out", terminal
  )
  assert all(summary["regions"][region]["dice"]["mean"] == 1 for region in ("WT", "TC", "ET"))


def test_another_order_is_warned_of_beside_the_scores(tmp_path, terminal):
  large = np.ones((3, 3, 3), np.uint8)
  write(tmp_path / "truth" / "a.nii.gz", np.kron(seg(et=4), large))
  write(tmp_path / "masks" / "a.nii.gz", np.kron(msd(), large))
  sides = ("auto", "brats2023")
  summary = evaluate_masks(
    tmp_path / "masks", tmp_path / "truth", sides, tmp_path / "out", terminal
  )
  (note,) = [note for note in summary["notes"] if "which should be oedema" in note]
  assert note.startswith("predictions: ") and f"note: {note}" in told(terminal)


def test_the_cavity_is_counted(tmp_path, terminal):
  y = seg(et=3)
  y[0, 0, :5] = 4
  for side in ("truth", "masks"):
    write(tmp_path / side / "a.nii.gz", y)
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  counted = {"4": {"cases": 1, "voxels": 5}}
  assert summary["data"]["dropped_labels"] == counted
  assert summary["data"]["dropped_prediction_labels"] == counted
  assert summary["notes"] == [
    f"{side}: label 4 is read as no tumour: 5 voxels in 1 label map"
    for side in ("truths", "predictions")
  ]


# --- Who is to blame --------------------------------------------------------------------------


SHIFTED = LARGE + np.array([[0, 0, 0, 5], [0] * 4, [0] * 4, [0] * 4])
PROBABILITY = np.random.default_rng(0).random(SHAPE).astype(np.float32)


@pytest.mark.parametrize(
  ("side", "content", "affine", "words", "remedy"),
  [
    ("masks", seg()[:-1], LARGE, "its shape (13, 16, 12) is not the (14, 16, 12) of", "voxel grid"),
    ("masks", seg(), SHIFTED, "up to 5 mm off that of the truth", "voxel grid"),
    ("masks", np.where(seg() == 1, 7, seg()), LARGE, "unknown label 7", "--prediction_labels"),
    ("masks", images()["t1ce"], LARGE, "this is an image, not a label map", "Correct the file"),
    ("masks", PROBABILITY, LARGE, "this is a probability map, not a label", "Correct the file"),
    ("truth", images()["t2"], LARGE, "this is an image, not a label map", "say with --labels"),
    ("truth", np.where(seg() == 1, 7, seg()), LARGE, "unknown label 7", "say with --labels"),
  ],
)
def test_each_file_is_blamed_for_its_own_fault(
  tmp_path, terminal, side, content, affine, words, remedy
):
  for name in ("good", "odd"):
    for folder in ("truth", "masks"):
      write(tmp_path / folder / f"{name}.nii.gz", seg(), LARGE)
  odd = write(tmp_path / side / "odd.nii.gz", content, affine)
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert summary["data"]["cases"] == 1
  reason = summary["failed"]["odd"]
  assert words in reason and remedy in reason and f"({odd})" in reason
  with pytest.raises(UserError) as error:
    check_complete(summary)
  assert reason in str(error.value)


@pytest.mark.parametrize("fault", ["label", "shape"])
def test_an_evaluation_of_nothing_writes_no_report(tmp_path, terminal, fault):
  write(tmp_path / "truth" / "a.nii.gz", seg())
  write(tmp_path / "masks" / "a.nii.gz", seg()[1:] if fault == "shape" else seg() * 9)
  with pytest.raises(UserError, match="no case could be scored, so no report is written"):
    evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert not (tmp_path / "out").exists()


def test_images_are_no_truths(tmp_path, terminal):
  case = make_case(tmp_path / "truth" / "case0", affine=LARGE)
  write(tmp_path / "masks" / "case0_t1ce.nii.gz", seg(), LARGE)
  (case / "case0_seg.nii.gz").unlink()
  with pytest.raises(UserError, match="has images and no label map"):
    evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)


def test_a_case_without_its_label_map_is_named(tmp_path, terminal):
  for i in range(2):
    make_case(tmp_path / "truth" / f"case{i}", affine=LARGE)
    write(tmp_path / "masks" / f"case{i}.nii.gz", seg(), LARGE)
  (tmp_path / "truth" / "case1" / "case1_seg.nii.gz").unlink()
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert summary["data"]["cases"] == 1
  assert "no label map" in summary["failed"]["case1"]


def test_two_label_maps_of_one_case_are_no_reason_to_look_elsewhere(tmp_path, terminal):
  case = make_case(tmp_path / "truth" / "case0", affine=LARGE)
  write(case / "case0_segm.nii.gz", seg(), LARGE)
  write(tmp_path / "masks" / "case0.nii.gz", seg(), LARGE)
  with pytest.raises(
    UserError, match=r"case0_segm.nii.gz\): two seg files: case0_seg.nii.gz and case0_segm"
  ):
    evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)


def test_whole_tumour_masks_are_refused(tmp_path, terminal):
  write(tmp_path / "truth" / "a.nii.gz", seg())
  write(tmp_path / "masks" / "a.nii.gz", (seg() > 0).astype(np.uint8))
  with pytest.raises(ConfigError, match="whole tumours"):
    evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)


def test_what_is_no_case_among_the_truths_is_named(tmp_path, terminal):
  make_case(tmp_path / "truth" / "case0", affine=LARGE)
  (tmp_path / "truth" / "case1").symlink_to("/mnt/absent/case1")
  write(tmp_path / "truth" / "case2" / "tumour.nii.gz", seg(), LARGE)
  (tmp_path / "truth" / "case0" / "case0_t2_brain.nii.gz").touch()  # images do not matter here
  for i in range(3):
    write(tmp_path / "masks" / f"case{i}.nii.gz", seg(), LARGE)
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  assert set(summary["failed"]) == {"case1", "tumour"}
  assert "a link to /mnt/absent/case1, which is not there" in summary["failed"]["case1"]
  with pytest.raises(UserError, match="2 cases could not be scored"):
    check_complete(summary)


def test_truths_without_images_count_beside_those_with(tmp_path, terminal):
  """They were passed over in silence, and their masks were said to have no truth."""
  truth = tmp_path / "truth"
  home = make_case(truth / "case0", affine=LARGE)
  write(home / "old" / "draft_seg.nii.gz", seg(), LARGE)  # a case's own other map is no truth
  write(truth / "case1_seg.nii.gz", seg(), LARGE)
  write(truth / "case2_t1ce.nii.gz", images()["t1ce"], LARGE)  # its label map is not case1's
  for i in range(3):
    write(tmp_path / "masks" / f"case{i}.nii.gz", seg(), LARGE)
  summary = evaluate_masks(tmp_path / "masks", truth, AUTO, tmp_path / "out", terminal)
  assert summary["data"]["cases"] == 2 and set(summary["failed"]) == {"case2"}
  assert summary["notes"] == []
  write(truth / "site" / "case1_seg.nii.gz", seg(), LARGE)
  with pytest.raises(UserError, match="two truths of case1"):
    evaluate_masks(tmp_path / "masks", truth, AUTO, tmp_path / "out", terminal)


def test_a_whole_tumour_among_masks_of_classes_is_named(tmp_path, terminal):
  for name in ("a", "b"):
    for folder in ("truth", "masks"):
      write(tmp_path / folder / f"{name}.nii.gz", seg())
  write(tmp_path / "masks" / "b.nii.gz", (seg() > 0).astype(np.uint8))
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  (note,) = summary["notes"]
  assert note.startswith("predictions: 1 label map of 2 (b) hold no label but 1: make sure")


def test_masks_of_2023_against_later_truths_of_children(tmp_path, terminal):
  """ET = 3 was read as cysts: ET Dice 0, in silence."""
  name = "BraTS-PED-00001-000"
  write(tmp_path / "truth" / name / f"{name}-seg.nii.gz", from_classes(CLASSES, "brats-ped"))
  write(tmp_path / "masks" / f"{name}.nii.gz", from_classes(CLASSES, "brats2023"))
  folders = tmp_path / "masks", tmp_path / "truth"
  with pytest.raises(ConfigError, match="say --prediction_labels=brats2023 or --pred"):
    evaluate_masks(*folders, AUTO, tmp_path / "out", terminal)
  said = ("auto", "brats2023")
  assert (
    evaluate_masks(*folders, said, tmp_path / "out", terminal)["regions"]["ET"]["dice"]["mean"] == 1
  )


def test_a_file_that_cannot_be_read_is_no_matter_of_labels(tmp_path, terminal):
  for name in ("a", "b"):
    for folder in ("truth", "masks"):
      write(tmp_path / folder / f"{name}.nii.gz", seg())
  write(tmp_path / "masks" / "b.nii.gz", np.stack([seg()] * 3, axis=-1))
  summary = evaluate_masks(tmp_path / "masks", tmp_path / "truth", AUTO, tmp_path / "out", terminal)
  reason = summary["failed"]["b"]
  assert "expected a 3-D volume" in reason and "_labels" not in reason
