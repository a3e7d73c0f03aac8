"""A mask that exists is not a mask that is done: what is skipped, made anew, refused."""

import gzip
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from students import make_student
from test_predict import SHAPE, Bright, bright, head, said, save

from kd_jax.data import nifti, own_masks
from kd_jax.data.own_masks import written_by_us
from kd_jax.prediction import predictor as predictor_module
from kd_jax.prediction.output import Output
from kd_jax.prediction.predict import predict
from kd_jax.runtime.errors import UserError
from kd_jax.runtime.terminal import Terminal


@pytest.fixture
def place(tmp_path):
  """A folder `in` with the scans A and B, and its masks in `out`."""
  for name, seed in {"A": 0, "B": 1}.items():
    save(tmp_path / "in" / f"{name}.nii.gz", head(seed=seed))
  predict(bright(), tmp_path / "in", Output(tmp_path / "out", "brats2018"), Terminal(quiet=True))
  return tmp_path


def again(place: Path, terminal: Terminal, scans: str = "in", **options) -> str:
  """The same command once more; what it says."""
  before = len(said(terminal))
  predict(bright(), place / scans, Output(place / "out", "brats2018", **options), terminal)
  return said(terminal)[before:]


def mask(place: Path, name: str = "A") -> np.ndarray:
  return nifti.read(place / "out" / f"{name}.nii.gz").data


def times(folder: Path) -> dict[str, int]:
  return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def other_head() -> np.ndarray:
  """The mirror image: the ball lies elsewhere."""
  return head()[::-1]


def test_what_is_recorded_of_a_case(place):
  record = json.loads((place / "out" / "predict.json").read_text())
  case = record["cases"]["A"]
  assert case["inputs"]["t1ce"]["shape"] == list(SHAPE)
  np.testing.assert_array_equal(case["inputs"]["t1ce"]["affine"], np.diag([-2.5, -2.5, 2.5, 1]))
  assert list(case["outputs"]) == ["A.nii.gz"]
  assert case["facts"]["window"] == [16, 16, 16]
  assert written_by_us(place / "out") == {"A.nii.gz", "B.nii.gz"}
  assert {path.name for path in (place / "out").iterdir()} == {
    "A.nii.gz",
    "B.nii.gz",
    "predict.json",
  }


def test_the_shape_and_affine_of_each_file_are_recorded_as_the_file_has_them(tmp_path, terminal):
  affine = np.diag([-2.5, -2.5, 2.5, 1])
  save(tmp_path / "P" / "P_t1ce.nii.gz", head(), affine)
  image = nib.Nifti1Image(head(seed=1), affine)
  turn = nib.orientations.ornt_transform(
    nib.orientations.axcodes2ornt("LPS"), nib.orientations.axcodes2ornt("SRA")
  )
  nib.save(image.as_reoriented(turn), tmp_path / "P" / "P_flair.nii.gz")
  predictor = Bright([make_student(modalities=("t1ce", "flair"))])
  predict(predictor, tmp_path / "P", Output(tmp_path / "out", "brats2018"), terminal)
  for modality, inputs in own_masks.entries(tmp_path / "out")["P"].inputs.items():
    file = nib.load(tmp_path / "P" / inputs["file"])
    assert f"P_{modality}.nii.gz" == inputs["file"] and inputs["shape"] == list(file.shape)
    np.testing.assert_array_equal(inputs["affine"], file.affine)
  assert inputs["shape"] != list(SHAPE)


def test_the_window_that_was_used_is_recorded_and_makes_no_mask_anew(place, monkeypatch):
  """What "auto" means depends on the memory that is free."""
  windows = []
  for free in (1e12, 1e4):
    monkeypatch.setattr(predictor_module, "free_memory", lambda free=free: free)
    predictor = Bright([make_student()], window="auto")
    save(place / "in" / f"{free:.0e}.nii.gz", head())
    predict(predictor, place / "in", Output(place / "auto", "brats2018"), Terminal(quiet=True))
    facts = {name: entry.facts for name, entry in own_masks.entries(place / "auto").items()}
    windows.append({name: own["window"] for name, own in facts.items()})
  assert windows[0].items() < windows[1].items()
  assert windows[1]["1e+04"] == [16, 16, 16] and windows[1]["A"][0] > 16


def test_what_is_done_is_left_alone(place, terminal):
  before = times(place / "out")
  assert "2 of 2 cases are finished already" in again(place, terminal)
  (place / "in").rename(place / "moved")  # the same scans at another place
  assert "2 of 2 cases are finished already" in again(place, terminal, "moved")
  assert times(place / "out") == before


