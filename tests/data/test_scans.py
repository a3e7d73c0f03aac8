"""What --input may be, and what is said about everything else."""

import json
import os
from dataclasses import replace

import pytest
from synthetic import NEW, OLD, brats_root, make_case

from kd_jax.data.cases import loose_case
from kd_jax.data.own_masks import Entry, Journal
from kd_jax.data.scans import find_scans
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.names import parse_patterns

T1CE = ("t1ce",)


def touch(root, *names):  # only names count: no image is opened
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def names(path, modalities=T1CE):
  scans, errors, _ = find_scans(path, modalities)
  assert not errors
  return [scan.name for scan in scans]


# One file


@pytest.mark.parametrize(
  ("file", "name"),
  [
    ("X_t1ce.nii.gz", "X"),
    ("X_t1ce.nii", "X"),
    ("BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000"),
    ("BraTS2021_00000_T1CE.NII.GZ", "BraTS2021_00000"),
    ("scan 1, größer.nii.gz", "scan 1, größer"),
    ("W39_1998.09.19.nii.gz", "W39_1998.09.19"),
    ("CASE_0000.nii.gz", "CASE_0000"),
    ("t1ce.nii.gz", "anna"),  # named after its folder, as in case folders
  ],
)
def test_a_file(tmp_path, file, name):
  path = tmp_path / "anna" / file
  touch(path.parent, file)
  assert find_scans(path, T1CE) == ([loose_case(name, {"t1ce": path})], [], [])


@pytest.mark.parametrize("file", ["X_flair.nii.gz", "X-t2w.nii", "t1.nii.gz"])
def test_a_file_of_another_modality(tmp_path, file):
  touch(tmp_path, file)
  with pytest.raises(UserError, match=r"this is a (flair|t2|t1) image.*reads t1ce.*rename"):
    find_scans(tmp_path / file, T1CE)


def test_a_label_map_is_no_scan(tmp_path):
  touch(tmp_path, "X_seg.nii.gz")
  with pytest.raises(UserError, match=r"X_seg.nii.gz is a label map.*give the t1ce image"):
    find_scans(tmp_path / "X_seg.nii.gz", T1CE)


@pytest.mark.parametrize("where", ["X_t1ce.nii.gz", "."])
def test_several_modalities_need_names(tmp_path, where):
  touch(tmp_path, "scan.nii.gz")
  touch(tmp_path.parent, "X_t1ce.nii.gz")
  path = tmp_path if where == "." else tmp_path.parent / where
  with pytest.raises(UserError, match=r"reads t1 and t2, and names must tell.*BraTS case folders"):
    find_scans(path, ("t1", "t2"))


# BraTS cases


@pytest.mark.parametrize(
  ("suffixes", "separator", "convention"), [(OLD, "_", "brats2018"), (NEW, "-", "brats2023")]
)
def test_cases_at_any_depth(tmp_path, suffixes, separator, convention):
  for name in ("B", "A"):
    make_case(tmp_path / "deep" / "er" / name, suffixes, separator)
  scans, errors, _ = find_scans(tmp_path, T1CE)
  assert not errors
  folder = tmp_path / "deep" / "er" / "A"
  image = folder / f"A{separator}{suffixes['t1ce']}.nii.gz"
  label_map = folder / f"A{separator}seg.nii.gz"
  expected = loose_case("A", {"t1ce": image})
  unread = tuple(
    folder / f"A{separator}{suffixes[other]}.nii.gz" for other in ("flair", "t1", "t2")
  )
  assert scans[0] == replace(expected, seg=label_map, convention=convention, unread=unread)
  assert find_scans(folder, T1CE)[0] == scans[:1]
  assert [scan.name for scan in scans] == ["A", "B"]
  assert list(find_scans(folder, ("t2", "flair"))[0][0].images) == ["t2", "flair"]


