# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Contrastive loss between the features of uncertain voxels and the prototypes of the classes."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..parallel import from_first_process, gather_over_processes, process_rank, sum_over_processes
from .checks import check_mask, check_voxel_map

Form = Literal["hinge", "infonce", "literal", "own_class_minimized"]

# Below the square roots, so that a feature vector of zeros (all channels cut by a ReLU) has a bounded gradient.
_NORM_EPSILON = 1e-8
_DISTANCE_EPSILON = 1e-12
# Of which features are copied in float32 at a time.
_VOXELS_AT_ONCE = 2**16


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / (vectors.square().sum(dim=-1, keepdim=True) + _NORM_EPSILON).sqrt()


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distance along the last axis, which broadcasts."""
    return ((a - b).square().sum(dim=-1) + _DISTANCE_EPSILON).sqrt()


class _SumsAndSample(torch.autograd.Function):
    """Sums of features over masked voxels in float32, and single voxels, with one gradient for both.

    The sums are products with the masks, without a copy of the features in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, voxels: torch.Tensor, masks: torch.Tensor, sample: torch.Tensor, voxel: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(masks, sample, voxel)
        ctx.dtype = voxels.dtype
        sums = voxels.new_zeros((masks.shape[1], voxels.shape[2]), dtype=torch.float32)
        for features, mask in zip(voxels, masks, strict=True):
            for part, members in zip(features.split(_VOXELS_AT_ONCE), mask.split(_VOXELS_AT_ONCE, dim=1), strict=True):
                sums.addmm_(members.float(), part.float())
        return sums, voxels[sample, voxel].float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: torch.Tensor, of_sample: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        masks, sample, voxel = ctx.saved_tensors
        gradient = masks.transpose(1, 2).to(ctx.dtype) @ of_sums.to(ctx.dtype)
        gradient.index_put_((sample, voxel), of_sample.to(ctx.dtype), accumulate=True)
        return gradient, None, None, None