def test_a_corrected_scan_gets_a_new_mask_and_the_others_keep_theirs(place, terminal):
  old, before = mask(place), times(place / "out")
  save(place / "in" / "A.nii.gz", other_head())
  lines = again(place, terminal)
  assert "1 of 2 cases are finished already" in lines
  assert "the scan is not the one that the mask was made from: A (A.nii.gz)" in lines
  assert (mask(place) != old).any() and times(place / "out")["B.nii.gz"] == before["B.nii.gz"]
  assert "2 of 2 cases are finished already" in again(place, terminal)


def test_a_scan_of_the_same_size_and_time_is_another_scan_if_its_voxels_are(place, terminal):
  path = save(place / "plain" / "A.nii", head())
  again(place, terminal, "plain")
  content, times_before = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
  save(path, other_head())
  os.utime(path, ns=times_before)
  assert len(path.read_bytes()) == len(content)
  assert "the scan is not the one" in again(place, terminal, "plain")


def test_another_site_s_scan_of_that_name(place, terminal):
  """Another grid; the mask lies on the scan that was given last."""
  save(place / "site" / "A.nii.gz", head((64, 70, 50), seed=5))
  assert "the scan is not the one" in again(place, terminal, "site")
  assert mask(place).shape == (64, 70, 50)


@pytest.mark.parametrize("keep", [0, 1, 300, 0.5, -1])
def test_a_truncated_mask_is_made_anew(place, terminal, keep):
  path, old = place / "out" / "A.nii.gz", mask(place)
  content = path.read_bytes()
  path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
  assert "the file is damaged: A (A.nii.gz)" in again(place, terminal)
  np.testing.assert_array_equal(mask(place), old)


def test_a_mask_that_is_away_is_made_again(place, terminal):
  (place / "out" / "A.nii.gz").unlink()
  assert "1 of 2 cases are finished already" in again(place, terminal)
  assert mask(place).any()


def edited(place: Path) -> bytes:
  """The mask of A, corrected by hand."""
  image = nib.load(place / "out" / "A.nii.gz")
  data = np.asarray(image.dataobj).copy()
  data[5:10, 5:10, 5:10] = 2
  nib.save(nib.Nifti1Image(data, image.affine), place / "out" / "A.nii.gz")
  return (place / "out" / "A.nii.gz").read_bytes()


def test_a_corrected_mask_is_never_overwritten_unless_asked(place, terminal):
  content = edited(place)
  save(place / "in" / "C.nii.gz", head(seed=2))
  with pytest.raises(UserError, match=r"1 of 3 cases could not be done") as error:
    again(place, terminal)
  assert "changed after it was written" in str(error.value) and "--overwrite" in str(error.value)
  assert (place / "out" / "A.nii.gz").read_bytes() == content and mask(place, "C").any()
  assert "changed after it was written" in again(place, terminal, overwrite=True)
  assert (mask(place)[5:10, 5:10, 5:10] != 2).all()


@pytest.mark.parametrize("with_record", [True, False])
def test_another_program_s_mask_is_refused_unless_asked(place, terminal, with_record):
  foreign = np.ones(SHAPE, np.uint8)
  if not with_record:
    (place / "out" / "predict.json").unlink()
    (place / "out" / "B.nii.gz").unlink()
  save(place / "in" / "C.nii.gz", head(seed=2))
  content = save(place / "out" / "C.nii.gz", foreign).read_bytes()
  with pytest.raises(UserError, match="nothing records that this program wrote it"):
    again(place, terminal)
  assert (place / "out" / "C.nii.gz").read_bytes() == content
  again(place, terminal, overwrite=True)
  assert not (mask(place, "C") == foreign).all()
  assert "3 of 3 cases are finished already" in again(place, terminal)


def test_nothing_is_claimed_where_nothing_is_done(tmp_path, terminal):
  scan = save(tmp_path / "A.nii.gz", head())
  save(tmp_path / "out" / "A.nii.gz", np.ones(SHAPE, np.uint8))
  with pytest.raises(UserError, match="1 of 1 cases could not be done"):
    predict(bright(), scan, Output(tmp_path / "out", "brats2018"), terminal)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["A.nii.gz"]


