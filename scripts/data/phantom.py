# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Generated volumes with known truth: a body with organs, spine, vessel and nodules, in MRI or CT intensities.

They stand in where no real data are at hand: to try the bundle out, and to test it. Every case differs in size,
spacing, orientation, shape and (MRI) gain and bias field, so that each step of a pipeline has something to do. An organ
is brighter than the tissue around it by 3.5 to 5 standard deviations of the noise; the nodules and the vessel are as
bright as an organ, so intensity alone does not find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray
from scipy.fft import idctn
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from ..errors import BundleError
from ..files import read_json_object, write_json
from ..nifti import make_nifti, write_nifti
from .splits import IMAGE_PATTERN, LABEL_PATTERN

FloatArray = NDArray[np.float32]
Vector = tuple[float, float, float]

SPLIT_FILE_NAME = "split.json"
MAX_CLASSES = 5
_CASE_NAME = re.compile(r"phantom_\d{3,}")
# Finished files, and the temporary ones that a killed process leaves.
_VOLUME_NAME = re.compile(r"phantom_\d{3,}\.nii\.gz|\.phantom_\d{3,}\.nii\.\w+\.gz")
_UNFINISHED_SPLIT_NAME = re.compile(r"\.split\.\w+\.json")
# The order of the stored axes, case after case: the last one also has the axes permuted.
_ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR")


@dataclass(frozen=True)
class _Intensities:
    """Mean intensity of each tissue and the standard deviation of the noise: CT in HU, MRI in arbitrary units."""

    air: float
    fat: float
    soft_tissue: float
    organs: tuple[float, ...]  # one for each foreground class
    nodule: float
    bone_shell: float
    bone_marrow: float
    noise: float


_INTENSITIES = {
    "ct": _Intensities(-1000.0, -100.0, 40.0, (110.0, 125.0, 100.0, 118.0), 115.0, 400.0, 180.0, 17.0),
    "mri": _Intensities(0.0, 125.0, 90.0, (180.0, 190.0, 165.0, 175.0), 185.0, 25.0, 140.0, 20.0),
}
# Center and radii of the organ of each class in the body's coordinates, where the body reaches from -1 to 1.
_ORGAN_CENTERS: tuple[Vector, ...] = ((0.38, 0.02, 0.05), (-0.42, 0.08, -0.02), (0.0, 0.42, -0.35), (-0.02, 0.3, 0.5))
_ORGAN_RADII: tuple[Vector, ...] = ((0.3, 0.36, 0.36), (0.25, 0.3, 0.3), (0.28, 0.22, 0.24), (0.24, 0.24, 0.22))


