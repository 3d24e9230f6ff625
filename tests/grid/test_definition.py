# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Which runs a grid consists of, and what a user may ask for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, assert_refused
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts.errors import BundleError
from scripts.grid.cell import Cell
from scripts.grid.definition import define_grid
from scripts.grid.grid import Grid
from scripts.grid.methods import method_names


def names(paths):
    return [Path(path).stem for path in paths]


def use_configs(monkeypatch, folder):
    """Let a grid find the overlays of another folder."""
    for module in ("configuration", "grid.definition", "grid.grid", "grid.methods"):
        monkeypatch.setattr(f"scripts.{module}.CONFIGS", folder)


def test_cells_are_methods_by_splits_by_seeds(tmp_path):
    grid = define_grid("left_atrium", ["dual_network", "luseg"], folds=[0, 3], seeds=[5, 6])
    cells = list(grid.cells(tmp_path))
    assert [cell.name for cell in cells] == [
        f"{method}/fold{fold}_seed{seed}" for seed in (5, 6) for fold in (0, 3) for method in ("dual_network", "luseg")
    ]
    assert cells[0].path == tmp_path / "cells" / "dual_network" / "fold0_seed5"
    assert names(grid.splits.values()) == ["left_atrium_fold0_16", "left_atrium_fold3_16"]


def test_overrides_may_name_keys_of_recipes_and_methods():
    overrides = {"augmentation#0#prob": 0.1, "method_def#distance_weight": 0.2}
    for recipe in ("short", "original"):
        assert define_grid("hippocampus", ["dtc"], recipe=recipe, overrides=overrides).overrides == overrides
    with pytest.raises(BundleError, match="--augmentation#0#prob is no key"):
        define_grid("hippocampus", ["dtc"], recipe="budget", overrides=overrides)


def test_without_folds_the_split_of_the_data_is_taken():
    assert names(define_grid("hippocampus", ["luseg"]).splits.values()) == ["hippocampus_16"]
    assert names(define_grid("left_atrium", ["luseg"], num_labeled=8).splits.values()) == ["left_atrium_fold0_8"]
    assert names(define_grid("pancreas", ["luseg"], folds=[2]).splits.values()) == ["pancreas_fold2_12"]


def test_split_file_of_a_user_with_a_number_in_it(tmp_path):
    for fold in (0, 1):
        shutil.copy(ROOT / f"configs/splits/hippocampus_fold{fold}_16.json", tmp_path / f"mine_{fold}.json")
    grid = define_grid("hippocampus", ["luseg"], folds=[0, 1], split_file=str(tmp_path / "mine_{fold}.json"))
    assert names(grid.splits.values()) == ["mine_0", "mine_1"]
    with pytest.raises(BundleError, match=r"folds must be given where split_file has \{fold\}, got .*mine_\{fold\}"):
        define_grid("hippocampus", ["luseg"], split_file=str(tmp_path / "mine_{fold}.json"))
    with pytest.raises(BundleError, match=r"split_file must contain \{fold\}"):
        define_grid("hippocampus", ["luseg"], folds=[0], split_file=str(tmp_path / "mine_0.json"))


