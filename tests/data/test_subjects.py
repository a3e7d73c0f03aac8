"""Recognising a student's training subjects: by id, by the name mapping, by what images hold."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
from synthetic import AFFINE, NEW, brats_root, images, make_case, write

from kd_jax.data import nifti
from kd_jax.data.cases import find_cases
from kd_jax.data.patients import read_name_mapping
from kd_jax.data.preprocess import PlainImage
from kd_jax.data.subjects import (
  Subject,
  anonymous,
  content_hash,
  content_hashes,
  find_known,
  read_subjects,
  refuse,
  subject_of,
  write_subjects,
)
from kd_jax.runtime.errors import UserError
from kd_jax.tasks.names import MODALITIES

HEAD_2020 = (
  "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,"
  "BraTS_2019_subject_ID,BraTS_2020_subject_ID"
)
HEAD_2023 = (
  "BraTS2023;BraTS2021;BraTS2020;BraTS2019;Data Collection;"
  "Site No (represents the originating institution)"
)


def volume(seed=0):
  return images(seed)["t1ce"]


def subject(name, patient=None, **hashes):
  return Subject(name, patient or name, "brats2018", hashes)


@pytest.mark.parametrize(
  "dtype", [np.int16, np.uint16, np.int32, ">i2", np.float32, np.float64, ">f4"]
)
def test_hash_does_not_see_the_number_type(dtype):
  assert content_hash(volume().astype(dtype)) == content_hash(volume())


def test_hash_of_bytes_and_booleans():
  x = volume() > 400
  assert content_hash(x) == content_hash(x.astype(np.uint8)) == content_hash(x.astype(np.int16))


@pytest.mark.parametrize("pad", [((1, 0), (0, 0), (0, 0)), ((3, 4), (0, 2), (5, 0))])
def test_hash_does_not_see_padding_or_memory_order(pad):
  x = volume()
  assert content_hash(np.pad(x, pad)) == content_hash(x)
  assert content_hash(np.asfortranarray(x)) == content_hash(x)
  assert content_hash(x[2:-2, 3:-3, 1:-1]) == content_hash(x)


def test_hash_does_not_see_the_sign_of_zero():
  x = volume().astype(np.float32)
  x[5, 6, 7] = 0
  y = np.where(x == 0, np.float32(-0.0), x)
  assert np.signbit(y).any()
  assert content_hash(y) == content_hash(x)


def test_hash_sees_one_voxel_and_leaves_the_input_alone():
  x = volume()
  before = x.copy()
  seen = {content_hash(x)}
  for i, value in (((5, 6, 7), 1), ((2, 3, 1), 1), ((0, 0, 0), 1)):
    y = x.copy()
    y[i] += value
    seen.add(content_hash(y))
  assert len(seen) == 4
  assert (x == before).all()
  assert content_hash(x[::-1]) != content_hash(x)


def test_hash_sees_the_shape():
  x = np.arange(1, 25, dtype=np.int16)
  shapes = [(2, 3, 4), (4, 3, 2), (24, 1, 1), (1, 24, 1)]
  assert len({content_hash(x.reshape(s)) for s in shapes}) == len(shapes)


def test_hash_sees_fractions_that_float32_can_hold():
  x = volume().astype(np.float32)
  y = x.copy()
  y[5, 6, 7] = np.nextafter(y[5, 6, 7], np.float32(np.inf))
  assert content_hash(y) != content_hash(x)


def test_hash_is_32_hex_digits_and_stays_what_it_is():
  x = np.array([[[0, 1, 0], [0, 2, 0]]])
  assert content_hash(x) == "49195064127897201c23ad7e3d256b53"
  assert len(content_hash(x)) == 32


def test_hash_does_not_see_header_or_compression(tmp_path):
  x, other = volume(), AFFINE.copy()
  other[:3, 3] = (7, 8, 9)
  files = [
    write(tmp_path / "plain.nii", x),
    write(tmp_path / "zipped.nii.gz", x.astype(np.float32)),
    write(tmp_path / "moved.nii.gz", x, other),
  ]
  scaled = nib.Nifti1Image(x, AFFINE)
  scaled.header.set_slope_inter(1, 0)
  nib.save(scaled, tmp_path / "scaled.nii")
  files.append(tmp_path / "scaled.nii")
  (tmp_path / "level1.nii.gz").write_bytes(gzip.compress(files[0].read_bytes(), 1))
  files.append(tmp_path / "level1.nii.gz")
  assert {content_hash(nifti.read(file).data) for file in files} == {content_hash(x)}


def test_an_empty_image_matches_nothing():
  assert content_hash(np.zeros((3, 4, 5))) == content_hash(np.full((2, 2, 2), -0.0)) == ""
  assert find_known([subject("a", t1="")], [subject("b", t1="")]) == {}


@pytest.mark.parametrize("specks", [((0, 0, 0),), ((0, 0, 0), (-1, -1, -1))])
@pytest.mark.parametrize("trained_on_specks", [False, True])
def test_specks_hide_no_training_subject(specks, trained_on_specks):
  clean, dirty = volume(), volume()
  for at in specks:
    dirty[at] = 3
  known, case = (dirty, clean) if trained_on_specks else (clean, dirty)
  assert content_hash(dirty) != content_hash(clean)
  hashes = [content_hashes({"t1ce": PlainImage(x, (3.0, 3.0, 3.0))}) for x in (known, case)]
  assert len(content_hashes({"t1ce": PlainImage(clean)})) == 1  # as it always was
  found = find_known([subject("new", **hashes[1])], [subject("old", **hashes[0])])
  assert list(found) == ["new"] and "as old" in found["new"]


def test_subject_of_a_case_on_disk(tmp_path):
  make_case(tmp_path / "BraTS-GLI-00007-001", NEW, "-", seed=3)
  [case] = find_cases(tmp_path)
  volumes = {m: nifti.read(path) for m, path in case.images.items()} | {"seg": nifti.read(case.seg)}
  s = subject_of(case, volumes)
  assert (s.name, s.patient, s.convention) == (case.name, "BraTS-GLI-00007", "brats2024")
  assert s.images == {m: content_hash(x) for m, x in images(3).items()}
  assert len(set(s.images.values())) == 4
  assert set(subject_of(case, {"t1ce": volumes["t1ce"]}).images) == {"t1ce"}


def test_written_and_read_back(tmp_path):
  path = tmp_path / "new" / "subjects.json"
  train, val = [subject("a", "p", t1="1", t1ce="2"), subject("ü")], [subject("b")]
  write_subjects(path, train, val)
  assert read_subjects(path) == (train, val)
  assert json.loads(path.read_text())["format"] == 1


GOOD = {"name": "a", "patient": "a", "convention": "brats2018", "images": {}}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{", "no list of training subjects"),
    ("[]", "no list of training subjects"),
    ('{"train": [], "val": []}', "format"),
    ('{"format": 2, "train": [], "val": []}', "has format 2, this version reads 1"),
    ('{"format": 1, "train": []}', "val"),
    ('{"format": 1, "train": ["a"], "val": []}', "no list of training subjects"),
    ('{"format": 1, "train": 3, "val": []}', "no list of training subjects"),
    (json.dumps({"format": 1, "train": [GOOD | {"images": ["x"]}], "val": []}), "no list"),
    (json.dumps({"format": 1, "train": [GOOD | {"images": {"t1": 3}}], "val": []}), "not all text"),
    (json.dumps({"format": 1, "train": [GOOD | {"patient": None}], "val": []}), "not all text"),
  ],
)
def test_broken_files_of_subjects(tmp_path, content, message):
  path = tmp_path / "subjects.json"
  path.write_text(content)
  with pytest.raises(UserError, match=message) as e:
    read_subjects(path)
  assert str(path) in str(e.value)


def test_absent_files(tmp_path):
  with pytest.raises(UserError, match="cannot read the training subjects"):
    read_subjects(tmp_path / "subjects.json")
  with pytest.raises(UserError, match="cannot read the name mapping"):
    read_name_mapping(tmp_path / "name_mapping.csv")


def test_mapping_of_2020(tmp_path):
  path = tmp_path / "name_mapping.csv"
  path.write_text(
    f"{HEAD_2020}\n"
    "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
    "HGG,NA,NA,NA,NA,BraTS20_Training_002\n"
    "LGG,NA, Brats18_TCIA1_1 ,TCGA-DU-0001,Not available,\n"
  )
  assert read_name_mapping(path) == [
    {"brats17_cbica_aab_1", "brats18_cbica_aab_1", "brats19_cbica_aab_1", "brats20_training_001"},
    {"brats18_tcia1_1", "tcga-du-0001"},
  ]


def test_mapping_of_2023_with_semicolons_and_time_points(tmp_path):
  path = tmp_path / "mapping.csv"
  text = (
    f"\ufeff{HEAD_2023}\r\n"
    "BraTS-GLI-00000-000;BraTS2021_00000;;NA;UPENN-GBM;1\r\n"
    "BraTS-GLI-00001-000;BraTS2021_00001;BraTS20_Training_009;;UPENN-GBM;1\r\n"
    "BraTS-GLI-00001-001;;;;UPENN-GBM;1\r\n"
    "BraTS-GLI-00002-000\r\n"
  )
  path.write_bytes(text.encode())
  assert read_name_mapping(path) == [
    {"brats-gli-00000-000", "brats-gli-00000", "brats2021_00000"},
    {"brats-gli-00001-000", "brats-gli-00001-001", "brats-gli-00001"}
    | {"brats2021_00001", "brats20_training_009"},
    {"brats-gli-00002-000", "brats-gli-00002"},
  ]


def test_mapping_merges_rows_that_share_an_id(tmp_path):
  path = tmp_path / "m.csv"
  rows = [
    "a1,b1",
    "c1,d1",
    "e1,f1",
    "NA,NA",
    "Training,g1",
    "Training,h1",
    "b1,c1",
    "x1,y1",
    "d1,a2",
  ]
  path.write_text("BraTS X,subject Y\n" + "\n".join(rows) + "\n")
  merged = {"a1", "b1", "c1", "d1", "a2"}
  assert sorted(read_name_mapping(path), key=len) == [{"e1", "f1"}, {"x1", "y1"}, merged]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("m.xlsx", b"PK\x03\x04", "save it as CSV"),
    ("m.csv", b"PK\x03\x04\xff\xfe", "not a text file"),
    ("m.csv", b"", "no two columns"),
    ("m.csv", b"Grade,BraTS2020,Site\nHGG,1,2\n", "no two columns .* Grade, BraTS2020, Site"),
    ("m.csv", b'BraTS2019,BraTS2020\na1,"b1\nc1,d1\n', "line 3: unexpected end"),
  ],
)
def test_files_that_are_no_mapping(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=message) as e:
    read_name_mapping(tmp_path / name)
  assert str(tmp_path / name) in str(e.value)


MAPPING = [frozenset({"brats18_cbica_aab_1", "brats20_training_001", "brats-gli-00005"})]


@pytest.mark.parametrize("hide_cases", [False, True])
@pytest.mark.parametrize("hide_known", [False, True])
@pytest.mark.parametrize(
  ("case", "known", "reason"),
  [
    (subject("case1"), subject("case1"), "same patient id "),
    (subject("CASE1"), subject("case1 "), "same patient id "),
    (
      subject("BraTS-GLI-00000-001", "BraTS-GLI-00000"),
      subject("BraTS-GLI-00000-000", "BraTS-GLI-00000"),
      "same patient id ",
    ),
    (subject("scan1", "p7"), subject("p7", "p8"), "same patient id "),
    (
      subject("BraTS20_Training_001"),
      subject("Brats18_CBICA_AAB_1"),
      "same patient by the name mapping (",
    ),
    (
      subject("BraTS-GLI-00005-000", "BraTS-GLI-00005"),
      subject("Brats18_CBICA_AAB_1"),
      "same patient by the name mapping (",
    ),
    (subject("a", t1="1", t1ce="2"), subject("b", t1="3", t1ce="2"), "the same t1ce image"),
    (subject("a", t1="1", t1ce="2"), subject("b", t1="2"), "the same t1ce image"),
    (subject("a", t1="1"), subject("b", t1="2"), None),
    (subject("BraTS20_Training_001"), subject("Brats18_CBICA_AAB_2"), None),
    (subject("case1"), subject("case10"), None),
  ],
)
def test_known_subjects_are_found_also_by_digest(case, known, reason, hide_known, hide_cases):
  case = anonymous(case) if hide_cases else case
  known = anonymous(known) if hide_known else known
  found = find_known([case, subject("new", t1="9")], [subject("other"), known], MAPPING)
  if reason is None:
    assert found == {}
  else:
    assert list(found) == [case.name]
    assert found[case.name].startswith(reason)


def test_reasons_name_what_is_known():
  aab = subject("Brats18_CBICA_AAB_1", t1="1")
  gli = subject("BraTS-GLI-00000-000", "BraTS-GLI-00000")
  cases = [
    subject("BraTS20_Training_001"),
    subject("BraTS-GLI-00000-003", "BraTS-GLI-00000"),
    subject("x", t1="1"),
    subject("y", t2="1"),
    subject("z", t2="2"),
  ]
  assert find_known(cases, [aab, gli], MAPPING) == {
    "BraTS20_Training_001": "same patient by the name mapping (Brats18_CBICA_AAB_1)",
    "BraTS-GLI-00000-003": "same patient id BraTS-GLI-00000",
    "x": "the same t1 image as Brats18_CBICA_AAB_1",
    "y": "the same t2 image as Brats18_CBICA_AAB_1, there t1",
  }
  hidden = find_known(cases, [anonymous(aab)], MAPPING)
  assert hidden == {
    "BraTS20_Training_001": "same patient by the name mapping (brats18_cbica_aab_1)",
    "x": "the same t1 image",
    "y": "the same t2 image, there t1",
  }


def test_without_a_mapping_other_names_are_other_patients():
  assert find_known([subject("BraTS20_Training_001")], [subject("Brats18_CBICA_AAB_1")]) == {}


def test_anonymous_subjects_hold_no_id(tmp_path):
  s = subject("Clinic-Mueller-1967-0", "Clinic-Mueller-1967", t1="abc")
  hidden = anonymous(s)
  write_subjects(tmp_path / "s.json", [hidden], [])
  assert "ueller" not in (tmp_path / "s.json").read_text()
  assert hidden.images == s.images and hidden.name != hidden.patient
  assert anonymous(hidden) == hidden == anonymous(subject(s.name.upper(), s.patient, t1="abc"))
  assert read_subjects(tmp_path / "s.json") == ([hidden], [])


def test_the_digest_of_an_id_stays_what_it_is():
  """Files that were shared once must match for ever."""
  digest = "3aa476ef5618e0802b78a1736be97cd77f2afdb70679926ed2315ebc41570d0b"
  assert anonymous(subject("BraTS2021_00000")).patient == f"sha256:{digest}"


def test_refusal_is_loud_and_says_what_to_do():
  error = refuse({f"case{i}": "the same t1 image" for i in range(23)}, 40)
  text = str(error)
  assert isinstance(error, UserError)
  assert text.startswith("REFUSED: 23 of 40 cases")
  assert "case19: the same t1 image" in text and "case20:" not in text and "and 3 more" in text
  assert "--exclude_training_subjects" in text
  assert "more" not in str(refuse({"a": "b"}, 1))


def test_real_cases_are_all_different_and_found_again():
  cases = find_cases(brats_root())
  subjects = [
    subject_of(case, {m: nifti.read(case.images[m]) for m in MODALITIES}) for case in cases
  ]
  hashes = [h for s in subjects for h in s.images.values()]
  assert len(cases) == 7 and len(set(hashes)) == 4 * 7 and "" not in hashes
  assert find_known(subjects[:3], subjects[3:]) == {}
  renamed = subject("fresh", **subjects[2].images)
  assert find_known([renamed], [anonymous(s) for s in subjects]) == {
    "fresh": "the same flair image"
  }


def test_a_run_that_goes_on_says_what_may_be_other_than_before(tmp_path):
  """A case whose labels alone are read another way was said to have other images."""
  from kd_jax.training.setup import _with_earlier

  before, now = (Subject("a", "a", years, {"t1": "x"}) for years in ("brats2018", "brats2023"))
  lines: list[str] = []
  kept = _with_earlier([[now], []], [[before], []], tmp_path, lines.append)
  assert kept == [[now, before], []]
  assert len(lines) == 1 and "or another label convention: a; what it was trained on" in lines[0]
