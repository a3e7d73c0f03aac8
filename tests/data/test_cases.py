"""Finding cases: every year's naming, and the oddities of copies in the wild."""

import os

import pytest
from synthetic import NEW, OLD, SHAPE, brats_root, make_case, seg, write

from kd_jax.data.cases import find_cases
from kd_jax.runtime.errors import ConfigError, UserError
from kd_jax.tasks.names import MODALITIES, patient_of

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


def test_several_cases_in_one_folder(tmp_path):
  touch(tmp_path, *[f"{case}_{s}.nii.gz" for case in "AB" for s in OLD.values()])
  a, b = find_cases(tmp_path)
  assert (a.name, b.name) == ("A", "B")
  assert (a.seg.name, b.seg.name) == ("A_seg.nii.gz", "B_seg.nii.gz")


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (("X/X_t1.nii", "X/X_t1.nii.gz"), r"two t1 files for case X: .*X_t1\.nii and .*X_t1\.nii\.gz"),
    (("X/X_flair.nii", "X/X-t2f.nii"), r"two flair files for case X: .*t2f.* and .*flair"),
    (("X/X_t2.nii/a.nii", "X/X_t2.nii/b.nii"), r"two t2 files for case X: .*[ab]\.nii and .*[ab]"),
    (("a/X/X_t1.nii", "b/X/X_t1.nii"), r"two cases named X: in .*/[ab]/X and .*/[ab]/X"),
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
