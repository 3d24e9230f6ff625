# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Numbers of the recipes, and which method trains by which, against those of the papers and their public code."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser

CONFIGS = ROOT / "configs"
SGD = ("SGD", {"momentum": 0.9, "weight_decay": 0.0001})
ADAM = ("Adam", {"betas": (0.9, 0.999), "weight_decay": 0})
#: Learning rate of single iterations, counted from 0: a tenth after 2500 and after 5000 of them.
STEPS = {0: 0.01, 2499: 0.01, 2500: 0.001, 4999: 0.001, 5000: 0.0001, 5999: 0.0001}


class Original(NamedTuple):
    """What a paper or its public code says."""

    iterations: int
    ramp_length: int
    labeled_crops: int
    optimizer: tuple[str, dict[str, float]]
    learning_rates: dict[int, float]
    turns_and_flips: bool
    largest_component: bool
    normalization: str = "batch"


ORIGINALS = {
    "paper": Original(6000, 6000, 2, SGD, STEPS, turns_and_flips=False, largest_component=False),
    "supervised": Original(6000, 6000, 4, SGD, STEPS, turns_and_flips=True, largest_component=False),
    "ua_mt": Original(6000, 6000, 2, SGD, STEPS, turns_and_flips=True, largest_component=False),
    "dtc": Original(6000, 6000, 2, SGD, STEPS, turns_and_flips=True, largest_component=True),
    "mc_net": Original(
        15000, 6000, 2, SGD, {0: 0.01, 7500: 0.01, 14999: 0.01}, turns_and_flips=True, largest_component=False
    ),
    # 2000 iterations at one rate, then 15,000 with a tenth after every 2500.
    "bcp": Original(
        17000,
        17000,
        4,
        SGD,
        {0: 0.01, 1999: 0.01, 2000: 0.01, 4499: 0.01, 4500: 1e-3, 7000: 1e-4, 9500: 1e-5, 12000: 1e-6, 14500: 1e-7},
        turns_and_flips=True,
        largest_component=True,
    ),
    # 80 and 275 epochs of 40 iterations.
    "sdcl": Original(
        14200,
        14200,
        4,
        ADAM,
        {0: 0.001, 7100: 0.001, 14199: 0.001},
        turns_and_flips=False,
        largest_component=False,
        normalization="instance",
    ),
    "mc_net_pancreas": Original(
        15000, 6000, 2, SGD, {0: 0.01, 7500: 0.01, 14999: 0.01}, turns_and_flips=False, largest_component=False
    ),
}
# As 12 labeled cases count five times and 50 are unlabeled, epochs of 30 and then of 25 iterations: 60 and 200 of them,
# and 101 and 321.
for _name, _iterations in (("bcp_pancreas", 6800), ("sdcl_pancreas", 11055)):
    ORIGINALS[_name] = ORIGINALS["sdcl"]._replace(
        iterations=_iterations,
        ramp_length=_iterations,
        learning_rates=dict.fromkeys((0, _iterations // 2, _iterations - 1), 0.001),
    )
#: Recipe of the method's own paper; that of UA-MT for mean teacher and CPS, whose papers have no volumes.
RECIPE_OF = {
    "supervised_vnet": "supervised",
    "supervised_resnet_vnet": "supervised",
    "upper_bound_vnet": "supervised",
    "mean_teacher": "ua_mt",
    "uncertainty_aware_mean_teacher": "ua_mt",
    "sassnet": "ua_mt",
    "cps": "ua_mt",
    "dtc": "dtc",
    "mc_net": "mc_net",
    "mc_net_plus": "mc_net",
    "bcp": "bcp",
    "sdcl": "sdcl",
    "mcf": "paper",
    "luseg": "paper",
    "dual_network_literal": "paper",
    "dual_network_released": "paper",
    "dual_network_without_consistency": "paper",
    "dual_network_without_uncertainty": "paper",
    "dual_network_without_both": "paper",
}


def configured(*names):
    parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / f"{name}.json" for name in ("train", *names)]))
    # Neither optimizer nor schedule needs the weights of the networks.
    parser["optimizer#params"] = "$[torch.nn.Parameter(torch.zeros(1))]"
    return parser


def originally_configured(method, recipe):
    own = CONFIGS / f"original_{recipe}.json"
    return configured(f"method_{method}", f"recipe_{recipe}", *([own.stem] if own.is_file() else []))


@pytest.mark.parametrize("name", ORIGINALS)
def test_recipe_has_the_numbers_of_its_paper(name):
    parser, original = configured("data_pancreas", f"recipe_{name}"), ORIGINALS[name]
    read = parser.get_parsed_content
    assert read("iterations") == original.iterations
    assert read("ramp_length") == original.ramp_length
    assert read("labeled_batch_size") == read("unlabeled_batch_size") == original.labeled_crops
    assert read("largest_component") is original.largest_component
    assert read("normalization") == original.normalization
    assert read("precision") == "float32"
    assert read("evaluated_checkpoint") == "model_final.pt"
    kinds = [transform["_target_"] for transform in parser["augmentation"]]
    assert kinds == (["RandRotate90d", "OneOf"] if original.turns_and_flips else [])