def test_data_of_a_user_whose_split_lies_with_it(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    overlay = {"dataset_dir": "nowhere", "split_file": "$@dataset_dir + '/split.json'"}
    (tmp_path / "configs" / "data_liver.json").write_text(json.dumps(overlay))
    use_configs(monkeypatch, tmp_path / "configs")
    for name in ("", "_fold0", "_fold1"):
        shutil.copy(ROOT / f"configs/splits/hippocampus{name}_16.json", tmp_path / f"split{name}.json")
    grid = define_grid("liver", ["luseg"], dataset_dir=str(tmp_path))
    assert grid.splits == {"fixed": str(tmp_path / "split.json")}
    own = str(tmp_path / "split_fold{fold}.json")
    grid = define_grid("liver", ["luseg"], dataset_dir=str(tmp_path), folds=[0, 1], split_file=own)
    assert names(grid.splits.values()) == ["split_fold0", "split_fold1"]
    for option in ({"folds": [0]}, {"num_labeled": 8}):
        with pytest.raises(BundleError, match="split_file must be given with folds and num_labeled"):
            define_grid("liver", ["luseg"], dataset_dir=str(tmp_path), **option)
    with pytest.raises(BundleError, match=r"split file none.json not found\.$"):
        define_grid("liver", ["luseg"], dataset_dir=str(tmp_path), split_file="none.json")


def test_values_arrive_as_they_were_given(tmp_path):
    overrides = {"spacing": None, "channels_last": False, "patch_size": (32, 48, 32), "precision": "float32"}
    grid = define_grid("hippocampus", ["luseg"], overrides={**overrides, "method_def#temperature": {"a": None}})
    (cell,) = grid.cells(tmp_path)
    words = grid.arguments(cell, evaluate=False)
    arrived = {name[2:]: DefaultParseValue(value) for name, value in zip(words[2::2], words[3::2], strict=True)}
    # MONAI leaves out a plain None.
    assert arrived["spacing"] == "$None"
    assert arrived["channels_last"] is False
    assert arrived["patch_size"] == [32, 48, 32]
    assert arrived["precision"] == "float32"
    assert arrived["method_def#temperature"] == {"a": None}


def test_later_files_win_in_the_order_data_method_recipe():
    grid = define_grid("hippocampus", ["dual_network", "luseg"])
    assert names(grid.config_files("dual_network")) == ["train", "data_hippocampus", "recipe_budget"]
    assert names(grid.config_files("luseg")) == ["train", "data_hippocampus", "method_luseg", "recipe_budget"]
    assert grid.iterations("luseg") == 1500


def test_original_recipe_is_that_of_each_method(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text(json.dumps({"original_recipe": "ua_mt"}))
    grid = define_grid("hippocampus", ["dual_network", str(overlay)], recipe="original")
    assert names(grid.config_files("dual_network"))[-1] == "recipe_paper"
    assert names(grid.config_files("mine")) == ["train", "data_hippocampus", "method_mine", "recipe_ua_mt"]


def test_recipes_that_no_method_of_the_grid_takes_are_not_read(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs/recipe_mine.json").write_text('{"iterations": 3,}')
    use_configs(monkeypatch, tmp_path / "configs")
    given = {"recipe": "original", "overrides": {"iterations": 3}}
    assert define_grid("hippocampus", ["bcp"], **given).recipe_of("bcp") == "bcp"
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"original_recipe": "mine"}))
    for options in (given, {"recipe": "mine"}):
        with pytest.raises(BundleError, match=r"^config_file .*recipe_mine\.json cannot be read"):
            define_grid("hippocampus", [str(overlay)], **options)


