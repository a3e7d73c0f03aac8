"""What a series needs before a student can read it: a brain alone, aligned with the atlas.

Tools of others do it: HD-BET (its program `hd-bet`, version 2) and ANTs (the package antspyx).
Their commands are shown, or run with --prepare. What a command has made stays, and is taken up
again: so a user may also run one by hand, correct its result, and start again.
"""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kd_jax.data import nifti
from kd_jax.data.brain import find_brain
from kd_jax.data.scan_checks import check_scan
from kd_jax.data.voxel_checks import BRAIN_LITRES
from kd_jax.dicom import atlas
from kd_jax.runtime.errors import UserError, one_line

Tell = Callable[[str], None]

ANTS = "antspyx"
_REGISTER = (
  "import sys, ants; fixed, moving, image, transform = sys.argv[1:]; "
  "found = ants.registration(ants.image_read(fixed), ants.image_read(moving), "
  'type_of_transform="Rigid"); '
  'ants.write_transform(ants.read_transform(found["fwdtransforms"][0]), transform); '
  'ants.image_write(found["warpedmovout"], image)'
)


class Steps(NamedTuple):
  """The files of a series' way to the atlas, in one folder."""

  folder: Path

  @property
  def scan(self) -> Path:
    """As converted."""
    return self.folder / "scan.nii.gz"

  @property
  def brain(self) -> Path:
    """Skull-stripped; HD-BET's mask lies beside it as brain_bet.nii.gz."""
    return self.folder / "brain.nii.gz"

  @property
  def atlas(self) -> Path:
    return self.folder / "sri24.nii.gz"

  @property
  def aligned(self) -> Path:
    """On the atlas' grid."""
    return self.folder / "brain_in_atlas.nii.gz"

  @property
  def transform(self) -> Path:
    """ITK's: from points of the atlas to points of the scan."""
    return self.folder / "atlas_to_scan.mat"


class Needs(NamedTuple):
  """What a converted scan lacks, each with the reason; "" where it lacks nothing."""

  extraction: str
  alignment: str


class Tool(NamedTuple):
  """A command of another program.

  Attributes:
    name: of the program.
    install: the command that installs it.
    there: whether it is installed.
    command: what is run.
    made: the files that it writes.
  """

  name: str
  install: str
  there: bool
  command: list[str]
  made: tuple[Path, ...]


def needs(scan: nifti.Volume, modality: str) -> Needs:
  """What a scan lacks to be one that students can read."""
  share = atlas.overlap(scan)
  away = (
    f"{share:.0%} of its brain lies where the atlas' brain does, and at least "
    f"{atlas.LEAST_OVERLAP:.0%} should"
  )
  return Needs(_no_brain(scan, modality), away if share < atlas.LEAST_OVERLAP else "")


def _no_brain(scan: nifti.Volume, modality: str) -> str:
  """Why a scan is no brain alone; "" if it is one."""
  for found in check_scan(scan, modality):
    if found.severity == "error":
      return found.text
  litres = np.count_nonzero(find_brain(scan.data, scan.voxel_mm).mask) * np.prod(scan.voxel_mm)
  litres /= 1e6
  # Of other scans that is a warning. A series comes from a scanner: with a skull, more likely.
  if litres > BRAIN_LITRES[1]:
    return f"{litres:.2f} litres are not background, more than a brain"
  return ""


def hd_bet(steps: Steps, gpu: bool) -> Tool:
  """Brain extraction; on a CPU without mirroring, as HD-BET recommends."""
  device = [] if gpu else ["-device", "cpu", "--disable_tta"]
  program = shutil.which("hd-bet")
  files = ["-i", str(steps.scan), "-o", str(steps.brain)]
  command = [program or "hd-bet", *files, "--save_bet_mask", *device]
  return Tool("HD-BET", "pip install hd-bet", program is not None, command, (steps.brain,))


def ants(steps: Steps, moving: Path) -> Tool:
  """Rigid registration with the atlas: nothing is stretched, volumes stay true."""
  there = importlib.util.find_spec("ants") is not None
  files = [str(path) for path in (steps.atlas, moving, steps.aligned, steps.transform)]
  command = [sys.executable, "-c", _REGISTER, *files]
  return Tool(ANTS, "pip install antspyx", there, command, (steps.aligned, steps.transform))


