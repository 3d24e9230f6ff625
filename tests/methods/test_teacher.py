# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Average, modes and gradients of the moving-average teacher."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scripts.methods.teacher import MovingAverageTeacher


def make_network(weight=1.0):
    """A network of one weight, with a batch normalization that has running statistics."""
    network = nn.Sequential(nn.Conv3d(1, 1, 1, bias=False), nn.BatchNorm3d(1))
    nn.init.constant_(network[0].weight, weight)
    return network


def weight_of(network):
    return network[0].weight.item()


@pytest.fixture
def image():
    return torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # Teacher 1, network 3: decay min(1 - 1 / (t + 1), 0.99) of the one, the rest of the other.
        (0, 3.0),
        (1, 2.0),
        (3, 1.5),
        (98, 1.02020202),
        (99, 1.02),
        (100_000, 1.02),
    ],
)
def test_average_by_hand(step, expected):
    teacher = MovingAverageTeacher(make_network(1.0))
    teacher.follow(make_network(3.0), step)
    assert weight_of(teacher.network) == pytest.approx(expected, rel=1e-6)


def test_first_update_copies_to_the_bit():
    network = nn.Conv3d(4, 4, 3)
    teacher = MovingAverageTeacher(nn.Conv3d(4, 4, 3), decay=0.9)
    teacher.follow(network, 0)
    assert torch.equal(teacher.network.weight, network.weight)
    assert torch.equal(teacher.network.bias, network.bias)


def test_average_of_several_steps_is_the_mean_while_it_warms_up():
    teacher = MovingAverageTeacher(make_network(100.0), decay=0.99)
    for step, weight in enumerate((1.0, 4.0, 7.0, 0.0)):
        teacher.follow(make_network(weight), step)
    assert weight_of(teacher.network) == pytest.approx(3.0, rel=1e-6)


def test_decay_is_an_option():
    teacher = MovingAverageTeacher(make_network(1.0), decay=0.0)
    teacher.follow(make_network(3.0), 1000)
    assert weight_of(teacher.network) == 3.0


def test_following_changes_the_teacher_alone():
    network, teacher = make_network(3.0), MovingAverageTeacher(make_network(1.0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher.follow(network, 1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_copy_shares_nothing():
    network = make_network(1.0)
    teacher = MovingAverageTeacher(network)
    nn.init.constant_(network[0].weight, 5.0)
    network[1].running_mean.fill_(5.0)
    assert weight_of(teacher.network) == 1.0
    assert teacher.network[1].running_mean.item() == 0.0


def test_it_takes_no_gradient(image):
    teacher = MovingAverageTeacher(make_network())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    image.requires_grad_()
    assert not teacher(image).requires_grad
    teacher.follow(make_network(), 5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_statistics_come_from_its_own_passes(image):
    network, teacher = make_network(), MovingAverageTeacher(make_network())
    network(image + 3)
    teacher.follow(network, 0)
    assert teacher.network[1].running_mean.item() == 0.0
    teacher.train()(image)
    assert teacher.network[1].running_mean.item() == pytest.approx(0.1 * image.mean().item(), rel=1e-4)
    before = teacher.network[1].running_mean.clone()
    teacher.eval()(image + 3)
    assert torch.equal(teacher.network[1].running_mean, before)


def test_training_mode_uses_the_statistics_of_the_batch(image):
    teacher = MovingAverageTeacher(make_network())
    assert teacher.train()(image + 3).mean().item() == pytest.approx(0.0, abs=1e-5)
    teacher.network[1].reset_running_stats()
    assert teacher.eval()(image + 3).mean().item() == pytest.approx(image.mean().item() + 3, rel=1e-3)


def test_copy_takes_parameters_and_statistics(image):
    network, teacher = make_network(3.0), MovingAverageTeacher(make_network(1.0))
    network(image)
    teacher.copy_from(network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in teacher.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    nn.init.constant_(network[0].weight, 5.0)
    assert weight_of(teacher.network) == 3.0


def test_mode_of_evaluation_stays_and_averages_the_statistics(image):
    network = nn.Sequential(*make_network(), nn.Dropout3d(0.5))
    teacher = MovingAverageTeacher(network, mode="evaluation")
    for _ in range(2):
        assert not any(module.training for module in teacher.network.modules())
        teacher.train()
    assert torch.equal(teacher(image), teacher(image))
    network[1].running_mean.fill_(8.0)
    network[1].num_batches_tracked.fill_(5)
    teacher.follow(network, 3)
    assert teacher.network[1].running_mean.item() == pytest.approx(2.0)
    assert teacher.network[1].num_batches_tracked.item() == 5
    teacher(image)
    assert teacher.network[1].running_mean.item() == pytest.approx(2.0)


def test_mode_is_refused():
    with pytest.raises(ValueError, match="teacher_mode must be 'training' or 'evaluation', got 'test'"):
        MovingAverageTeacher(make_network(), mode="test")


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        MovingAverageTeacher(make_network()).follow(nn.Conv3d(1, 1, 1, bias=False), 1)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay must be at least 0 and below 1, got {decay}"):
        MovingAverageTeacher(make_network(), decay=decay)
