"""From cases on disk to batches on devices: cases, nifti, grid, cache, folds, pipeline, augment."""
