# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Terms, gradients, noise and teacher of the mean teacher, and resuming of the methods with a teacher."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.mean_teacher import MeanTeacher
from scripts.networks.single_network import SingleNetwork
from scripts.networks.vnet import VNet
from scripts.schedules import Weight


class TinySingle(nn.Module):
    def __init__(self, num_classes=2, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout3d(dropout), nn.Conv3d(4, num_classes, 1)
            )

    def forward(self, image):
        return self.backbone(image).float().softmax(dim=1)


class Scores(nn.Module):
    """Scores (0, a x) of two classes: the foreground probability is the sigmoid of a x."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def backbone(self, image):
        return torch.cat((torch.zeros_like(image), self.factor * image), dim=1)

    def forward(self, image):
        return self.backbone(image).softmax(dim=1)


class Recorder(nn.Module):
    """A teacher that keeps what it saw and is certain of nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        return torch.full((image.shape[0], 2, *image.shape[2:]), 0.5)


def make_batch(size=6, num_classes=2, num_labeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (num_labeled, 1, size, size, size)
    return {
        "image": torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn((2, *shape[1:]), generator=generator),
    }


def make_method(network=None, **options):
    return MeanTeacher(network or TinySingle(), supervised=SupervisedLoss(0.5, 0.5), **options).train()


def gradients_of(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


def test_value_by_hand():
    method = make_method(Scores(2.0), noise_std=0.0, consistency_weight=3.0)
    nn.init.constant_(method.teacher.network.factor, -1.0)
    values = torch.tensor([0.5, 1.0])
    batch = {
        "image": torch.ones(1, 1, 1, 1, 1),
        "label": torch.ones(1, 1, 1, 1, 1),
        "unlabeled": values.view(2, 1, 1, 1, 1),
    }
    output = method(batch, 0)
    assert set(output) == {"loss", "loss_supervised", "loss_consistency", "weight_consistency"}
    # Two classes have the same squared distance, so that their mean is that of the foreground.
    consistency = ((2 * values).sigmoid() - (-values).sigmoid()).square().mean().item()
    assert output["loss_consistency"].item() == pytest.approx(consistency, rel=1e-5)
    foreground = 1 / (1 + math.exp(-2))
    supervised = 0.5 * -math.log(foreground) + 0.5 * (1 - (2 * foreground + 1e-5) / (foreground**2 + 1 + 1e-5))
    assert output["loss_supervised"].item() == pytest.approx(supervised, rel=1e-5)
    assert output["loss"].item() == pytest.approx(supervised + 3 * consistency, rel=1e-5)
    assert output["loss"].shape == ()


def test_consistency_trains_the_network_alone():
    method = make_method()
    output = method(make_batch(), 0)
    # Without noise and with equal weights the two would agree: the noise alone gives a gradient here.
    gradients = gradients_of(output["loss_consistency"], method.network)
    assert all(gradient is not None for gradient in gradients)
    assert gradients[0].norm() > 0
    assert gradients_of(output["loss_supervised"], method.network)[0].norm() > 0
    output["loss"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_the_optimizer_moves_the_network_alone():
    method = make_method()
    assert [id(parameter) for parameter in method.trainable_parameters()] == [
        id(parameter) for parameter in method.network.parameters()
    ]


def test_agreement_has_no_loss():
    output = make_method(noise_std=0.0)(make_batch(), 0)
    # Not exactly: the batch statistics of the joint pass are not those of the teacher's.
    assert output["loss_consistency"].item() > 0
    output = make_method(Scores(2.0), noise_std=0.0)(make_batch(), 0)
    assert output["loss_consistency"].item() == 0


def test_noise_is_bounded_and_for_the_teacher_alone():
    method = make_method(Scores(1.0))
    method.teacher = Recorder()
    batch = make_batch(size=16)
    seen, scores = [], method.network.backbone
    method.network.backbone = lambda image: (seen.append(image), scores(image))[1]
    method(batch, 0)
    (view,) = method.teacher.seen
    noise = view - batch["unlabeled"]
    assert noise.shape == batch["unlabeled"].shape
    assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-6)
    # A normal number is beyond two standard deviations in 4.55 of 100 cases, and clamped there its spread is 0.959.
    assert (noise.abs() > 0.2 - 1e-6).float().mean().item() == pytest.approx(0.0455, abs=0.01)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.004)
    assert noise.std().item() == pytest.approx(0.0959, abs=0.003)
    (images,) = seen
    assert torch.equal(images, torch.cat((batch["image"], batch["unlabeled"])))


@pytest.mark.parametrize(("options", "largest"), [({"noise_std": 0.0}, 0.0), ({"noise_limit": 0.05}, 0.05)])
def test_noise_options(options, largest):
    method, batch = make_method(Scores(1.0), **options), make_batch()
    method.teacher = Recorder()
    method(batch, 0)
    noise = method.teacher.seen[0] - batch["unlabeled"]
    assert noise.abs().max().item() == pytest.approx(largest, abs=1e-6)


def test_noise_repeats_with_the_global_generator():
    method, batch = make_method(Scores(1.0)), make_batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method(batch, 0)["loss_consistency"].item())
    assert losses[0] == losses[1] != losses[2]


