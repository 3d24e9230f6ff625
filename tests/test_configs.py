# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, assert_refused
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import ckpt_export, verify_net_in_out
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from test_boundaries import MODULES, imports_of

from scripts.configuration import TRAINED_KEYS
from scripts.data.boxes import CropToBoxd, write_boxes
from scripts.handlers.run_comparison import _PREPROCESSING_KEYS
from scripts.networks.dual_network import DualNetwork

CONFIGS = ROOT / "configs"
METHODS = sorted(path.stem for path in CONFIGS.glob("method_*.json"))
DATA = sorted(path.stem for path in CONFIGS.glob("data_*.json"))
RECIPES = sorted(path.stem for path in CONFIGS.glob("recipe_*.json"))
ORIGINALS = sorted(path.stem for path in CONFIGS.glob("original_*.json"))
OVERLAYS = [*METHODS, *DATA, *RECIPES, *ORIGINALS, "multi_gpu_train"]


def read(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


def top_keys(name):
    """Keys of train.json that an overlay replaces, or into which it reaches by #."""
    return {key.split("#")[0] for key in read(name)}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("other", [*METHODS, *RECIPES])
def test_data_and_others_may_be_named_in_any_order(data, other):
    assert not top_keys(data) & top_keys(other) - {"_desc_"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.json")), ids=lambda path: path.stem)
def test_files_are_pretty_ascii_json(path):
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=4) + "\n"


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_key_of_an_overlay_exists_in_train(name):
    # A data overlay also says which weights inference takes for it, and what they were trained on.
    assert top_keys(name) <= set(read("train")) | ({"ckpt_path", *TRAINED_KEYS} if name in DATA else set())


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_argument_of_an_overlay_exists_in_the_constructor(name):
    # A misspelled argument would only show when the object is built on the user's data.
    def visit(node):
        if isinstance(node, dict):
            if str(node.get("_target_", "")).startswith("scripts."):
                module, _, attribute = node["_target_"].rpartition(".")
                target = getattr(importlib.import_module(module), attribute)
                parameters = dict(inspect.signature(target).parameters)
                if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                    parameters |= inspect.signature(target.__base__).parameters
                assert {key for key in node if not key.startswith("_")} <= set(parameters)
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    # What is original belongs to a method and to its data.
    method = f"method_{name.removeprefix('original_').rpartition('_')[0]}"
    files = [CONFIGS / f"{file}.json" for file in ("train", *([method] if name in ORIGINALS else []), name)]
    merged = ConfigParser(ConfigParser.load_config_files(files)).get()
    for key in top_keys(name):
        visit(merged[key])


def test_recipes_hold_the_same_keys_and_methods_none_of_them():
    keys = set(read("recipe_budget"))
    for name in RECIPES:
        assert set(read(name)) == keys
    shared = keys | set(read("data_hippocampus")) | {"foreground_share", "val_overlap", "initial_weights", "seed"}
    for name in METHODS:
        assert not top_keys(name) & (shared - {"_desc_"}), "what all methods share belongs into the recipes"
        assert f"recipe_{read(name).get('original_recipe', read('train')['original_recipe'])}" in RECIPES


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_is_original_of_a_method_is_in_no_recipe_and_behind_one(name):
    method, _, data = name.removeprefix("original_").rpartition("_")
    assert f"method_{method}" in METHODS
    assert f"data_{data}" in DATA
    assert f"recipe_{method}_{data}" in RECIPES
    assert all("#" in key for key in set(read(name)) - {"_desc_"})
    assert not top_keys(name) & (top_keys("recipe_budget") | top_keys(f"data_{data}")) - {"_desc_"}


def test_recipes_set_the_ramps_and_no_unlabeled_crops_where_a_method_has_none():
    parser = ConfigParser(
        ConfigParser.load_config_files(
            [CONFIGS / f"{name}.json" for name in ("train", "method_mean_teacher", "recipe_mc_net")]
        )
    )
    method = parser.get_parsed_content("method_def")
    assert [method.consistency_weight(step) for step in (3000, 6000, 15000)] == pytest.approx(
        [0.1 * 0.2865048, 0.1, 0.1]
    )
    for names, expected in (
        (("method_supervised_vnet", "recipe_bcp"), (4, 0)),
        (("method_bcp", "recipe_bcp"), (4, 4)),
        ((), (2, 2)),
    ):
        parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / f"{name}.json" for name in ("train", *names)]))
        sizes = tuple(parser.get_parsed_content(f"{kind}_batch_size") for kind in ("labeled", "unlabeled"))
        assert sizes == expected
    parser["labeled_batch_size"] = 0
    assert parser.get_parsed_content("unlabeled_batch_size") == 2


