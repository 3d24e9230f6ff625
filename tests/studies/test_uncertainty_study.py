# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Area under the curve and calibration by hand, and the study on small volumes."""

from __future__ import annotations

import json
import math
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_refused

from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.studies.cases import Case, near_foreground
from scripts.studies.uncertainty import (
    Bins,
    _draw,
    _measure,
    _summarize,
    area_under_curve,
    calibration_bins,
    expected_calibration_error,
    pool_bins,
    study_uncertainty,
)


@pytest.mark.parametrize(
    ("score", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.75),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),
    ],
)
def test_area_under_curve_by_hand(score, positive, expected):
    assert area_under_curve(score, positive) == pytest.approx(expected)
    assert area_under_curve(-np.array(score), positive) == pytest.approx(1 - expected)


def test_area_without_one_of_both_kinds():
    assert math.isnan(area_under_curve([1, 2], [0, 0]))
    assert math.isnan(area_under_curve([1, 2], [1, 1]))


def test_calibration_by_hand():
    # Four voxels that say class 1 with 0.9, three of them right; two that say class 0 with 0.6, one of them right.
    probabilities = np.array([[0.1, 0.1, 0.1, 0.1, 0.6, 0.6, 0.5], [0.9, 0.9, 0.9, 0.9, 0.4, 0.4, 0.5]])
    label = np.array([1, 1, 1, 0, 0, 1, 1])
    region = np.array([1, 1, 1, 1, 1, 1, 0], dtype=bool)
    bins = calibration_bins(probabilities.reshape(2, 7, 1, 1), label.reshape(7, 1, 1), region.reshape(7, 1, 1))
    assert sorted(bins.voxels[bins.voxels > 0]) == [2, 4]
    assert sorted(bins.accuracy[bins.voxels > 0]) == pytest.approx([0.5, 0.75])
    assert expected_calibration_error(bins) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6, abs=1e-6)


def test_bins_of_several_cases_are_those_of_all_their_voxels():
    generator = np.random.default_rng(0)
    foreground = generator.random((300, 1, 1))
    probabilities = np.stack([1 - foreground, foreground])
    label = (generator.random((300, 1, 1)) < foreground**2).astype(int)
    everywhere = np.ones((300, 1, 1), dtype=bool)
    parts = [
        calibration_bins(probabilities[:, part], label[part], everywhere[part])
        for part in np.split(np.arange(300), [40])
    ]
    for pooled, whole in zip(pool_bins(parts), calibration_bins(probabilities, label, everywhere), strict=True):
        np.testing.assert_allclose(pooled, whole, atol=1e-6)


def test_no_voxel_of_a_large_volume_is_lost():
    # So many voxels and so small addends that sums in float32 lose them.
    num_voxels = 3_000_000
    confidence = np.linspace(0.98, 1, num_voxels)
    label = (np.arange(num_voxels) % 200 == 0).astype(int)
    volume = (num_voxels, 1, 1)
    probabilities = np.stack([confidence, 1 - confidence]).reshape(2, *volume)
    bins = calibration_bins(probabilities, label.reshape(volume), np.ones(volume, dtype=bool))
    assert bins.voxels.sum() == num_voxels
    assert bins.accuracy[-1] == pytest.approx(0.995, abs=1e-9)
    assert expected_calibration_error(bins) == pytest.approx(0.005, abs=1e-9)