def test_weight_follows_its_ramp():
    method = make_method(consistency_weight=Weight(0.1, "sigmoid", 100))
    for step, expected in ((0, 0.1 * math.exp(-5)), (50, 0.1 * math.exp(-1.25)), (100, 0.1), (200, 0.1)):
        output = method(make_batch(), step)
        assert output["weight_consistency"] == pytest.approx(expected, rel=1e-6)
        total = output["loss_supervised"] + expected * output["loss_consistency"]
        assert output["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_teacher_follows_after_the_step():
    method = make_method(Scores(1.0), decay=0.75)
    weights = []
    for step, factor in enumerate((3.0, 5.0, 7.0, 8.0, 0.0)):
        nn.init.constant_(method.network.factor, factor)
        assert method.after_step(step) is None
        weights.append(method.teacher.network.factor.item())
    # Copied, then 1/2, 2/3, 3/4 and 3/4 of the average.
    assert weights == pytest.approx([3.0, 4.0, 5.0, 5.75, 4.3125], rel=1e-6)


def test_teacher_is_in_training_mode():
    method = make_method(TinySingle(dropout=0.5))
    assert all(module.training for module in method.teacher.modules())
    statistics = method.teacher.network.backbone[1]
    batch = make_batch()
    method(batch, 0)
    # Its running statistics come from its own pass over the noisy unlabeled crops.
    assert statistics.num_batches_tracked == 1
    assert statistics.running_mean.abs().sum() > 0
    method.after_step(0)
    student = method.network.backbone[1]
    assert not torch.equal(statistics.running_mean, student.running_mean)
    assert torch.equal(statistics.weight, student.weight)
    with torch.no_grad():
        views = [method.teacher(batch["unlabeled"]) for _ in range(8)]
    assert any(not torch.equal(views[0], view) for view in views[1:])


@pytest.mark.parametrize("without", ["unlabeled", "weight"])
def test_without_a_consistency_term(without):
    method, batch = make_method(consistency_weight=0.0 if without == "weight" else 0.1), make_batch()
    method.teacher = Recorder()
    if without == "unlabeled":
        del batch["unlabeled"]
    output = method(batch, 0)
    assert set(output) == {"loss", "loss_supervised"}
    assert method.teacher.seen == []
    assert gradients_of(output["loss"], method.network)[0].norm() > 0


def test_unlabeled_crops_are_in_the_statistics_of_the_student():
    batch, outputs = make_batch(), []
    for factor in (1.0, 10.0):
        method = make_method()
        outputs.append(method({**batch, "unlabeled": factor * batch["unlabeled"]}, 0)["loss_supervised"].item())
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize(
    "kind", ["saturated", "constant", "background", "tiny", "three_classes", "one_crop", "no_unlabeled"]
)
def test_degenerate_batches(kind):
    num_classes = 3 if kind == "three_classes" else 2
    batch = make_batch(1 if kind == "tiny" else 6, num_classes, num_labeled=1 if kind == "one_crop" else 2)
    network = TinySingle(num_classes)
    if kind == "saturated":
        nn.init.constant_(network.backbone[3].weight, 1e6)
    elif kind == "constant":
        batch["image"].zero_()
        batch["unlabeled"].zero_()
    elif kind == "background":
        batch["label"].zero_()
    elif kind == "no_unlabeled":
        del batch["unlabeled"]
    output = make_method(network)(batch, 0)
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_std": -0.1}, r"noise_std must be at least 0, got -0\.1"),
        ({"noise_limit": math.nan}, "noise_limit must be at least 0, got nan"),
        ({"decay": 1.0}, r"decay must be at least 0 and below 1, got 1\.0"),
        ({"consistency_weight": -1.0}, r"consistency_weight must be at least 0.*, got -1\.0"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)


def test_options_are_described():
    description = make_method(consistency_weight=Weight(0.1, "sigmoid", 100), decay=0.9).describe()
    for part in ("MeanTeacher(", "Weight(0.1, sigmoid, 100)", "noise_std=0.1", "noise_limit=0.2", "'decay': 0.9"):
        assert part in description


def test_real_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(SingleNetwork())
        method(make_batch(size=16), 0)["loss"].backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_configuration(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    files = [configs / "train.json", configs / "method_mean_teacher.json"]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    with torch.device("meta"):
        parser["network"] = parser.get_parsed_content("network_def")
    method = parser.get_parsed_content("method_def")
    assert type(method) is MeanTeacher
    assert type(method.network.backbone) is VNet
    assert (method.teacher.decay, method.noise_std, method.noise_limit) == (0.99, 0.1, 0.2)
    assert [method.consistency_weight(step) for step in (0, 3000, 6000)] == pytest.approx(
        [0.1 * math.exp(-5), 0.1 * math.exp(-1.25), 0.1]
    )
    logits = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    label = make_batch(size=4)["label"]
    cross_entropy = F.cross_entropy(logits, label[:, 0]).item()
    dice = SupervisedLoss(cross_entropy_weight=0.0)(logits, label).item()
    assert method.supervised(logits, label).item() == pytest.approx(0.5 * (cross_entropy + dice), rel=1e-5)