def test_cases_need_the_students_modality_and_nothing_else(tmp_path):
  touch(tmp_path, "A/A_t1ce.nii.gz", "B/B_flair.nii.gz", "B/B_seg.nii.gz", "C/C_seg.nii.gz")
  scans, errors, _ = find_scans(tmp_path, T1CE)
  assert scans == [loose_case("A", {"t1ce": tmp_path / "A" / "A_t1ce.nii.gz"})]
  assert [error.case for error in errors] == ["B", "C"]
  assert "no t1ce image" in str(errors[0])
  assert "B_t1ce.nii.gz" in errors[0].remedy
  assert "no t2 and no t1 image" in str(find_scans(tmp_path / "A", ("t2", "t1"))[1][0])


def test_a_flat_folder_of_cases(tmp_path):
  touch(tmp_path, "A_t1ce.nii.gz", "B_t1ce.nii.gz", "B_flair.nii.gz", "B_seg.nii.gz", "B_mask.nii")
  assert names(tmp_path) == ["A", "B"]


def test_a_stray_beside_cases_is_named(tmp_path):
  """Somebody may wait for its mask."""
  touch(tmp_path, "Ann_t1ce.nii.gz", "Anna.nii.gz", "Ann_mask.nii.gz", "Ann.nii")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["Ann"]
  assert (error.case, error.file) == ("Anna", str(tmp_path / "Anna.nii.gz"))
  assert "Anna_t1ce.nii.gz" in error.remedy


def test_real_cases():
  root = brats_root()
  assert len(names(root)) == len(names(root, ("t1", "t2"))) == 7


# nnU-Net


def test_nnunet_without_dataset_json(tmp_path):
  touch(tmp_path, "B_0000.nii.gz", "a b_0000.nii.gz")
  assert names(tmp_path) == ["B", "a b"]
  touch(tmp_path, "B_0001.nii.gz")
  with pytest.raises(UserError, match=r"channels 0000 to 0001 and no dataset.json.*channel_names"):
    find_scans(tmp_path, T1CE)


def test_numbered_files_are_no_channels(tmp_path):
  touch(tmp_path, "scan_0001.nii.gz", "scan_0002.nii.gz")
  assert names(tmp_path) == ["scan_0001", "scan_0002"]


@pytest.mark.parametrize("place", [".", "imagesTs"])
@pytest.mark.parametrize(
  ("content", "channel"),
  [
    ({"channel_names": {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}}, 2),
    ({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}}, 2),  # v1
    ({"channel_names": {"0": "T1-Gd", "1": "t2f"}}, 0),
    ({"channel_names": {"0": "T1n", "1": "T1_CE"}}, 1),
    ({"channel_names": {"0": "MRA", "3": "T1 post"}}, 3),
  ],
)
def test_nnunet_with_dataset_json(tmp_path, place, content, channel):
  folder = tmp_path / "imagesTs"
  touch(folder, *[f"X_{c:04}.nii.gz" for c in range(4)], f"Y_{channel:04}.nii.gz")
  (tmp_path / place / "dataset.json").write_text(json.dumps(content))
  x, y = find_scans(folder, T1CE)[0]
  assert x == loose_case("X", {"t1ce": folder / f"X_{channel:04}.nii.gz"})
  assert y.name == "Y"
  touch(folder, f"Z_{(channel + 1) % 4:04}.nii.gz")
  (error,) = find_scans(folder, T1CE)[1]
  assert error.case == "Z"
  assert f"Z_{channel:04}.nii.gz" in error.remedy


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"channel_names": {"0": "T2"}}', r"reads t1ce, and .*dataset.json has .* \(0: T2\)"),
    ('{"channel_names": {"0": "T1ce", "1": "t1c"}}', "names two channels t1ce"),
    ('{"channel_names": ["T1ce"]}', "no usable"),
    ('{"labels": {}}', "no usable"),
    ("{", "no usable"),
  ],
)
def test_nnunet_with_a_wrong_dataset_json(tmp_path, content, message):
  touch(tmp_path, "X_0000.nii.gz")
  (tmp_path / "dataset.json").write_text(content)
  with pytest.raises(UserError, match=message):
    find_scans(tmp_path, T1CE)


