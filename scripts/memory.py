# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What the C library does with memory that a process has freed."""

from __future__ import annotations

import ctypes
import platform

#: Parameters of mallopt, from malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its own next tensors.

    The GNU C library hands large blocks back to the system as soon as they are freed. The feature maps of 3D networks
    are such blocks: every step of a training on a CPU asks for gigabytes anew, which the system has to fill with
    zeros first, page by page. It cannot be undone while the process lives.

    Returns:
        whether the C library understood; others than that of GNU are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1))
