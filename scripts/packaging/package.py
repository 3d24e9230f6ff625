# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""One bundle as a folder and as a zip file, in the form of the MONAI Model Zoo."""

from __future__ import annotations

import filecmp
import html
import json
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from monai.bundle import ConfigParser
from torch import nn

from ..errors import BundleError
from ..files import CONFIGS, ROOT, file_hash, write_json, write_text
from ..weights import check_weights
from .triton import write_triton_model

#: Configurations that are the same for every bundle.
COMMON_CONFIGS = ("evaluate.json", "multi_gpu_train.json", "test_time_augmentation.json", "logging.conf")
#: The Model Zoo takes no file above this size in a pull request.
_LARGE_FILE_BYTES = 25 * 10**6
_WEIGHTS = "models/model.pt"
_PAGES = ROOT / "docs/packages"


@dataclass(frozen=True)
class Package:
    """What one bundle holds that others do not.

    Args:
        name: of its folder, by the rules of the Model Zoo: organ, type of image, and the word segmentation.
        configs: content of ``configs/<key>.json``, among them train, inference and metadata, which stand alone.
        readme: content of ``docs/README.md``.
        data_license: content of ``docs/data_license.txt``.
        network: the deployed network, with its weights.
        weights: file of these weights, or None for a bundle that has to be trained first.
        patterns: files of this bundle's ``configs/`` that go along, beside ``configs``.
    """

    name: str
    configs: Mapping[str, dict[str, Any]]
    readme: str
    data_license: str
    network: nn.Module
    weights: Path | None
    patterns: tuple[str, ...]


