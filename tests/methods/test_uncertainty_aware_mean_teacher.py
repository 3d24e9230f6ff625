# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Mask, target, gradients and refusals of the uncertainty-aware mean teacher."""

from __future__ import annotations

import math

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.losses.supervised import SupervisedLoss
from scripts.methods.uncertainty_aware_mean_teacher import UncertaintyAwareMeanTeacher
from scripts.networks.single_network import SingleNetwork
from scripts.networks.vnet import VNet
from scripts.schedules import Weight

END = 6000


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


class Answers(nn.Module):
    """A teacher with given answers, one a pass; each is a list of voxels in a row with their probabilities."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = [torch.tensor(rows).T[None, :, :, None, None] for rows in answers]
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        return self.answers[len(self.seen) - 1].clone()


class Certain(nn.Module):
    """A teacher that is certain of the background everywhere, or of nothing."""

    def __init__(self, num_classes, certain):
        super().__init__()
        self.probabilities = torch.full((num_classes,), 1 / num_classes)
        if certain:
            self.probabilities = torch.eye(num_classes)[0]

    def forward(self, image):
        shape = (image.shape[0], len(self.probabilities), *image.shape[2:])
        return self.probabilities.view(1, -1, 1, 1, 1).expand(shape).clone()


def make_batch(size=6, num_classes=2, num_labeled=2):
    generator = torch.Generator().manual_seed(0)
    shape = (num_labeled, 1, size, size, size)
    return {
        "image": torch.randn(shape, generator=generator),
        "label": torch.randint(num_classes, shape, generator=generator),
        "unlabeled": torch.randn((2, *shape[1:]), generator=generator),
    }


def make_method(network=None, **options):
    options = {"threshold_rise": Weight(0.25, "sigmoid", END), **options}
    return UncertaintyAwareMeanTeacher(network or TinySingle(), supervised=SupervisedLoss(0.5, 0.5), **options).train()


def row_batch(voxels):
    """One labeled and one unlabeled crop of voxels in a row."""
    image = torch.linspace(-1.0, 1.0, voxels).view(1, 1, voxels, 1, 1)
    return {"image": image, "label": (image > 0).float(), "unlabeled": image.flip(2)}


def gradients_of(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


def masked_error(method, batch, target, counts):
    """Squared distance of the network to a target over the voxels that count, by hand."""
    logits = method.network.backbone(torch.cat((batch["image"], batch["unlabeled"])))[1:]
    error = (logits.softmax(dim=1) - target).square().sum(dim=1).flatten()
    return (error[counts].sum() / (target.shape[1] * len(counts))).item()


# Parts of ln 2 that the entropy of (0.2, 0.8) etc. has: 0.722, 0.748, 0.756, 0.993, 0.9999 and 1.
ROWS = [[0.2, 0.8], [0.2135, 0.7865], [0.2175, 0.7825], [0.45, 0.55], [0.495, 0.505], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("step", "part", "counts"),
    [
        (0, 0.75 + 0.25 * math.exp(-5), [0, 1]),
        (END // 2, 0.75 + 0.25 * math.exp(-1.25), [0, 1, 2]),
        (END - 600, 0.75 + 0.25 * math.exp(-0.05), [0, 1, 2]),
        (END, 1.0, [0, 1, 2, 3, 4]),
        (2 * END, 1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_mask_by_hand(step, part, counts):
    entropies = [-sum(p * math.log(p) for p in row) for row in ROWS]
    assert [index for index, entropy in enumerate(entropies) if entropy < part * math.log(2) - 1e-7] == counts
    method, batch = make_method(num_passes=1), row_batch(len(ROWS))
    target = [[0.9, 0.1]] * len(ROWS)
    method.teacher = Answers(target, ROWS)
    output = method(batch, step)
    expected = masked_error(method, batch, method.teacher.answers[0], counts)
    assert output["loss_consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_threshold_is_a_part_of_the_entropy_of_all_classes():
    rows = [[0.7, 0.2, 0.1], [0.65, 0.23, 0.12]]
    entropies = [-sum(p * math.log(p) for p in row) for row in rows]
    # Both are above ln 2, so that the threshold of two classes would let neither pass.
    assert math.log(2) < entropies[0] < 0.75 * math.log(3) < 0.7517 * math.log(3) < entropies[1]
    method, batch = make_method(TinySingle(num_classes=3), num_passes=1), row_batch(2)
    method.teacher = Answers([[0.1, 0.2, 0.7]] * 2, rows)
    output = method(batch, 0)
    expected = masked_error(method, batch, method.teacher.answers[0], [0])
    assert output["loss_consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_certainty_is_that_of_the_mean():
    """Passes that are each certain of another class are not certain together."""
    method, batch = make_method(num_passes=4), row_batch(2)
    target, background, foreground = [[0.7, 0.3]] * 2, [0.99, 0.01], [0.01, 0.99]
    # The mean of the second voxel is (0.255, 0.745), of which the entropy is 0.819 of ln 2: below that of step 5000.
    passes = [[background, foreground], [foreground, background], [background, foreground], [foreground, foreground]]
    method.teacher = Answers(target, *passes)
    assert method(batch, 0)["loss_consistency"].item() == 0
    assert len(method.teacher.seen) == 1 + 4
    method.teacher = Answers(target, *passes)
    output = method(batch, 5000)
    expected = masked_error(method, batch, method.teacher.answers[0], [1])
    assert output["loss_consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_every_pass_has_noise_of_its_own():
    method, batch = make_method(num_passes=3), row_batch(5)
    method.teacher = Answers(*[[[0.9, 0.1]] * 5] * 4)
    method(batch, 0)
    views = method.teacher.seen
    assert len(views) == 4
    assert all((view - batch["unlabeled"]).abs().max() <= 0.2 + 1e-6 for view in views)
    assert all(not torch.equal(a, b) for index, a in enumerate(views) for b in views[:index])


def test_dropout_makes_the_teacher_uncertain():
    certain = {}
    for dropout in (0.0, 0.5):
        method, batch = make_method(TinySingle(dropout=dropout), noise_std=0.0), make_batch()
        # Large scores: a single pass is certain nearly everywhere.
        nn.init.normal_(method.teacher.network.backbone[3].weight, std=20.0, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        certain[dropout] = method._mask(batch["unlabeled"], 0).float().mean().item()
    assert certain[0.5] < certain[0.0] - 0.1


def test_consistency_trains_the_network_alone():
    method = make_method()
    method.teacher = Certain(2, certain=True)
    output = method(make_batch(), 0)
    assert set(output) == {"loss", "loss_supervised", "loss_consistency", "weight_consistency"}
    assert gradients_of(output["loss_consistency"], method.network)[0].norm() > 0
    assert gradients_of(output["loss_supervised"], method.network)[0].norm() > 0
    method = make_method(threshold_rise=10.0)
    method(make_batch(), END)["loss"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert [id(parameter) for parameter in method.trainable_parameters()] == [
        id(parameter) for parameter in method.network.parameters()
    ]


def test_no_certain_voxel_is_a_connected_zero():
    method = make_method()
    method.teacher = Certain(2, certain=False)
    output = method(make_batch(), 0)
    assert output["loss_consistency"].item() == 0
    assert all((gradient == 0).all() for gradient in gradients_of(output["loss_consistency"], method.network))
    assert output["loss"].item() == output["loss_supervised"].item()


def test_teacher_follows_and_stays_in_training_mode():
    method = make_method(num_passes=3)
    assert all(module.training for module in method.teacher.modules())
    method(make_batch(), 0)
    assert method.teacher.network.backbone[1].num_batches_tracked == 4
    nn.init.constant_(method.network.backbone[3].bias, 3.0)
    method.after_step(0)
    nn.init.constant_(method.network.backbone[3].bias, 5.0)
    method.after_step(1)
    assert method.teacher.network.backbone[3].bias.tolist() == pytest.approx([4.0, 4.0])


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
    assert ("loss_consistency" in output) == (kind != "no_unlabeled")
    assert all(torch.as_tensor(value).isfinite() for value in output.values())
    output["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_passes": 0}, "num_passes must be a whole number of at least 1, got 0"),
        ({"num_passes": 2.5}, "num_passes must be a whole number of at least 1, got 2.5"),
        ({"threshold": -0.1}, r"threshold must be from 0 to 1, got -0\.1"),
        ({"threshold": 1.1}, r"threshold must be from 0 to 1, got 1\.1"),
        ({"threshold": math.nan}, "threshold must be from 0 to 1, got nan"),
        ({"threshold_rise": -0.25}, r"threshold_rise must be at least 0.*, got -0\.25"),
        ({"noise_std": -0.1}, r"noise_std must be at least 0, got -0\.1"),
        ({"decay": 1.0}, r"decay must be at least 0 and below 1, got 1\.0"),
    ],
)
def test_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_method(**options)


def test_autocast_keeps_the_loss_in_float32():
    method, batch = make_method(threshold=1.0), make_batch()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(method(batch, END)["loss_consistency"])
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.2)
    assert losses[1].item() > 0


def test_real_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = make_method(SingleNetwork(), num_passes=2, threshold=1.0)
        output = method(make_batch(size=16), END)
    assert output["loss_consistency"] > 0
    output["loss"].backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_configuration(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    files = [configs / "train.json", configs / "method_uncertainty_aware_mean_teacher.json"]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    with torch.device("meta"):
        parser["network"] = parser.get_parsed_content("network_def")
    method = parser.get_parsed_content("method_def")
    assert type(method) is UncertaintyAwareMeanTeacher
    assert type(method.network.backbone) is VNet
    assert (method.teacher.decay, method.noise_std, method.noise_limit) == (0.99, 0.1, 0.2)
    assert (method.num_passes, method.threshold) == (8, 0.75)
    steps = (0, END // 2, END)
    assert [method.consistency_weight(step) for step in steps] == pytest.approx(
        [0.1 * math.exp(-5), 0.1 * math.exp(-1.25), 0.1]
    )
    assert [method.threshold + method.threshold_rise(step) for step in steps] == pytest.approx(
        [0.7516845, 0.8216262, 1.0], abs=1e-6
    )


def test_the_threshold_rises_over_the_whole_run_where_the_weight_does_not(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    names = ("train", "method_uncertainty_aware_mean_teacher", "recipe_mc_net")
    parser = ConfigParser(ConfigParser.load_config_files([configs / f"{name}.json" for name in names]))
    lengths = [
        parser.get_parsed_content(f"method_def#{name}#length") for name in ("consistency_weight", "threshold_rise")
    ]
    assert lengths == [6000, 15000]


def test_the_threshold_stays_where_no_rise_is_given():
    method = UncertaintyAwareMeanTeacher(make_method().network, supervised=SupervisedLoss())
    assert [method.threshold + method.threshold_rise(step) for step in (0, 100)] == [0.75, 0.75]
