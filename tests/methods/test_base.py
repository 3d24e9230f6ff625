# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a method of one's own gets from its base class."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.base import Method, weighted_sum
from scripts.methods.supervised import SupervisedDualNetwork
from scripts.networks.dual_network import DualNetwork

CODE = """
from torch import nn

from scripts.methods.base import Method


class Ramp:
    def __init__(self, length):
        self.length = length


class OwnTerm(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight


class OwnMethod(Method):
    def __init__(self, network, length=5, weight=1.0):
        super().__init__(network)
        self.ramp = Ramp(length)
        self.losses = nn.ModuleDict({"own": OwnTerm(weight)})
"""


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """Writes the module of an own method and imports it as a new process would."""

    def write(code=CODE):
        (tmp_path / "own_method.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(importlib.sys.modules, "own_method", raising=False)
        return importlib.import_module("own_method").OwnMethod

    return write


def test_a_weight_of_no_term_is_refused():
    terms = {"loss_supervised": torch.tensor(2.0), "loss_consistency": torch.tensor(3.0)}
    assert weighted_sum(terms, {"weight_consistency": 0.5})["loss"] == 3.5
    with pytest.raises(ValueError, match="after a term of loss_supervised, loss_consistency, got 'weight_pi'"):
        weighted_sum(terms, {"weight_pi": 0.5})


def test_plain_objects_and_lists_of_terms_are_described_by_what_they_hold(own_method):
    cls = own_method()
    text = cls(nn.Identity()).describe()
    assert text == cls(nn.Identity()).describe()
    assert "ramp=Ramp{'length': 5}" in text
    assert "OwnTerm{'weight': 1.0}" in text
    assert " at 0x" not in text
    assert text != cls(nn.Identity(), length=6).describe()
    assert text != cls(nn.Identity(), weight=2.0).describe()


def test_the_code_of_a_method_from_elsewhere_is_a_part_of_its_description(own_method):
    text = own_method()(nn.Identity()).describe()
    assert own_method()(nn.Identity()).describe() == text
    changed = own_method(CODE.replace("self.length = length", "self.length = length + 0"))(nn.Identity()).describe()
    assert changed != text
    assert changed.partition("code=")[0] == text.partition("code=")[0]


def test_the_bundles_own_methods_are_described_without_their_code():
    class Typed(Method):
        pass

    assert "code=" not in SupervisedDualNetwork(DualNetwork(1, 2), supervised=SupervisedLoss()).describe()
    # Its file is this one.
    assert "code=" in Typed(nn.Identity()).describe()
