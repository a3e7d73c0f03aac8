"""Whose data a student was trained on, as far as it is known: terms, and what to cite."""

import re
from collections.abc import Mapping
from typing import Any

_METHOD = (
  "S. Ahmad, Z. Ullah, J. Gwak. Multi-teacher cross-modal distillation with cooperative deep "
  "supervision fusion learning for unimodal segmentation. Knowledge-Based Systems 297, 2024, "
  "111854. https://doi.org/10.1016/j.knosys.2024.111854 (the method)"
)
_BRATS = (
  "B. H. Menze et al. The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS). IEEE "
  "Transactions on Medical Imaging 34, 2015. https://doi.org/10.1109/TMI.2014.2377694",
  "S. Bakas et al. Advancing The Cancer Genome Atlas glioma MRI collections with expert "
  "segmentation labels and radiomic features. Scientific Data 4, 2017. "
  "https://doi.org/10.1038/sdata.2017.117",
)
_BRATS18 = (
  "S. Bakas et al. Identifying the best machine learning algorithms for brain tumor segmentation, "
  "progression assessment, and overall survival prediction in the BRATS challenge. 2018. "
  "https://arxiv.org/abs/1811.02629"
)
_BRATS21 = (
  "U. Baid et al. The RSNA-ASNR-MICCAI BraTS 2021 benchmark on brain tumor segmentation and "
  "radiogenomic classification. 2021. https://arxiv.org/abs/2107.02314"
)
_MSD = (
  "M. Antonelli et al. The Medical Segmentation Decathlon. Nature Communications 13, 2022. "
  "https://doi.org/10.1038/s41467-022-30695-9"
)


def terms(training: Mapping[str, Any], licence: str | None) -> list[str]:
  """Of the weights, the code and the data, as lines of the card.

  Args:
    training: a student's facts.
    licence: of the weights, or None.
  """
  stated = (
    f"- Weights: {licence}, as stated by whoever exported them."
    if licence
    else "- Weights: no licence was stated. Ask whoever gave them to you before you use them."
  )
  return [stated, "- Code of kd_jax: MIT.", f"- Data: {_data_terms(training)}"]


def _data_terms(training: Mapping[str, Any]) -> str:
  if training.get("data") == "quickstart":
    return "generated from the SRI24 atlas, which is under CC BY-SA 3.0."
  if training["convention"] == "msd":
    return (
      "labels as in the Medical Segmentation Decathlon. If it was trained on that: its data is "
      "under CC BY-SA 4.0."
    )
  return (
    "if it was trained on BraTS: that data has its own terms, which everyone who downloads it "
    "agrees to; whether they allow to pass on these weights is for whoever exported them to judge. "
    "No image and no name of a patient is in this folder."
  )


def references(training: Mapping[str, Any]) -> list[str]:
  """What to cite: the method, and the data by what is known of it."""
  data, convention = str(training.get("data", "")), training["convention"]
  if data == "quickstart":
    return [_METHOD]
  if convention == "msd":
    return [_METHOD, _MSD]
  year = re.search(r"brats(?:20)?(\d\d)", data.lower())
  if year is None:
    return [_METHOD, *_BRATS]
  return [_METHOD, *_BRATS, _BRATS18 if int(year[1]) <= 20 else _BRATS21]
