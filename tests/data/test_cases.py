"""Finding cases: every year's naming, and the oddities of copies in the wild."""

import os

import pytest
from synthetic import NEW, OLD, SHAPE, brats_root, make_case, seg, write

from kd_jax.data.cases import find_cases, naming_of, search
from kd_jax.data.own_masks import Entry, Journal, write_record
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.names import MODALITIES
from kd_jax.tasks.patients import patient_of

LAYOUTS = [
  # folder under the root, suffixes, separator, extension, convention
  ("HGG/Brats18_CBICA_APR_1", OLD, "_", ".nii.gz", "brats2018"),
  ("BraTS2019/LGG/BraTS19_TCIA10_109_1", OLD, "_", ".nii", "brats2018"),
  ("BraTS20_Training_001", OLD, "_", ".nii", "brats2018"),
  ("BraTS2021_00000", OLD, "_", ".nii.gz", "brats2018"),
  ("BraTS-GLI-00000-000", NEW, "-", ".nii.gz", "brats2024"),
  ("BraTS-GLI-00005-100", NEW | {"t2": "t2W"}, "-", ".nii.gz", "brats2024"),
  ("BraTS-GLI-00001-000", OLD, "_", ".nii.gz", "brats2024"),
  ("BraTS-SSA-00002-000", NEW, "-", ".nii.gz", "brats2023"),
  ("a/b/c/Demo_00000", OLD, "_", ".nii.gz", "brats2018"),
  ("BraTS2021_00003", {k: v.upper() for k, v in OLD.items()}, "_", ".NII.GZ", "brats2018"),
]


@pytest.mark.parametrize(("folder", "suffixes", "separator", "ext", "convention"), LAYOUTS)
@pytest.mark.parametrize("root_is_the_case", [False, True])
def test_every_layout(tmp_path, folder, suffixes, separator, ext, convention, root_is_the_case):
  folder = tmp_path / folder
  for suffix in suffixes.values():  # only names count: no file is read
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{folder.name}{separator}{suffix}{ext}").touch()
  (case,) = find_cases(folder if root_is_the_case else tmp_path)
  assert case.name == folder.name
  assert case.convention == convention
  assert case.folder == folder
  for kind, path in (case.images | {"seg": case.seg}).items():
    assert path == folder / f"{folder.name}{separator}{suffixes[kind]}{ext}"
  assert tuple(case.images) == MODALITIES


def touch(root, *names):
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_all_layouts_together_are_sorted_by_name(tmp_path):
  names = [folder.split("/")[-1] for folder, *_ in LAYOUTS]
  for folder, suffixes, separator, ext, _ in LAYOUTS:
    name = folder.split("/")[-1]
    touch(tmp_path / folder, *[f"{name}{separator}{s}{ext}" for s in suffixes.values()])
  assert [case.name for case in find_cases(tmp_path)] == sorted(names)


def test_explicit_convention_holds_for_all_cases(tmp_path):
  touch(tmp_path, "A/A_flair.nii", "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz")
  assert {case.convention for case in find_cases(tmp_path, "brats2023")} == {"brats2023"}
  with pytest.raises(ConfigError, match="auto, brats2018"):
    find_cases(tmp_path, "brats2022")


def test_the_odd_seg_of_2020(tmp_path):
  name = "BraTS20_Training_355"
  touch(tmp_path / name, *[f"{name}_{m}.nii" for m in MODALITIES], "W39_1998.09.19_Segm.nii")
  (case,) = find_cases(tmp_path)
  assert case.seg.name == "W39_1998.09.19_Segm.nii"
  touch(tmp_path / name, "other_seg.nii")
  with pytest.raises(UserError, match=r"W39_1998.*other_seg|other_seg.*W39_1998"):
    find_cases(tmp_path)
  touch(tmp_path / name, f"{name}_seg.nii")  # the right name settles it
  (case,) = find_cases(tmp_path)
  assert case.seg.name == f"{name}_seg.nii"


def test_files_that_are_folders_around_a_file(tmp_path):
  for modality in MODALITIES:
    touch(tmp_path / "X" / f"X_{modality}.nii", f"0000_{modality}_brain.nii", ".DS_Store")
  touch(tmp_path / "X" / "X_seg.nii", "X_seg.nii")
  (case,) = find_cases(tmp_path)
  assert case.name == "X"
  assert case.images["t1ce"] == tmp_path / "X" / "X_t1ce.nii" / "0000_t1ce_brain.nii"
  assert case.seg == tmp_path / "X" / "X_seg.nii" / "X_seg.nii"