def test_original_recipe_is_that_of_the_data_where_the_paper_has_one(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text(json.dumps({"original_recipe": "mc_net"}))
    methods = ["bcp", "sdcl", "mc_net_plus", "mean_teacher", "dual_network", str(overlay)]
    for data, expected in (
        ("pancreas", ["bcp_pancreas", "sdcl_pancreas", "mc_net_pancreas", "ua_mt", "paper", "mc_net_pancreas"]),
        ("left_atrium", ["bcp", "sdcl", "mc_net", "ua_mt", "paper", "mc_net"]),
    ):
        grid = define_grid(data, methods, recipe="original", folds=[0])
        assert [grid.recipe_of(method) for method in grid.methods] == expected
        for method, recipe in zip(grid.methods, expected):
            files = [name for name in names(grid.config_files(method)) if name.startswith(("recipe", "original"))]
            own = [f"original_{recipe}"] if recipe in ("bcp_pancreas", "sdcl_pancreas") else []
            assert files == [f"recipe_{recipe}", *own]


def test_what_is_original_of_a_method_is_not_given_to_others():
    for recipe in ("bcp_pancreas", "original"):
        grid = define_grid("pancreas", ["bcp", "mcf"], recipe=recipe, folds=[0])
        own = [name for method in grid.methods for name in names(grid.config_files(method)) if "original" in name]
        assert own == (["original_bcp_pancreas"] if recipe == "original" else [])


def test_short_name_of_the_papers_is_the_method_of_the_bundle(tmp_path):
    assert define_grid("hippocampus", ["supervised", "luseg"]).methods == ("supervised_vnet", "luseg")
    with pytest.raises(BundleError, match="different names"):
        define_grid("hippocampus", ["supervised", "supervised_vnet"])
    overlay = tmp_path / "method_supervised.json"
    overlay.write_text("{}")
    with pytest.raises(BundleError, match="is named as supervised_vnet is for short: rename the file"):
        define_grid("hippocampus", [str(overlay)])


def test_an_original_grid_has_instance_normalization_for_sdcl_alone():
    grid = define_grid("hippocampus", method_names(), recipe="original")
    configs = {method: ConfigParser.load_config_files(grid.config_files(method)) for method in grid.methods}
    assert [method for method in grid.methods if configs[method]["normalization"] != "batch"] == ["sdcl"]
    assert configs["sdcl"]["normalization"] == "instance"


def test_arguments_of_training_and_evaluation(tmp_path):
    grid = define_grid("hippocampus", ["luseg"], seeds=[3], dataset_dir=str(tmp_path), overrides={"iterations": 7})
    (cell,) = grid.cells(tmp_path / "grid")
    words = grid.arguments(cell, evaluate=False)
    assert words[:2] == ["run", "training"]
    given = dict(zip(words[2::2], words[3::2]))
    assert given["--seed"] == "3"
    assert given["--iterations"] == "7"
    assert given["--dataset_dir"] == str(tmp_path)
    assert given["--output_dir"] == str(tmp_path / "grid/cells/luseg/fixed_seed3")
    assert "evaluate.json" not in given["--config_file"]
    words = grid.arguments(cell, evaluate=True)
    assert words[0] == "run"
    assert words[1] == "--config_file"
    assert words[2].endswith("evaluate.json']")
    assert grid.iterations("luseg") == 7


def test_every_method_and_recipe_of_the_bundle_can_be_asked_for():
    everything = method_names()
    assert everything[0] == "dual_network"
    assert set(everything[1:]) == {path.stem.removeprefix("method_") for path in ROOT.glob("configs/method_*.json")}
    original = define_grid("hippocampus", everything, recipe="original")
    for method in everything:
        assert Path(original.config_files(method)[-1]).is_file(), method


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"data": "liver"}, "data must be one of hippocampus, left_atrium, .*, got 'liver'"),
        ({"methods": ["teacher"]}, "methods must be one of dual_network, .*, got 'teacher'"),
        ({"methods": []}, "methods must be different names, at least one"),
        ({"methods": ["luseg", "luseg"]}, "methods must be different names"),
        ({"methods": ["nowhere/method_x.json"]}, "methods: nowhere/method_x.json not found"),
        ({"recipe": "cake"}, "recipe must be one of original, .*budget.*, got 'cake'"),
        ({"folds": [9]}, "split file .*hippocampus_fold9_16.json not found; the bundle has .*hippocampus_16"),
        ({"split_file": "x.json", "num_labeled": 8}, "exclude each other"),
        ({"split_file": str(ROOT / "docs/federated/hospital_2.json")}, "hospital_2.json has no test case"),
        ({"overrides": {"iteratons": 5}}, r"--iteratons is no key of .*\. Did you mean --iterations\?"),
        (
            {"overrides": {"class_names": "organ"}},
            "class_names must be a list of different strings, one .*, got 'organ'",
        ),
        ({"overrides": {"iterations": "many"}}, "iterations must be a whole number of at least 1, got 'many'"),
        ({"overrides": {"spacing": {1, 2}}}, "overrides must be numbers, texts, lists or dictionaries"),
        ({"seeds": [0, 2**32]}, "seed must be a whole number from 0 to 4294967295, got 4294967296"),
        ({"overrides": {"seed": 5}}, "--seed must not be given: a grid sets seed, .*; its arguments are seeds, "),
        ({"overrides": {"iterations": 5, "resume": True}}, "--resume must not be given"),
        ({"methods": ["supervise"]}, r"Did you mean supervised_vnet or supervised_dual\?"),
        ({"overrides": {"evaluated_checkpoint": "best.pt"}}, "must be model_final.pt or model.pt, got 'best.pt'"),
        (
            {"data": "left_atrium", "overrides": {"evaluated_checkpoint": "model.pt"}},
            r"left_atrium_fold0_16.json has no validation case, by which model.pt is chosen",
        ),
    ],
)
def test_what_does_not_exist_is_refused(arguments, match):
    with pytest.raises(BundleError, match=match):
        define_grid(**{"data": "hippocampus", "methods": ["luseg"], **arguments})


def test_names_of_the_classes_are_those_of_the_runs():
    assert define_grid("hippocampus", ["luseg"]).class_names == ("anterior", "posterior")
    overrides = {"num_classes": 2, "class_names": ["organ"]}
    assert define_grid("hippocampus", ["luseg"], overrides=overrides).class_names == ("organ",)


