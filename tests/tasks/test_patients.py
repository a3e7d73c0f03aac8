"""Whose scan a case is, by its name."""

import pytest

from kd_jax.tasks.patients import is_time_point, patient_of, unjoined


@pytest.mark.parametrize(
  ("name", "patient"),
  [
    ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
    ("BraTS-MET-00001-000", "BraTS-MET-00001"),
    ("UPENN-GBM-00001_21", "UPENN-GBM-00001"),
    ("UCSF-PDGM-0004_FU001d", "UCSF-PDGM-0004"),
    ("sub-01_ses-02", "sub-01"),
    ("Patient-001_week-000-1", "Patient-001"),
    ("PatientID_0003_Timepoint_1", "PatientID_0003"),
    ("P01_2019-01-02", "P01"),
    ("P01_20190102", "P01"),
    ("TCGA-02-0006_1996.08.23", "TCGA-02-0006"),
    ("P1-visit2", "P1"),
    ("P1_preop", "P1"),
    ("P1_follow-up_3", "P1"),
    ("P1_ses-1_2019-01-02", "P1"),
  ],
)
def test_time_points_of_known_forms_are_one_patient(name, patient):
  assert patient_of(name) == patient


@pytest.mark.parametrize(
  "name",
  [
    *("Brats18_TCIA03_265_1", "BraTS20_Training_001", "BraTS2021_00000", "TCGA-02-0006", "LGG_12"),
    *("P1_T1", "P1_3", "Time_3", "2019-01-02", "UCSF-PDGM-0004", "scan_20"),
  ],
)
def test_other_names_stay(name):
  assert patient_of(name) == name


def test_folders_that_are_time_points():
  points = (
    "2019-01-02",
    "20190102",
    "02.01.2019",
    "ses-01",
    "week-000-1",
    "visit3",
    "FU",
    "tp2",
    "ses-preop",
  )
  assert all(map(is_time_point, points))
  assert not any(map(is_time_point, ("P01", "T1", "anat", "3", "12345678", "weekly", "baselines2")))


def test_names_that_look_like_time_points_are_grouped():
  assert unjoined(["A_1", "A_2", "B_1", "B_2", "C_1"]) == [["A_1", "A_2"], ["B_1", "B_2"]]
  assert unjoined(["P1a", "P1b", "P2", "P3"]) == [["P1a", "P1b"]]
  assert unjoined(["P1_day2", "P1_day9", "P2_day1"]) == [["P1_day2", "P1_day9"]]
  assert unjoined(["P1_pre", "P1_post", "P2_pre"]) == [["P1_post", "P1_pre"]]
  assert unjoined(["P1_3m", "P1_12months", "P2_3m"]) == [["P1_12months", "P1_3m"]]
  assert unjoined(["P1", "P1_recurrence", "P2", "P3"]) == [["P1", "P1_recurrence"]]
  assert unjoined(["P1", "P1_2", "P2", "P3"]) == [["P1", "P1_2"]]


@pytest.mark.parametrize(
  ("name", "patient"),
  [
    ("P1_20190102_143000", "P1"),
    ("P1_2019-01-02_2", "P1"),
    ("P1_12-24-1996", "P1"),
    ("BraTS_GLI_00005_100", "BraTS_GLI_00005"),
    ("BraTS20_Training_355", "BraTS20_Training_355"),
  ],
)
def test_other_ways_to_write_a_time_point(name, patient):
  assert patient_of(name) == patient


def test_running_numbers_are_no_time_points():
  assert unjoined([f"Demo_{k:03}" for k in range(5)]) == []
  assert unjoined([f"site{s}_{k}" for s in (1, 2) for k in range(20)]) == []
  assert unjoined(["Brats18_2013_3_1", "Brats18_2013_4_1", "Brats18_CBICA_APR_1"]) == []
  assert unjoined(["anna", "anne", "maria", "mariab"]) == []
  assert unjoined(["A", "B", "C"]) == unjoined([]) == []
  assert unjoined(f"Case_{k}" for k in range(3)) == []