def prepare(
  steps: Steps, needed: Needs, modality: str, run_tools: bool, gpu: bool, tell: Tell
) -> Path:
  """The scan that students can read, made of the converted one with the tools that it needs.

  Args:
    steps: where; steps.scan is there.
    needed: of that scan; one of the two at least.
    run_tools: run what is installed; else only results that are there already are taken.
    gpu: whether HD-BET may use CUDA.

  Returns:
    steps.aligned, with steps.transform beside it.

  Raises:
    UserError: a step has not been done; the message has the commands. A tool that fails, or a
      result that students cannot read.
  """
  if not steps.atlas.is_file():
    atlas.write(steps.atlas)
  moving = steps.brain if needed.extraction else steps.scan
  tools = [(steps.scan, hd_bet(steps, gpu))] if needed.extraction else []
  # Skull-stripping moves a brain's outline: all is aligned anew after it.
  tools.append((moving, ants(steps, moving)))
  missing = [tool for source, tool in tools if not _is_done(source, tool)]
  if missing and not (run_tools and all(tool.there for tool in missing)):
    raise UserError(_instructions(steps, needed, missing, run_tools))
  for source, tool in tools:
    if not _is_done(source, tool):
      _run(tool, tell)
    _judge(tool, modality)
  return steps.aligned


def _is_done(source: Path, tool: Tool) -> bool:
  """Whether a tool's files are there, whole, and not older than what they are made of."""
  try:
    made = min(file.stat().st_mtime_ns for file in tool.made)
    if made < source.stat().st_mtime_ns:
      return False
    nifti.read(tool.made[0])
  except (OSError, ValueError):
    return False
  return True


def _instructions(steps: Steps, needed: Needs, missing: Sequence[Tool], run_tools: bool) -> str:
  why = [reason for reason in needed if reason]
  absent = [tool for tool in missing if not tool.there]
  lines = [f"{steps.scan} is not yet a scan that a student can read: {'; '.join(why)}."]
  lines.append("The steps that are left (docs/dicom.md), with the tools of others:")
  for tool in missing:
    note = f"   # {tool.name}: {tool.install}" if tool in absent else ""
    lines.append(f"  {shlex.join(tool.command)}{note}")
  if absent:
    names = " and ".join(tool.name for tool in absent)
    verb = "is" if len(absent) == 1 else "are"
    lines.append(
      f"{names} {verb} not installed here. Install {'it' if len(absent) == 1 else 'them'} and "
      f"{'start again' if run_tools else 'add --prepare'}, or run the commands where they are "
      "installed and start again: what they have made is taken up."
    )
  else:
    lines.append("Add --prepare to have them run, or run them yourself and start again.")
  return "\n".join(lines)


def _run(tool: Tool, tell: Tell) -> None:
  """UserError if a tool fails; then nothing of what it made is left."""
  tell(f"{tool.name} (may take minutes): {shlex.join(tool.command)}")
  made = False
  try:
    done = subprocess.run(
      tool.command, capture_output=True, text=True, errors="replace", check=False
    )
    made = done.returncode == 0 and all(file.is_file() for file in tool.made)
  except OSError as e:
    raise UserError(f"cannot start {tool.name} ({tool.command[0]}): {e.strerror or e}") from e
  finally:  # Ctrl-C too
    if not made:
      for file in tool.made:
        file.unlink(missing_ok=True)
  if not made:
    words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    last = one_line(words[-1]) if words else "it says nothing"
    raise UserError(
      f"{tool.name} failed (status {done.returncode}): {last}. Run it yourself to see more: "
      f"{shlex.join(tool.command)}"
    )


def _judge(tool: Tool, modality: str) -> None:
  """UserError if students cannot read what a tool has made."""
  file = tool.made[0]
  volume = nifti.read(file)
  if why := _no_brain(volume, modality):
    raise UserError(
      f"{file}, made by {tool.name}: {why}. Look at it, correct it by hand or remove it, and start "
      "again"
    )
  if tool.name == ANTS and (share := atlas.overlap(volume)) < atlas.LEAST_OVERLAP:
    raise UserError(
      f"{file}: the registration with the atlas has failed, the brains overlap by {share:.0%}. "
      "Look at it, register the brain in another way, and give the result as NIfTI"
    )