def test_keys_that_a_grid_sets_itself_are_all_refused(tmp_path):
    grid = define_grid("hippocampus", ["luseg"])
    (cell,) = grid.cells(tmp_path)
    for name in grid.arguments(cell, evaluate=False)[2::2]:
        if name != "--config_file":
            with pytest.raises(BundleError, match=f"{name} must not be given"):
                define_grid("hippocampus", ["luseg"], overrides={name.removeprefix("--"): 1})


def test_overlay_with_the_name_of_a_method_of_the_bundle(tmp_path):
    overlay = tmp_path / "method_luseg.json"
    overlay.write_text("{}")
    with pytest.raises(BundleError, match=r"method_luseg.json has the name of the bundle's method luseg: rename"):
        define_grid("hippocampus", [str(overlay)])
    # The bundle's own file is no other method.
    grid = define_grid("hippocampus", [str(ROOT / "configs/method_luseg.json")])
    assert grid == define_grid("hippocampus", ["luseg"])


def test_overlay_that_sets_what_the_recipe_sets_is_refused(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text(json.dumps({"iterations": 77, "optimizer::lr": 0.1, "+augmentation": [], "dropout": 0.1}))
    message = r"method_mine\.json must leave augmentation, iterations, optimizer to the recipe 'budget', which"
    with pytest.raises(BundleError, match=message):
        define_grid("hippocampus", [str(overlay)])


@pytest.mark.parametrize(
    "key", ["strides", "test_time_views", "validate#postprocessing#transforms#2#_disabled_", "+window", "normalize"]
)
def test_overlay_that_changes_what_is_measured_is_refused(key, tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text(json.dumps({"method_def": {}, key: False}))
    name = key.lstrip("+").partition("#")[0]
    with pytest.raises(BundleError, match=rf"method_mine\.json must leave {name} to the data, as all methods"):
        define_grid("hippocampus", [str(overlay)])


def test_overlay_without_an_original_recipe_is_refused_where_one_is_asked_for(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text(json.dumps({"method_def": {}}))
    with pytest.raises(BundleError, match=r"method_mine\.json must name its original_recipe, which recipe 'original'"):
        define_grid("hippocampus", [str(overlay)], recipe="original")
    assert define_grid("hippocampus", [str(overlay)]).methods == ("mine",)


def test_settings_that_no_run_would_take_are_refused_before_the_grid_is_written():
    for overrides, message in (
        ({"patch_size": [40, 40, 40]}, r"patch_size must be three whole numbers .* got \[40, 40, 40\]"),
        ({"labeled_batch_size": -1}, "labeled_batch_size must be a whole number of at least 0, got -1"),
        ({"class_names": "$['a', 'b']"}, "class_names must be a list"),
        ({"strides": [200, 200, 200]}, r"strides must be at most the patch_size \[32, 48, 32\]"),
    ):
        with pytest.raises(BundleError, match=message):
            define_grid("hippocampus", ["supervised_vnet"], overrides=overrides)
    # Here nobody knows what the machine of a run will be.
    given = {"device": "cuda:7", "precision": "float16", "patch_size": ["$16 * 2", 32, 32]}
    assert define_grid("hippocampus", ["supervised_vnet"], overrides=given).overrides == given


def test_one_split_under_two_names_is_refused(tmp_path):
    fixed = define_grid("left_atrium", ["supervised_vnet"])
    fixed.write(tmp_path)
    with pytest.raises(
        BundleError, match=r"left_atrium_fold0_16\.json as fixed, got it as fold0: its runs would count"
    ):
        define_grid("left_atrium", ["supervised_vnet"], folds=[0, 1]).joined(tmp_path)
    assert set(define_grid("left_atrium", ["supervised_vnet"], folds=[1]).joined(tmp_path).splits) == {"fixed", "fold1"}
    for fold in (0, 1):
        shutil.copy(fixed.splits["fixed"], tmp_path / f"split_{fold}.json")
    with pytest.raises(BundleError, match=r"split_0\.json and .*split_1\.json are the same: the runs of fold1 would"):
        define_grid("left_atrium", ["supervised_vnet"], folds=[0, 1], split_file=str(tmp_path / "split_{fold}.json"))


def test_overlay_with_an_original_recipe_that_is_none_is_refused(tmp_path):
    overlay = tmp_path / "method_mine.json"
    for recipe in ("mean_teacher", 5):
        overlay.write_text(json.dumps({"original_recipe": recipe}))
        message = rf"original_recipe of .*method_mine\.json must be one of .*, got '{recipe}'"
        with pytest.raises(BundleError, match=message):
            define_grid("hippocampus", [str(overlay)], recipe="original")
    assert define_grid("hippocampus", [str(overlay)]).recipe == "budget"


def test_original_recipes_on_other_data_are_warned_of(caplog):
    define_grid("left_atrium", ["bcp", "dtc"], recipe="original")
    define_grid("pancreas", ["bcp", "dual_network"], recipe="original", folds=[0])
    assert not caplog.records
    define_grid("pancreas", ["bcp", "dtc", "cps"], recipe="original", folds=[0])
    assert "recipe original: where there is none for pancreas, dtc takes dtc, cps takes ua_mt." in caplog.text
    caplog.clear()
    define_grid("hippocampus", ["bcp", "dual_network"], recipe="original")
    assert "where there is none for hippocampus, bcp takes bcp, dual_network takes paper." in caplog.text


def test_method_of_another_source_does_not_take_over_the_results(tmp_path):
    first, second = tmp_path / "a" / "method_mine.json", tmp_path / "b" / "method_mine.json"
    for overlay, words in ((first, "mine"), (second, "another")):
        overlay.parent.mkdir()
        overlay.write_text(json.dumps({"_desc_": words}))
    define_grid("hippocampus", [str(first)]).write(tmp_path)
    define_grid("hippocampus", ["luseg", str(first)]).write(tmp_path)
    with pytest.raises(BundleError, match=r"has .*a/method_mine.json as mine, got .*b/method_mine.json"):
        define_grid("hippocampus", [str(second)]).write(tmp_path)
    # As a grid of before the bundle had this method.
    content = json.loads((tmp_path / "grid.json").read_text())
    content["method_files"]["luseg"] = str(first)
    (tmp_path / "grid.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"has .*a/method_mine.json as luseg, got the bundle's own method"):
        define_grid("hippocampus", ["luseg"]).write(tmp_path)


@pytest.mark.parametrize("file", ["method_mine.json", "split.json"])
def test_a_file_that_was_changed_after_its_evaluation_is_refused(file, tmp_path):
    overlay, split = tmp_path / "method_mine.json", tmp_path / "split.json"
    overlay.write_text("{}")
    shutil.copyfile(ROOT / "configs/splits/hippocampus_16.json", split)

    def call():
        grid = define_grid("hippocampus", [str(overlay), "luseg"], split_file=str(split))
        grid.write(tmp_path / "grid")
        return list(grid.cells(tmp_path / "grid"))

    mine, luseg = call()
    # Nothing has come of it yet.
    changed = tmp_path / file
    changed.write_text(changed.read_text() + " ")
    call()
    done = (mine if file == "method_mine.json" else luseg).path / "model_final.pt"
    done.parent.mkdir(parents=True)
    done.touch()
    call()
    changed.write_text(changed.read_text() + "\n")
    with assert_refused(f"grid.json: {re.escape(str(changed))} was changed since cells with it were trained"):
        call()


def test_a_file_that_is_changed_while_a_grid_runs_is_found(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text("{}")
    grid = define_grid("hippocampus", [str(overlay), "luseg"])
    mine, luseg = grid.cells(tmp_path)
    assert grid.changed_file(mine) is None
    overlay.write_text("{ }")
    assert grid.changed_file(mine) == str(overlay)
    assert grid.changed_file(luseg) is None
    # The training names a file that is gone.
    overlay.unlink()
    assert grid.changed_file(mine) is None


def test_methods_join_a_grid_whose_own_overlay_is_gone(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text('{"original_recipe": "budget"}')
    grid = define_grid("hippocampus", [str(overlay)], recipe="original")
    grid.write(tmp_path / "grid")
    (mine,) = grid.cells(tmp_path / "grid")
    mine.path.mkdir(parents=True)
    (mine.path / "model_final.pt").touch()
    overlay.unlink()
    assert grid.changed_file(mine) is None
    define_grid("hippocampus", ["luseg"], recipe="original").write(tmp_path / "grid")
    assert Grid.read(tmp_path / "grid").methods == ("mine", "luseg")


def test_grid_file_is_read_back_and_grows(tmp_path):
    # Lists of the command line come as tuples, those of the file as lists.
    overrides = {"patch_size": (48, 48, 48), "class_names": ("front", "back")}
    first = define_grid("hippocampus", ["luseg"], seeds=[0], overrides=overrides)
    first.write(tmp_path)
    assert Grid.read(tmp_path) == first
    define_grid("hippocampus", ["dual_network", "luseg"], seeds=[1], overrides=overrides).write(tmp_path)
    merged = Grid.read(tmp_path)
    assert merged.methods == ("luseg", "dual_network")
    assert merged.seeds == (0, 1)


def test_calls_at_the_same_time_do_not_forget_each_other(tmp_path, monkeypatch):
    define_grid("hippocampus", ["luseg"]).write(tmp_path)
    waited = []
    monkeypatch.setattr("scripts.grid.grid.locked_folder", partial(locked_folder_of_a_test, waited))
    define_grid("hippocampus", ["mcf"]).write(tmp_path)
    # While it was waited for the lock, another call has written.
    assert waited == [tmp_path / ".grid.lock"]
    assert Grid.read(tmp_path).methods == ("luseg", "bcp", "mcf")


@contextlib.contextmanager
def locked_folder_of_a_test(waited, path, *, wait_seconds):
    """A lock that another call had until now."""
    assert wait_seconds > 0
    if not waited:
        waited.append(path)
        define_grid("hippocampus", ["bcp"]).write(path.parent)
    yield


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"recipe": "paper"}, "grid with recipe 'budget', got 'paper'"),
        ({"dataset_dir": "/elsewhere"}, "grid with dataset_dir"),
        ({"overrides": {"iterations": 9}}, "grid with overrides"),
        ({"split_file": str(ROOT / "configs/splits/left_atrium_dev_16.json")}, "as fixed, got .*dev_16"),
    ],
)
def test_other_grid_in_the_same_folder_is_refused(tmp_path, changes, match):
    grid = define_grid("hippocampus", ["luseg"])
    grid.write(tmp_path)
    next(grid.cells(tmp_path)).path.mkdir(parents=True)
    before = (tmp_path / "grid.json").read_text()
    with pytest.raises(BundleError, match=match):
        define_grid("hippocampus", ["luseg"], **changes).write(tmp_path)
    assert (tmp_path / "grid.json").read_text() == before


def test_a_split_of_equal_content_may_have_moved(tmp_path):
    source = ROOT / "configs/splits/hippocampus_fold0_16.json"
    moved = shutil.copy(source, tmp_path / "moved.json")
    grid = define_grid("hippocampus", ["luseg"], split_file=str(source))
    grid.write(tmp_path)
    next(grid.cells(tmp_path)).path.mkdir(parents=True)
    define_grid("hippocampus", ["luseg"], split_file=str(moved)).write(tmp_path)
    assert Grid.read(tmp_path).splits == {"fixed": str(moved)}


def test_a_size_of_unlabeled_batches_is_not_for_methods_that_take_none(tmp_path):
    grid = define_grid("hippocampus", ["supervised_vnet", "luseg"], overrides={"unlabeled_batch_size": 4})
    for cell in grid.cells(tmp_path):
        words = grid.arguments(cell, evaluate=False)
        assert ("--unlabeled_batch_size" in words) == (cell.method == "luseg")


def test_an_overlay_that_is_gone_does_not_stop_the_grid(tmp_path):
    overlay = tmp_path / "method_mine.json"
    overlay.write_text("{}")
    grid = define_grid("hippocampus", [str(overlay)], overrides={"unlabeled_batch_size": 4})
    overlay.unlink()
    (cell,) = grid.cells(tmp_path)
    assert str(overlay) in " ".join(grid.arguments(cell, evaluate=False))


def test_a_grid_of_which_nothing_was_begun_is_replaced(tmp_path):
    define_grid("hippocampus", ["luseg"], recipe="paper", dataset_dir="/misspelled").write(tmp_path)
    grid = define_grid("hippocampus", ["mcf"], overrides={"iterations": 9})
    grid.write(tmp_path)
    assert Grid.read(tmp_path) == grid


def test_options_without_effect_may_change(tmp_path):
    grid = define_grid("hippocampus", ["luseg"], overrides={"iterations": 9, "num_workers": 4})
    grid.write(tmp_path)
    next(grid.cells(tmp_path)).path.mkdir(parents=True)
    overrides = {"iterations": 9, "num_workers": 0, "cache_num": 20}
    define_grid("hippocampus", ["mcf"], overrides=overrides).write(tmp_path)
    assert Grid.read(tmp_path).overrides == overrides
    # Those that are not given again stay.
    define_grid("hippocampus", ["luseg"], overrides={"iterations": 9}).write(tmp_path)
    assert Grid.read(tmp_path).overrides == overrides
    assert Grid.read(tmp_path).methods == ("luseg", "mcf")


@pytest.mark.parametrize("name", ["data_hippocampus", "recipe_budget", "method_luseg"])
def test_overlays_of_the_bundle_that_were_changed_are_refused(name, tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    use_configs(monkeypatch, configs)
    (cell,) = define_grid("hippocampus", ["luseg"]).cells(tmp_path / "grid")
    define_grid("hippocampus", ["luseg"]).write(tmp_path / "grid")
    cell.path.mkdir(parents=True)
    (cell.path / "model_final.pt").touch()
    define_grid("hippocampus", ["luseg"]).write(tmp_path / "grid")
    file = configs / f"{name}.json"
    file.write_text(file.read_text() + "\n")
    with assert_refused(f"{name}.json was changed since cells with it were trained"):
        define_grid("hippocampus", ["luseg"]).write(tmp_path / "grid")
    assert Grid.read(tmp_path / "grid").changed_file(cell) == str(file)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data_mine", {"dataset_dir": "$foo + 'x'"}, "foo"),
        ("data_mine", {"dataset_dir": "@nope"}, "nope"),
        ("data_mine", {"split_file": None}, "split_file must be a path, got None"),
        ("recipe_mine", {"iterations": "$1000 / 3"}, r"iterations must be a whole number, got 333\.\d+ for luseg"),
    ],
)
def test_mistakes_in_overlays_of_ones_own_cost_one_line(file, content, message, tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    use_configs(monkeypatch, configs)
    for kind, name in (("data", "hippocampus"), ("recipe", "budget")):
        shutil.copyfile(configs / f"{kind}_{name}.json", configs / f"{kind}_mine.json")
    path = configs / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    with pytest.raises(BundleError, match=message):
        define_grid("mine", ["luseg"], recipe="mine")


def test_iterations_may_be_an_expression(tmp_path, monkeypatch):
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    use_configs(monkeypatch, configs)
    path = configs / "recipe_budget.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "iterations": "$1000 * 2"}))
    assert define_grid("hippocampus", ["luseg"]).iterations("luseg") == 2000
    assert define_grid("hippocampus", ["luseg"], overrides={"iterations": 7}).iterations("luseg") == 7


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "mine.json not found"),
        ("{ broken", "cannot be read as JSON"),
        ("[]", "must hold a JSON object, got a list"),
    ],
)
def test_overlay_that_is_none_is_refused(tmp_path, content, match):
    overlay = tmp_path / "method_mine.json"
    if content is not None:
        overlay.write_text(content)
    with pytest.raises(BundleError, match=f"methods: .*{match}"):
        define_grid("hippocampus", [str(overlay)])


