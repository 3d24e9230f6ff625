# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What a method of one's own gets from its base class."""

from __future__ import annotations

import importlib
from abc import ABC

import pytest
import torch
from torch import nn

from scripts.files import code_hash, file_hash
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

    def at(self, step):
        return step / self.length


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


def test_a_weight_of_no_term_is_told():
    terms = {"loss_supervised": torch.tensor(2.0), "loss_consistency": torch.tensor(3.0)}
    assert weighted_sum(terms, {"weight_consistency": 0.5})["loss"] == 3.5
    with pytest.warns(UserWarning, match="weight_pi is the weight of none of the terms loss_supervised, loss_consist"):
        assert weighted_sum(terms, {"weight_pi": 0.5})["loss"] == 5


def test_plain_objects_and_lists_of_terms_are_described_by_what_they_hold(own_method):
    cls = own_method()
    text = cls(nn.Identity()).describe()
    assert text == cls(nn.Identity()).describe()
    assert "ramp=Ramp{'length': 5}" in text
    assert "OwnTerm{'weight': 1.0}" in text
    assert " at 0x" not in text
    assert text != cls(nn.Identity(), length=6).describe()
    assert text != cls(nn.Identity(), weight=2.0).describe()


HELD = [
    ("object()", "object{}"),
    ("torch.Generator()", "Generator{}"),
    ("Selfish()", "Selfish{'own': ['Selfish']}"),
    ("Holder(network)", "Holder{'held': 'DualNetwork'}"),
    ("[1, Ramp(2)]", "[1, \"Ramp{'length': 2}\"]"),
    ("F.mse_loss", "torch.nn.functional.mse_loss"),
    ("torch.sigmoid", "torch._VariableFunctionsClass.sigmoid"),
    ("lambda x: x", "own_method.OwnMethod.__init__.<locals>.<lambda>"),
    ("partial(F.mse_loss, reduction='sum')", "partial['torch.nn.functional.mse_loss', {'reduction': 'sum'}]"),
    ("partial(nn.ReLU, True)", "functools.partial(<class 'torch.nn.modules.activation.ReLU'>, True)"),
    ("Holder(F.mse_loss)", "Holder{'held': 'torch.nn.functional.mse_loss'}"),
    ("{'loss': F.mse_loss}", "{'loss': 'torch.nn.functional.mse_loss'}"),
    ("Ramp(2).at", "Ramp{'length': 2}.at"),
    ("'found at 0x12'", "found at 0x12"),
]


@pytest.mark.parametrize(("value", "description"), HELD)
def test_whatever_a_method_holds_can_be_described(value, description, own_method):
    own = "class Selfish:\n    def __init__(self):\n        self.own = [self]\n\n\n"
    own += "class Holder:\n    def __init__(self, held):\n        self.held = held\n\n\n"
    imports = "import torch\nfrom functools import partial\nfrom torch.nn import functional as F\n"
    code = f"{imports}{CODE}        self.held = {value}\n".replace("class Ramp", f"{own}class Ramp")
    text = own_method(code)(DualNetwork(1, 2)).describe()
    assert f", held={description}, losses=" in text


def test_the_code_of_a_method_from_elsewhere_is_known_by_its_hash(own_method):
    cls = own_method()
    known = code_hash(cls(nn.Identity()))
    assert code_hash(own_method()(nn.Identity())) == known
    changed = own_method(CODE.replace("self.length = length", "self.length = length + 0"))
    assert code_hash(changed(nn.Identity())) != known
    assert changed(nn.Identity()).describe() == cls(nn.Identity()).describe()


def test_of_the_bundles_own_methods_the_commit_is_known():
    class Typed(Method, ABC):
        pass

    assert code_hash(SupervisedDualNetwork(DualNetwork(1, 2), supervised=SupervisedLoss())) is None
    # Its file is this one; that of ABC is Python's.
    assert code_hash(Typed(nn.Identity())) == file_hash(__file__)
