# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The geometry of the volumes of a training is what inference compares others with."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt

from scripts.data.geometry import volume_geometry


@pytest.mark.parametrize("axes", ["RAS", "SPL"])
def test_the_volumes_of_a_training_are_measured(tmp_path, axes):
    data = []
    for name, shape, spacing in (("a", (6, 5, 4), [1, 1, 2]), ("b", (4, 5, 6), [1, 1.44, 2])):
        volume = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([*spacing, 1]))
        nib.save(volume.as_reoriented(axcodes2ornt(axes)), tmp_path / f"{name}.nii")
        data.append({"image" if name == "a" else "unlabeled": str(tmp_path / f"{name}.nii")})
    expected = {"trained_spacing": [1, 1.2, 2], "trained_extent": [6, 7.2, 12]}
    assert volume_geometry([*data, {"image": str(tmp_path / "missing.nii")}]) == expected
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.diag([1, 1, 3.2, 1])), tmp_path / "c.nii")
    wide = volume_geometry([*data, {"image": str(tmp_path / "c.nii")}])
    assert wide == {"trained_spacing": None, "trained_extent": [6, 7.2, 12]}
    assert volume_geometry([]) == {"trained_spacing": None, "trained_extent": None}


def test_geometry_of_a_training_on_boxes_is_that_of_what_it_sees(tmp_path):
    # Voxel axes y, x, z with 3, 2 and 5 mm.
    affine = np.array([[0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros((20, 30, 8), np.uint8), affine), tmp_path / "a.nii")
    data = [{"image": str(tmp_path / "a.nii"), "box": [[5, 10, 2], [9, 15, 6]]}]
    assert volume_geometry(data)["trained_extent"] == [60, 60, 40]
    # 5, 4 and 4 voxels of the box, and the margin on both sides, but no more than there is.
    assert volume_geometry(data, box_margin=1)["trained_extent"] == [10 + 4, 12 + 6, 20 + 10]
    assert volume_geometry(data, box_margin=4)["trained_extent"] == [10 + 16, 12 + 24, 40]
    assert volume_geometry(data, box_margin=4, spacing_mm=[1, 1, 1])["trained_extent"] == [18, 20, 28]


def test_of_a_large_pool_some_headers_are_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(nib, "load", lambda path: read.append(path) or nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)))
    assert volume_geometry([{"image": str(number)} for number in range(10000)])["trained_extent"] == [2, 2, 2]
    assert 200 < len(read) <= 250
    assert read[-1] == "9963"
