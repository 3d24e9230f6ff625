# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Small NIfTI files."""

from __future__ import annotations

import nibabel as nib
import numpy as np


def save(path, array=None):
    array = np.random.default_rng(0).normal(size=(6, 5, 4)) if array is None else array
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=np.float32), np.eye(4)), path)
    return path


def make_volumes(folder, *names):
    for name in names:
        save(folder / name)
    return str(folder)
