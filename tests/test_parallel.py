# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Two processes with half of a batch each compute what one process computes of the whole batch."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
import torch
from conftest import ROOT
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scripts.losses.contrastive import PrototypeContrastiveLoss
from scripts.losses.copy_paste import DistanceCorrectionLoss, EntropyCorrectionLoss
from scripts.losses.pseudo_label import PseudoLabelLoss
from scripts.losses.reliability import ReliabilityFilter
from scripts.methods.base import Method
from scripts.networks.recompute import recompute
from scripts.parallel import (
    from_first_process,
    gather_over_processes,
    global_batch_size,
    num_processes,
    process_rank,
    synchronize_batch_norm,
)
from scripts.trainer import NonFiniteLossError, SemiSupervisedTrainer

#: Far enough in the run for every ramp to be above 0.
STEP = 3000
NUM_CLASSES = 3


class TinyNetwork(nn.Module):
    """Convolution, batch normalization, ReLU and a head: the interface of the segmentation networks."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = nn.Conv3d(1, 4, 3, padding=1, bias=False)
            self.normalization = nn.BatchNorm3d(4)
            self.classifier = nn.Conv3d(4, NUM_CLASSES, 1)
            # Wide enough that some predictions are confident and some are not.
            nn.init.normal_(self.classifier.weight, std=2.0)

    def features(self, image):
        return self.normalization(self.convolution(image)).relu()

    def head(self, features):
        return self.classifier(features)

    def head_without_dropout(self, features):
        return self.head(features)

    def forward(self, image):
        return self.head(self.features(image))


class TinyPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.vnet, self.resnet_vnet = TinyNetwork(1), TinyNetwork(2)


class TinySingle(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TinyNetwork(1)

    def forward(self, image):
        return self.backbone(image).softmax(dim=1)


class TinyDecoders(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoders = nn.ModuleList([TinyNetwork(1), TinyNetwork(2)])

    def all_logits(self, image):
        return [decoder(image) for decoder in self.decoders]


class TinyTasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.distance = TinyNetwork(1), nn.Conv3d(4, NUM_CLASSES - 1, 1)
        nn.init.constant_(self.distance.weight, 0.1)
        nn.init.constant_(self.distance.bias, 0.0)

    def logits_and_distance(self, image):
        features = self.backbone.features(image)
        return self.backbone.head(features), self.distance(features).tanh()


#: Methods that several processes train exactly: overlays of train.json by the network that they need.
METHODS = {
    "train": TinyPair,
    "method_dual_network_literal": TinyPair,
    "method_dual_network_released": TinyPair,
    "method_dual_network_improved": TinyPair,
    "method_luseg": TinyPair,
    "method_luseg_released": TinyPair,
    "method_cps": TinyPair,
    "method_mcf": TinyPair,
    "method_supervised_dual": TinyPair,
    "method_supervised_dual_rectified": TinyPair,
    "method_supervised_vnet": TinySingle,
    "method_mean_teacher": TinySingle,
    "method_uncertainty_aware_mean_teacher": TinySingle,
    "method_mc_net": TinyDecoders,
    "method_dtc": TinyTasks,
}
#: The same, and the method whose discriminator has an optimizer of its own.
NETWORKS = {**METHODS, "method_sassnet": TinyTasks}
#: Options of the dual network beside those of the overlays.
VARIANTS = {
    "per class, infonce": {"reliability#scope": "per_class", "contrastive#form": "infonce"},
    "literal contrast of both": {"contrastive#form": "literal", "contrastive_network": "both"},
    "winner": {"roles": "winner", "contrastive_network": "loser", "pseudo_label_source": "winner"},
    "separate passes": {"passes": "separate"},
    "symmetric": {"roles": "symmetric", "uncertainty_region": "unlabeled"},
}
CASES = [*METHODS, *VARIANTS]


def parse(case):
    """Read shipped files for a method on a small network, without what every process draws for itself."""
    name = case if case in NETWORKS else "train"
    files = [ROOT / "configs" / f"{file}.json" for file in dict.fromkeys(("train", name))]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    for path, value in VARIANTS.get(case, {}).items():
        parser[f"method_def#{path}"] = value
    if "contrastive" in parser["method_def"]:
        parser["method_def#contrastive#sample_fraction"] = 0.5
    if "noise_std" in parser["method_def"]:
        parser["method_def#noise_std"] = 0
    if "discriminator" in parser["method_def"]:
        parser["method_def#discriminator#dropout"] = 0.0
    parser["num_classes"] = NUM_CLASSES
    parser["device"] = "cpu"
    network = NETWORKS[name]()
    parser["network"] = synchronize_batch_norm(network, device="cpu") if num_processes() > 1 else network
    return parser


def make_method(case):
    method = parse(case).get_parsed_content("method")
    if hasattr(method, "teacher"):
        for parameter in method.teacher.parameters():
            parameter += 0.3
    return method


def make_batch(size=6):
    """Two labeled and two unlabeled crops; only the second one shows class 2."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, size, size, size)
    label = torch.randint(NUM_CLASSES, shape, generator=generator)
    label[0] %= 2
    image, unlabeled = torch.randn(2, *shape, generator=generator) * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1)
    return {"image": image, "label": label, "unlabeled": unlabeled}