@pytest.mark.parametrize("method", [name for name in ["train", *METHODS] if "network_def" in read(name)])
@pytest.mark.parametrize(("recipe", "expected"), [("recipe_sdcl", "instance"), ("recipe_paper", "batch")])
def test_recipes_set_the_normalization_of_every_network(method, recipe, expected):
    parser = ConfigParser(
        ConfigParser.load_config_files([CONFIGS / f"{name}.json" for name in dict.fromkeys(("train", method, recipe))])
    )
    assert parser.get_parsed_content("network_def#normalization") == expected


def test_the_recipe_of_sdcl_keeps_the_batch_normalization_of_the_resnet():
    names = ("train", "method_sdcl", "recipe_sdcl")
    parser = ConfigParser(ConfigParser.load_config_files([CONFIGS / f"{name}.json" for name in names]))
    network = parser.get_parsed_content("network_def")

    def kinds(module):
        return {type(layer).__name__ for layer in module.modules() if "Norm" in type(layer).__name__}

    assert kinds(network.vnet) == kinds(network.resnet_vnet.decoder) == {"InstanceNorm3d"}
    assert kinds(network.resnet_vnet.encoder) == {"BatchNorm3d"}


def test_a_folder_of_unlabeled_volumes_never_gives_a_validation_or_test_case(phantom_dir, make_workflow):
    folder = phantom_dir / "images"
    overrides = {"dataset_dir": str(phantom_dir), "split_file": str(phantom_dir / "split.json")}
    parser = make_workflow("train", unlabeled_dir=str(folder), **overrides).parser
    split = json.loads((phantom_dir / "split.json").read_text())
    pool = [
        Path(case["unlabeled"]).name.removesuffix(".nii.gz") for case in parser.get_parsed_content("unlabeled_pool")
    ]
    assert split["test"]
    assert sorted(pool) == sorted(split["unlabeled"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_build(recipe, phantom_dir, tmp_path, make_workflow):
    sizes = {"patch_size": [32, 32, 32], "log_interval": 2}
    workflow = make_workflow("train", recipe, dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "run"), **sizes)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert (
        workflow.max_epochs * workflow.parser.get_parsed_content("train#trainer#epoch_length")
        == read(recipe)["iterations"]
    )


@pytest.mark.parametrize("method", [None, *METHODS])
def test_train_config_has_all_properties_with_every_method(method, phantom_dir, tmp_path, make_workflow):
    names = ["train"] if method is None else ["train", method]
    workflow = make_workflow(*names, dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "run"), **SMALL)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert not (tmp_path / "run").exists(), "building a workflow must not write anything"


@pytest.mark.parametrize("data", DATA)
def test_data_overlays_build_with_three_class_phantoms(data, tmp_path, make_workflow, phantom_dir):
    overrides = {
        "dataset_dir": str(phantom_dir),
        "split_file": str(phantom_dir / "split.json"),
        "output_dir": str(tmp_path / "run"),
        "uses_boxes": False,
        "cache_rate": 0.0,
    }
    workflow = make_workflow("train", data, **overrides)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert workflow.max_epochs * workflow.parser.get_parsed_content("train#trainer#epoch_length") == 6000


