"""Which sequence a series holds: by the words of its description and by the fields of its header.

A description says more than the fields: many scanners write the contrast agent of a whole
examination into every series of it, or into none.
"""

import re
from typing import NamedTuple

from kd_jax.dicom.series import Header, number, text

_EDGE = r"(?<![a-z0-9])"  # words: letters and digits next to them would make another word
_END = r"(?![a-z0-9])"
# What no student reads, whatever else the description says.
_OTHER = re.compile(
  rf"{_EDGE}(?:"
  r"(?P<localizer>localizer|localiser|locali[sz]ers|loc|scout|survey|aahead\w*"
  r"|\d? ?(?:plane|pl) loc\w*|topogram|smartbrain|calib\w*|asset\w*)"
  r"|(?P<map>e?adc|dwi|dti|diff\w*|trace\w*|fa|ep2d\w*|swi\w*|swan|t2 ?star|mag|pha(?:se)?"
  r"|perf\w*|dsc|dce|pwi|asl|r?cbv|r?cbf|mtt|ttp|ktrans|tof\w*|mra|mrv|angio\w*|veno\w*|bold|fmri"
  r"|svs\w*|csi\w*|spectro\w*|b0|b1000|field ?map\w*|t[12] ?map\w*|qsm)"
  r"|(?P<derived>sub|subtr\w*|m?i?mip\w*|minip|proj\w*|vrt|screen\w*|report|summary|phoenix\w*)"
  rf"){_END}"
)
_FLAIR = re.compile(r"flair|tirm|dark ?fluid")
_T2 = re.compile(r"t2")
_T1 = re.compile(
  rf"t1|mp ?2?rage|{_EDGE}mpr{_END}|bravo|f?spgr|vibe|(?<![a-z])3d ?t?tfe|turbo ?flash"
  rf"|{_EDGE}tfl{_END}"
)
_PRE = re.compile(
  rf"(?<!not )(?:{_EDGE}(?:pre ?(?:contrast|gad\w*|gd|ce|c|km)?|(?:without|w/?o|no|non|ohne|sans"
  r"|sin) ?(?:contrast\w*|kontrast\w*|gad\w*|gd|km|ce|c)?|n?on ?contrast|noncon\w*|native?|nativ\w*"
  rf"|plain|unenhanced){_END}|-c{_END})"
)
_POST = re.compile(
  rf"{_EDGE}(?:post(?! ?op)(?! ?proc)(?:contrast|gad\w*|gd|ce|km)?|contrast\w*|kontrast\w*|enhanced"
  r"|gad\w*|gd|dotarem|clariscan|prohance|magnevist|multihance|km|mdc|ce|w/? ?c"
  rf"|c\+){_END}|\+ ?(?:c|ce|gd|gad\w*|km|k){_END}"
  rf"|t1w? ?(?:ce|gd|c|km|gad\w*){_END}|{_EDGE}(?:c|ce|gd)t1w?{_END}|mprage ?(?:c|ce|gd){_END}"
)
_NO_AGENT = {"", "no", "none", "n", "without", "no contrast", "not applicable", "n/a", "na", "0"}


class Sequence(NamedTuple):
  """What a series holds.

  Attributes:
    kind: of names.MODALITIES; "" for what no student reads, or where it cannot be told.
    because: what speaks for it, or what the series is instead.
    unsure: whether its headers say too little: of a T1, whether there was contrast medium.
  """

  kind: str
  because: str
  unsure: bool = False


def recognise(header: Header) -> Sequence:
  """The sequence of a plain MR series, by one of its headers."""
  description = _normal(text(header, "SeriesDescription"))
  image_type = text(header, "ImageType").upper().split("\\")
  if "LOCALIZER" in image_type:
    return Sequence("", "a localizer, by its image type")
  for word in ("PROJECTION IMAGE", "MIP", "SUBTRACTION", "ADC", "DIFFUSION", "PERFUSION"):
    if word in image_type:
      return Sequence("", f"{word} by its image type")
  if match := _OTHER.search(description):
    kind = "a localizer" if match.lastgroup == "localizer" else "another kind of image"
    return Sequence("", f"{kind}, by the word {match[0].strip()!r} in its description")
  protocol = _normal(text(header, "ProtocolName"))
  for words, where in ((description, "description"), (protocol, "protocol's name")):
    if weighting := _weighting(words):
      kind, word = weighting
      return _with_contrast(kind, f"{word!r} in its {where}", header, words, where)
  if measured := _by_times(header):
    kind, times = measured
    return _with_contrast(kind, times, header, description, "description")
  return Sequence("", "neither its description nor its times say which sequence it is", True)


def _normal(said: str) -> str:
  """Lower case, with one space for all that separates words; + - and / may mean something."""
  spaced = re.sub(r"[^a-z0-9+/\-*]+", " ", said.lower()).strip()
  spaced = re.sub(r"(?<=[a-z0-9])-(?=[a-z0-9])", " ", spaced)  # post-gd
  return re.sub(r"t2 ?\*", " t2star ", spaced).strip()


def _weighting(words: str) -> tuple[str, str] | None:
  """(kind, the word that says it) of a description."""
  t1, flair, t2 = _T1.search(words), _FLAIR.search(words), _T2.search(words)
  if t1 and t2:
    return None
  if t1:  # T1 FLAIR is weighted by T1
    return "t1", t1[0]
  if flair:
    return "flair", flair[0]
  return ("t2", t2[0]) if t2 else None


def _by_times(header: Header) -> tuple[str, str] | None:
  """(kind, the times in words) by repetition, echo and inversion time."""
  tr, te = number(header, "RepetitionTime"), number(header, "EchoTime")
  ti = number(header, "InversionTime") or 0.0
  if tr is None or te is None:
    return None
  said = f"TR {tr:g} ms, TE {te:g} ms" + (f", TI {ti:g} ms" if ti else "")
  gradient = "GR" in text(header, "ScanningSequence")
  if te >= 70 and 1500 <= ti <= 3500:
    return "flair", said
  if te >= 70 and not ti and tr >= 2000:
    return "t2", said
  short = te <= 12 and (tr <= 60 or (400 <= ti <= 1300 and tr <= 3500))
  if (gradient and short) or (not gradient and te <= 30 and 200 <= tr <= 1200 and not ti):
    return "t1", said
  return None


def _with_contrast(kind: str, because: str, header: Header, words: str, where: str) -> Sequence:
  """T1 becomes t1ce where words or fields say that there was contrast medium."""
  if kind != "t1":
    return Sequence(kind, because)
  before = _PRE.search(words)
  after = _POST.search(_PRE.sub(" ", words))
  agent = _names_agent(header)
  if before and after:
    both = f"{before[0].strip()!r} and {after[0].strip()!r}"
    return Sequence("", f"T1 ({because}), but {both} both stand in its {where}", True)
  if before:
    return Sequence("t1", f"{because}, and {before[0].strip()!r}")
  if after:
    more = ", and its header names a contrast agent" if agent else ""
    return Sequence("t1ce", f"{because}, and {after[0].strip()!r}{more}")
  if agent:
    return Sequence("t1ce", f"{because}, and its header names a contrast agent")
  return Sequence("t1", f"{because}; nothing says that there was contrast medium", unsure=True)


def _names_agent(header: Header) -> bool:
  """Whether the fields of contrast medium say that there was some."""
  agent = text(header, "ContrastBolusAgent").lower()
  if agent not in _NO_AGENT:
    return True
  volume = number(header, "ContrastBolusVolume")
  coded = header.get("ContrastBolusAgentSequence")
  return bool(coded) or bool(volume and volume > 0)
