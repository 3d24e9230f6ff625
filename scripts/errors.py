# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The one exception for mistakes that a user can mend, and what errors of libraries say, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BundleError(ValueError):
    """A mistake in what the user gave: names the argument or file, what is allowed, and what came."""


def one_of(names: Iterable[str]) -> str:
    """List what is allowed.

    Args:
        names: at least one.

    Returns:
        them with commas between, and "or" before the last.
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def did_you_mean(word: str, names: Iterable[str], *, prefix: str = "", at_most: int = 1) -> str:
    """Ask for what a misspelled name may have meant.

    Args:
        word: what came.
        names: what is allowed.
        prefix: what stands before a name where it is written, such as ``--``.
        at_most: names to ask for, the most similar ones.

    Returns:
        a question that begins with a space; nothing where no name is similar.
    """
    similar = difflib.get_close_matches(word, list(names), n=at_most)
    return f" Did you mean {one_of(prefix + name for name in similar)}?" if similar else ""


def innermost(error: BaseException) -> BaseException:
    """Find what libraries have wrapped into errors of their own.

    Args:
        error: what was raised.

    Returns:
        the first :class:`BundleError` of the chain of causes, which says it best, otherwise the last of the chain.
    """
    while error.__cause__ is not None and not isinstance(error, BundleError):
        error = error.__cause__
    return error


def root_cause(error: BaseException) -> str:
    """Tell what an error that libraries have wrapped was at first.

    Args:
        error: what was raised.

    Returns:
        the first line of the :func:`innermost` error, or the name of its class where it says nothing.
    """
    cause = innermost(error)
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of which no file and no argument is to blame.

    Args:
        error: what was raised, by Python, NumPy or PyTorch, on a CPU or on a GPU, and whatever libraries made of it.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return any(
        isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(one)
        for one in chain
    )


def one_line(error: BaseException) -> str:
    """Join the lines of an error.

    Args:
        error: what was raised.

    Returns:
        its text in one line, or the name of its class where it says nothing.
    """
    return " ".join(str(error).split()) or type(error).__name__
