# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Federated learning with MONAI's client: two sites with pools of their own, one of them without any label."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from conftest import SMALL, assert_refused
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject


@pytest.fixture
def make_site(bundle, phantom_dir, tmp_path, monkeypatch):
    """A client with a split of its own; the program runs elsewhere, with the bundle on its path."""
    monkeypatch.chdir(tmp_path)

    def make(name, *files, evaluates=True, **overrides):
        lists = {list_name: [f"phantom_{case:03d}" for case in overrides.pop(list_name, ())] for list_name in LISTS}
        split = {"version": 1, "name": name, "description": name, "image": "images/{case}.nii.gz"}
        (tmp_path / f"{name}.json").write_text(json.dumps({**split, "label": "labels/{case}.nii.gz", **lists}))
        options = {
            **SMALL,
            "iterations": 2,
            "dataset_dir": str(phantom_dir),
            "split_file": str(tmp_path / f"{name}.json"),
            "output_dir": str(tmp_path / name),
            **({"evaluation_dir": str(tmp_path / f"{name}_evaluation")} if evaluates else {}),
            **overrides,
        }
        client = MonaiAlgo(
            bundle_root=str(bundle),
            local_epochs=1,
            send_weight_diff=False,
            config_train_filename=["configs/train.json", *files],
            config_evaluate_filename="default" if evaluates else None,
            train_kwargs=options,
            eval_kwargs=options,
            best_model_filepath=str(tmp_path / name / "model.pt"),
            final_model_filepath=str(tmp_path / name / "model_final.pt"),
        )
        client.initialize({ExtraItems.CLIENT_NAME: name})
        return client

    return make


LISTS = ("labeled", "unlabeled", "validation", "test")


def average(clients):
    weights = [client.get_weights().weights for client in clients]
    return ExchangeObject(
        weights={name: torch.stack([part[name].float() for part in weights]).mean(dim=0) for name in weights[0]},
        weight_type=WeightType.WEIGHTS,
    )


def test_two_rounds_of_two_sites_one_without_labels(make_site, tmp_path):
    one = make_site("one", labeled=(0, 1), unlabeled=(2,), validation=(4,), test=(5,))
    # Nobody has drawn a label there, so there is nothing to evaluate with either.
    two = make_site("two", evaluates=False, unlabeled=(3,), labeled_batch_size=0)
    shared = average([one, two])
    # As the documented client does, before there is any file of weights; it has those of the server, not of this file.
    assert 0 <= one.evaluate(data=shared).metrics["mean_dice"] <= 1
    assert (tmp_path / "one_evaluation/metrics_cases.csv").is_file()
    assert not (tmp_path / "one_evaluation/metrics_weights.json").exists()
    for round_number in (1, 2):
        for client in (one, two):
            client.train(data=shared)
            trained = client.get_weights()
            assert trained.statistics["num_executed_iterations"] == 2
            assert trained.weights.keys() == shared.weights.keys()
            moved = [name for name in shared.weights if not torch.equal(trained.weights[name], shared.weights[name])]
            for subnetwork in ("vnet", "resnet_vnet"):
                assert f"{subnetwork}.classifier.weight" in moved
        previous, shared = shared, average([one, two])
        assert not torch.equal(previous.weights["vnet.classifier.weight"], shared.weights["vnet.classifier.weight"])
        # Both go on from the same weights in the next round.
        metrics = one.evaluate(data=shared).metrics
        assert 0 <= metrics["mean_dice"] <= 1
        assert one.evaluate(data=shared).metrics == metrics
        assert one.trainer.state.iteration == two.trainer.state.iteration == 2 * round_number

    history = {name: pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two")}
    for table in history.values():
        assert table["iteration"].tolist() == [1, 2, 3, 4]
        for term in ("consistency", "uncertainty", "pseudo_label", "contrastive"):
            assert table[f"loss_{term}"].notna().all()
    assert history["one"]["loss_supervised_vnet"].notna().all()
    assert not any("supervised" in column for column in history["two"])
    for client in (one, two):
        final = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.FINAL_MODEL})
        assert all(torch.equal(value, client.get_weights().weights[name]) for name, value in final.weights.items())
        client.finalize()


def test_a_round_goes_on_with_the_batches_that_come_next(make_site, monkeypatch):
    site = make_site("one", evaluates=False, labeled=(0, 1), unlabeled=(2,))
    starts = []
    loader = site.trainer.data_loader
    draw = loader._batches
    monkeypatch.setattr(loader, "_batches", lambda *a, **k: starts.append(loader.start_iteration) or draw(*a, **k))
    shared = average([site])
    site.train(data=shared)
    site.train(data=shared)
    # Two streams a round.
    assert starts == [0, 0, 2, 2]


def test_a_site_without_labels_needs_a_method_that_trains_without(make_site):
    site = make_site("two", "configs/method_cps.json", evaluates=False, unlabeled=(3,), labeled_batch_size=0)
    with assert_refused("labeled_batch_size must be at least 1 for CrossPseudoSupervision, got 0", ValueError):
        site.train(data=average([site]))


def test_a_site_without_labels_has_to_say_so(make_site):
    with assert_refused(
        "the list labeled of the split must hold at least one case.*labeled_batch_size 0 trains without", ValueError
    ):
        make_site("two", evaluates=False, unlabeled=(3,))