def test_hidden_and_unrelated_files_are_ignored(tmp_path):
  make_case(tmp_path / "X")
  touch(tmp_path / "X", "._X_flair.nii.gz", ".X_t1.nii", "X_t1.json", "X_mask.nii.gz", "notes.txt")
  touch(tmp_path, ".hidden/Y/Y_flair.nii", "__MACOSX/Z/._Z_flair.nii", "survival_info.csv")
  touch(tmp_path, "predictions/Q_seg.nii.gz")  # a label map alone is no case
  (case,) = find_cases(tmp_path)
  assert len(case.images) == 4


def test_missing_files_leave_no_key(tmp_path):
  touch(tmp_path, "X/X_t1ce.nii.gz", "Y/Y_seg.nii.gz")
  x, y = find_cases(tmp_path)
  assert (list(x.images), x.seg) == (["t1ce"], None)
  assert (y.name, y.images) == ("Y", {})  # named after its folder: a case that lost its images


def test_a_case_knows_the_images_beside_it(tmp_path):
  touch(tmp_path, "X/X_t1.nii.gz", "X/post.nii.gz")
  touch(tmp_path, *[f"all/{case}_t1.nii.gz" for case in "AB"], "all/A_post.nii.gz")
  a, b, x = find_cases(tmp_path)
  assert [[path.name for path in case.beside] for case in (a, b, x)] == [
    ["A_post.nii.gz"],
    [],
    ["post.nii.gz"],
  ]


def test_several_cases_in_one_folder(tmp_path):
  touch(tmp_path, *[f"{case}_{s}.nii.gz" for case in "AB" for s in OLD.values()])
  a, b = find_cases(tmp_path)
  assert (a.name, b.name) == ("A", "B")
  assert (a.seg.name, b.seg.name) == ("A_seg.nii.gz", "B_seg.nii.gz")


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (("X/X_t1.nii", "X/X_t1.nii.gz"), r"case X .*two t1 files: X_t1\.nii and X_t1\.nii\.gz"),
    (("X/X_flair.nii", "X/X-t2f.nii"), r"case X .*two flair files: X-t2f.nii and X_flair.nii"),
    (("X/X_t2.nii/a.nii", "X/X_t2.nii/b.nii"), r"case X .*two t2 files: a.nii and b.nii"),
    (("X/X_t1.nii", "X/X_t1_brain.nii"), r"two t1 files: X_t1.nii and X_t1_brain.nii. Keep one"),
    (("readme.txt",), r"no case found under .*BraTS2021_00000"),
  ],
)
def test_what_cannot_be_told_apart_is_named(tmp_path, files, message):
  touch(tmp_path, *files)
  with pytest.raises(UserError, match=message):
    find_cases(tmp_path)


def test_no_such_folder_says_what_is_expected(tmp_path):
  with pytest.raises(UserError, match=r"no data folder .*BraTS-GLI-00000-000"):
    find_cases(tmp_path / "absent")


def test_links_are_followed_once(tmp_path):
  make_case(tmp_path / "elsewhere" / "X")
  root = tmp_path / "root"
  root.mkdir()
  os.symlink(tmp_path / "elsewhere", root / "link")
  os.symlink(tmp_path / "elsewhere", root / "same")  # the same case is not a second one
  os.symlink(root, root / "loop")
  os.symlink(tmp_path, tmp_path / "elsewhere" / "up")
  (case,) = find_cases(root)
  assert case.name == "X"


def test_patient_spans_time_points(tmp_path):
  for name in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS2021_00005"):
    touch(tmp_path, f"{name}/{name}-t1c.nii.gz")
  assert [case.patient for case in find_cases(tmp_path)] == [
    "BraTS-GLI-00005",
    "BraTS-GLI-00005",
    "BraTS2021_00005",
  ]
  assert patient_of("Brats18_TCIA03_265_1") == "Brats18_TCIA03_265_1"