def test_an_empty_file_and_a_folder_in_a_mask_s_place(tmp_path, terminal):
  for name in "AB":
    save(tmp_path / "in" / f"{name}.nii.gz", head())
  (tmp_path / "out" / "B.nii.gz").mkdir(parents=True)
  (tmp_path / "out" / "A.nii.gz").touch()
  with pytest.raises(UserError, match="1 of 2 cases could not be done"):
    predict(bright(), tmp_path / "in", Output(tmp_path / "out", "brats2018"), terminal)
  assert mask(tmp_path).any() and (tmp_path / "out" / "B.nii.gz").is_dir()


# --- A scan that became unusable --------------------------------------------------------------


def unusable() -> np.ndarray:
  data = head().astype(np.float32)
  data[5, 5, 5] = np.nan
  return data


def test_the_mask_of_a_scan_that_was_replaced_by_an_unusable_one_goes(place, terminal):
  out = place / "out"
  again(place, terminal, probabilities=True)
  save(out / "A_notes.nii.gz", head())
  save(place / "in" / "A.nii.gz", unusable())
  with pytest.raises(UserError, match="1 of its voxels are NaN"):
    again(place, terminal)
  assert "came of it: A.nii.gz, A_WT.nii.gz, A_TC.nii.gz, A_ET.nii.gz" in said(terminal)
  assert sorted(path.name for path in out.glob("A*")) == ["A_notes.nii.gz"]
  assert set(own_masks.entries(out)) == {"B"} and not list(out.glob(".predict*"))
  save(place / "in" / "A.nii.gz", head())
  again(place, terminal)
  assert mask(place).any()


def test_a_mask_stays_where_its_scan_can_only_not_be_read(place, terminal, monkeypatch):
  """It may be the same one, on a disk that is away."""
  before = times(place / "out")
  (place / "in" / "A.nii.gz").rename(place / "kept")
  os.symlink(place / "gone.nii.gz", place / "in" / "A.nii.gz")
  with pytest.raises(UserError, match="1 of 2 cases could not be done"):
    again(place, terminal)
  assert times(place / "out") == before and set(own_masks.entries(place / "out")) == {"A", "B"}


def test_a_corrected_mask_of_an_unusable_scan_stays(place, terminal):
  again(place, terminal, probabilities=True)
  content = edited(place)
  save(place / "in" / "A.nii.gz", unusable())
  with pytest.raises(UserError, match="1 of its voxels are NaN"):
    again(place, terminal, overwrite=True)
  assert [path.name for path in (place / "out").glob("A*")] == ["A.nii.gz"]
  assert (place / "out" / "A.nii.gz").read_bytes() == content


def test_a_damaged_mask_that_cannot_be_made_anew_goes(place, terminal, monkeypatch):
  (place / "out" / "A.nii.gz").write_bytes(b"")
  monkeypatch.setattr(Bright, "prepare", _refuses)
  with pytest.raises(UserError, match="too faint"):
    again(place, terminal)
  assert sorted(times(place / "out")) == ["B.nii.gz"]


def _refuses(*_):
  raise ValueError("too faint")


# --- Probability maps -------------------------------------------------------------------------


def test_maps_are_made_when_asked_for_and_go_with_a_mask_of_another_scan(place, terminal):
  out = place / "out"
  again(place, terminal, probabilities=True)
  assert len(list(out.glob("A*.nii.gz"))) == 4
  assert "2 of 2 cases" in again(place, terminal) and "2 of 2" in again(
    place, terminal, probabilities=True
  )
  save(place / "in" / "A.nii.gz", other_head())
  again(place, terminal)
  assert sorted(path.name for path in out.glob("A*.nii.gz")) == ["A.nii.gz"]
  assert written_by_us(out) >= {"A.nii.gz", "B_WT.nii.gz"} and "A_WT.nii.gz" not in written_by_us(
    out
  )


def test_a_truncated_map_is_made_anew(place, terminal):
  again(place, terminal, probabilities=True)
  path = place / "out" / "A_TC.nii.gz"
  path.write_bytes(path.read_bytes()[:-40])
  assert "the file is damaged: A (A_TC.nii.gz)" in again(place, terminal, probabilities=True)
  nifti.read(path)