def test_two_files_for_one_channel(tmp_path):
  touch(tmp_path, "X_0000.nii.gz", "X_0000.nii")
  with pytest.raises(UserError, match=r"X_0000.nii and .*X_0000.nii.gz; keep one"):
    find_scans(tmp_path, T1CE)


def test_the_data_set_instead_of_its_images(tmp_path):
  touch(tmp_path, "imagesTs/X_0000.nii.gz", "imagesTr/X_0000.nii.gz", "labelsTr/X.nii.gz")
  with pytest.raises(UserError, match=r"no scan found.*give .*imagesTs"):
    find_scans(tmp_path, T1CE)


# Folders of other files


def test_loose_files(tmp_path):
  touch(tmp_path, "scan2.nii", "scan1.nii.gz", "seg.nii.gz", "scan1_seg.nii.gz", "._scan1.nii.gz")
  touch(tmp_path, "notes.txt", "deeper/scan3.nii.gz")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert (error.case, error.file) == ("scan3", str(tmp_path / "deeper" / "scan3.nii.gz"))
  assert scans == [
    loose_case("scan1", {"t1ce": tmp_path / "scan1.nii.gz"}),
    loose_case("scan2", {"t1ce": tmp_path / "scan2.nii"}),
  ]


def test_a_link_to_nowhere_is_not_dropped(tmp_path):
  touch(tmp_path, "a.nii.gz")
  os.symlink(tmp_path / "gone.nii.gz", tmp_path / "b.nii.gz")
  assert names(tmp_path) == ["a", "b"]


# Lists


def test_a_list(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  touch(tmp_path, "data/a b.nii.gz", "home/ü.nii", "absolute/c_t1ce.nii.gz", "lists/near.nii.gz")
  make_case(tmp_path / "data" / "Case")
  lines = [
    "# one path a line",
    "",
    "../data/a b.nii.gz",
    "  ~/ü.nii ",
    str(tmp_path / "absolute" / "c_t1ce.nii.gz"),
    "near.nii.gz",
    "../data/Case",
  ]
  path = tmp_path / "lists" / "scans.txt"
  path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as Windows' editor saves it
  assert names(path) == ["Case", "a b", "c", "near", "ü"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"# none\n", "lists no path"),
    (b"a.nii.gz\nb.nii.gz\n", r"list.txt, line 2: there is no .*b.nii.gz"),
    (b"a.nii.gz\nX_t2.nii\n", r"list.txt, line 2: .*t2 image"),
    (b"list.txt\n", r"line 1: .*no NIfTI file"),
    (b"\xff\xfe\x00", "cannot read .*UTF-8"),
    (b"a.nii.gz\n./a.nii.gz\n", "two scans named a"),
  ],
)
def test_a_wrong_list(tmp_path, content, message):
  touch(tmp_path, "a.nii.gz", "X_t2.nii")
  (tmp_path / "list.txt").write_bytes(content)
  with pytest.raises(UserError, match=message):
    find_scans(tmp_path / "list.txt", T1CE)


# What is refused


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (("x.nii", "x.nii.gz"), r"two scans named x: .*x.nii and .*x.nii.gz"),
    (("x.nii.gz", "X.nii.gz"), r"two scans named x: .*X.nii.gz and .*x.nii.gz"),
  ],
)
def test_two_scans_of_one_name(tmp_path, files, message):
  touch(tmp_path, *files)
  with pytest.raises(UserError, match=message):
    find_scans(tmp_path, T1CE)


