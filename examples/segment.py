# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment a brain tumour from one MRI sequence
#
# This notebook trains a small T1ce student on generated cases, segments a new case with it and
# shows the result. It takes some minutes on two CPU cores. With a student of your own it
# takes a minute: set `STUDENT` below.
#
# The cases are simulated. The scores show that the program works; they say nothing about patients.
# This is research software and not a medical device.
#
# Install the package first: `pip install -e .` in the folder of the repository.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

import kd_jax
from kd_jax.data import nifti
from kd_jax.data.demo.writer import write_case
from kd_jax.tasks.labels import to_classes

# %% [markdown]
# ## Settings
#
# `STUDENT` may name an exported student or the work directory of a run. If it is empty, a student
# is trained here.

# %% tags=["parameters"]
FOLDER = Path(os.environ.get("KD_JAX_EXAMPLE", "runs/example"))
STUDENT = os.environ.get("KD_JAX_STUDENT", "")
OVERRIDES = {"train.epochs": 6}  # settings of the preset: docs/settings.md has all of them

# %% [markdown]
# ## A student
#
# The preset `quickstart` writes 16 generated cases. It trains a T1ce student on most of them, with
# three teachers: FLAIR, T2 and T1, each beside T1ce. If the work directory holds a run already,
# this run continues.
#
# `data.prepare_workers` of 1 prepares the cases in this process. So this notebook also runs as a
# script: `python examples/segment.py`.

# %%
if STUDENT:
  source = STUDENT
else:
  fixed = {"data.root": str(FOLDER / "data"), "data.prepare_workers": 1}
  source = kd_jax.train("quickstart", FOLDER / "run", fixed | OVERRIDES)
student = kd_jax.load(source)
print(student, student.describe()["inference"])

# %% [markdown]
# ## A new case
#
# Case 100 is none of the cases that the student was trained on.

# %%
case = write_case(FOLDER / "new", seed=0, index=100)
scan = nifti.read(case / f"{case.name}_t1ce.nii.gz")
truth = to_classes(nifti.read(case / f"{case.name}_seg.nii.gz").data, "brats2018")
print(f"shape {scan.data.shape}, voxels of {scan.voxel_mm} mm")

# %% [markdown]
# ## Its mask
#
# `segment` takes a NumPy array and the size of its voxels. It returns a class for each voxel:
# 0 background, 1 necrotic and non-enhancing core (NCR), 2 oedema (ED), 3 enhancing tumour (ET).

# %%
result = student.segment(scan.data, scan.voxel_mm, probabilities=True)
voxel_ml = np.prod(scan.voxel_mm) / 1000
for number, name in enumerate(("NCR", "ED", "ET"), 1):
  predicted, true = (result.classes == number), (truth == number)
  print(f"{name}: {predicted.sum() * voxel_ml:6.1f} ml (truth: {true.sum() * voxel_ml:.1f} ml)")

whole, true_whole = result.classes > 0, truth > 0
dice = 2 * (whole & true_whole).sum() / max(whole.sum() + true_whole.sum(), 1)
print(f"Dice of the whole tumour: {dice:.2f}")

# %% [markdown]
# ## Slices
#
# This is the slice with the largest area of true tumour. The top of each picture is the front of
# the head, and the left side is the patient's right.

# %%
level = int(true_whole.sum(axis=(0, 1)).argmax())
classes_style = {"cmap": ListedColormap(["red", "green", "gold"]), "vmin": 1, "vmax": 3}
panels = {
  "T1ce": (scan.data, {"cmap": "gray"}),
  "truth": (np.ma.masked_equal(truth, 0), classes_style),
  "student": (np.ma.masked_equal(result.classes, 0), classes_style),
  "probability of WT": (result.regions["WT"], {"cmap": "magma", "vmin": 0, "vmax": 1}),
}
figure, axes = plt.subplots(1, len(panels), figsize=(16, 5))
for axis, (title, (volume, style)) in zip(axes, panels.items(), strict=True):
  axis.imshow(scan.data[:, :, level].T, cmap="gray")
  axis.imshow(volume[:, :, level].T, interpolation="nearest", **style)
  axis.set_title(title)
  axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## A file
#
# `segment_file` writes the mask in the scan's own space. A viewer such as ITK-SNAP shows it on the
# scan.

# %%
mask = student.segment_file(case / f"{case.name}_t1ce.nii.gz", FOLDER / "mask.nii.gz")
figure.savefig(FOLDER / "slices.png")
print(f"written: {mask}")