class PrototypeContrastiveLoss(nn.Module):
    r"""Align uncertain voxels with class prototypes and hold the prototypes apart.

    The prototype of a class is the mean feature of its reliable voxels (Equation 10 of
    https://arxiv.org/abs/2505.17690). With d the Euclidean distance of vectors scaled to length 1, u a sample of the
    uncertain voxels, k(u) the class predicted there, and c the prototypes, the forms are

    - "hinge": :math:`\mathrm{mean}_k \, \mathrm{mean}_{u: k(u) = k} \, d(u, c_k) + \mathrm{mean}_{i<j}
      \max(0, m - d(c_i, c_j))`, the prototypes constant in the first term and trained by the second: what the text
      around Equation 11 asks for;
    - "infonce": :math:`\mathrm{mean}_u -\log \frac{\exp(\cos(u, c_{k(u)}) / T)}{\sum_k \exp(\cos(u, c_k) / T)}`,
      the prototypes constant;
    - "literal": :math:`\mathrm{mean}_u \sum_k d(u, c_k) + \sum_{i<j} d(c_i, c_j)`, Equation 11 as printed, for any
      number of classes. Degenerate: it pulls all voxels and prototypes to one point and holds no class information;
    - "own_class_minimized": :math:`\sum_k \mathrm{mean}_{u: k(u) = k} \, d(u, c_k) + \sum_{i<j} d(c_i, c_j)`, the
      prototypes constant in the first term: the terms of the public LUSEG code. It also pulls the prototypes together.

    A class without prototype takes no part, nor does an uncertain voxel of such a class (except in "literal", which
    never asks for the class of the voxel). The pair term is 0 for fewer than two prototypes.

    Voxels are those of all processes: for the prototypes, for the sample, and wherever below they are counted.

    Args:
        num_classes: number of classes C with the background, at least 2.
        form: one of the above.
        margin: m, distance from which two prototypes are far enough apart, at least 0; the largest possible distance
            is 2, and sqrt(2) for features that are nowhere negative.
        temperature: T of "infonce", above 0.
        sample_fraction: share of the uncertain voxels of each class to use, above 0 and at most 1; at least one voxel.
        max_samples: largest number of uncertain voxels of each class to use, at least 1.
        min_reliable: smallest number of reliable voxels to make a prototype of, at least 1. A class with fewer takes
            the mean over the labeled voxels of that class if there are any, or has no prototype.

    Raises:
        ValueError: when an option is not one of these.
    """

    def __init__(
        self,
        num_classes: int,
        form: Form = "hinge",
        margin: float = 1.0,
        temperature: float = 0.1,
        sample_fraction: float = 0.01,
        max_samples: int = 4096,
        min_reliable: int = 16,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f"form must be 'hinge', 'infonce', 'literal' or 'own_class_minimized', got {form!r}.")
        if not margin >= 0:
            raise ValueError(f"margin must be at least 0, got {margin!r}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature!r}.")
        if not 0 < sample_fraction <= 1:
            raise ValueError(f"sample_fraction must be above 0 and at most 1, got {sample_fraction!r}.")
        least = (("num_classes", num_classes, 2), ("max_samples", max_samples, 1), ("min_reliable", min_reliable, 1))
        for name, value, minimum in least:
            if not isinstance(value, int) or value < minimum:
                raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")
        self.num_classes = num_classes
        self.form = form
        self.margin = margin
        self.temperature = temperature
        self.sample_fraction = sample_fraction
        self.max_samples = max_samples
        self.min_reliable = min_reliable

    def forward(
        self,
        features: torch.Tensor,
        pseudo_label: torch.Tensor,
        reliable: torch.Tensor,
        labeled_features: torch.Tensor | None = None,
        label: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Compare the uncertain voxels of the unlabeled batch with the prototypes of the classes.

        Args:
            features: last decoder map of the network to train, before dropout, (B, K, X, Y, Z).
            pseudo_label: predicted class indices of the same voxels, (B, 1, X, Y, Z).
            reliable: True where reliable; all other voxels are the uncertain ones, bool, (B, 1, X, Y, Z).
            labeled_features: features of labeled voxels for the classes that lack reliable ones, (B', K, X', Y', Z').
            label: class indices of these, (B', 1, X', Y', Z').
            generator: source of the sample, on the CPU; without it, the global one of PyTorch, so that a training
                which restores that state repeats its samples. Of several processes, the first one draws.

        Returns:
            The loss, a float32 scalar connected to the features; a connected zero where there is nothing to compare.

        Raises:
            ValueError: when the shapes do not fit, the mask is not bool, or only one labeled argument is given.
        """
        self._check(features, pseudo_label, reliable, labeled_features, label)
        # Mixed precision would compute the products below in half precision, which cannot hold a sum over a volume.
        with torch.autocast(device_type=features.device.type, enabled=False):
            members, counts = self._members(pseudo_label, reliable)
            means = self._labeled_means(labeled_features, label, [c for c in counts if counts[c] < self.min_reliable])
            reliable_classes = [c for c in counts if counts[c] >= self.min_reliable]
            classes = sorted({*reliable_classes, *means})
            sampled_classes = list(range(self.num_classes)) if self.form == "literal" else classes
            position, rows, sizes = self._draw(pseudo_label, reliable, sampled_classes, generator)
            # Voxels before channels, as in the product of the head: gradients of one layout are added fast.
            voxels = features.flatten(2).transpose(1, 2)
            sums, vectors = _SumsAndSample.apply(voxels, members[:, reliable_classes], *position)
            sums = sum_over_processes(sums)
            means.update({c: total / counts[c] for c, total in zip(reliable_classes, sums, strict=True)})
            prototypes = _unit(torch.stack([means[c] for c in classes])) if classes else sums
            terms = []
            if classes and sum(sizes):
                terms.append(self._alignment(_unit(vectors), rows, sizes, prototypes))
            if len(classes) > 1 and self.form != "infonce":
                terms.append(self._separation(prototypes))
            if not terms:
                # The sum of an empty part: zero with a gradient of zeros, also where a feature is infinite.
                return features.narrow(0, 0, 0).float().sum()
            return torch.stack(terms).sum()

    def _check(
        self,
        features: torch.Tensor,
        pseudo_label: torch.Tensor,
        reliable: torch.Tensor,
        labeled_features: torch.Tensor | None,
        label: torch.Tensor | None,
    ) -> None:
        if features.ndim < 3:
            raise ValueError(f"features must be of shape (B, K, X, Y, Z), got {tuple(features.shape)}.")
        check_voxel_map(pseudo_label, "pseudo_label", features, "features")
        check_mask(reliable, "reliable", features, "features")
        if (labeled_features is None) != (label is None):
            missing = "labeled_features" if labeled_features is None else "label"
            raise ValueError(f"labeled_features and label must be given together, got None for {missing}.")
        if labeled_features is not None and label is not None:
            if labeled_features.ndim < 3 or labeled_features.shape[1] != features.shape[1]:
                raise ValueError(
                    "labeled_features must have as many channels as features, "
                    f"got {tuple(labeled_features.shape)} beside {tuple(features.shape)}."
                )
            check_voxel_map(label, "label", labeled_features, "labeled_features")

    def _members(self, class_map: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
        """Masked voxels of each class, (B, C, voxels), and how many of each class all processes have."""
        members = torch.cat([(class_map == index) & mask for index in range(self.num_classes)], dim=1).flatten(2)
        return members, dict(enumerate(sum_over_processes(members.sum(dim=(0, 2))).tolist()))

    def _labeled_means(
        self, features: torch.Tensor | None, label: torch.Tensor | None, classes: list[int]
    ) -> dict[int, torch.Tensor]:
        """Mean feature of the labeled voxels of each of these classes that has any."""
        if not classes or features is None or label is None:
            return {}
        members, counts = self._members(label, torch.ones_like(label, dtype=torch.bool))
        classes = [index for index in classes if counts[index]]
        none = label.new_zeros(0, dtype=torch.long)
        sums, _ = _SumsAndSample.apply(features.flatten(2).transpose(1, 2), members[:, classes], none, none)
        sums = sum_over_processes(sums)
        return {index: total / counts[index] for index, total in zip(classes, sums, strict=True)}

    def _draw(
        self, pseudo_label: torch.Tensor, reliable: torch.Tensor, classes: list[int], generator: torch.Generator | None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, list[int]]:
        """Draw uncertain voxels of each class from those of all processes.

        Returns:
            crop and voxel of those drawn from this process, (samples,) each; the place of their classes in
            ``classes``, (samples,); how many were drawn of each class over all processes.
        """
        uncertain = ~reliable
        candidates = [((pseudo_label == index) & uncertain).flatten().nonzero().squeeze(1) for index in classes]
        own_counts = [[len(voxels) for voxels in candidates]]
        counts = gather_over_processes(torch.tensor(own_counts, dtype=torch.long, device=reliable.device))
        counts = counts.cpu()
        totals, firsts = counts.sum(dim=0).tolist(), counts[: process_rank()].sum(dim=0).tolist()
        chosen, sizes = [], []
        for voxels, total, first in zip(candidates, totals, firsts, strict=True):
            size = min(total, self.max_samples, max(1, int(self.sample_fraction * total)))
            # Drawn on the CPU: the same sample on every device.
            order = torch.randperm(total, generator=generator)[:size].to(voxels.device)
            order = from_first_process(order) - first
            chosen.append(voxels[order[(order >= 0) & (order < len(voxels))]])
            sizes.append(size)
        rows = [torch.full_like(voxels, row) for row, voxels in enumerate(chosen)]
        no_voxel = reliable.new_zeros(0, dtype=torch.long)
        position = torch.cat([no_voxel, *chosen])
        num_voxels = max(1, math.prod(reliable.shape[1:]))
        return (position // num_voxels, position % num_voxels), torch.cat([no_voxel, *rows]), sizes

    def _alignment(
        self, vectors: torch.Tensor, rows: torch.Tensor, sizes: list[int], prototypes: torch.Tensor
    ) -> torch.Tensor:
        if self.form == "literal":
            return sum_over_processes(_distance(vectors[:, None], prototypes[None]).sum()) / sum(sizes)
        fixed = prototypes.detach()
        if self.form == "infonce":
            total = F.cross_entropy(vectors @ fixed.T / self.temperature, rows, reduction="sum")
            return sum_over_processes(total) / sum(sizes)
        members = F.one_hot(rows, len(sizes)).to(vectors)
        totals = sum_over_processes(_distance(vectors, fixed[rows]) @ members)
        means = torch.stack([total / size for total, size in zip(totals, sizes, strict=True) if size > 0])
        return means.mean() if self.form == "hinge" else means.sum()

    def _separation(self, prototypes: torch.Tensor) -> torch.Tensor:
        first, second = zip(*combinations(range(len(prototypes)), 2), strict=True)
        distances = _distance(prototypes[list(first)], prototypes[list(second)])
        return (self.margin - distances).relu().mean() if self.form == "hinge" else distances.sum()