@pytest.mark.parametrize(
  "path", ["absent.nii.gz", "absent", "IM0001.dcm", "x.nrrd", "x.mha", "empty", "dicom", "x\0y"]
)
def test_what_is_no_scan_is_told_what_is(tmp_path, path):
  touch(tmp_path, "IM0001.dcm", "x.nrrd", "x.mha", "dicom/IM0001")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"imagesTs.*--mode=predict takes a folder of DICOM"):
    find_scans(tmp_path / path, T1CE)


def test_an_unreadable_folder(tmp_path, monkeypatch):
  def refuse(_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(type(tmp_path), "iterdir", refuse)  # root may read everything
  with pytest.raises(UserError, match="cannot read the folder"):
    find_scans(tmp_path, T1CE)


# Other houses' folders


FOUR = ("FLAIR", "T1w", "T1gd", "T2w")


def nnunet(root, *cases, names=FOUR):
  touch(root / "imagesTs", *[f"{c}_{k:04}.nii.gz" for c in cases for k in range(len(names))])
  content = {"channel_names": {str(k): name for k, name in enumerate(names)}}
  (root / "dataset.json").write_text(json.dumps(content))
  return root / "imagesTs"


@pytest.mark.parametrize(
  "stray", ["X.nii.gz", "other.nii", "brain_mask.nii.gz", "Z_t1ce.nii.gz", "more/Y_0002.nii.gz"]
)
def test_strays_do_not_change_how_an_nnunet_folder_is_read(tmp_path, stray):
  folder = nnunet(tmp_path, "X", "Y")
  touch(folder, stray, "X_seg.nii.gz", ".X_0002.nii.gz")
  scans, (error,), _ = find_scans(folder, T1CE)
  assert [scan.images["t1ce"].name for scan in scans] == ["X_0002.nii.gz", "Y_0002.nii.gz"]
  assert error.file == str(folder / stray)


def test_strays_beside_channels_without_a_dataset_json(tmp_path):
  touch(tmp_path, "X_0000.nii.gz", "other.nii.gz", "Y_0000.nii")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["X", "Y"]
  assert error.case == "other"


def test_a_channel_given_alone_or_in_a_list_is_what_dataset_json_says(tmp_path):
  folder = nnunet(tmp_path, "X", "Y")
  (tmp_path / "list.txt").write_text("imagesTs/X_0002.nii.gz\nimagesTs/Y_0002.nii.gz\n")
  assert names(folder / "X_0002.nii.gz") == ["X"]
  assert names(tmp_path / "list.txt") == ["X", "Y"]
  for channel, said in ((0, "FLAIR"), (3, "T2w"), (7, "not named")):
    touch(folder, f"X_{channel:04}.nii.gz")
    with pytest.raises(UserError, match=rf"channel {channel:04} is {said} by .*dataset.json.*0002"):
      find_scans(folder / f"X_{channel:04}.nii.gz", T1CE)


def test_a_channel_among_others_of_unknown_meaning_is_refused(tmp_path):
  touch(tmp_path, "X_0000.nii.gz", "X_0001.nii.gz")
  with pytest.raises(UserError, match=r"channels 0000 to 0001 and no dataset.json"):
    find_scans(tmp_path / "X_0000.nii.gz", T1CE)


@pytest.mark.parametrize("name", ["P2_T1GD", "t1_post_contrast", "sub-2_ce-gd_T1w", "P2_t1c_bet"])
def test_other_houses_names(tmp_path, name):
  touch(tmp_path, "P1/P1_t1ce.nii.gz", f"P2/{name}.nii.gz")
  assert len(names(tmp_path)) == 2


def test_a_missing_scan_is_named_with_what_was_not_understood(tmp_path):
  touch(tmp_path, "P1/P1_t1ce.nii", "P2/P2_flair.nii", "P2/T1_MPRAGE_post.nii", "P3/x.nii.gz")
  scans, errors, notes = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["P1"]
  assert [error.case for error in errors] == ["P2", "x"]
  assert errors[0].finding == "no t1ce image (not understood: T1_MPRAGE_post.nii)"
  assert "1 other files beside the cases are not read: P2/T1_MPRAGE_post.nii" in notes[0]
  patterns = parse_patterns('{"t1ce": "*post"}')
  assert [scan.name for scan in find_scans(tmp_path, T1CE, patterns).cases] == ["P1", "P2"]


def test_loose_files_that_speak_of_another_sequence(tmp_path):
  touch(tmp_path, "a.nii", "b_T2_tse_ax.nii", "c_t1_gd_2.nii")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["a", "c_t1_gd_2"]
  assert "this is a t2 image" in error.finding
  with pytest.raises(UserError, match="this is a t2 image"):
    find_scans(tmp_path / "b_T2_tse_ax.nii", T1CE)


def test_two_files_matter_only_for_what_the_student_reads(tmp_path):
  touch(tmp_path, "P1/t1ce.nii", "P1/t2.nii", "P1/t2_brain.nii", "P2/t1ce.nii", "P2/t1ce_brain.nii")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["P1"]
  assert (error.case, error.finding) == ("P2", "two t1ce files: t1ce.nii and t1ce_brain.nii")


@pytest.mark.parametrize("scan", ["P1_t1ce.nii.gz", "P1_0000.nii.gz", "P1 scan.nii.gz"])
def test_masks_beside_their_scans_are_not_scans(tmp_path, scan):
  touch(tmp_path, scan)
  (case,) = find_scans(tmp_path, T1CE).cases
  masks = [f"{case.name}{end}.nii.gz" for end in ("", "_WT", "_TC", "_ET")]
  if scan in masks:  # predict refuses to overwrite its input
    masks = masks[1:]
  touch(tmp_path, *masks)
  assert find_scans(tmp_path, T1CE) != ([case], [], [])
  Journal(tmp_path).note(case.name, Entry({}, dict.fromkeys(masks, "0")))
  assert find_scans(tmp_path, T1CE) == ([case], [], [])
  with pytest.raises(UserError, match="a mask or a map of --mode=predict"):
    find_scans(tmp_path / masks[-1], T1CE)


def test_links_give_their_own_names(tmp_path):
  touch(tmp_path, "pool/SMITH_t1ce.nii.gz", "pool/JONES.nii.gz")
  (tmp_path / "study" / "P1").mkdir(parents=True)
  os.symlink("../../pool/SMITH_t1ce.nii.gz", tmp_path / "study" / "P1" / "t1ce.nii.gz")
  assert names(tmp_path / "study" / "P1" / "t1ce.nii.gz") == names(tmp_path / "study") == ["P1"]
  os.symlink("../pool/JONES.nii.gz", tmp_path / "study" / "P2_t1ce.nii.gz")
  assert names(tmp_path / "study" / "P2_t1ce.nii.gz") == ["P2"]
  os.symlink("gone.nii.gz", tmp_path / "study" / "P3_t1ce.nii.gz")
  with pytest.raises(UserError, match=r"P3_t1ce.nii.gz: a link to gone.nii.gz.*git annex get"):
    find_scans(tmp_path / "study" / "P3_t1ce.nii.gz", T1CE)


def test_dated_folders_are_their_patients(tmp_path):
  touch(tmp_path, "P1/2019-01-02/t1ce.nii", "P2/2019-01-02/t1ce.nii")
  assert names(tmp_path) == ["P1_2019-01-02", "P2_2019-01-02"]
  assert names(tmp_path / "P1/2019-01-02/t1ce.nii") == ["P1_2019-01-02"]


def test_what_the_user_says_goes_before_channels(tmp_path):
  folder = nnunet(tmp_path, "X", "Y", names=("FLAIR", "T1w", "T2w", "contrast agent"))
  patterns = parse_patterns('{"t1ce": "*_0003"}')
  assert [scan.name for scan in find_scans(folder, T1CE, patterns).cases] == ["X", "Y"]
  assert find_scans(folder / "Y_0003.nii.gz", T1CE, patterns).cases[0].name == "Y"
  with pytest.raises(UserError, match=r"has no such channel \(0: FLAIR"):
    find_scans(folder, T1CE)


@pytest.mark.parametrize("file", ["P1.nii.gz", "P1_0000.nii.gz"])
def test_a_folder_that_is_called_after_another_sequence(tmp_path, file):
  touch(tmp_path / "flair", file)
  scans, errors, _ = find_scans(tmp_path / "flair", T1CE)
  assert not scans
  assert "folder's" in str(errors[0]) and "this is a flair image" in str(errors[0])
  with pytest.raises(UserError, match=r"this is a flair image.*explain"):
    find_scans(tmp_path / "flair" / file, T1CE)
  told = parse_patterns('{"t1ce": "*"}')  # the remedy
  for path in (tmp_path / "flair", tmp_path / "flair" / file):
    assert len(find_scans(path, T1CE, told).cases) == 1
  assert names(tmp_path / "flair", ("flair",))


def test_channels_that_speak_of_another_sequence(tmp_path):
  touch(tmp_path, "P1_t1ce_0000.nii.gz", "P1_t2_0000.nii.gz", "P2_0000.nii.gz")
  scans, errors, _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["P1_t1ce", "P2"]
  assert [error.case for error in errors] == ["P1_t2"]


def test_files_that_say_they_are_without_contrast_medium(tmp_path):
  touch(tmp_path, "P1_non_ce_t1_tra.nii.gz")
  (error,) = find_scans(tmp_path, T1CE).errors
  assert "this is a t1 image" in str(error)


@pytest.mark.parametrize(
  "file", ["P1_adc.nii.gz", "P1_DWI_b1000.nii", "P1_adc_to_t1ce.nii", "CT.nii"]
)
def test_images_that_no_student_reads(tmp_path, file):
  touch(tmp_path, file, "P2.nii.gz")
  scans, (error,), _ = find_scans(tmp_path, T1CE)
  assert [scan.name for scan in scans] == ["P2"]
  assert "by its name this is a" in str(error) and file in str(error)
  with pytest.raises(UserError, match=r"by its name this is a (adc|dwi|ct) image"):
    find_scans(tmp_path / file, T1CE)


def test_a_folder_where_nothing_can_be_used_says_why(tmp_path):
  (tmp_path / "P1").symlink_to(tmp_path / "nowhere")
  touch(tmp_path / "A", "A_t1ce.nii", "A_t1ce.nii.gz")
  with pytest.raises(UserError, match=r"P1 \(a link to.*A_t1ce.nii.gz \(two t1ce files"):
    find_scans(tmp_path, T1CE)


def test_a_scan_that_a_list_has_twice_need_not_be_renamed(tmp_path):
  touch(tmp_path / "in", "P1_t1ce.nii.gz")
  (tmp_path / "list.txt").write_text("in/P1_t1ce.nii.gz\nin\n")
  with pytest.raises(UserError, match=r"two scans named P1 are one, .*list.txt gives it twice"):
    find_scans(tmp_path / "list.txt", T1CE)


def test_patterns_that_fit_nothing_are_not_passed_over(tmp_path):
  touch(tmp_path, "P1_post.nii.gz", "P1_pre.nii.gz")
  with pytest.raises(UserError, match=r"\*contrast\* of the names given fits no file .* P1_post"):
    find_scans(tmp_path, T1CE, parse_patterns('{"t1ce": "*contrast*"}'))


def test_a_dataset_json_of_another_sequence_speaks_for_files_without_channels(tmp_path):
  touch(tmp_path / "imagesTs", "BRATS_001.nii.gz")
  (tmp_path / "dataset.json").write_text('{"modality": {"0": "FLAIR"}}')
  with pytest.raises(UserError, match=r"the student reads t1ce, and .* has no such channel"):
    find_scans(tmp_path / "imagesTs", T1CE)
  assert names(tmp_path / "imagesTs", ("flair",)) == ["BRATS_001"]