@pytest.mark.parametrize("name", ORIGINALS)
def test_recipe_has_the_optimizer_and_the_learning_rates_of_its_paper(name):
    parser, original = configured(f"recipe_{name}"), ORIGINALS[name]
    optimizer, schedule = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    kind, values = original.optimizer
    assert type(optimizer).__name__ == kind
    assert {key: optimizer.defaults[key] for key in values} == values
    rates = {}
    for step in range(original.iterations):
        if step in original.learning_rates:
            rates[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(original.learning_rates)


def test_each_method_names_the_recipe_of_its_paper():
    assert {name: configured(f"method_{name}")["original_recipe"] for name in RECIPE_OF} == RECIPE_OF
    assert configured()["original_recipe"] == "paper"


@pytest.mark.parametrize(
    ("name", "recipe", "iterations"),
    [("bcp", "bcp", 2000), ("bcp", "bcp_pancreas", 1800), ("sdcl", "sdcl", 3200), ("sdcl", "sdcl_pancreas", 3030)],
)
def test_first_stage_is_as_long_as_in_the_public_code(name, recipe, iterations):
    parser = originally_configured(name, recipe)
    assert parser.get_parsed_content("method_def#pretrain_iterations") == iterations


@pytest.mark.parametrize(
    ("name", "recipe", "is_random"),
    [("bcp", "bcp", True), ("bcp", "bcp_pancreas", False), ("sdcl", "sdcl_pancreas", False)],
)
def test_unlabeled_crops_of_the_pancreas_are_the_middle_of_their_volumes(name, recipe, is_random):
    parser = originally_configured(name, recipe)
    assert parser.get_parsed_content("train#unlabeled_region").random_center is is_random
    assert parser.get_parsed_content("train#region").random_center


@pytest.mark.parametrize(("recipe", "weights"), [("sdcl", (0.5, 0.05)), ("sdcl_pancreas", (0.3, 0.1))])
def test_corrections_of_sdcl_weigh_what_its_code_says_of_the_data(recipe, weights):
    method = originally_configured("sdcl", recipe).get_parsed_content("method_def")
    assert (method.distance_weight(0), method.entropy_weight(0)) == weights


@pytest.mark.parametrize(("recipe", "dropout"), [("bcp", 0.5), ("bcp_pancreas", 0.0)])
def test_the_network_of_bcp_has_no_dropout_on_the_pancreas(recipe, dropout):
    network = originally_configured("bcp", recipe).get_parsed_content("network_def")
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Dropout3d)]
    assert {layer.p for layer in layers} == {dropout}


def test_contrast_recipe_is_the_short_one_with_curves_of_gray_values_and_not_of_labels():
    short, contrast = (ConfigParser.load_config_file(CONFIGS / f"recipe_{name}.json") for name in ("short", "contrast"))
    first, curve, *others = contrast.pop("augmentation")
    assert [first, *others] == short.pop("augmentation")
    assert {**contrast, "_desc_": ""} == {**short, "_desc_": ""}
    transform = ConfigParser({"curve": curve | {"prob": 1.0}}).get_parsed_content("curve")
    transform.set_random_state(0)
    cube = torch.rand(1, 8, 8, 8)
    data = {"image": cube, "label": (cube > 0.5).float()}
    mapped = transform(data)
    assert not mapped["image"].equal(cube)
    assert mapped["label"] is data["label"]
    assert not transform({"unlabeled": cube})["unlabeled"].equal(cube)


def test_elastic_recipe_is_the_short_one_with_deformations_of_image_and_label_alike():
    short, elastic = (ConfigParser.load_config_file(CONFIGS / f"recipe_{name}.json") for name in ("short", "elastic"))
    *others, deformation = elastic.pop("augmentation")
    assert others == short.pop("augmentation")
    assert {**elastic, "_desc_": ""} == {**short, "_desc_": ""}
    transform = ConfigParser({"deformation": deformation | {"prob": 1.0}}).get_parsed_content("deformation")
    transform.set_random_state(0)
    cube = torch.zeros(1, 32, 48, 32)
    cube[:, 8:24, 12:36, 8:24] = 1
    bent = transform({"image": cube, "label": cube.clone()})
    assert set(bent["label"].unique().tolist()) == {0, 1}
    moved = (bent["label"] != cube).float().mean()
    apart = (bent["label"] != (bent["image"] > 0.5)).float().mean()
    assert 10 * apart < moved < 0.2
    assert transform({"unlabeled": cube})["unlabeled"].shape == cube.shape
