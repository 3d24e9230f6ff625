# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""On a scan larger than those of the training the organ is found first, and segmented as in a crop around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import NormalizeIntensityd, ScaleIntensityd

from scripts.inferer import AugmentedInferer, FilledWindowInferer
from scripts.organ_inferer import OrganInferer, organ_regions

#: Each voxel 2 mm along x, which is the last axis of the array; 1 mm along y, the first one, and z.
AFFINE = torch.tensor([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
NORMALIZE = NormalizeIntensityd("image", channel_wise=True)


class BrightNetwork:
    """Finds what is well above the mean of a volume that is normalized; a third channel tells nothing of classes."""

    def __init__(self):
        self.seen = []

    def __call__(self, volumes):
        self.seen.append(volumes.clone())
        bright = volumes.gt(2.5).float()
        return torch.cat((1 - bright, bright, torch.full_like(bright, 2.0)), dim=1)


@pytest.fixture
def network():
    return BrightNetwork()


def organ_inferer(normalize=NORMALIZE, **options):
    settings = {"num_classes": 2, "trained_extent": [32, 16, 16], "trained_margin": [8, 4, 3], **options}
    return OrganInferer(
        settings.pop("inferer", SimpleInferer()),
        FilledWindowInferer(roi_size=16, overlap=0.5, padding_mode="replicate"),
        normalize=normalize,
        **settings,
    )


def scan_with_organs(*corners, size=(64, 48, 24), side=6):
    """Noise of tissue, organs of 100 more, and far away something brighter than any organ."""
    voxels = torch.randn(size, generator=torch.Generator().manual_seed(0))
    for x, y, z in corners:
        voxels[x : x + side, y : y + side, z : z + side] += 100
    # It moves mean and deviation of the whole scan so far that no organ is well above the mean.
    voxels[-16:, -16:] = 10000
    return MetaTensor(voxels[None, None], affine=AFFINE[None])


def found_in(scan, infer, network):
    probabilities = infer(scan, network)
    assert isinstance(probabilities, MetaTensor)
    assert torch.equal(probabilities.affine, scan.affine)
    assert not any(isinstance(seen, MetaTensor) for seen in network.seen)
    assert probabilities.shape == (1, 3, *scan.shape[2:])
    return probabilities[0, 1].numpy() > 0.5


def test_the_organ_is_found_and_its_surroundings_are_normalized_by_themselves(network):
    scan = scan_with_organs((20, 10, 8))
    whole = network((scan - scan.mean()) / scan.std(correction=0))
    assert not whole[0, 1, :48, :32].any()
    network.seen.clear()
    infer = organ_inferer()
    before = scan.clone()
    found = found_in(scan, infer, network)
    assert torch.equal(scan, before)
    assert found[20:26, 10:16, 8:14].all()
    # The box with the margin of 4, 3 and 4 voxels; beyond it there is background alone.
    box = scan.as_tensor()[..., 16:30, 7:19, 4:18]
    expected = (box - box.mean()) / box.std(correction=0)
    torch.testing.assert_close(network.seen[-1], expected, atol=1e-4, rtol=1e-4)
    beyond = np.ones_like(found)
    beyond[16:30, 7:19, 4:18] = False
    assert not found[beyond].any()
    probabilities = infer(scan, network)
    assert probabilities[0, 0].numpy()[beyond].min() == 1
    assert probabilities[0, 2].numpy()[beyond].max() == 0


def test_a_volume_of_the_size_of_the_training_goes_as_it_is(network):
    scan = scan_with_organs((4, 4, 4), size=(24, 24, 24))
    # 48 mm along x are half as large again as 32, and no more.
    torch.testing.assert_close(organ_inferer()(scan, network), SimpleInferer()(scan, network))
    assert len(network.seen) == 2
    organ_inferer(trained_extent=[31, 16, 16])(scan, network)
    assert len(network.seen) > 4


def test_neither_of_two_organs_is_lost(network):
    scan = scan_with_organs((2, 4, 8), (40, 10, 8))
    # Of two alike the first counts.
    found = found_in(scan, organ_inferer(), network)
    assert found[2:8, 4:10, 8:14].all()
    assert not found[40:46, 10:16, 8:14].any()
    found = found_in(scan, organ_inferer(num_organs=2), network)
    assert found[2:8, 4:10, 8:14].all()
    assert found[40:46, 10:16, 8:14].all()
    boxes = {(12, 12, 14), (14, 12, 14)}
    assert {tuple(seen.shape[2:]) for seen in network.seen[-2:]} == boxes
    # Where such a field was in the training, they have one box.
    organ_inferer(trained_extent=[31, 60, 60])(scan, network)
    assert network.seen[-1].shape[2:] == (50, 18, 14)


def test_views_are_of_the_last_crop_alone(network):
    scan = scan_with_organs((20, 10, 8))
    plain, augmented = BrightNetwork(), BrightNetwork()
    organ_inferer()(scan, plain)
    views = [{"turn": [0, 0, 0]}, {"turn": [0, 0, 0]}]
    infer = organ_inferer(inferer=AugmentedInferer(SimpleInferer(), views))
    found = found_in(scan, infer, augmented)
    assert len(augmented.seen) == len(plain.seen) + 2
    assert found[20:26, 10:16, 8:14].all()


def test_gray_values_that_are_not_normalized_stay(network):
    scan = scan_with_organs((20, 10, 8))
    scan[..., -16:, -16:, :] = 0
    scan[scan < 50] = 0
    organ_inferer(normalize=None)(scan, network)
    torch.testing.assert_close(network.seen[-1], scan.as_tensor()[..., 16:30, 7:19, 4:18])


def test_gray_values_that_are_normalized_by_given_numbers_are_not_normalized_again(network):
    scan = scan_with_organs((20, 10, 8))
    scan[..., -16:, -16:, :] = 0
    scan[scan < 50] = 0
    infer = organ_inferer(normalize=NormalizeIntensityd("image", subtrahend=-50, divisor=20))
    infer(scan, network)
    torch.testing.assert_close(network.seen[-1], scan.as_tensor()[..., 16:30, 7:19, 4:18])


@pytest.mark.parametrize(
    "normalize", [NormalizeIntensityd("image", divisor=2), ScaleIntensityd("image"), lambda item: item]
)
def test_other_normalizations_are_refused(normalize):
    with pytest.raises(ValueError, match="crop_to_organs needs normalize to be NormalizeIntensityd with both"):
        organ_inferer(normalize=normalize)


def test_a_scan_thinner_than_a_window_is_found_by_its_own_gray_values(network):
    scan = scan_with_organs((20, 10, 2), size=(64, 48, 10))
    # What windows are padded with must not be what is found, nor hide it.
    scan += 300
    infer = organ_inferer()
    assert found_in(scan, infer, network)[20:26, 10:16, 2:8].all()
    assert network.seen[0].shape[2:] == (16, 16, 16)


def test_where_nothing_is_found_the_scan_goes_as_it_is(network, caplog):
    scan = MetaTensor(torch.zeros(1, 1, 64, 48, 24), affine=AFFINE[None])
    probabilities = organ_inferer()(scan, network)
    assert probabilities[0, 1].eq(0).all()
    assert caplog.messages == ["a volume: no organ was found to crop to, it is segmented as it is: check the result."]
    assert network.seen[-1].shape == scan.shape


def test_where_the_box_holds_nothing_the_scan_goes_as_it_is(caplog):
    scan = scan_with_organs((20, 10, 8))
    seen = []

    def network(volumes):
        seen.append(volumes.shape)
        # Something is there in the windows of the search alone, each of which is normalized by itself.
        bright = volumes.gt(2.5).float() * (volumes.mean().abs() < 1e-3)
        return torch.cat((1 - bright, bright), dim=1)

    assert organ_inferer(trained_margin=[8, 8, 8])(scan, network)[0, 1].eq(0).all()
    assert caplog.messages[0].startswith("a volume: no organ was found to crop to, it is segmented as it is")
    assert seen[-1] == scan.shape


def test_what_is_cropped_to_is_told(network, caplog):
    with caplog.at_level("WARNING", logger="scripts.organ_inferer"):
        scan = scan_with_organs((20, 10, 8))
        # So it is in a batch.
        scan.meta["filename_or_obj"] = ["scan.nii"]
        organ_inferer()(scan, network)
    assert caplog.messages == ["scan.nii: cropped to voxels 16-30x7-19x4-18 of 64x48x24: check that it is the organ."]


def test_windows_of_a_crop_are_put_together(network):
    scan = scan_with_organs((20, 10, 8))
    infer = organ_inferer(inferer=SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.5))
    assert found_in(scan, infer, network)[20:26, 10:16, 8:14].all()


@pytest.mark.parametrize("inputs", [torch.zeros(1, 1, 64, 64, 64), MetaTensor(torch.zeros(2, 1, 8, 8, 8))])
def test_other_inputs_are_refused(inputs, network):
    with pytest.raises(ValueError, match="inputs must be one volume with its affine, got"):
        organ_inferer()(inputs, network)


def test_regions_hold_large_pieces_with_their_margin():
    foreground = np.zeros((40, 20, 20), bool)
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [40, 20, 20]) == []
    foreground[1:5, 4:8, 4:8] = True
    # A corner belongs to its piece.
    foreground[5, 8, 8] = True
    box = (slice(0, 7), slice(2, 11), slice(1, 12))
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [40, 20, 20]) == [box]
    # Less than half of 65 voxels, then half of it.
    foreground[20:28, 2:4, 2:4] = True
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [20, 20, 20]) == [box]
    foreground[28, 2, 2] = True
    second = (slice(19, 30), slice(0, 6), slice(0, 7))
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [20, 20, 20], 2) == [second, box]
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [20, 20, 20], 1) == [box]
    # A box around both spans 30, 11 and 12 voxels.
    assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], [30, 11, 12]) == [
        (slice(0, 30), slice(0, 11), slice(0, 12))
    ]
    for largest in ([29, 11, 12], [30, 10, 12], [30, 11, 11]):
        assert organ_regions(foreground, np.ones(foreground.shape), [1, 2, 3], largest, 2) == [second, box]


