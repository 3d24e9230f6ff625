# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Look at each argument of a command before it is used.

Fire turns words into whatever Python they look like: ``007`` into a number, ``a,b`` into a tuple. Each function here
takes the name of an argument and what came of it, gives it in the type that the command works with, and raises
:class:`scripts.errors.BundleError`, which names the argument, what is allowed and what came.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .data.splits import composed
from .errors import BundleError
from .files import check_home
from .grid.methods import full_name
from .inference_configuration import inference_configs


def optional(read: Callable[..., Any], name: str, value: Any, **limits: int) -> Any:
    """Read an argument that may be left out.

    Args:
        read: the function of this module that reads it.
        name: what to call it in the message.
        value: what came, None where it was left out.
        **limits: for ``read``.

    Returns:
        None, or what ``read`` gives.
    """
    return None if value is None else read(name, value, **limits)


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """Read a whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise BundleError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return value


def whole_numbers(name: str, value: Any) -> list[int]:
    """Read different whole numbers from 0 with commas between them."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    for number in values:
        whole_number(name, number, at_least=0)
    if len(set(values)) != len(values):
        raise BundleError(f"{name} must be different numbers, got {value!r}.")
    return values


def text(name: str, value: Any) -> str:
    """Read a path or a name."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise BundleError(f"{name} must be a string, got the number {value}: write a path with ./ in front of it.")
    if not isinstance(value, str) or not value:
        raise BundleError(f"{name} must be a string, got {value!r}.")
    # Most texts are paths.
    check_home(name, value)
    return value


def free_text(name: str, value: Any) -> str:
    """Read words for people, in which commas and digits are nothing special."""
    # Words with commas between them have become a tuple, digits a number.
    words = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if not words:
        raise BundleError(f"{name} must be a string, got {value!r}.")
    return words


def texts(name: str, value: Any) -> list[str]:
    """Read different names with commas between them."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
        raise BundleError(f"{name} must be strings with commas between them, got {value!r}.")
    return _different(name, [word.strip() for word in words])


def case_names(name: str, value: Any) -> list[str]:
    """Read different names of cases with commas between them, or a text file with one a line."""
    if isinstance(value, str) and os.path.isfile(value):
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise BundleError(f"{name} {value} must be a text file in UTF-8: {error}.") from error
        return _different(f"{name} {value}", [composed(line.strip()) for line in lines if line.strip()])
    return _different(name, [composed(case) for case in texts(name, value)])


def three_sizes(name: str, value: Any) -> list[int]:
    """Read the size of a crop or a step in voxels along the three axes."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise BundleError(f"{name} must be three whole numbers, such as [96,96,96], got {value!r}.")
    return [whole_number(name, size, at_least=1) for size in value]


def spacing_mm(name: str, value: Any) -> list[float]:
    """Read the size of a voxel in mm, one number for all axes or three."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(numbers) != 3 or not all(type(number) in (int, float) and 0 < number < float("inf") for number in numbers):
        raise BundleError(f"{name} must be one or three sizes above 0 mm, got {value!r}.")
    return [float(number) for number in numbers]


def method_name(name: str, value: Any) -> str:
    """Read the name of a method, also a short one."""
    return full_name(text(name, value))


def inference_files(data: Any, config_file: Any) -> list[str]:
    """Read which configuration an inference takes: that of a data set's name, or files."""
    if config_file is None:
        return inference_configs(optional(text, "data", data))
    if data is not None:
        raise BundleError("data names a configuration file as config_file does: give one of the two.")
    return texts("config_file", config_file)


def _different(name: str, words: list[str]) -> list[str]:
    if (repeated := next((word for word in words if words.count(word) > 1), None)) is not None:
        raise BundleError(f"{name} must be different names, got {repeated!r} twice.")
    return words