def test_seg_without_prefix_takes_the_folders_name(tmp_path):
  write(tmp_path / "X" / "seg.nii.gz", seg(SHAPE))
  touch(tmp_path, *[f"X/{m}.nii.gz" for m in MODALITIES])
  (case,) = find_cases(tmp_path)
  assert (case.name, len(case.images), case.seg.name) == ("X", 4, "seg.nii.gz")


def test_real_cases():
  cases = find_cases(brats_root())
  assert len(cases) == 7
  assert all(len(case.images) == 4 and case.seg for case in cases)
  by_name = {case.name: case for case in cases}
  gli = by_name["BraTS-GLI-00000-000"]
  assert (gli.patient, gli.convention) == ("BraTS-GLI-00000", "brats2024")
  assert gli.images["t2"].name.endswith("t2W.nii.gz")
  assert by_name["BraTS2021_00410"].convention == "brats2018"


# Names, links and patients as other houses have them


def images(*places):
  """Four images for each CASE or FOLDER/: names that search must find."""
  return [f"{place}{m}.nii.gz" for place in places for m in MODALITIES]


@pytest.mark.parametrize(
  ("files", "cases"),
  [  # case -> patient
    (images("P1/2019-01-02/", "P1/2019-06-02/"), {"P1_2019-01-02": "P1", "P1_2019-06-02": "P1"}),
    (images("P1/ses-1/anat/", "P2/ses-1/anat/"), {"P1_ses-1": "P1", "P2_ses-1": "P2"}),
    (images("P1/a/", "P1/b/", "P2/a/"), {"P1_a": "P1", "P1_b": "P1", "P2_a": "P2"}),
    (
      images("x/P1/", "x/P2/", "x/P3/", "y/P1/"),
      {"x_P1": "P1", "P2": "P2", "P3": "P3", "y_P1": "P1"},
    ),
    (images("x/P1_", "y/P1_"), {"x_P1": "P1", "y_P1": "P1"}),
    (images("P1/w1/P1_", "P1/visit2/P1_"), {"w1_P1": "P1", "P1_visit2": "P1"}),
    (images("sub-1/ses-1/anat/sub-1_ses-1_"), {"sub-1_ses-1": "sub-1"}),
    (images("P1/T1/", "P1/T2/"), {"P1_T1": "P1", "P1_T2": "P1"}),  # time points
    (
      images("all/P1/week-0/", "all/P1/week-0/auto/native/", "all/P1/week-2/auto/native/")
      + images("all/P1/week-2/"),
      {
        **{"P1_week-0": "P1", "P1_week-2": "P1"},
        **{"week-0_auto_native": "P1", "week-2_auto_native": "P1"},
      },
    ),
    (images("UPENN-GBM-00001_11_", "UPENN-GBM-00001_21_"), dict.fromkeys(
      ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"), "UPENN-GBM-00001")),
  ],
)  # fmt: skip
def test_names_and_patients_come_from_folders_where_files_do_not_tell(tmp_path, files, cases):
  touch(tmp_path, *files)
  assert {case.name: case.patient for case in find_cases(tmp_path)} == cases


def test_names_that_were_made_unique_are_told(tmp_path):
  touch(tmp_path, *images("x/P1_", "y/P1_", "y/P2_"))
  (note,) = search(tmp_path).notes
  assert "x_P1, y_P1" in note and "P2" not in note
  touch(tmp_path / "folders", *images("P1/a/", "P1/b/", "P2/a/"))
  (note,) = search(tmp_path / "folders").notes
  assert "patients are named after the folders above: P1, P2" in note


def test_a_table_says_who_the_patients_are(tmp_path):
  touch(tmp_path, *images("A_1_", "A_2_", "B_1_"))
  (tmp_path / "who.csv").write_text("scanner;Case;Patient\nx;A_1;anna\nx;A_2;anna\n")
  cases = find_cases(tmp_path, naming=naming_of("", tmp_path / "who.csv"))
  assert {case.name: case.patient for case in cases} == {
    "A_1": "anna",
    "A_2": "anna",
    "B_1": "B_1",
  }


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("a,b\n1,2\n", "no columns 'case' and 'patient', but a, b"),
    ("case,patient\nA,\n", "row 2: a case or a patient is missing"),
    ("case,patient\nA,x\nA,y\n", "case A has two patients, x and y"),
    ("", "but nothing"),
  ],
)
def test_a_table_that_cannot_be_used(tmp_path, content, message):
  (tmp_path / "who.csv").write_text(content)
  with pytest.raises(UserError, match=message):
    naming_of("", tmp_path / "who.csv")