def own_part(tensor):
    return tensor.chunk(num_processes())[process_rank()]


def train_once(case):
    """Gradient, buffers and terms of this process for its part of the batch."""
    torch.manual_seed(process_rank())
    method = make_method(case).train()
    batch = {key: own_part(value) for key, value in make_batch().items()}
    module = DistributedDataParallel(method) if num_processes() > 1 else method
    output = module(batch, STEP)
    output["loss"].backward()
    return {
        "gradients": {name: value.grad for name, value in method.named_parameters() if value.grad is not None},
        "buffers": dict(method.named_buffers()),
        "terms": {name: torch.as_tensor(value).detach() for name, value in output.items()},
    }


def train_with_a_discriminator():
    """Gradients, terms and buffers of two iterations of SASSNet in this process, on its part of the batch."""
    torch.manual_seed(process_rank())
    parser = parse("method_sassnet")
    # Without its ramp, as these iterations are the first ones.
    parser["method_def#adversarial_weight"] = 1.0
    method, optimizer, auxiliary = (
        parser.get_parsed_content(name) for name in ("method", "optimizer", "auxiliary_optimizer")
    )
    module = DistributedDataParallel(method, find_unused_parameters=True) if num_processes() > 1 else method
    # The smallest crop that the discriminator takes.
    loader = Batches(2 * [{key: own_part(value) for key, value in make_batch(size=16).items()}])
    trainer = SemiSupervisedTrainer("cpu", 1, loader, method.network, module, optimizer, auxiliary_optimizer=auxiliary)
    gradients, terms = {}, {}

    def note(part, prefix):
        for name, parameter in part.named_parameters():
            gradients[f"{prefix}{name}, {trainer.state.iteration}"] = parameter.grad.clone()

    optimizer.register_step_pre_hook(lambda *_: note(method.network, "network."))
    auxiliary.register_step_pre_hook(lambda *_: note(method.discriminator, "discriminator."))

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine):
        terms.update({f"{name}, {engine.state.iteration}": value for name, value in engine.state.terms.items()})

    trainer.run()
    return {"gradients": gradients, "terms": terms, "buffers": dict(method.named_buffers())}


def voxels(*values):
    """A row of voxels, one value or one vector of channels each, over all processes."""
    return own_part(torch.tensor(values).reshape(len(values), -1, 1, 1, 1))


def logits_of(*certainty):
    """Two-class scores; the larger the number, the lower the entropy, and negative ones are of class 0."""
    return voxels(*([-value / 2, value / 2] for value in certainty))


