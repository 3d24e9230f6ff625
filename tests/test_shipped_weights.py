# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The weights in this repository: their network, their size, and the figures that are told of them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser

from scripts.weights import check_weights

#: What follows inference.json, by file of weights.
SHIPPED = {"models/model.pt": [], "models/hippocampus/model.pt": ["data_hippocampus"]}
#: The rows of docs/results.md that are of the shipped weights, by the file that repeats their figures.
RUNS = {
    "metadata": "left_atrium_short/calibrated",
    "metadata_left_atrium": "left_atrium_short/calibrated",
    "metadata_hippocampus": "hippocampus_elastic/third_stage_elastic_dual_network",
}


@pytest.mark.parametrize(("path", "overlays"), SHIPPED.items())
def test_weights_fit_the_network_of_the_inference(path, overlays):
    files = [ROOT / f"configs/{name}.json" for name in ("inference", *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["bundle_root"] = str(ROOT)
    assert parser.get_parsed_content("ckpt_path") == str(ROOT / path)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    check_weights(str(ROOT / path), network)


@pytest.mark.parametrize("path", SHIPPED)
def test_weights_are_small_enough_for_a_repository(path):
    assert (ROOT / path).stat().st_size < 60e6


@pytest.mark.parametrize("metadata", ["metadata", "metadata_left_atrium"])
def test_figures_over_all_cases_without_a_label_in_the_training(metadata):
    dice = pd.read_csv(ROOT / "docs/results/left_atrium_short/calibrated_on_64.csv", index_col="case")["dice"]
    told = json.loads((ROOT / f"configs/{metadata}.json").read_text())["eval_metrics"]["cases"]
    assert f"all {len(dice)} cases" in told
    assert f"mean_dice is {dice.mean():.3f}, with {dice['la_A4R1S23KR0KU2WSYHK2X']:.3f} in a scan" in told


@pytest.mark.parametrize(("metadata", "run"), RUNS.items())
def test_figures_of_the_metadata_are_the_means_over_the_test_cases(metadata, run):
    cases = pd.read_csv(ROOT / f"docs/results/{run}.csv")
    # A case that is missed has no distance, and would be left out of the means.
    assert (cases["status"] == "found").all()
    means = {"mean_dice": cases["dice"].mean(), **cases[["jaccard", "hd95_mm", "asd_mm"]].mean()}
    means |= {f"dice_{name}": dice for name, dice in cases.groupby("class")["dice"].mean().items()}
    figures = json.loads((ROOT / f"configs/{metadata}.json").read_text())["eval_metrics"]
    assert f"the {cases['case'].nunique()} test cases" in figures.pop("cases")
    assert {"mean_dice", "hd95_mm", "asd_mm"} <= figures.keys()
    digits = {name: len(str(value).partition(".")[2]) for name, value in figures.items()}
    assert figures == {name: round(means[name], digits[name]) for name in figures}
