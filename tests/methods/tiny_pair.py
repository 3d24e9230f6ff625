# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A pair of networks of some forty weights, a batch for it, and the size of a gradient."""

from __future__ import annotations

import torch
from torch import nn


class TinyStudent(nn.Module):
    """Convolution, batch normalization, ReLU and a head."""

    def __init__(self, seed, num_classes):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv3d(1, 4, 3, padding=1)
            self.normalization = nn.BatchNorm3d(4)
            self.classifier = nn.Conv3d(4, num_classes, 1)

    def forward(self, image):
        return self.classifier(self.normalization(self.convolution(image)).relu())


class TinyPair(nn.Module):
    """Two of these, deployed as the mean of both softmaxes."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.vnet = TinyStudent(1, num_classes)
        self.resnet_vnet = TinyStudent(2, num_classes)

    def forward(self, image):
        return (self.vnet(image).softmax(dim=1) + self.resnet_vnet(image).softmax(dim=1)) / 2


def make_batch(size=6, num_classes=2, num_labeled=2, num_unlabeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (1, size, size, size)
    batch = {
        "image": torch.randn(num_labeled, *shape, generator=generator),
        "label": torch.randint(num_classes, (num_labeled, *shape), generator=generator),
    }
    if num_unlabeled:
        batch["unlabeled"] = torch.randn(num_unlabeled, *shape, generator=generator)
    return batch


def gradient_norm(loss, module):
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return sum(float(gradient.norm()) for gradient in gradients if gradient is not None)


#: Batches on which a careless loss is not a number or has no gradient.
DEGENERATE = ("background", "constant", "saturated", "no_unlabeled", "three_classes")


def assert_degenerate_batch_trains(make_method, pair, kind, step):
    """Every term is finite and every weight of both networks has a finite gradient.

    Args:
        make_method: the method of a pair of networks.
        pair: class of the pair.
        kind: one of DEGENERATE.
        step: iterations done before.
    """
    num_classes = 3 if kind == "three_classes" else 2
    batch, network = make_batch(num_classes=num_classes), pair(num_classes)
    if kind == "background":
        batch["label"].zero_()
    elif kind == "constant":
        batch["image"].zero_()
        batch["unlabeled"].zero_()
    elif kind == "no_unlabeled":
        del batch["unlabeled"]
    elif kind == "saturated":
        with torch.no_grad():
            network.vnet.classifier.weight *= 1e6
            network.resnet_vnet.classifier.weight *= 1e6
    output = make_method(network)(batch, step)
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