def losses_by_hand():
    """What tests below expect of two processes with half of the voxels each."""
    # Entropies fall from the first to the last voxel: the median is between both processes.
    batch = ReliabilityFilter(50.0)(logits_of(0.1, 0.2, 0.3, 1.0, 2.0, 3.0))
    # Class 1 has four voxels, of which the two of lowest entropy are in one process; class 0 has two.
    per_class = ReliabilityFilter(50.0, "per_class")(logits_of(0.1, -0.2, 0.3, 1.0, 2.0, -0.1))
    # The reliable voxels of class 0 are in the first process, that of class 1 in the second one; class 2 is nowhere.
    features = voxels([1.0, 0.0], [3.0, 0.0], [0.0, 7.0], [0.0, 3.0], [0.5, 0.5], [0.0, 7.0])
    classes, reliable = voxels(0, 0, 1, 1, 0, 1), voxels(True, True, False, True, False, False)
    contrastive = {
        form: PrototypeContrastiveLoss(3, form, min_reliable=1, sample_fraction=1.0, temperature=1.0)(
            features, classes, reliable
        )
        for form in ("hinge", "infonce", "literal", "own_class_minimized")
    }
    # With too few reliable voxels, the labeled ones make the prototypes; here they are the same six voxels.
    labeled = PrototypeContrastiveLoss(3, min_reliable=3, max_samples=1)(features, classes, reliable, features, classes)
    nothing = PrototypeContrastiveLoss(3, min_reliable=1)(features, classes, torch.ones_like(reliable))
    no_prototype = PrototypeContrastiveLoss(3, min_reliable=9)(features, classes, reliable)
    # One voxel of the first process is reliable, three of the second one.
    mask = voxels(True, False, False, True, True, True)
    pseudo = {
        option: PseudoLabelLoss(option)(logits_of(2.0, 0, 0, 0, 0, 0), torch.ones_like(classes), mask)
        for option in ("none", "total_over_valid")
    }
    # The first process has one disputed voxel, the second one three.
    corrections = {
        loss.__name__: loss()(logits_of(2.0, 0, 0, 0.5, 1.0, 3.0), torch.zeros_like(classes), mask, mask)
        for loss in (DistanceCorrectionLoss, EntropyCorrectionLoss)
    }
    return {
        **corrections,
        "batch": gather_over_processes(batch.flatten().int()),
        "per_class": gather_over_processes(per_class.flatten().int()),
        **contrastive,
        "labeled": labeled,
        "nothing": nothing,
        "no_prototype": no_prototype,
        **pseudo,
    }