@pytest.mark.parametrize("name", ["A_WT", "a_tc"])
def test_a_map_of_one_scan_and_a_mask_of_another_are_not_one_file(tmp_path, terminal, name):
  for scan in ("A", name):
    save(tmp_path / "in" / f"{scan}.nii.gz", head())
  with pytest.raises(UserError, match=r"would be written for A and for .*Leave --probabilities"):
    predict(bright(), tmp_path / "in", Output(tmp_path / "out", "brats2018", True), terminal)
  assert not (tmp_path / "out").exists()
  predict(bright(), tmp_path / "in", Output(tmp_path / "out", "brats2018"), terminal)
  assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_map_and_a_mask_of_two_runs_are_not_one_file(place, terminal):
  save(place / "more" / "A_WT.nii.gz", head(seed=7))
  again(place, terminal, "more")
  content = (place / "out" / "A_WT.nii.gz").read_bytes()
  for overwrite in (False, True):
    with pytest.raises(UserError, match="it belongs to A_WT"):
      again(place, terminal, probabilities=True, overwrite=overwrite)
  assert (place / "out" / "A_WT.nii.gz").read_bytes() == content


# --- Kills, several runs, earlier versions ----------------------------------------------------


class Killed(BaseException):
  """No exception that anything handles, as kill -9."""


@pytest.mark.parametrize("at", ["before the note", "after the note", "after the mask"])
def test_a_kill_at_any_point_gives_the_right_masks_in_the_end(place, terminal, monkeypatch, at):
  from kd_jax.prediction import predict as module

  save(place / "in" / "A.nii.gz", other_head())

  def kill(*_, **__):
    raise Killed

  with monkeypatch.context() as patch:
    if at == "before the note":
      patch.setattr(own_masks.Journal, "note", kill)
    elif at == "after the note":
      patch.setattr(module, "write_bytes", kill)
    patch.setattr(own_masks, "write_record", _at_second_call(kill))
    with pytest.raises(Killed):
      again(place, terminal)
  lines = again(place, terminal)
  assert ("2 of 2 cases" in lines) == (at == "after the mask")
  fresh = place / "fresh"
  predict(bright(), place / "in", Output(fresh, "brats2018"), terminal)
  np.testing.assert_array_equal(mask(place), nifti.read(fresh / "A.nii.gz").data)
  assert not list((place / "out").glob(".predict*"))


def _at_second_call(kill):
  """write_record as it is, and a kill where it is called again."""
  calls, real = [], own_masks.write_record

  def write(*arguments):
    calls.append(arguments)
    return real(*arguments) if len(calls) == 1 else kill()

  return write


def test_ctrl_c_keeps_what_is_finished(place, terminal, monkeypatch):
  for i in range(3):
    save(place / "in" / f"C{i}.nii.gz", head(seed=10 + i))

  class Interrupted(Bright):
    def probabilities(self, prepared):
      if list((place / "out").glob("C0*")):
        raise KeyboardInterrupt
      return super().probabilities(prepared)

  with pytest.raises(KeyboardInterrupt):
    predictor = Interrupted(bright().students)
    predict(predictor, place / "in", Output(place / "out", "brats2018"), terminal)
  assert {"A.nii.gz", "C0.nii.gz"} <= written_by_us(place / "out")
  assert not list((place / "out").glob(".predict*"))
  again(place, terminal)
  assert mask(place, "C2").any()


def test_masks_of_an_earlier_version_are_made_anew_and_said(place, terminal):
  """Their record says nothing of the scans. It does not matter how often the run is begun."""
  path = place / "out" / "predict.json"
  record = json.loads(path.read_text())
  del record["cases"]
  path.write_text(json.dumps(record))
  (place / "out" / "B.nii.gz").write_bytes(b"")
  predict(bright(), place / "in" / "B.nii.gz", Output(place / "out", "brats2018"), terminal)
  lines = again(place, terminal)
  assert "nothing records which scan the mask was made from: A (A.nii.gz)" in lines
  assert "1 of 2 cases are finished already" in lines and mask(place, "B").any()
  assert "2 of 2 cases are finished already" in again(place, terminal)


def test_a_predict_json_of_another_program(place, terminal):
  (place / "out" / "predict.json").write_text('{"model": "other"}')
  with pytest.raises(UserError, match="holds masks by another student"):
    again(place, terminal)


def test_a_scan_that_is_written_while_it_is_read_is_named(place, terminal):
  path = place / "in" / "A.nii.gz"
  (place / "out" / "A.nii.gz").unlink()

  class Slow(Bright):
    def load(self, case, warn):
      prepared = super().load(case, warn)
      path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
      return prepared

  with pytest.raises(UserError, match="changed while it was read"):
    predict(Slow(bright().students), path, Output(place / "out", "brats2018"), terminal)
  assert not (place / "out" / "A.nii.gz").exists()