@pytest.mark.parametrize("uses_boxes", [True, False])
def test_boxes_are_read_where_volumes_are_cropped_to_them(uses_boxes, phantom_dir, tmp_path, make_workflow):
    data = shutil.copytree(phantom_dir, tmp_path / "data")
    write_boxes(data, data / "split.json")
    paths = {"dataset_dir": str(data), "split_file": str(data / "split.json")}
    workflow = make_workflow("train", uses_boxes=uses_boxes, output_dir=str(tmp_path / "run"), **paths, **SMALL)
    transforms = workflow.parser.get_parsed_content("train#preprocessing").transforms
    assert any(isinstance(transform, CropToBoxd) for transform in transforms) == uses_boxes
    assert all(("box" in case) == uses_boxes for case in workflow.parser.get_parsed_content("train#dataset#data"))


def test_evaluate_config_has_all_properties(phantom_dir, tmp_path, make_workflow):
    workflow = make_workflow(
        "train", "evaluate", dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "run"), **SMALL
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_an_evaluation_knows_its_own_label_maps(phantom_dir, tmp_path, make_workflow):
    workflow = make_workflow("train", "evaluate", dataset_dir=str(phantom_dir), output_dir=str(tmp_path), **SMALL)
    report = workflow.parser.get_parsed_content("validate#handlers")[1]
    assert report.labels_dir == report.output_dir / "labels" == tmp_path / "evaluation" / "labels"


def test_views_are_those_of_the_overlay_in_evaluation_and_inference_alone(make_workflow):
    views = read("test_time_augmentation")["test_time_views"]
    evaluation = make_workflow("train", "evaluate", "test_time_augmentation", **SMALL)
    assert evaluation.parser.get_parsed_content("validate#inferer").views == views
    assert make_workflow("train", "evaluate", **SMALL).parser.get_parsed_content("validate#inferer").views == []
    inference = make_workflow("inference", "test_time_augmentation", workflow_type="infer")
    assert inference.parser.get_parsed_content("evaluator").inferer.inferer.views == views
    validation = make_workflow("train", "test_time_augmentation", **SMALL).parser.get_parsed_content("validate#inferer")
    assert type(validation) is SlidingWindowInferer


