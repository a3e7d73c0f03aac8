"""Which sequence a file holds, by its name: of BraTS, of other data sets, as the user says."""

import pytest

from kd_jax.tasks.names import is_label_map, mentioned, parse_name, parse_patterns

BRATS = [
  ("X_flair", "X", "flair", False),
  ("BraTS2021_00000_T1CE", "BraTS2021_00000", "t1ce", False),
  ("BraTS-GLI-00000-000-t1n", "BraTS-GLI-00000-000", "t1", True),
  ("BraTS-GLI-00000-000-t2f", "BraTS-GLI-00000-000", "flair", True),
  ("BraTS-GLI-00000-000-t2W", "BraTS-GLI-00000-000", "t2", True),
  ("W39_1998.09.19_Segm", "W39_1998.09.19", "seg", False),
  ("t1ce", "", "t1ce", False),
]
PUBLIC = [
  ("UPENN-GBM-00001_11_T1GD", "UPENN-GBM-00001_11", "t1ce"),
  ("UCSF-PDGM-0004_T1c", "UCSF-PDGM-0004", "t1ce"),
  ("UCSF-PDGM-0004_tumor_segmentation", "UCSF-PDGM-0004", "seg"),
  ("PatientID_0003_Timepoint_2_flair", "PatientID_0003_Timepoint_2", "flair"),
  ("PatientID_0003_Timepoint_1_brain_t1c", "PatientID_0003_Timepoint_1", "t1ce"),
  ("PatientID_0003_Timepoint_1_tumorMask", "PatientID_0003_Timepoint_1", "seg"),
  ("CT1", "", "t1ce"),  # LUMIERE
  ("CT1_r2s_bet", "", "t1ce"),
  ("sub-01_ses-02_ce-gd_T1w", "sub-01_ses-02", "t1ce"),  # BIDS
  ("sub-01_ses-02_acq-postcontrast_run-1_T1w", "sub-01_ses-02", "t1ce"),
  ("sub-01_ce-none_T1w", "sub-01", "t1"),
  ("sub-01_acq-mprage_space-MNI_T1w", "sub-01", "t1"),
  ("sub-01_acq-ceMPRAGE_T1w", "sub-01", "t1ce"),
  ("sub-01_acq-MPRAGEpost_T1w", "sub-01", "t1ce"),
  ("sub-01_acq-space_T1w", "sub-01", "t1"),  # labels have no separators, and speak of more
  ("sub-01_acq-reference_T1w", "sub-01", "t1"),
  ("sub-01_acq-postop_T1w", "sub-01", "t1"),
  ("sub-01_acq-noce_T1w", "sub-01", "t1"),
  ("sub-01_acq-precontrast_T1w", "sub-01", "t1"),
  ("sub-01_ce-nogd_T1w", "sub-01", "t1"),
  ("P1_non_ce_t1", "P1", "t1"),
  ("P1-without-gd-T1w", "P1", "t1"),
  ("P1_pre_gd_t1", "P1", "t1"),
  ("P1_pre_ct1", "P1_pre", "t1ce"),  # before an operation
  ("sub-01_FLAIR", "sub-01", "flair"),
]
OTHERS = [
  ("P2_T1GD", "P2", "t1ce"),
  ("t1_post_contrast", "", "t1ce"),
  ("C1_t1_brain", "C1", "t1"),
  ("X_T1_Gd_brain_reg", "X", "t1ce"),
  ("X t1ce", "X", "t1ce"),
  ("X.t1+c", "X", "t1ce"),
  ("t1wce", "", "t1ce"),
  ("X_t1km", "X", "t1ce"),
  ("X_ce_t1", "X", "t1ce"),
  ("X_post_t1", "X_post", "t1"),  # after an operation, perhaps
  ("X_T1_weighted", "X", "t1"),
  ("X_t1_non_contrast", "X", "t1"),
  ("X_fl", "X", "flair"),
  ("T2_FLAIR", "", "flair"),
  ("flair-t2", "", "flair"),
  ("X_t2w_to_SRI24", "X", "t2"),
  ("X_t2_to_t1ce", "X", "t2"),
  ("X_flair_in_T1w_space", "X", "flair"),
]


@pytest.mark.parametrize(("stem", "case", "kind", "new"), BRATS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".NII.GZ"])
def test_names_of_brats(stem, case, kind, new, ending):
  assert parse_name(stem + ending) == (case, kind, new)


@pytest.mark.parametrize(("stem", "case", "kind"), PUBLIC + OTHERS)
def test_names_of_other_houses(stem, case, kind):
  parsed = parse_name(f"{stem}.nii.gz")
  assert (parsed.case, parsed.kind) == (case, kind)


@pytest.mark.parametrize(
  "stem",
  [
    *("scan", "X_0000", "X_dwi", "X_mask", "X_brain_mask", "T1_MPRAGE_post", "X_t1ce_1", "adc"),
    *("X_t1_flair", "X_t1_t2", "t1-t1ce"),  # two sequences: of T1 and T2 FLAIR, or a difference
    *("X_brain_segmentation", "X_csf_seg", "UCSF-PDGM-0004_brain_parenchyma_segmentation"),
    *("t1ce.nii", "X_notes"),
  ],
)
def test_what_is_not_understood_is_not_guessed(stem):
  assert parse_name(f"{stem}.nii.gz") is None


def test_no_nifti_file_has_a_name_to_parse():
  assert parse_name("X_t1ce.nrrd") is None
  assert parse_name("X_t1ce") is None


def test_label_maps_of_anything_are_no_images():
  assert is_label_map("X_seg.nii") and is_label_map("X_brain_segmentation.nii.gz")
  assert not is_label_map("X_t1ce.nii") and not is_label_map("seg.txt")


@pytest.mark.parametrize(
  ("name", "sequences"),
  [
    ("axial_T2_tse.nii.gz", {"t2"}),
    ("P1_T1_MPRAGE.nii", {"t1"}),
    ("P1_t1_gd_1.nii", {"t1ce"}),
    ("t2_flair_3d_cor.nii", {"flair"}),
    ("scan1.nii", set()),
    ("cat1.nii", set()),
  ],
)
def test_sequences_that_a_name_speaks_of(name, sequences):
  assert mentioned(name) == sequences


def test_the_user_s_patterns_go_first():
  patterns = parse_patterns('{"t1ce": "*post*", "t1": ["*_pre", "*t1ce.nii.gz"]}')
  assert parse_name("P1_axial_post_3.nii.gz", patterns) == ("P1_axial", "t1ce", False)
  assert parse_name("P1_PRE.nii", patterns) == ("P1", "t1", False)
  assert parse_name("X_t1ce.nii.gz", patterns)[1] == "t1"
  assert parse_name("X_t2.nii.gz", patterns)[1] == "t2"
  assert parse_name("X_t2.nii.gz", patterns, told_only=True) is None
  with pytest.raises(ValueError, match="t1ce and t1; make them narrower"):
    parse_name("P1_post_pre.nii.gz", patterns)


@pytest.mark.parametrize(
  "text", ["{", "[]", '{"t1c": "*"}', '{"t1ce": 3}', '{"t1ce": []}', '{"t1ce": [""]}', "*post*"]
)
def test_patterns_that_cannot_be_read(text):
  with pytest.raises(ValueError, match=r'expected JSON such as \{"t1ce": "\*post\*"\}.*seg'):
    parse_patterns(text)
