# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Read and write files of tensors, and check and describe networks before a run relies on them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from monai.utils.misc import str2bool
from torch import nn

from .errors import BundleError, is_out_of_memory, one_line
from .files import check_writable, replacing

#: Numbers of system errors that say something of the file: it is missing, or its end lies before its beginning.
_OF_THE_FILE = (None, errno.ENOENT, errno.EINVAL)


class DamagedFileError(BundleError):
    """A file of tensors that cannot be read, or whose content is not what was written."""


def read_tensors(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote, without running code of the file.

    Args:
        path: the file.

    Returns:
        its content, on the CPU.

    Raises:
        DamagedFileError: when it is missing, cannot be read or a checksum is wrong, which ``torch.load`` alone does not
            notice.
        OSError: when the system fails to read it: nothing is known of its content then.
    """
    try:
        with ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedFileError(f"the checksum of {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes zip and unpickling fail in a dozen unrelated ways.
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in _OF_THE_FILE):
            raise
        kind = "damaged" if is_zipfile(path) else "damaged, or no file of tensors"
        raise DamagedFileError(f"{path} is {kind} ({one_line(error)})") from error


def check_output(output: str | Path, ckpt_path: str | Path, *, overwrite: bool) -> None:
    """Refuse a file of weights to write that would replace something without being told to, before it is made.

    Args:
        output: the file.
        ckpt_path: the weights that it is made of.
        overwrite: a file that is there may be replaced.

    Raises:
        BundleError: when it is a folder, the weights themselves, or there and not to be replaced, or when no file can
            be written there.
    """
    path = Path(output)
    if path.resolve() == Path(ckpt_path).resolve():
        raise BundleError(f"output must be another file than ckpt_path, got {output} for both.")
    if path.is_dir():
        raise BundleError(f"output must be a file of weights, but {output} is a folder.")
    if path.exists() and not overwrite:
        raise BundleError(f"output {output} exists: replace it by --overwrite true, or choose another file.")
    check_writable("output", path.parent)


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a file of tensors in one step: a reader finds the old file or the new one, never half of it.

    Args:
        path: the file.
        content: what :func:`read_tensors` will return.

    Raises:
        OSError: when it cannot be written.
    """
    # By a stream of Python, which says why it cannot be written.
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)


def describe_network(network: nn.Module) -> str:
    """Describe what a network's weights do not tell of it.

    Args:
        network: the network.

    Returns:
        its class, its probabilities of dropout, and normalization other than that of the batch, such as
        ``DualNetwork with dropout 0.5`` or ``VNet with dropout 0.5, InstanceNorm3d``.
    """
    dropouts = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    probabilities = sorted({layer.p for layer in network.modules() if isinstance(layer, dropouts)})
    others = {
        type(layer).__name__ for layer in network.modules() if isinstance(layer, (nn.InstanceNorm3d, nn.GroupNorm))
    }
    values = [*(f"{value:g}" for value in probabilities or [0.0]), *sorted(others)]
    return f"{type(network).__name__} with dropout {', '.join(values)}"


def check_disagreement(network: nn.Module) -> None:
    """Refuse a map of uncertainty from a network that has none.

    Args:
        network: the network of the inference.

    Raises:
        BundleError: when it is not two networks whose disagreement is asked for.
    """
    if not getattr(network, "with_disagreement", False):
        raise BundleError(
            f"save_uncertainty needs the two networks of DualNetwork, whose disagreement it shows: "
            f"{type(network).__name__} gives class probabilities alone."
        )


def check_weights(path: str, network: nn.Module, *, name: str = "ckpt_path") -> dict[str, torch.Tensor]:
    """Make sure that a file holds the weights of a network.

    Args:
        path: file of a bare state dict, as training writes it to ``model_final.pt`` and ``model.pt``.
        network: the network that will load it.
        name: what to call the path in the message.

    Returns:
        the weights.

    Raises:
        BundleError: when the file is missing, damaged, or of a network with other layers, channels or classes.
    """
    file = Path(path)
    if not file.is_file():
        raise BundleError(f"{name} {path} does not exist: train first, or name a file of weights by --{name}.")
    try:
        state = read_tensors(file)
    except DamagedFileError as error:
        raise BundleError(f"{name} {path} cannot be read as a file of weights; it may be damaged.") from error
    expected = network.state_dict()
    is_state = isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())
    if isinstance(state, dict) and "method" in state and "iteration" in state:
        raise BundleError(
            f"{name} {path} is a checkpoint, from which a run goes on by --resume true: name the model_final.pt or "
            "model.pt of its run."
        )
    if not is_state or state.keys() != expected.keys():
        raise BundleError(f"{name} {path} holds the weights of another network than the configured one.")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise BundleError(
                f"{name} {path} does not fit: {key} has shape {list(state[key].shape)}, the configured network "
                f"needs {list(value.shape)}; check num_classes and in_channels."
            )
        if not state[key].isfinite().all():
            raise BundleError(f"{name} {path} holds values that are not finite, in {key}.")
    return state


def place_network(
    network: nn.Module,
    *,
    device: str | torch.device,
    channels_last: bool | str = False,
    initial_weights: str | None = None,
) -> nn.Module:
    """Put a network where it will be trained, with the weights from which the training starts.

    Args:
        network: the network; it is changed and given back.
        device: where to train.
        channels_last: lay its weights out in the memory format channels_last_3d; a text like "true" is understood.
        initial_weights: file of a bare state dict of this network, in any precision; None keeps the weights.

    Returns:
        the network.

    Raises:
        BundleError: when the file is missing or does not hold weights of this network, see :func:`check_weights`.
    """
    if initial_weights is not None:
        if not Path(initial_weights).is_file():
            raise BundleError(
                f"initial_weights {initial_weights} does not exist: name a file of weights, or leave initial_weights "
                "out, to begin with random ones or to go on from the checkpoint of a run."
            )
        network.load_state_dict(check_weights(initial_weights, network, name="initial_weights"))
    memory_format = torch.channels_last_3d if str2bool(channels_last) else torch.contiguous_format
    # The stubs of PyTorch know no memory format beside a device.
    return network.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