def test_a_small_organ_of_another_class_is_in_the_box_of_a_large_one():
    label_map = np.zeros((60, 20, 20), np.uint8)
    label_map[2:12, 2:12, 2:12] = 1
    label_map[12:14, 4:8, 4:8] = 2
    label_map[40:43, 5:8, 5:8] = 2
    # 27 voxels are less than half of the first class, and nearly as many as the 32 of the second beside it.
    assert organ_regions(label_map, np.ones(label_map.shape), [0, 0, 0], [41, 20, 20]) == [
        (slice(2, 43), slice(2, 12), slice(2, 12))
    ]
    # Where both do not fit, the large one counts, as sure as the small one may be.
    evidence = np.where(label_map > 0, 0.8, 0)
    evidence[40:43] = 1
    assert organ_regions(label_map, evidence, [0, 0, 0], [40, 20, 20]) == [(slice(2, 14), slice(2, 12), slice(2, 12))]
    # 9 are few of both.
    label_map[41, 5:8, 5:8] = 0
    label_map[42, 5:8, 5:8] = 0
    assert organ_regions(label_map, np.ones(label_map.shape), [0, 0, 0], [41, 20, 20]) == [
        (slice(2, 14), slice(2, 12), slice(2, 12))
    ]


def test_what_is_surest_counts_and_not_what_is_largest():
    label_map, evidence = np.zeros((2, 30, 10, 10))
    label_map[1:5, 1:5, 1:5], evidence[1:5, 1:5, 1:5] = 1, 0.9
    label_map[10:15, 1:6, 1:6], evidence[10:15, 1:6, 1:6] = 1, 0.4
    # Of 64 voxels 57.6, of 125 50.
    sure, unsure = (slice(1, 5),) * 3, (slice(10, 15), slice(1, 6), slice(1, 6))
    assert organ_regions(label_map, evidence, [0, 0, 0], [5, 5, 5]) == [sure]
    assert organ_regions(label_map, evidence, [0, 0, 0], [5, 5, 5], 2) == [unsure, sure]
    evidence[10:15] *= 0.5
    assert organ_regions(label_map, evidence, [0, 0, 0], [5, 5, 5], 2) == [sure]
    # Less of it in all, but more of each voxel; what is far smaller is no organ.
    label_map[20:27, 1:9, 1:9], evidence[20:27, 1:9, 1:9] = 1, 0.2
    label_map[29, 9, 9], evidence[29, 9, 9] = 1, 1.0
    assert organ_regions(label_map, evidence, [0, 0, 0], [5, 5, 5]) == [sure]
    # What is less likely than the background is no organ.
    assert organ_regions(label_map, -evidence, [0, 0, 0], [5, 5, 5]) == []


def test_where_boxes_overlap_of_equally_sure_pieces_that_of_the_largest_counts(network):
    scan = scan_with_organs((20, 10, 8))
    # A second one of two thirds of the first, less than both margins beside it.
    scan[..., 20:24, 20:26, 8:14] += 100
    infer = organ_inferer(trained_extent=[32, 16, 14], num_organs=2)
    assert found_in(scan, infer, network)[20:26, 10:16, 8:14].all()
    shapes = [tuple(seen.shape[2:]) for seen in network.seen[-2:]]
    assert shapes == [(12, 12, 14), (14, 12, 14)]
    torch.testing.assert_close(infer(scan, network)[..., 16:30, 7:19, 4:18], network(network.seen[-1]))