def test_an_evaluation_of_another_list_is_refused(phantom_dir, tmp_path, make_workflow):
    overrides = {**SMALL, "dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    workflow = make_workflow("train", "evaluate", **overrides, lists=["validation"])
    with assert_refused(r"^lists must be \['test'\] in an evaluation, got \['validation'\]"):
        workflow.parser.get_parsed_content("validate#dataset#data")
    cases = make_workflow("train", "evaluate", **overrides).parser.get_parsed_content("validate#dataset#data")
    assert [case["case"] for case in cases] == json.loads((phantom_dir / "split.json").read_text())["test"]


def test_inference_config_has_all_properties(phantom_dir, tmp_path, make_workflow):
    workflow = make_workflow(
        "inference",
        workflow_type="infer",
        dataset_dir=str(phantom_dir / "images"),
        output_dir=str(tmp_path / "labels"),
        load_pretrain=False,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_transforms_and_inferer_need_nothing_of_scripts():
    config = read("inference")
    consumed = {key: config[key] for key in ("preprocessing", "postprocessing", "handlers")}
    macros = {name: config[name] for name in ("orient", "resample", "window", "normalize", "pad")}
    assert "scripts" not in json.dumps([consumed, macros])
    # The one of scripts/ that skips empty windows is asked for by option.
    assert type(ConfigParser(config).get_parsed_content("inferer")) is SlidingWindowInferer


def test_images_are_prepared_in_inference_as_in_training():
    train, inference = read("train"), read("inference")
    for name in ("orient", "resample", "window", "normalize"):
        assert inference[name] == train[name]
    # What is compared before weights are used, and before a run is resumed.
    steps = [step[1:] for step in train["train"]["deterministic_transforms"] if str(step).startswith("%")]
    assert ("spacing", *steps) == _PREPROCESSING_KEYS
    shared = ["%orient", "%resample", "%window", "%normalize"]
    for steps in (
        train["train"]["deterministic_transforms"],
        train["validate"]["preprocessing"]["transforms"],
        inference["preprocessing"]["transforms"],
    ):
        assert [step for step in steps if step in shared] == shared


def test_unlabeled_images_are_prepared_as_labeled_ones_and_labels_stay_whole(tmp_path):
    image = np.random.default_rng(0).normal(400, 90, (20, 24, 22)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[4:15, 5:18, 6:17] = 1
    label[8:12, 8:14, 8:14] = 2
    # Turned axes, and voxels that are not those of the configuration.
    affine = np.array([[0, -1.5, 0, 3], [1.0, 0, 0, 5], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    parser = ConfigParser(read("train"))
    for key, value in {
        "spacing": [1.3, 1.7, 0.9],
        "num_classes": 3,
        "window#_disabled_": False,
        "device": "cpu",
    }.items():
        parser[key] = value
    prepare = Compose(parser.get_parsed_content("train#deterministic_transforms"))
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    labeled, unlabeled = prepare({**paths, "case": "a"}), prepare({"unlabeled": paths["image"], "case": "a"})
    torch.testing.assert_close(unlabeled["unlabeled"].as_tensor(), labeled["image"].as_tensor())
    torch.testing.assert_close(unlabeled["unlabeled"].affine, labeled["image"].affine)
    assert labeled["image"].mean().item() == pytest.approx(0, abs=1e-4)
    assert labeled["image"].pixdim.tolist() == pytest.approx([1.3, 1.7, 0.9])
    assert labeled["label"].shape == labeled["image"].shape
    assert labeled["label"].unique().tolist() == [0, 1, 2]


def test_the_share_of_crops_with_foreground_is_that_of_the_configuration():
    label = MetaTensor(torch.zeros(1, 96, 96, 96))
    label[0, 0, 0, 0] = 1
    found = []
    for share in (0.0, 0.99):
        parser = ConfigParser(read("train"))
        parser["foreground_share"] = share
        region = parser.get_parsed_content("train#region").set_random_state(0)
        crops = [region({"image": label.clone(), "label": label.clone()})["label"] for _ in range(20)]
        found.append(sum(bool(crop.any()) for crop in crops))
    assert found[0] == 0
    assert found[1] > 15


@pytest.mark.parametrize("largest", [True, "true", False])
def test_validation_and_evaluation_keep_the_largest_component_as_configured(largest):
    parser = ConfigParser(read("train"))
    parser["largest_component"] = largest
    steps = parser["validate"]["postprocessing"]["transforms"]
    places = [number for number, step in enumerate(steps) if "Component" in step["_target_"]]
    keep = [parser.get_parsed_content(f"validate#postprocessing#transforms#{number}") for number in places]
    prediction = torch.zeros(1, 9, 9, 9)
    prediction[0, :4, :4, :4] = 1
    prediction[0, 7:, 7:, 7:] = 1
    kept = Compose([step for step in keep if step is not None])({"pred": prediction})["pred"]
    assert kept[0, 8, 8, 8] == (0 if largest else 1)
    assert kept[0, 0, 0, 0] == 1


def test_run_and_training_do_the_same():
    parser = ConfigParser(read("train"))
    assert parser["training"] == "%run"
    parser.resolve_macro_and_relative_ids()
    assert parser["training"] == parser["run"]


def test_paper_settings_are_the_defaults():
    config = read("train")
    assert config["iterations"] == 6000
    assert config["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "params": "$@method_def.trainable_parameters()",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0001,
    }
    assert (config["lr_scheduler"]["step_size"], config["lr_scheduler"]["gamma"]) == (2500, 0.1)
    assert config["labeled_batch_size"] == 2
    left_atrium, pancreas = read("data_left_atrium"), read("data_pancreas")
    assert (left_atrium["patch_size"], left_atrium["strides"]) == ([112, 112, 80], [18, 18, 4])
    assert (pancreas["patch_size"], pancreas["strides"]) == ([96, 96, 96], [16, 16, 16])


def test_metadata_and_requirements_name_the_same_versions():
    metadata = read("metadata")
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
        **metadata["required_packages_version"],
    }
    assert named == pins
    assert metadata["version"] in metadata["changelog"]
    assert f"## {metadata['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"].keys() == {"0", "1"}


def test_every_package_that_is_imported_is_pinned():
    metadata = read("metadata")
    modules = {name.split(".")[0] for path in MODULES for name in imports_of(path)}
    outside = modules - {"scripts", "__future__"} - sys.stdlib_module_names
    # packages_distributions of Python 3.10 does not know every package.
    imported = {
        distribution.metadata["Name"].lower()
        for distribution in importlib.metadata.distributions()
        if outside & {file.parts[0].removesuffix(".py") for file in distribution.files or ()}
    }
    assert {"monai", "torch", "pytorch-ignite"} <= imported
    assert imported <= {"monai", "torch", "numpy", *metadata["required_packages_version"]}


def test_network_matches_its_metadata(monkeypatch):
    monkeypatch.chdir(ROOT)
    verify_net_in_out(
        net_id="network_def",
        meta_file="configs/metadata.json",
        config_file="configs/inference.json",
        device="cpu",
        n=1,
        p=1,
    )
    config = read("inference")
    assert config["num_classes"] == read("metadata")["network_data_format"]["outputs"]["pred"]["num_channels"]


def test_network_is_exported_to_torchscript(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    network = DualNetwork().eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file="configs/metadata.json",
        config_file="configs/inference.json",
        bundle_root=str(tmp_path),
    )
    exported = torch.jit.load(tmp_path / "model.ts")
    image = torch.randn(1, 1, 32, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exported(image), network(image))


def test_workflow_starts_from_the_file_alone(monkeypatch, tmp_path, phantom_dir):
    # No bundle_root is given and the working directory is another one.
    monkeypatch.chdir(tmp_path)
    workflow = ConfigWorkflow(config_file=str(CONFIGS / "train.json"), logging_file=False)
    workflow.parser["dataset_dir"] = str(phantom_dir)
    workflow.initialize()
    assert workflow.bundle_root == str(ROOT)


def test_augmented_crops_keep_the_patch_size(phantom_dir, tmp_path, make_workflow):
    # Quarter turns swap axes: they must come before the crop, or a patch that is not a cube breaks the batch.
    arguments = {**SMALL, "patch_size": [32, 48, 16], "dataset_dir": str(phantom_dir), "output_dir": str(tmp_path)}
    workflow = make_workflow("train", "recipe_ua_mt", **arguments)
    workflow.initialize()
    batches = iter(workflow.parser.get_parsed_content("train#dataloader"))
    for _ in range(8):
        batch = next(batches)
        assert batch["image"].shape == batch["label"].shape == batch["unlabeled"].shape == (2, 1, 32, 48, 16)
        assert set(batch["label"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("device", "num_workers"), [("cpu", 0), ("cuda", 2), ("cuda:1", 2), (torch.device("cuda"), 2)])
def test_workers_prepare_the_batches_of_a_gpu(device, num_workers):
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    parser["device"] = device
    assert parser.get_parsed_content("num_workers") == num_workers


@pytest.mark.parametrize("deterministic", [True, False, "true", "false"])
def test_kernels_of_a_gpu_are_chosen_as_asked(monkeypatch, deterministic):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs/train.json"))
    parser["deterministic"] = deterministic
    parser.get_parsed_content("initialize")
    wanted = str(deterministic).lower() == "true"
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (wanted, not wanted)