def test_perfect_calibration_has_no_error_and_no_voxel_has_none():
    probabilities = np.full((2, 4, 1, 1), 0.5)
    probabilities[0] += 0.25
    label = np.array([0, 0, 0, 1]).reshape(4, 1, 1)
    everywhere = np.ones((4, 1, 1), dtype=bool)
    assert expected_calibration_error(calibration_bins(probabilities, label, everywhere)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(expected_calibration_error(calibration_bins(probabilities, label, ~everywhere)))


def test_a_reference_on_another_grid_is_refused_before_the_networks(phantom_dir, tmp_path):
    data = shutil.copytree(phantom_dir, tmp_path / "data")
    torch.save(DualNetwork().state_dict(), tmp_path / "model.pt")
    (case,) = json.loads((data / "split.json").read_text())["test"]
    label = nib.load(data / "labels" / f"{case}.nii.gz")
    nib.save(label.as_reoriented([[0, -1], [1, 1], [2, 1]]), data / "labels" / f"{case}.nii.gz")
    arguments = (str(data), str(data / "split.json"), str(tmp_path / "study"), inference_configs())
    with assert_refused(rf"labels/{case}\.nii\.gz has another affine than its image"):
        study_uncertainty(*arguments, overrides={"ckpt_path": str(tmp_path / "model.pt")})
    assert not (tmp_path / "study" / "maps").exists()


def test_nothing_is_near_where_there_is_no_foreground():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    foreground = np.zeros((9, 9, 9), dtype=bool)
    assert not near_foreground(foreground, affine, 5.0).any()
    foreground[4, 4, 4] = True
    near = near_foreground(foreground, affine, 2.0)
    assert near.sum() == 7


def test_a_case_without_foreground_tells_nothing_near_it(tmp_path):
    nothing = Bins(*np.zeros((3, 15)))
    everywhere = Bins(np.full(15, 0.9), np.full(15, 0.8), np.full(15, 10.0))
    columns = {f"auroc_{kind}_{region}": 0.7 for kind in ("disagreement", "entropy") for region in ("all", "near")}
    dice, disagreement = [0.9, 0.8, 0.7, 0.6, 0.5, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5, np.nan]
    table = pd.DataFrame({"dice": dice, "mean_disagreement": disagreement, **columns})
    text = _summarize(table, {"all": everywhere, "near": nothing}, 5.0)
    assert text.startswith("6 test cases, Dice 75.00 %.")
    assert "Spearman correlation -1.00" in text
    # Of the last five, one is not known.
    few = _summarize(table[1:], {"all": everywhere, "near": nothing}, 5.0)
    assert "near the foreground against Dice: 4 cases are too few to tell." in few
    assert _draw(table, {"all": everywhere, "near": nothing}, tmp_path / "a.png").stat().st_size > 1000


def test_maps_are_compared_with_the_wrong_voxels_of_their_regions(tmp_path):
    label, predicted = np.zeros((2, 20, 1, 1), dtype=np.uint8)
    label[:4], predicted[:3] = 1, 1
    # Wrong is the voxel at 3; far from the foreground one is as doubtful.
    disagreement = np.full((20, 1, 1), 0.1, dtype=np.float32)
    disagreement[[3, 15]] = 0.9
    # By the entropy of the probabilities it is the surest one, and right voxels are all alike.
    foreground = np.where(predicted == 1, 0.8, 0.2).astype(np.float32)
    foreground[3] = 0.01
    (tmp_path / "maps").mkdir()
    for kind, voxels in (
        ("seg", predicted),
        ("uncertainty", disagreement),
        ("probabilities", np.stack([1 - foreground, foreground], axis=-1)),
    ):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "maps" / f"a_{kind}.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    row, bins = _measure(Case("a", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"), tmp_path, margin_mm=2.0)
    assert row["dice"] == pytest.approx(6 / 7)
    # Of the 19 right voxels one is as doubtful, none of the 5 within 2 mm is.
    assert row["auroc_disagreement_all"] == pytest.approx(18.5 / 19)
    assert row["auroc_disagreement_near"] == 1
    assert (row["auroc_entropy_all"], row["auroc_entropy_near"]) == (0, 0)
    assert row["mean_disagreement"] == pytest.approx((5 * 0.1 + 0.9) / 6)
    assert [bins[name].voxels.sum() for name in ("all", "near")] == [20, 6]
    assert bins["all"].accuracy[12] == 1
    assert bins["all"].accuracy[14] == 0


def test_study_on_small_volumes(phantom_dir, tmp_path):
    torch.manual_seed(0)
    torch.save(DualNetwork().state_dict(), tmp_path / "model.pt")
    overrides = {"patch_size": [32, 32, 32], "overlap": 0, "device": "cpu", "ckpt_path": str(tmp_path / "model.pt")}
    arguments = (str(phantom_dir), str(phantom_dir / "split.json"), str(tmp_path / "study"), inference_configs())
    summary = study_uncertainty(*arguments, overrides=overrides)
    table = pd.read_csv(tmp_path / "study" / "uncertainty_cases.csv")
    assert len(table) == 1
    for name in ("auroc_disagreement_all", "auroc_entropy_near", "dice", "mean_disagreement"):
        assert 0 < table[name].item() < 1
    assert f"{table['auroc_disagreement_all'].item():.3f} |" in summary.read_text()
    assert (tmp_path / "study" / "uncertainty.png").stat().st_size > 1000
    with assert_refused("already holds a study"):
        study_uncertainty(*arguments, overrides=overrides)
    single = {**overrides, "network_def": {"_target_": "scripts.networks.single_network.SingleNetwork"}}
    with assert_refused("needs the two networks of DualNetwork"):
        study_uncertainty(*arguments[:2], str(tmp_path / "other"), arguments[3], overrides=single)
    assert not (tmp_path / "other").exists()
    for margin_mm in (0, float("inf"), "5"):
        with assert_refused(f"margin_mm must be a number above 0, got {margin_mm!r}"):
            study_uncertainty(*arguments, overrides=overrides, margin_mm=margin_mm)