def test_missing_or_damaged_grid_file(tmp_path):
    with pytest.raises(BundleError, match=r"holds no grid: grid.json is missing"):
        Grid.read(tmp_path)
    (tmp_path / "grid.json").write_text('{"version": 1}')
    with pytest.raises(BundleError, match="is damaged"):
        Grid.read(tmp_path)
    (tmp_path / "grid.json").write_text('{"version": 2}')
    with pytest.raises(BundleError, match=r"^\S*grid.json is of another version"):
        Grid.read(tmp_path)


def test_state_of_a_cell(tmp_path):
    cell = Cell("luseg", "fixed", 0, tmp_path / "cell")
    assert not cell.evaluated
    assert cell.state() == {}
    assert cell.training_progress() == (0, 0.0)
    assert cell.last_beat() is None
    cell.beat()
    assert cell.last_beat() is None
    cell.write_state(status="failed", error="no")
    first = cell.last_beat()
    os.utime(cell.path / "cell.json", (1, 1))
    cell.beat()
    assert cell.last_beat() >= first
    assert cell.state() == {"status": "failed", "error": "no"}
    # The last line is being written.
    (cell.path / "history.csv").write_text("iteration,seconds,loss\n1,2.5,0.5\n2,4.25,0.4\n3,6.")
    assert cell.training_progress() == (2, 4.25)
    (cell.path / "evaluation").mkdir()
    (cell.path / "evaluation" / "metrics_cases.csv").touch()
    assert cell.evaluated