def test_names_follow_links_as_they_are_given(tmp_path):
  """A link may stand for a pseudonym."""
  touch(tmp_path / "archive", *images("SMITH/", "JONES/JONES_"))
  (tmp_path / "data" / "P2").mkdir(parents=True)
  os.symlink(tmp_path / "archive" / "SMITH", tmp_path / "data" / "P1")
  for m in MODALITIES:
    os.symlink(tmp_path / f"archive/JONES/JONES_{m}.nii.gz", tmp_path / f"data/P2/{m}.nii.gz")
  assert [case.name for case in find_cases(tmp_path / "data")] == ["P1", "P2"]
  assert [case.name for case in find_cases(tmp_path / "data" / "P1")] == ["P1"]


def test_links_to_nowhere_are_named(tmp_path):
  touch(tmp_path, *images("P1/", "P2/"))
  (tmp_path / "P1" / "t1ce.nii.gz").unlink()
  os.symlink("../gone.nii.gz", tmp_path / "P1" / "t1ce.nii.gz")
  os.symlink("/mnt/absent/P3", tmp_path / "P3")
  os.symlink("gone.json", tmp_path / "notes.json")  # no image
  found = search(tmp_path)
  assert list(found.cases[0].images) == list(MODALITIES)  # reading P1's says what is wrong
  (error,) = found.errors
  assert (error.case, error.finding) == ("P3", "a link to /mnt/absent/P3, which is not there")


def test_every_image_is_used_or_listed(tmp_path):
  used = images("P1/P1_", "P2/P2_")
  unused = ["P1/P1_mask.nii.gz", "P1/dwi.nii", "P1/more/adc.nii.gz", "maps/P2_seg.nii.gz"]
  missed = ["P3/scan.nii", "P2_T1_MPRAGE_post.nii.gz", "P4/P4_t1ce.nrrd", "P5/IM_1.dcm"]
  touch(tmp_path, *used, *unused, *missed, "P1/P1_t1.json", "P1/raw.mha", "P5/IM_2.dcm", "a.txt")
  found = search(tmp_path)
  assert [case.name for case in found.cases] == ["P1", "P2"]
  assert sorted(found.unused) == sorted(tmp_path / file for file in unused)
  assert sorted(error.file for error in found.errors) == sorted(str(tmp_path / f) for f in missed)
  assert any("2 images of another format (.dcm)" in error.finding for error in found.errors)


def test_a_stray_in_a_flat_folder_is_missed_not_unused(tmp_path):
  touch(
    tmp_path, *images("P1_", "site/P2_", "site/P3_"), "other.nii.gz", "site/x.nii", "P1_dwi.nii"
  )
  found = search(tmp_path)
  assert [error.case for error in found.errors] == ["other", "x"]
  assert found.unused == [tmp_path / "P1_dwi.nii"]


@pytest.mark.parametrize("folder", ["", "P1/"])
def test_names_can_be_explained(tmp_path, folder):
  files = {
    "t1ce": "P1_ax_post",
    "t1": "P1_ax_pre",
    "t2": "P1_t2",
    "flair": "P1_dark",
    "seg": "P1_roi",
  }
  touch(tmp_path, *[f"{folder}{name}.nii.gz" for name in files.values()])
  patterns = '{"t1ce": "*_ax_post", "t1": "*_ax_pre", "flair": "*dark*", "seg": ["*_roi"]}'
  (case,) = find_cases(tmp_path, naming=naming_of(patterns, ""))
  assert case.name == "P1"
  assert {kind: path.name for kind, path in (case.images | {"seg": case.seg}).items()} == {
    kind: f"{name}.nii.gz" for kind, name in files.items()
  }


def test_an_explained_folder_gives_the_name_where_files_do_not(tmp_path):
  for patient in ("P1", "P2"):
    touch(tmp_path / patient, "post.nii", "pre.nii", "axial.nii", "dark.nii")
  patterns = '{"t1ce": "post", "t1": "pre", "t2": "ax*", "flair": "dark"}'
  assert [c.name for c in find_cases(tmp_path, naming=naming_of(patterns, ""))] == ["P1", "P2"]