def normalize():
    """A batch normalization in training and then in evaluation."""
    layer = nn.Sequential(nn.BatchNorm3d(3, momentum=0.3))
    nn.init.normal_(layer[0].weight, generator=torch.Generator().manual_seed(1))
    if num_processes() > 1:
        synchronize_batch_norm(layer, device="cpu")
    features = torch.randn(4, 3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    features = own_part(2 * features + torch.arange(4.0).reshape(4, 1, 1, 1, 1)).requires_grad_()
    output = recompute(layer, features)
    output.pow(3).sum().backward()
    trained = {name: value.clone() for name, value in layer.state_dict().items()}
    return {
        "output": gather_over_processes(output.detach()),
        "gradient": gather_over_processes(features.grad),
        "evaluated": gather_over_processes(layer.eval()(features).detach()),
        **trained,
    }


class PlainMean(Method):
    """A method whose loss each process computes alone."""

    def forward(self, batch, step):
        return {"loss": self.network(batch["image"]).mean()}


class Batches(list):
    """A loader of the trainer."""

    def start_at(self, iteration):
        pass


def train_on_a_broken_crop():
    """What the trainer says in this process when the crop of the last one is broken."""
    network = nn.Conv3d(1, 2, 1)
    batch = make_batch()
    batch["image"][-1] = torch.nan
    loader = Batches([{key: own_part(batch[key]) for key in ("image", "label")}])
    method = DistributedDataParallel(PlainMean(network))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    try:
        SemiSupervisedTrainer("cpu", 1, loader, network, method, optimizer).run()
    except NonFiniteLossError as error:
        return str(error)
    return "trained"


def run_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {case: train_once(case) for case in CASES}
    results |= {
        "by hand": losses_by_hand(),
        "normalize": normalize(),
        "from first": from_first_process(torch.tensor([rank])),
        "gathered": gather_over_processes(torch.arange(rank + 1)),
        "global batch": global_batch_size(3),
        "broken": train_on_a_broken_crop(),
        "discriminator": train_with_a_discriminator(),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Results of both processes."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def difference(value, expected):
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_two_processes_is_that_of_one(processes, case):
    expected = train_once(case)
    for result in (part[case] for part in processes):
        assert result["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            assert gradient.norm() > 1e-4, name
            assert difference(result["gradients"][name], gradient) < 1e-5, name
        for name, buffer in expected["buffers"].items():
            assert torch.allclose(result["buffers"][name].float(), buffer.float(), rtol=1e-5, atol=1e-6), name
    for name, term in expected["terms"].items():
        values = torch.stack([part[case]["terms"][name] for part in processes])
        assert values.mean().item() == pytest.approx(term.item(), rel=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_processes_that_know_nothing_of_each_other_have_another_gradient(monkeypatch, case):
    # Otherwise the test above would prove nothing.
    expected, batch, halves = train_once(case)["gradients"], make_batch(), []
    for half in range(2):
        monkeypatch.setitem(globals(), "make_batch", lambda half=half: {k: v[[half]] for k, v in batch.items()})
        halves.append(train_once(case)["gradients"])
    mean = {name: (first + halves[1][name]) / 2 for name, first in halves[0].items()}
    assert max(difference(mean[name], gradient) for name, gradient in expected.items()) > 0.1


def test_both_parts_of_sassnet_learn_in_two_processes_what_they_learn_in_one(processes):
    expected = train_with_a_discriminator()
    for result in (part["discriminator"] for part in processes):
        assert result["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            # The biases of the discriminator get the small difference of what labeled and unlabeled crops ask for.
            assert (result["gradients"][name] - gradient).norm() < 1e-5 * gradient.norm() + 1e-7, name
        for name, buffer in expected["buffers"].items():
            assert torch.allclose(result["buffers"][name].float(), buffer.float(), rtol=1e-5, atol=1e-6), name
        assert result["terms"] == pytest.approx(expected["terms"], rel=1e-5)


def test_both_parts_of_sassnet_would_learn_something_else_from_halves_of_the_batch(monkeypatch):
    # Otherwise the test above would prove nothing.
    expected, batch, halves = train_with_a_discriminator()["gradients"], make_batch(size=16), []
    for half in range(2):
        monkeypatch.setitem(globals(), "make_batch", lambda size, half=half: {k: v[[half]] for k, v in batch.items()})
        halves.append(train_with_a_discriminator()["gradients"])
    for part in ("network.", "discriminator."):
        names = [name for name in expected if name.startswith(part)]
        assert max(difference((halves[0][name] + halves[1][name]) / 2, expected[name]) for name in names) > 0.1


def test_losses_by_hand(processes):
    alone = losses_by_hand()
    diagonal = (2 - 2**0.5) ** 0.5
    for result in (part["by hand"] for part in processes):
        assert result["batch"].tolist() == [0, 0, 0, 1, 1, 1]
        assert result["per_class"].tolist() == [0, 1, 0, 1, 1, 0]
        # Prototypes (2, 0) and (0, 3); of class 0 one uncertain voxel is 45 degrees off, of class 1 two fit.
        assert result["hinge"].item() == pytest.approx(diagonal / 2, abs=1e-5)
        # Both prototypes are seen at (45, 45), (90, 0) and (90, 0) degrees, and each other at 90.
        assert result["literal"].item() == pytest.approx((2 * diagonal + 2 * 2**0.5) / 3 + 2**0.5, abs=1e-5)
        assert result["infonce"].item() == pytest.approx((2 * math.log(1 + math.exp(-1)) + math.log(2)) / 3, abs=1e-5)
        assert result["nothing"].item() == result["no_prototype"].item() == 0
        assert result["none"].item() == pytest.approx((3 * math.log(2) + math.log(1 + math.exp(-2))) / 4)
        assert result["total_over_valid"].item() == pytest.approx(6 / 4 * result["none"].item())
        for name, value in result.items():
            assert torch.allclose(value, alone[name], atol=1e-6), name


def test_batch_normalization_is_that_of_the_whole_batch(processes):
    expected = normalize()
    for result in (part["normalize"] for part in processes):
        assert list(result) == list(expected)
        for name, value in expected.items():
            assert torch.allclose(result[name], value, rtol=1e-5, atol=1e-5), name


def test_batch_normalization_of_one_value_is_refused():
    layer = synchronize_batch_norm(nn.Sequential(nn.BatchNorm3d(3)), device="cpu")
    with pytest.raises(ValueError, match="features must have more than one value for each channel in training, got 1"):
        layer(torch.zeros(1, 3, 1, 1, 1))


def test_replaced_layers_keep_their_precision():
    network = synchronize_batch_norm(TinyNetwork(0).double(), device="cpu")
    assert {value.dtype for value in network.normalization.parameters()} == {torch.float64}


def test_gpus_get_the_layers_of_pytorch():
    network = synchronize_batch_norm(TinyNetwork(0), device="cuda:0")
    assert type(network.normalization) is nn.SyncBatchNorm


def test_processes_exchange(processes):
    for result in processes:
        assert result["from first"].tolist() == [0]
        assert result["gathered"].tolist() == [0, 0, 1]
        assert result["global batch"] == 6


def test_a_broken_crop_of_one_process_stops_all(processes):
    for result in processes:
        assert result["broken"].startswith("iteration 1: loss = nan")