def write_package(
    package: Package,
    output_dir: str | Path,
    *,
    triton: bool = False,
    large_files_url: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a bundle as a folder and as a zip file, and a Triton model repository on demand.

    Args:
        package: what is in it.
        output_dir: where ``<name>/`` and ``<name>_v<version>.zip`` go, and ``triton/<name>/``.
        triton: write ``triton/<name>/`` too.
        large_files_url: address of a folder that serves ``<name>/models/model.pt``; weights above 25 MB are then named
            by a ``large_files.yml`` instead of copied.
        overwrite: replace what an earlier call left.

    Returns:
        the paths that were written.

    Raises:
        BundleError: when something is there already, or an option needs weights and there are none.
    """
    if package.weights is None and (triton or large_files_url is not None):
        option = "triton" if triton else "large_files_url"
        raise BundleError(f"{option} needs weights: leave out without_weights.")
    name, version, output = package.name, package.configs["metadata"]["version"], Path(output_dir)
    targets = [output / name, output / f"{name}_v{version}.zip", *([output / "triton" / name] if triton else [])]
    taken = [path for path in targets if path.exists()]
    if taken and not overwrite:
        raise BundleError(f"{taken[0]} exists: replace it by --overwrite true, or choose another --output_dir.")

    output.mkdir(parents=True, exist_ok=True)
    # Built aside and moved at the end: what was there is kept when something fails.
    with TemporaryDirectory(dir=output, prefix=".package_") as temporary:
        folder = Path(temporary) / name
        _write_folder(folder, package)
        if package.weights is not None:
            _add_weights(folder, package.weights, large_files_url)
        built = [folder, Path(shutil.make_archive(f"{folder}_v{version}", "zip", root_dir=temporary, base_dir=name))]
        if triton:
            inference = package.configs["inference"]
            sizes = {key: inference[key] for key in ("in_channels", "num_classes", "patch_size")}
            built.append(write_triton_model(Path(temporary) / "triton" / name, package.network, **sizes))
            _refuse_other_triton_files(targets[2], built[2])
        _refuse_other_files(targets[0], folder, package.weights)
        for number, (path, target) in enumerate(zip(built, targets)):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.replace(Path(temporary) / f"replaced_{number}")
            path.replace(target)
    return targets


def load_network(inference: Mapping[str, Any], weights: Path | None) -> nn.Module:
    """Build the network of a configuration of inference, with its weights if there are any.

    Args:
        inference: the merged configuration.
        weights: file of a bare state dict, or None.

    Returns:
        the network.

    Raises:
        BundleError: when the file is missing, damaged or of another network.
    """
    # A parser resolves macros in the dictionary that it is given.
    network: nn.Module = ConfigParser(deepcopy(dict(inference))).get_parsed_content("network_def")
    if weights is not None:
        network.load_state_dict(check_weights(str(weights), network, name="weights"))
    return network


def describe_classes(metadata: dict[str, Any], class_names: Iterable[str], patch_size: list[int]) -> None:
    """Write the classes and the size of a window into the metadata.

    Args:
        metadata: content of ``metadata.json``; it is changed.
        class_names: names of the classes without the background.
        patch_size: voxels of a window, X, Y, Z.
    """
    channels = {str(index): name for index, name in enumerate(["background", *class_names])}
    metadata["label_classes"] = f"single channel label map: {_list_classes(channels)}"
    metadata["pred_classes"] = f"{len(channels)} channels of probabilities: {_list_classes(channels)}"
    formats = metadata["network_data_format"]
    formats["inputs"]["image"]["spatial_shape"] = patch_size
    formats["outputs"]["pred"] |= {"spatial_shape": patch_size, "num_channels": len(channels), "channel_def": channels}


def readme_text(pages: Sequence[str], configs: Mapping[str, dict[str, Any]], network: nn.Module, **facts: str) -> str:
    """Make the page of a bundle of the facts of its configurations.

    Args:
        pages: files of ``docs/packages/`` that follow each other on it, without their suffix.
        configs: those of the bundle.
        network: the deployed network.
        facts: what else the pages name.

    Returns:
        content of ``docs/README.md``.
    """
    train, metadata = configs["train"], configs["metadata"]
    spacing, figures = train["spacing"], metadata["eval_metrics"]
    shared = {
        "name": metadata["name"],
        "patch_size": " x ".join(map(str, train["patch_size"])),
        "spacing": "kept" if spacing is None else f"resampled to {' x '.join(map(str, spacing))} mm",
        "iterations": train["iterations"],
        "classes": readme_line(_list_classes(metadata["network_data_format"]["outputs"]["pred"]["channel_def"])),
        "num_classes": train["num_classes"],
        "channels": "one channel" if train["in_channels"] == 1 else f"{train['in_channels']} channels",
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f}",
        "performance": "\n".join(f"- {readme_line(metric)}: {value}" for metric, value in figures.items())
        or "No figure has been measured with the weights of this version.",
        "references": "\n\n".join(f"[{i}] {text}" for i, text in enumerate(metadata["references"], start=1)),
    }
    texts = [(_PAGES / f"{page}.md").read_text(encoding="utf-8") for page in pages]
    return Template("\n".join(texts)).substitute(shared | facts)


def readme_line(text: str) -> str:
    """Write words of the user so that they begin no tag and no section of a page.

    Args:
        text: any text.

    Returns:
        the text in one line, with the signs of HTML escaped.
    """
    return html.escape(" ".join(text.split()), quote=False)


def _list_classes(channels: Mapping[str, str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in channels.items())


def _write_folder(folder: Path, package: Package) -> None:
    for part in ("configs/splits", "models"):
        (folder / part).mkdir(parents=True)
    for pattern in package.patterns:
        for path in sorted(CONFIGS.glob(pattern)):
            shutil.copyfile(path, folder / "configs" / path.relative_to(CONFIGS))
    for name, content in package.configs.items():
        write_json(folder / f"configs/{name}.json", content)
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in ("LICENSE", "requirements.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    # With it, the bundle can package what is trained in it.
    write_text(folder / "docs/packages/run.md", (_PAGES / "run.md").read_text(encoding="utf-8"))
    write_text(folder / "docs/README.md", package.readme)
    write_text(folder / "docs/data_license.txt", package.data_license)


def _refuse_other_files(present: Path, built: Path, weights: Path | None) -> None:
    """Refuse to replace a folder that holds more than an earlier call wrote: a run, data, weights or pages of its user.

    What a call wrote is known again by the zip file that it wrote beside the folder.
    """
    if present.exists() and not present.is_dir():
        raise BundleError(f"{present} is a file, which no package is: move it away.")
    packaged = _packaged_files(present)
    for path in sorted(present.rglob("*")):
        relative = path.relative_to(present)
        if path.is_symlink() or (path.is_dir() and not any(path.iterdir()) and not (built / relative).is_dir()):
            raise BundleError(f"{present} holds {relative}, a link or folder which no package has: move it away.")
        if path.is_dir() or "__pycache__" in relative.parts:
            continue
        if (f"{present.name}/{relative.as_posix()}", zlib.crc32(path.read_bytes())) in packaged:
            continue
        if not (built / relative).exists():
            raise BundleError(f"{present} holds {relative}, which is not of the new package: move it away.")
        # What the new package has as well is not lost.
        if not any(
            other is not None and filecmp.cmp(path, other, shallow=False) for other in (built / relative, weights)
        ):
            known = "as no package has it" if packaged else "and no zip file beside it tells what was packaged"
            raise BundleError(f"{present} holds {relative}, {known}: move it away.")


def _refuse_other_triton_files(present: Path, built: Path) -> None:
    """Refuse to replace a Triton model whose user has changed its settings, or added versions of it."""
    for path in sorted(present.rglob("*")):
        relative = path.relative_to(present)
        if path.is_symlink():
            raise BundleError(f"{present} holds {relative}, a link which no package has: move it away.")
        is_same = (built / relative).exists() and (path.suffix == ".pt" or filecmp.cmp(path, built / relative, False))
        if path.is_file() and not is_same:
            raise BundleError(f"{present} holds {relative}, which is not that of the new package: move it away.")


def _packaged_files(package: Path) -> set[tuple[str, int]]:
    """Names and checksums of what the zip files beside the folder of a package hold."""
    files = set()
    for path in package.parent.glob(f"{package.name}_v*.zip"):
        # One that was cut off, or only has the name, tells nothing.
        with suppress(BadZipFile, OSError), ZipFile(path) as archive:
            files |= {(entry.filename, entry.CRC) for entry in archive.infolist()}
    return files


def _add_weights(folder: Path, source: Path, large_files_url: str | None) -> None:
    if large_files_url is None or source.stat().st_size <= _LARGE_FILE_BYTES:
        shutil.copyfile(source, folder / _WEIGHTS)
        return
    entry = {
        "path": _WEIGHTS,
        "url": f"{large_files_url.rstrip('/')}/{folder.name}/{_WEIGHTS}",
        "hash_val": file_hash(source),
        "hash_type": "sha256",
    }
    lines = [f"{'  - ' if key == 'path' else '    '}{key}: {json.dumps(value)}" for key, value in entry.items()]
    write_text(folder / "large_files.yml", "\n".join(["large_files:", *lines]) + "\n")