def test_patterns_that_fit_one_file_twice_are_refused(tmp_path):
  touch(tmp_path, "P1/post_t2.nii.gz")
  with pytest.raises(ConfigError, match=r"post_t2.nii.gz: the names given fit t1ce and t2"):
    search(tmp_path, naming=naming_of('{"t1ce": "*post*", "t2": "*t2*"}', ""))
  with pytest.raises(ConfigError, match="expected JSON such as"):
    naming_of("*post*", "")


def test_masks_that_predict_wrote_are_no_images(tmp_path):
  touch(tmp_path, *images("P1/"), "P1/P1.nii.gz", "Q.nii.gz", "Q_WT.nii.gz")
  for folder, names in ((tmp_path, ["Q.nii.gz", "Q_WT.nii.gz"]), (tmp_path / "P1", ["P1.nii.gz"])):
    entry = Entry({}, dict.fromkeys(names, "0" * 64))
    Journal(folder).note("x", entry)
    write_record(folder, {"labels": "brats2018"})
  found = search(tmp_path)
  assert [case.name for case in found.cases] == ["P1"]
  assert not found.errors and not found.unused


def test_a_case_that_is_called_as_a_part_of_the_head_keeps_its_label_map(tmp_path):
  touch(
    tmp_path, *images("skull/skull_", "P1/P1_"), "skull/skull_seg.nii.gz", "P1/brain_seg.nii.gz"
  )
  one, other = find_cases(tmp_path)
  assert (one.name, one.seg) == ("P1", None)
  assert (other.name, other.seg.name) == ("skull", "skull_seg.nii.gz")


@pytest.mark.parametrize(
  "form", ["{p}/scans/{m}/NIFTI/{m}.nii.gz", "{p}/{m}/{p}_{m}.nii.gz", "{m}/{p}_{m}.nii"]
)
def test_images_that_lie_in_a_folder_for_each_sequence(tmp_path, form):
  kinds = (*MODALITIES, "seg")
  touch(tmp_path, *[form.format(p=p, m=m) for p in ("P1", "P2") for m in kinds])
  found = search(tmp_path)
  assert [(case.name, len(case.images), case.seg is None) for case in found.cases] == [
    ("P1", 4, False),
    ("P2", 4, False),
  ]
  assert not found.errors and not found.unused


def test_other_images_of_a_session_belong_to_its_case(tmp_path):
  name = "sub-1/ses-1/{}/sub-1_ses-1_{}.nii.gz"
  touch(tmp_path, *[name.format("anat", m) for m in ("T1w", "T2w", "FLAIR", "ce-gd_T1w")])
  touch(tmp_path, name.format("dwi", "dwi"))
  found = search(tmp_path)
  assert [path.name for path in found.unused] == ["sub-1_ses-1_dwi.nii.gz"] and not found.errors


def test_at_the_top_no_case_takes_another_one_s_label_map(tmp_path):
  """In a case's own folder a label map may have an odd name; where all lie together, not."""
  for folder in ("flat", "P1"):
    touch(tmp_path, *images(f"{folder}/P1_"), f"{folder}/P2_seg.nii.gz")
  (flat,) = search(tmp_path / "flat").cases
  assert flat.name == "P1" and flat.seg is None
  (own,) = search(tmp_path / "P1").cases
  assert own.seg == tmp_path / "P1" / "P2_seg.nii.gz"


def test_a_folder_that_is_reached_twice_is_read_once_and_told(tmp_path):
  make_case(tmp_path / "A")
  (tmp_path / "B").symlink_to("A")
  (tmp_path / "A" / "up").symlink_to("..")  # leads nowhere new
  found = search(tmp_path)
  assert [case.name for case in found.cases] == ["A"] and not found.errors
  assert found.notes == ["1 folders are links to folders that are read already: B"]


def test_nnunet_s_channels_get_a_remedy_of_their_own(tmp_path):
  touch(tmp_path, "imagesTr/A_0000.nii.gz", "labelsTr/A.nii.gz")
  channel, label_map = search(tmp_path).errors
  assert "Only --mode=predict reads nnU-Net's channels" in channel.remedy
  assert "Only" not in label_map.remedy