def generate_phantom_dataset(
    output_dir: str | Path,
    num_cases: int = 12,
    size: int | Sequence[int] = 64,
    modality: Literal["mri", "ct"] = "mri",
    num_classes: int = 2,
    num_labeled: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Generate a data set of phantom volumes, their labels and its split file.

    The volumes are ``images/phantom_000.nii.gz`` (int16, some of the MRI float32) and ``labels/phantom_000.nii.gz``
    (uint8) and so on. All cases have a label file, since the truth is known: the split says which may be used. A case
    depends on the seed and its own number only, not on how many there are. ``split.json`` is written last: a folder
    with it is complete, and one without it is filled by running again.

    Args:
        output_dir: folder of the data set.
        num_cases: number of cases, at least 4: about 25 % labeled, 50 % unlabeled, 1 of 12 for validation (at least
            1), the others (at least 1) for the test.
        size: voxels along the right, anterior and superior axes, each at least 32; a case differs by up to 1/16.
        modality: ``mri`` (arbitrary units, bias field, Rician noise) or ``ct`` (HU, Gaussian noise).
        num_classes: number of classes with the background, 2 to 5.
        num_labeled: number of labeled cases in place of 25 %; the unlabeled cases make up for the difference.
        seed: seed of everything, at least 0.
        overwrite: replace the phantom data set which is in the folder.

    Returns:
        Path of ``split.json``.

    Raises:
        BundleError: when an argument is out of its range, or the folder already holds a ``split.json``.
    """
    shape = _checked_shape(size)
    if modality not in _INTENSITIES:
        raise BundleError(f"modality must be one of {', '.join(_INTENSITIES)}, got {modality!r}.")
    _check_integer("num_classes", num_classes, low=2, high=MAX_CLASSES)
    _check_integer("seed", seed, low=0)
    counts = _list_sizes(num_cases, num_labeled=num_labeled)

    output_path = Path(output_dir).expanduser()
    split_path = output_path / SPLIT_FILE_NAME
    if split_path.exists():
        if not overwrite:
            raise BundleError(
                f"output_dir: {output_path} already holds a {SPLIT_FILE_NAME}; --overwrite true replaces the data set."
            )
        if not _is_phantom_split(split_path):
            raise BundleError(f"output_dir: {output_path} holds another data set than phantoms: choose another folder.")
        # First of all, so that a run which is stopped half-way does not leave the old split to the new volumes.
        split_path.unlink()
        _remove_volumes(output_path)
    cases = [f"phantom_{index:03d}" for index in range(num_cases)]
    for index, case in enumerate(tqdm(cases, desc="phantom", unit="case", disable=None)):
        image, label = _generate_case(index, shape=shape, modality=modality, num_classes=num_classes, seed=seed)
        write_nifti(image, output_path / IMAGE_PATTERN.format(case=case))
        write_nifti(label, output_path / LABEL_PATTERN.format(case=case))

    split: dict[str, Any] = {
        "version": 1,
        "name": f"phantom_{modality}_{num_cases}",
        "description": f"{num_cases} generated {modality.upper()} volumes with {num_classes} classes, seed {seed}.",
        "seed": seed,
        "image": IMAGE_PATTERN,
        "label": LABEL_PATTERN,
    }
    start = 0
    for list_name, count in counts.items():
        split[list_name] = cases[start : start + count]
        start += count
    write_json(split_path, split)
    return split_path


def ensure_phantom_dataset(output_dir: str | Path) -> bool:
    """Generate the default phantom data set in a folder that is missing, empty, or was left half-filled by this.

    Several processes may do so at once (one for each GPU): they write the same files, each in one step.

    Args:
        output_dir: folder of the data set.

    Returns:
        Whether it was generated. A folder with anything else in it is left alone.
    """
    output_path = Path(output_dir).expanduser()
    if output_path.exists() and not (output_path.is_dir() and _is_unfinished(output_path)):
        return False
    try:
        generate_phantom_dataset(output_path)
    except BundleError:
        if not (output_path / SPLIT_FILE_NAME).is_file():  # else another process was quicker
            raise
    return True


def is_phantom_case(case: str) -> bool:
    """Return whether a case id is one that :func:`generate_phantom_dataset` gives."""
    return _CASE_NAME.fullmatch(case) is not None


def _volume_folders(output_path: Path) -> list[Path]:
    return [(output_path / pattern).parent for pattern in (IMAGE_PATTERN, LABEL_PATTERN)]


def _is_volume(path: Path) -> bool:
    return _VOLUME_NAME.fullmatch(path.name) is not None


def _is_unfinished(output_path: Path) -> bool:
    folders = _volume_folders(output_path)
    for path in output_path.iterdir():
        unfinished_split = _UNFINISHED_SPLIT_NAME.fullmatch(path.name)
        if not unfinished_split and not (path in folders and path.is_dir()):
            return False
    return all(_is_volume(path) for folder in folders if folder.is_dir() for path in folder.iterdir())


def _is_phantom_split(split_path: Path) -> bool:
    try:
        content = read_json_object(split_path)
        cases = [case for value in content.values() if isinstance(value, list) for case in value]
        return all(is_phantom_case(case) for case in cases)
    except (BundleError, TypeError):
        return False


def _remove_volumes(output_path: Path) -> None:
    for folder in _volume_folders(output_path):
        for path in folder.glob("*.gz"):
            if _is_volume(path):
                path.unlink()


def _check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and value > high):
        raise BundleError(f"{name} must be {allowed}, got {value!r}.")


def _checked_shape(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(size) if isinstance(size, list | tuple) else (size,) * 3
    if len(sizes) != 3:
        raise BundleError(f"size must be one integer or three, got {size!r}.")
    for number in sizes:
        _check_integer("size", number, low=32)
    return sizes[0], sizes[1], sizes[2]


def _list_sizes(num_cases: int, num_labeled: int | None) -> dict[str, int]:
    _check_integer("num_cases", num_cases, low=4)
    validation = max(1, round(num_cases / 12))
    most_for_training = num_cases - validation - 1
    training = min(round(0.75 * num_cases), most_for_training)
    labeled = max(1, round(0.25 * num_cases))
    if num_labeled is not None:
        _check_integer("num_labeled", num_labeled, low=1, high=most_for_training - 1)
        labeled = num_labeled
        training = max(training, labeled + 1)
    return {
        "labeled": labeled,
        "unlabeled": training - labeled,
        "validation": validation,
        "test": num_cases - training - validation,
    }


def _generate_case(
    index: int, shape: tuple[int, int, int], modality: str, num_classes: int, seed: int
) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    generator = np.random.default_rng([seed, index])
    case_shape = tuple(int(number + generator.integers(-(number // 16), number // 16 + 1)) for number in shape)
    # In-plane voxels are square and the slices a little thicker or thinner, as scanners give them.
    in_plane_mm, slice_mm = (round(generator.uniform(0.8, 1.2), 3) for _ in range(2))
    spacing_mm = np.array([in_plane_mm, in_plane_mm, slice_mm])

    tissue, label = _anatomy(generator, shape=case_shape, intensities=_INTENSITIES[modality], num_classes=num_classes)
    image = _acquire(generator, tissue=tissue, modality=modality)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * np.array(case_shape) / 2 + generator.uniform(-20.0, 20.0, size=3).round(2)
    if modality == "mri" and index % 2:
        stored_image: NDArray[Any] = image
    else:
        stored_image = np.rint(image).astype(np.int16)
    orientation = _ORIENTATIONS[index % len(_ORIENTATIONS)]
    return _to_nifti(stored_image, affine, orientation), _to_nifti(label, affine, orientation)


def _to_nifti(volume: NDArray[Any], affine: NDArray[np.float64], orientation: str) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(volume, affine)
    transform = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(orientation)
    )
    turned = image.as_reoriented(transform)
    return make_nifti(np.asanyarray(turned.dataobj), turned.affine)


def _smooth_field(generator: np.random.Generator, shape: Sequence[int], frequencies: int) -> FloatArray:
    """Random field of a few cosines along each axis, mean 0 and standard deviation 1 over the volume."""
    coefficients = generator.standard_normal((frequencies,) * 3)
    order = np.indices(coefficients.shape).astype(np.float64)
    coefficients /= 1.0 + np.square(order).sum(axis=0)
    coefficients[0, 0, 0] = 0.0
    padded = np.zeros(tuple(shape), dtype=np.float32)
    padded[:frequencies, :frequencies, :frequencies] = coefficients
    field = idctn(padded, norm="ortho")
    return np.asarray(field / field.std(), dtype=np.float32)


def _anatomy(
    generator: np.random.Generator, shape: Sequence[int], intensities: _Intensities, num_classes: int
) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Paint the tissues of one body, axes right, anterior and superior: mean intensities and class indices."""
    axes = [((np.arange(number) + 0.5) / number * 2 - 1).astype(np.float32) for number in shape]
    grid: FloatArray = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    # The body: an elliptic trunk, narrower in front-back direction, which the upper and lower face cut.
    extent = np.array([0.92, 0.78, 1.35]) * generator.uniform(0.93, 1.03, size=3)
    body_points: FloatArray = np.asarray(grid / extent.reshape(3, 1, 1, 1), dtype=np.float32)
    body_points += 0.035 * np.stack([_smooth_field(generator, shape, frequencies=4) for _ in range(3)])
    depth = 1.0 - np.sqrt(np.square(body_points).sum(axis=0))  # 0 at the skin, 1 in the center

    tissue = np.full(tuple(shape), intensities.air, dtype=np.float32)
    tissue[depth > 0] = intensities.fat
    inner = depth > generator.uniform(0.09, 0.15)
    texture = _smooth_field(generator, shape, frequencies=8)
    contrast = intensities.organs[0] - intensities.soft_tissue
    tissue[inner] = intensities.soft_tissue + 0.12 * contrast * texture[inner]

    spine_center = np.array([generator.uniform(-0.05, 0.05), generator.uniform(-0.6, -0.52)])
    spine = _tube_radius(body_points, center=spine_center)
    spine_radius = generator.uniform(0.17, 0.21)
    tissue[spine < spine_radius] = intensities.bone_shell
    tissue[spine < 0.68 * spine_radius] = intensities.bone_marrow
    vessel_center = spine_center + np.array(
        [generator.uniform(0.02, 0.1), spine_radius + generator.uniform(0.11, 0.14)]
    )
    tissue[_tube_radius(body_points, center=vessel_center) < generator.uniform(0.07, 0.09)] = intensities.nodule

    label = np.zeros(tuple(shape), dtype=np.uint8)
    highest = np.full(tuple(shape), -1.0, dtype=np.float32)
    for index in range(num_classes - 1):
        level = _organ_level(generator, points=body_points, index=index)
        level[~inner | (spine < spine_radius)] = -1.0
        # Where two organs meet, a voxel belongs to the one it is deeper inside of.
        label[level > np.maximum(highest, 0.0)] = index + 1
        highest = np.maximum(highest, level)
    for index in range(num_classes - 1):
        organ = get_largest_connected_component_mask(label == index + 1, connectivity=1)
        label[(label == index + 1) & ~organ] = 0

    # Nodules keep a gap of about two voxels to the organs, or the truth would be a matter of taste.
    free = inner & (highest < -0.25) & (spine > spine_radius)
    for _ in range(4):
        direction = generator.standard_normal(3)
        center = 0.66 * direction / np.linalg.norm(direction) * [1.0, 1.0, 0.6]
        offset = body_points - center.reshape(3, 1, 1, 1).astype(np.float32)
        stretch = generator.uniform(0.8, 1.3, size=3).reshape(3, 1, 1, 1).astype(np.float32)
        nodule = np.sqrt(np.square(offset * stretch).sum(axis=0)) < generator.uniform(0.07, 0.11)
        tissue[nodule & free] = intensities.nodule
    for index in range(num_classes - 1):
        organ = label == index + 1
        tissue[organ] = intensities.organs[index] + 0.08 * contrast * texture[organ]
    return tissue, label


def _tube_radius(points: FloatArray, center: NDArray[np.float64]) -> FloatArray:
    """Distance from a line along the superior axis."""
    return np.hypot(points[0] - np.float32(center[0]), points[1] - np.float32(center[1]))


def _organ_level(generator: np.random.Generator, points: FloatArray, index: int) -> FloatArray:
    """Level set of one organ, positive inside: a large lobe and a smaller one melted together, with an uneven skin."""
    center = np.array(_ORGAN_CENTERS[index]) + generator.uniform(-0.08, 0.08, size=3)
    radii = np.array(_ORGAN_RADII[index]) * generator.uniform(0.85, 1.15) * generator.uniform(0.88, 1.12, size=3)
    rotation = Rotation.from_rotvec(generator.normal(scale=0.4, size=3)).as_matrix()
    second_center = center + rotation @ (radii * np.array([0.3, -0.45, 0.75]) * generator.uniform(0.8, 1.1, size=3))
    lobes = []
    for lobe_center, lobe_radii in ((center, radii), (second_center, 0.62 * radii)):
        transform = (rotation.T / lobe_radii[:, None]).astype(np.float32)
        local = np.tensordot(transform, points - lobe_center.reshape(3, 1, 1, 1).astype(np.float32), axes=1)
        lobes.append(1.0 - np.sqrt(np.square(local).sum(axis=0)))
    sharpness = 9.0
    melted = np.logaddexp(sharpness * lobes[0], sharpness * lobes[1]) / sharpness
    uneven = _smooth_field(generator, points.shape[1:], frequencies=9)
    return np.asarray(melted + 0.055 * uneven, dtype=np.float32)


def _acquire(generator: np.random.Generator, tissue: FloatArray, modality: str) -> FloatArray:
    """Turn mean intensities into what a scanner gives: partial volume, bias field and gain (MRI), noise."""
    noise = _INTENSITIES[modality].noise

    def draw_noise() -> FloatArray:
        return generator.standard_normal(tissue.shape, dtype=np.float32) * np.float32(noise)

    image = gaussian_filter(tissue, sigma=generator.uniform(0.5, 0.8))
    if modality == "ct":
        return np.clip(image + draw_noise(), -1024.0, 3071.0)
    image *= np.exp(0.13 * _smooth_field(generator, tissue.shape, frequencies=3))
    # Magnitude of a complex signal with noise in both parts: Rician.
    gain = np.float32(generator.uniform(0.7, 1.6))
    return np.asarray(gain * np.hypot(image + draw_noise(), draw_noise()), dtype=np.float32)
