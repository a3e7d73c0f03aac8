"""Which sequence a series holds, by the words of scanners of several countries and by fields."""

import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra [dicom] is not installed")

from kd_jax.dicom.sequence import recognise  # noqa: E402

DESCRIPTIONS = {
  "t1ce": (
    *("T1 post", "MPRAGE +C", "t1_gd", "AX T1 POST GAD", "t1_mprage_sag_p2_iso_KM", "T1ce", "T1C"),
    *("T1W_3D_TFE post", "Ax T1 FSPGR +C", "3D T1 BRAVO +C", "t1 tse tra mit KM", "ct1", "t1c+"),
    *("AX T1 WITH CONTRAST", "T1 C+", "CE T1 3D", "t1 post op +C", "T1 SE TRA GADOVIST", "t1+C"),
    *("sT1W_3D_TFE_Gd", "T1_VIBE_DIXON_POST_W", "T1 sag post-contrast", "T1 axial contraste"),
    *("WATER: Ax T1 VIBE Post", "T1 3D CUBE GD", "T1 SPACE w/ contrast", "ax t1 postcontrast"),
  ),
  "t1": (
    *("SAG T1 PRE", "AX T1 W/O", "t1 tse tra ohne KM", "t1_se_tra_nativ", "T1 NON CONTRAST"),
    *("AX T1 WITHOUT CONTRAST", "t1 non-contrast", "T1 FLAIR SAG", "t1_mpr_ns_sag_iso", "AX T1 -C"),
    *("T1 postop", "T1 axial sin contraste", "T1 SAG NO CONTRAST", "t1 precontrast"),
  ),
  "flair": ("T2 FLAIR", "AX T2 FLAIR +C", "t2_tirm_tra_dark-fluid", "FLAIR 3D"),
  "t2": ("AX T2 FSE", "t2_tse_tra", "T2 SPACE"),
  "": (
    *("3-plane loc", "localizer", "AAHead_Scout", "ep2d_diff_3scan_trace_ADC", "SWI_Images"),
    *("T2*GRE", "T1 SUB", "t1 MIP post", "T1 pre post", "dsc perf", "T1 T2 mix", "Brain", ""),
  ),
}


def header(**fields):
  one = pydicom.Dataset()
  for name, value in fields.items():
    setattr(one, name, value)
  return one


@pytest.mark.parametrize(
  ("kind", "description"), [(k, d) for k, said in DESCRIPTIONS.items() for d in said]
)
def test_descriptions(kind, description):
  found = recognise(header(SeriesDescription=description))
  assert found.kind == kind, found.because
  assert found.because


MPRAGE = {"ScanningSequence": ["GR", "IR"], "RepetitionTime": 1900, "EchoTime": 2.5}
CODED = pydicom.Dataset()


@pytest.mark.parametrize(
  ("fields", "kind"),
  [
    ({"ContrastBolusAgent": "Gadovist"}, "t1ce"),
    ({"ContrastBolusVolume": 7.5}, "t1ce"),
    ({"ContrastBolusAgentSequence": [CODED]}, "t1ce"),
    ({"ContrastBolusAgent": "NONE"}, "t1"),
    ({"ContrastBolusAgent": "", "ContrastBolusVolume": 0}, "t1"),
    ({}, "t1"),
  ],
)
@pytest.mark.parametrize("said", [{"SeriesDescription": "AX T1"}, MPRAGE | {"InversionTime": 900}])
def test_fields_of_contrast_count_where_words_say_nothing(fields, kind, said):
  found = recognise(header(**said, **fields))
  assert found.kind == kind
  assert found.unsure == (kind == "t1")


def test_words_count_more_than_fields():
  """Scanners write the agent of an examination into series that came before it."""
  fields = {"ContrastBolusAgent": "Gadovist"}
  assert recognise(header(SeriesDescription="AX T1 PRE", **fields)).kind == "t1"
  assert recognise(header(SeriesDescription="AX T1 POST", ContrastBolusAgent="NO")).kind == "t1ce"
  protocol = header(SeriesDescription="Brain", ProtocolName="T1 +C", **MPRAGE)
  assert recognise(protocol).kind == "t1ce"


@pytest.mark.parametrize(
  ("times", "kind"),
  [
    ({"RepetitionTime": 500, "EchoTime": 10, "ScanningSequence": "SE"}, "t1"),
    ({"RepetitionTime": 5000, "EchoTime": 100, "ScanningSequence": "SE"}, "t2"),
    ({"RepetitionTime": 9000, "EchoTime": 120, "InversionTime": 2500}, "flair"),
    ({"RepetitionTime": 600, "EchoTime": 20, "ScanningSequence": "GR"}, ""),  # T2*, perhaps
    ({"RepetitionTime": 5000}, ""),
  ],
)
def test_times_count_where_nothing_else_is_said(times, kind):
  assert recognise(header(**times)).kind == kind


@pytest.mark.parametrize("word", ["LOCALIZER", "PROJECTION IMAGE", "SUBTRACTION", "ADC"])
def test_image_types_count_more_than_words(word):
  fields = {"ImageType": ["DERIVED", "PRIMARY", word], "SeriesDescription": "T1 POST"}
  assert recognise(header(**fields)).kind == ""
