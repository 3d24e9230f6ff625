# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Files of weights are checked before they are used."""

from __future__ import annotations

import errno
import os
import pickle

import pytest
import torch
from conftest import SMALL
from torch import nn

from scripts.console import describe_mistake
from scripts.errors import BundleError
from scripts.networks.dual_network import DualNetwork
from scripts.networks.single_network import SingleNetwork
from scripts.weights import check_disagreement, check_weights, describe_network, place_network


def make_network(num_classes=2):
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, num_classes, 1))


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(make_network().state_dict(), path)
    return path


class Intruder:
    """An object that runs a function where a file of it is unpickled without care."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_good_weights_pass_and_change_nothing(weights):
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = check_weights(str(weights), network)
    assert all(torch.equal(state[name], value) for name, value in torch.load(weights, weights_only=True).items())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert network.training


def test_weights_of_another_precision_and_device_pass(tmp_path):
    torch.save(make_network().half().state_dict(), tmp_path / "half.pt")
    state = check_weights(str(tmp_path / "half.pt"), make_network())
    assert state["0.weight"].dtype == torch.float16


def test_only_two_networks_disagree():
    with torch.device("meta"):
        check_disagreement(DualNetwork(with_disagreement=True))
        for network in (DualNetwork(), SingleNetwork("vnet")):
            with pytest.raises(BundleError, match=f"save_uncertainty needs the two .*: {type(network).__name__} gives"):
                check_disagreement(network)


def test_a_network_is_described_by_what_its_weights_do_not_tell():
    network = SingleNetwork(dropout=0.25)
    assert describe_network(network) == "SingleNetwork with dropout 0.25"
    network = DualNetwork(normalization="instance")
    assert describe_network(network) == "DualNetwork with dropout 0.5, InstanceNorm3d"


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(
            BundleError, match=rf"ckpt_path {path} does not exist: train first, or name a file"
        ) as caught:
            check_weights(str(path), make_network())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 500, -100])
def test_truncated_file(weights, kept):
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"model\.pt cannot be read as a file of weights; it may be damaged"):
        check_weights(str(weights), make_network())


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<html></html>",
        b"\x80\x02.",
        b"PK\x03\x04",
        bytes(1000),
    ],
)
def test_other_file(weights, content):
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.pt cannot be read as a file of weights"):
        check_weights(str(weights), make_network())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_the_system_does_not_read_is_not_called_damaged(weights, monkeypatch, number):
    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("scripts.weights.ZipFile", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        check_weights(str(weights), make_network())
    assert describe_mistake(caught.value) == f"{weights}: {os.strerror(number)}"


def test_no_code_of_the_file_is_run(weights):
    for save in (lambda: torch.save(Intruder(), weights), lambda: weights.write_bytes(pickle.dumps(Intruder()))):
        save()
        with pytest.raises(BundleError, match="cannot be read as a file of weights"):
            check_weights(str(weights), make_network())


@pytest.mark.parametrize(
    "state",
    [
        {},
        [1, 2],
        torch.zeros(3),
        nn.Linear(1, 1).state_dict(),
        {"model": make_network().state_dict()},
        {**make_network().state_dict(), "extra": torch.zeros(1)},
        {name: value for name, value in make_network().state_dict().items() if name != "2.bias"},
    ],
)
def test_another_network(weights, state):
    torch.save(state, weights)
    with pytest.raises(BundleError, match=r"model\.pt holds the weights of another network than the configured one"):
        check_weights(str(weights), make_network())


def test_weights_that_are_not_finite(weights):
    state = make_network().state_dict()
    state["2.bias"][1] = float("nan")
    torch.save(state, weights)
    with pytest.raises(BundleError, match=r"ckpt_path .*model\.pt holds values that are not finite, in 2\.bias"):
        check_weights(str(weights), make_network())


def test_a_checkpoint_in_the_place_of_weights(weights):
    torch.save({"format": 2, "iteration": 4, "method": make_network().state_dict()}, weights)
    with pytest.raises(BundleError, match=r"is a checkpoint, .* name the model_final\.pt or model\.pt of its run"):
        check_weights(str(weights), make_network())


def test_values_that_are_no_tensors(weights):
    torch.save(dict.fromkeys(make_network().state_dict(), 1.0), weights)
    with pytest.raises(BundleError, match=r"model\.pt"):
        check_weights(str(weights), make_network())


def test_another_number_of_classes(weights):
    with pytest.raises(BundleError) as caught:
        check_weights(str(weights), make_network(num_classes=3))
    assert str(caught.value) == (
        f"ckpt_path {weights} does not fit: 2.weight has shape [2, 4, 1, 1, 1], the configured network needs "
        "[3, 4, 1, 1, 1]; check num_classes and in_channels."
    )


def test_training_starts_from_given_weights(weights):
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert place_network(network, device="cpu") is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    place_network(network, device="cpu", channels_last=True, initial_weights=str(weights))
    expected = torch.load(weights, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert not torch.equal(network[0].weight, before["0.weight"])
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_start_from_weights_of_half_precision_trains_in_full(tmp_path):
    torch.save(make_network().half().state_dict(), tmp_path / "half.pt")
    network = place_network(make_network(), device="cpu", initial_weights=str(tmp_path / "half.pt"))
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_start_from_other_weights_is_refused(weights, tmp_path):
    with pytest.raises(BundleError, match=r"initial_weights .*model\.pt does not fit: 2\.weight has shape"):
        place_network(make_network(3), device="cpu", initial_weights=str(weights))
    with pytest.raises(
        BundleError, match=r"initial_weights .*none\.pt does not exist: .*, or leave initial_weights out"
    ):
        place_network(make_network(), device="cpu", initial_weights=str(tmp_path / "none.pt"))


def test_shipped_configuration_gives_the_teacher_the_given_weights_too(tmp_path, make_workflow, phantom_dir):
    torch.save(DualNetwork().state_dict(), tmp_path / "model.pt")
    overrides = {"dataset_dir": str(phantom_dir), "initial_weights": str(tmp_path / "model.pt"), **SMALL}
    workflow = make_workflow("train", "method_dual_copy_paste", **overrides)
    workflow.initialize()
    method = workflow.parser.get_parsed_content("method_def")
    expected = torch.load(tmp_path / "model.pt", weights_only=True)
    for network in (method.network, method.teacher.network):
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
