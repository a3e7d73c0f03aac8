"""Whether a glioma can look as a label convention makes it look: which class lies around which.

In the real cases at hand (40 of 2018 to 2023), oedema borders on healthy brain with 0.57 to 0.95 of
its surface, and necrosis lies within enhancing tumour more than the other way round. What is asked
for here is far from that, so that no usual set is called odd; most label maps of a set must agree.
"""

from collections.abc import Sequence

from kd_jax.data.label_contents import Contents
from kd_jax.tasks import labels
from kd_jax.tasks.label_names import CLASSES

_ENOUGH = 50  # voxels, of a label whose surface tells something
_ENCLOSED, _OUTER = 0.4, 0.5  # shares of a surface that is background: less, more
# Shares of one class's surface that borders on another: necrosis in its rim has far more than the
# rim has. A little enhancing tumour in a large core has it too, but the core touches it hardly.
_WITHIN, _MORE, _RIM = 0.7, 0.2, 0.2


def contradiction(convention: str, own: Sequence[Contents]) -> str:
  """What the anatomy of most label maps says against a convention, as a clause; "" if nothing."""
  return _oedema(convention, own) or _core(convention, own)


def _oedema(convention: str, own: Sequence[Contents]) -> str:
  oedema = labels.labels_of(convention, CLASSES.index("ED"))
  judged, against = 0, []
  for contents in own:
    free = {label: contents.borders[label][0] for label in _large(contents)}
    inner = [share for label, share in free.items() if label in oedema]
    others = [(share, label) for label, share in free.items() if label not in oedema]
    if not inner or not others:
      continue
    judged += 1
    share, outer = max(others)
    if max(inner) < _ENCLOSED and share > _OUTER:
      against.append(outer)
  if 2 * len(against) <= judged:
    return ""
  outer = max(set(against), key=against.count)
  return (
    f"{' and '.join(map(str, oedema))}, which should be oedema, is enclosed by other labels in "
    f"{len(against)} of {judged} label maps, and {outer} lies around it, as oedema does"
  )


def _core(convention: str, own: Sequence[Contents]) -> str:
  judged = against = 0
  (ncr, *_), (et, *_) = (labels.labels_of(convention, CLASSES.index(c)) for c in ("NCR", "ET"))
  for contents in own:
    if not {ncr, et} <= set(_large(contents)):
      continue
    judged += 1
    within, rim = contents.borders[et][ncr], contents.borders[ncr][et]
    against += within > _WITHIN and within > rim + _MORE and rim > _RIM
  if 2 * against <= judged:
    return ""
  return (
    f"{et}, which should be enhancing tumour, lies within {ncr}, which should be necrotic, in "
    f"{against} of {judged} label maps, as necrosis lies within its enhancing rim"
  )


def _large(contents: Contents) -> list[int]:
  return [label for label, voxels in contents.voxels.items() if voxels >= _ENOUGH]
