# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What is left of an error that libraries have wrapped."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from scripts.errors import BundleError, innermost, is_out_of_memory, root_cause


def wrapped(*errors):
    """The first error, with each other one as the cause of the one before."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def test_the_innermost_error_is_told():
    error = wrapped(RuntimeError("applying transform"), OSError("CRC check failed\nand more"))
    assert innermost(error) is error.__cause__
    assert root_cause(error) == "CRC check failed"
    assert root_cause(wrapped(RuntimeError("applying transform"), KeyError())) == "KeyError"


def test_what_the_bundle_says_goes_before_what_a_library_says():
    refusal = BundleError("it cannot be read to its end, the file is damaged: CRC check failed.")
    error = wrapped(RuntimeError("applying transform"), refusal, OSError("CRC check failed"))
    assert innermost(error) is refusal
    assert root_cause(error) == str(refusal)


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_memory_that_is_not_enough_is_known(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate((2**50,))
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(wrapped(RuntimeError("applying transform"), caught.value))


def test_memory_of_a_gpu_is_known():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(wrapped(RuntimeError("out of range"), OSError("truncated")))
